//! What the workers, the sweeper and the port keeper of one dispatcher share.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use crate::{Failure, Handler, InstallPolicy, Limits, Ports};

/// Shared state; nothing in it is locked on the path of an upcall.
pub(crate) struct Shared {
    pub(crate) handler: Box<dyn Handler>,
    pub(crate) dp_ifindex: i32,
    pub(crate) packet_family: u16,
    pub(crate) flow_family: u16,
    pub(crate) install: InstallPolicy,
    pub(crate) limits: Limits,
    /// Read once a batch.
    pub(crate) ports: ArcSwap<Ports>,
    /// Wakes the sweeper.
    pub(crate) sweep_now: Notify,
    /// Counts the times that decisions made before may have become wrong.
    epoch: AtomicU64,
    /// Calls of the handler outside of upcalls that panicked.
    pub(crate) handler_panics: AtomicU64,
    /// Somebody else serves the datapath now.
    pub(crate) taken_over: AtomicBool,
    /// Flows on the datapath at the last sweep.
    pub(crate) flows_current: AtomicU64,
    /// Flows that may still be installed before the next sweep counts anew.
    flow_room: AtomicI64,
    /// Times that features or table were set right after somebody changed them.
    pub(crate) repairs: AtomicU64,
    /// The first failure; a second one changes nothing.
    pub(crate) failure: watch::Sender<Option<Failure>>,
}

impl Shared {
    pub(crate) fn new(
        handler: Box<dyn Handler>,
        dp_ifindex: i32,
        packet_family: u16,
        flow_family: u16,
        install: InstallPolicy,
        limits: Limits,
    ) -> Arc<Self> {
        Arc::new(Self {
            handler,
            dp_ifindex,
            packet_family,
            flow_family,
            install,
            limits,
            ports: ArcSwap::default(),
            sweep_now: Notify::new(),
            flows_current: AtomicU64::new(0),
            flow_room: AtomicI64::new(limits.flows_max.cast_signed()),
            repairs: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            handler_panics: AtomicU64::new(0),
            taken_over: AtomicBool::new(false),
            failure: watch::Sender::new(None),
        })
    }

    /// Publishes a new snapshot of the ports, to the handler first.
    pub(crate) fn set_ports(&self, ports: Ports) {
        self.guarded(|handler| handler.ports_changed(&ports));
        self.ports.store(Arc::new(ports));
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Decisions made before may be wrong now: installs that wait are given up, flows are looked at.
    pub(crate) fn revalidate(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.sweep_now.notify_one();
    }

    /// Changes whenever decisions made before may have become wrong.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Calls the handler; `None`, counted, if it panics.
    pub(crate) fn guarded<T>(&self, call: impl FnOnce(&dyn Handler) -> T) -> Option<T> {
        let result = catch_unwind(AssertUnwindSafe(|| call(&*self.handler))).ok();
        if result.is_none() {
            self.handler_panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!("the handler panicked outside of an upcall");
        }
        result
    }

    /// Takes room for one flow; `false` if the limit is reached.
    pub(crate) fn take_flow_room(&self) -> bool {
        self.flow_room.fetch_sub(1, Ordering::Relaxed) > 0
    }

    /// A sweep counted the flows.
    pub(crate) fn flows_counted(&self, flows: u64) {
        self.flows_current.store(flows, Ordering::Relaxed);
        let room = self.limits.flows_max.cast_signed().saturating_sub_unsigned(flows);
        self.flow_room.store(room, Ordering::Relaxed);
    }

    /// Reports what ends the dispatcher.
    pub(crate) fn fail(&self, failure: Failure) {
        tracing::error!(%failure, "dispatcher failed");
        self.failure.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(failure);
            is_first
        });
    }
}
