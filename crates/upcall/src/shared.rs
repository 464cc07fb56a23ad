//! What the workers, the sweeper and the port keeper of one dispatcher share.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc};

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
    /// Flows on the datapath at the last sweep.
    pub(crate) flows_current: AtomicU64,
    /// Flows that may still be installed before the next sweep counts anew.
    flow_room: AtomicI64,
    /// Times that features or table were set right after somebody changed them.
    pub(crate) repairs: AtomicU64,
    /// Takes the first failure; a second one has nobody left to tell.
    pub(crate) failures: mpsc::Sender<Failure>,
}

impl Shared {
    pub(crate) fn new(
        handler: Box<dyn Handler>,
        dp_ifindex: i32,
        packet_family: u16,
        flow_family: u16,
        install: InstallPolicy,
        limits: Limits,
        failures: mpsc::Sender<Failure>,
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
            failures,
        })
    }

    /// Publishes a new snapshot of the ports, to the handler first.
    pub(crate) fn set_ports(&self, ports: Ports) {
        self.handler.ports_changed(&ports);
        self.ports.store(Arc::new(ports));
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
        let _ = self.failures.try_send(failure);
    }
}
