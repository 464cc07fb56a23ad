//! What the workers, the sweeper and the port keeper of one dispatcher share.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use ovs_wire::MacAddr;
use ovs_wire::packet::{self, UpcallKind};
use tokio::sync::{Notify, watch};
use upcall_core::{Class, Lanes, Police, SourceId, Tick, Whereabouts};

use crate::clock::Clock;
use crate::crew::Crew;
use crate::deferred::Deferred;
use crate::engine::Hopping;
use crate::flow_counts::FlowCounts;
use crate::flow_dump::monotonic_ms;
use crate::flow_room::FlowRoom;
use crate::funnel::Funnelling;
use crate::lane_key::{LaneBy, LaneKey};
use crate::observe::Observers;
use crate::quotas::Quotas;
use crate::sheds::Sheds;
use crate::shield::Gauges;
use crate::sources::{Registered, Registry};
use crate::sweep::Affected;
use crate::{Failure, Handler, InFlight, InstallPolicy, Limits, Ports};

/// What a dispatcher starts with.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) dp_ifindex: i32,
    pub(crate) packet_family: u16,
    pub(crate) flow_family: u16,
    pub(crate) install: InstallPolicy,
    pub(crate) answer_from_plan: bool,
    pub(crate) limits: Limits,
    pub(crate) lane_by: LaneBy,
    pub(crate) sample_userdata: Option<Vec<u8>>,
    pub(crate) life: FlowLife,
}

/// How long flows live, and how often they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowLife {
    pub(crate) idle: Duration,
    pub(crate) hard: Option<Duration>,
    pub(crate) sweep_interval: Duration,
}

/// Shared state; nothing in it is locked on the path of an upcall.
pub(crate) struct Shared {
    pub(crate) handler: Box<dyn Handler>,
    pub(crate) dp_ifindex: i32,
    pub(crate) packet_family: u16,
    pub(crate) flow_family: u16,
    pub(crate) install: InstallPolicy,
    pub(crate) answer_from_plan: bool,
    /// As they are now: some can be changed ([`Shared::tune`]).
    pub(crate) limits: ArcSwap<Limits>,
    pub(crate) life: ArcSwap<FlowLife>,
    pub(crate) lane_key: LaneKey,
    pub(crate) lanes: Lanes,
    pub(crate) sources: Registry,
    pub(crate) crew: Crew,
    pub(crate) hopping: Hopping,
    pub(crate) funnel: Funnelling,
    /// `None` if no rate is bounded. Read once a round.
    pub(crate) police: ArcSwapOption<Police>,
    /// Of single ports.
    pub(crate) quotas: Quotas,
    pub(crate) sheds: Sheds,
    sample_userdata: Option<Vec<u8>>,
    /// What the workers have in their hands.
    pub(crate) in_flight: Arc<InFlight>,
    /// Who looks on.
    pub(crate) observers: Observers,
    /// Answers that the handler gives later.
    pub(crate) deferred: Deferred,
    pub(crate) clock: Clock,
    /// Read once a batch.
    pub(crate) ports: ArcSwap<Ports>,
    /// Wakes the sweeper.
    pub(crate) sweep_now: Notify,
    /// Stations whose flows are wrong.
    pub(crate) affected: Affected,
    /// Counts the times that decisions made before may have become wrong.
    epoch: AtomicU64,
    /// Of these, those that any flow may be from.
    whole_epoch: AtomicU64,
    /// Is nothing to be installed ([`Shared::hold_installs`])?
    installs_held: AtomicBool,
    /// Calls of the handler outside of upcalls that panicked.
    pub(crate) handler_panics: AtomicU64,
    /// Times that a call of the handler kept a worker for too long.
    pub(crate) handler_stalls: AtomicU64,
    /// Somebody else serves the datapath now.
    pub(crate) taken_over: AtomicBool,
    pub(crate) flow_room: FlowRoom,
    pub(crate) flow_counts: FlowCounts,
    /// Workers' engines there have been: each makes ids of its own for flows.
    pub(crate) engines: AtomicU16,
    /// Times that features or table were set right after somebody changed them.
    pub(crate) repairs: AtomicU64,
    /// Ports that were asked for and lost their interface.
    pub(crate) ports_vanished: AtomicU64,
    /// Storm shields that are up.
    pub(crate) shields: Gauges,
    /// The first failure; a second one changes nothing.
    pub(crate) failure: watch::Sender<Option<Failure>>,
}

impl Shared {
    pub(crate) fn new(
        handler: Box<dyn Handler>,
        config: Config,
        in_flight: Arc<InFlight>,
    ) -> Arc<Self> {
        let Config {
            dp_ifindex,
            packet_family,
            flow_family,
            install,
            answer_from_plan,
            limits,
            lane_by,
            sample_userdata,
            life,
        } = config;
        Arc::new(Self {
            handler,
            dp_ifindex,
            packet_family,
            flow_family,
            install,
            answer_from_plan,
            limits: ArcSwap::from_pointee(limits),
            life: ArcSwap::from_pointee(life),
            lane_key: LaneKey::new(lane_by),
            lanes: Lanes::new(limits.lanes, limits.queue),
            sources: Registry::default(),
            crew: Crew::default(),
            hopping: Hopping::default(),
            funnel: Funnelling::default(),
            police: Police::new(limits.port_rates, std::iter::empty(), None).map(Arc::new).into(),
            quotas: Quotas::default(),
            sheds: Sheds::default(),
            sample_userdata,
            in_flight,
            observers: Observers::default(),
            deferred: Deferred::new(&limits),
            clock: Clock::start(),
            ports: ArcSwap::default(),
            sweep_now: Notify::new(),
            flow_room: FlowRoom::new(limits.flows_max),
            flow_counts: FlowCounts::default(),
            engines: AtomicU16::new(0),
            repairs: AtomicU64::new(0),
            ports_vanished: AtomicU64::new(0),
            affected: Affected::default(),
            epoch: AtomicU64::new(0),
            whole_epoch: AtomicU64::new(0),
            installs_held: AtomicBool::new(false),
            handler_panics: AtomicU64::new(0),
            handler_stalls: AtomicU64::new(0),
            taken_over: AtomicBool::new(false),
            shields: Gauges::default(),
            failure: watch::Sender::new(None),
        })
    }

    /// Were upcalls of the flow with this hash read that are not answered, apart from what the reader of
    /// `source` has in its hands?
    pub(crate) fn waits(&self, flow: u64, source: SourceId, now: Tick) -> bool {
        match self.lanes.whereabouts(flow, now) {
            Whereabouts::Waiting => true,
            Whereabouts::ReadFrom(last) if last != source => {
                self.sources.get(last).is_some_and(|last| !last.state.is_idle())
            }
            _ => false,
        }
    }

    /// Microseconds since the start, on a clock that all workers share.
    pub(crate) fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// What the kernel tells of an upcall's class. Whose action it was, the cookie tells that was written
    /// into the action.
    pub(crate) fn class(&self, upcall: &packet::Upcall<'_>) -> Class {
        match upcall.kind {
            UpcallKind::Miss => Class::Miss,
            UpcallKind::Action if self.is_sample(upcall) => Class::Sample,
            UpcallKind::Action => Class::Action,
        }
    }

    fn is_sample(&self, upcall: &packet::Upcall<'_>) -> bool {
        let cookie = self.sample_userdata.as_deref().zip(upcall.userdata);
        cookie.is_some_and(|(prefix, userdata)| userdata.starts_with(prefix))
    }

    /// A flow came by another socket than before: by this one.
    pub(crate) fn hopped(&self, to: &Registered) {
        // A shield counts what readers read by themselves.
        if self.shields.any_up() {
            return;
        }
        let now_us = self.now_us();
        self.hopping.hopped(now_us);
        // With times, sockets can be read in order as fast as one.
        if self.limits.load().funnel && !to.tells_times() {
            self.funnel.hopped(to.port_id(), now_us);
        }
    }

    /// Publishes a new snapshot of the ports, to the handler first.
    pub(crate) fn set_ports(&self, ports: Ports) {
        self.guarded(|handler| handler.ports_changed(&ports));
        let ports = Arc::new(ports);
        self.ports.store(ports.clone());
        self.keep_port_quotas(&ports);
        self.decided_anew();
    }

    /// Decisions made before may be wrong now: installs that wait are given up, flows are looked at.
    pub(crate) fn revalidate(&self) {
        self.decided_anew();
        self.sweep_now.notify_one();
    }

    fn decided_anew(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.whole_epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// The same, of decisions about one station; if there are too many of those, of all.
    pub(crate) fn moved(&self, station: MacAddr) {
        if self.affected.add(station, monotonic_ms()) {
            self.epoch.fetch_add(1, Ordering::Relaxed);
            self.sweep_now.notify_one();
        } else {
            self.revalidate();
        }
    }

    /// Nothing is installed while this is held, and installs that wait are given up. For the time in which
    /// upcalls are sent to sockets that are not read yet: a flow that is installed when the older sockets
    /// are read empty would overtake its packets in those.
    pub(crate) fn hold_installs(self: &Arc<Self>) -> Held {
        self.installs_held.store(true, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        Held(self.clone())
    }

    /// Is nothing to be installed now?
    pub(crate) fn installs_held(&self) -> bool {
        self.installs_held.load(Ordering::Relaxed)
    }

    /// Changes whenever decisions made before may have become wrong.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Changes whenever any flow may have become wrong.
    pub(crate) fn whole_epoch(&self) -> u64 {
        self.whole_epoch.load(Ordering::Relaxed)
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

    /// Changes bounds that can be changed while workers run; the storm shield is for sockets that are
    /// opened from now on. The others of `limits` are those of the start.
    pub(crate) fn tune(&self, limits: Limits, life: FlowLife) {
        self.limits.store(Arc::new(limits));
        self.clear_port_quotas();
        self.flow_room.set_max(limits.flows_max);
        self.life.store(Arc::new(life));
        // Another interval counts from now on.
        self.sweep_now.notify_one();
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

/// Installs are held as long as this lives. One at a time: whoever has the delivery locked.
#[must_use]
pub(crate) struct Held(Arc<Shared>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.installs_held.store(false, Ordering::SeqCst);
    }
}
