//! Options of a dispatcher.

use std::sync::Arc;
use std::time::Duration;

use netlink_io::Socket;
use upcall_core::{InstallLimits, PortRates, QueueLimits};

#[cfg(doc)]
use crate::Stats;
use crate::listen::Exchange;
use crate::made::Made;
use crate::{Dispatch, Dispatcher, Error, Handler, InFlight, LaneBy, Listener, Placement};

/// How flows are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InstallPolicy {
    /// As the handler asks: one flow for all packets that agree in the fields it names.
    #[default]
    Wildcard,
    /// One flow for each key, without wildcards.
    Exact,
    /// Not at all: every packet comes up. For testing and measuring.
    Never,
}

/// What to do when the interface of a port that was asked for vanishes: it was deleted, or moved to
/// another network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnPortGone {
    /// Wait until there is an interface of that name again, which becomes a port then.
    #[default]
    Wait,
    /// [`crate::Failure::PortGone`].
    Fail,
}

/// Bounds of a dispatcher; each has a counter for being reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flows on the datapath past which none is installed. Default 200,000.
    pub flows_max: u64,
    /// Worker threads at most, if their number is left to the dispatcher. Default 64.
    pub workers_max: usize,
    /// Deferred installs, for each socket.
    pub install: InstallLimits,
    /// Where CPUs have sockets, which many ports share: does a port that floods one have most of its
    /// upcalls refused by a socket filter, before they take room, so that the others lose none? Default
    /// true. Counted, as an estimate, in [`LedgerSnapshot::shield_refused`](crate::LedgerSnapshot).
    pub storm_shield: bool,
    /// Where CPUs have sockets and it is not known when upcalls were sent ([`Stats::arrival_times`]): do those
    /// of all CPUs go by one socket while flows hop between CPUs, as long as one reader can read it all? Two
    /// sockets tell nothing of which of their messages is older; one keeps the order in which all CPUs sent.
    /// Default true. Counted in [`Stats::funnels`].
    pub funnel: bool,
    /// Flows whose upcalls are kept apart, 8 bytes each; beyond, flows share lanes. Default 262,144.
    pub lanes: usize,
    /// Upcalls that wait.
    pub queue: QueueLimits,
    /// Answers that a handler may have outstanding ([`crate::Verdict::later`]); beyond, an upcall that it
    /// wants to answer later is shed ([`LedgerSnapshot::shed_pending_full`](crate::LedgerSnapshot)).
    /// Default 1,024. They take room in `queue` too, by port.
    pub pending_max: usize,
    /// How long a handler may take for an answer that it gives later; then the upcall is shed
    /// ([`LedgerSnapshot::shed_handler_timeout`](crate::LedgerSnapshot)). A call of the handler cannot be
    /// ended; one that takes longer is told and counted ([`Stats::handler_stalls`]). Default 5 s.
    pub handler_timeout: Duration,
    /// New flows that may wait to be accepted from a [`Listener`]. Default 1,024.
    pub accept_max: usize,
    /// Flows that a [`Listener`] may follow, accepted or not. Default 65,536. Beyond either, upcalls are
    /// shed ([`LedgerSnapshot::shed_listener_full`](crate::LedgerSnapshot)).
    pub accepted_max: usize,
    /// Upcalls that each port may have taken in, by class; what exceeds that is shed as it is read
    /// ([`LedgerSnapshot::shed_rate`](crate::LedgerSnapshot)). Default: as much as comes.
    pub port_rates: PortRates,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows_max: 200_000,
            workers_max: 64,
            install: InstallLimits::default(),
            storm_shield: true,
            funnel: true,
            lanes: 1 << 18,
            queue: QueueLimits::default(),
            pending_max: 1024,
            handler_timeout: Duration::from_secs(5),
            accept_max: 1024,
            accepted_max: 1 << 16,
            port_rates: PortRates::default(),
        }
    }
}

/// What a dispatcher receives with; can be changed while it runs ([`Dispatcher::reshape`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Dispatch mode. Default: per-CPU where the kernel has it.
    pub dispatch: Dispatch,
    /// Worker threads, from 1; `None` is one for each CPU that `placement` lets them run on, up to
    /// [`Limits::workers_max`], and more when such CPUs come. In per-CPU mode there are at most as many
    /// as possible CPUs.
    pub workers: Option<usize>,
    /// CPUs that workers run on. Default: each on the CPU it serves.
    pub placement: Placement,
    /// Receive buffer asked for on each upcall socket, in bytes; the kernel doubles it. Default 2 MiB.
    pub recv_buffer_bytes: usize,
    /// Bytes of kernel memory that the receive buffers of all upcall sockets together may take, as the
    /// kernel counts: doubled. Sockets share it, in per-vport mode anew as ports come and go. Default
    /// `None`: as many times [`Shape::recv_buffer_bytes`] as there are sockets, doubled. The kernel
    /// takes a message as long as the limit is not reached, so each socket may exceed its share by
    /// one; while a dispatcher is reshaped or takes over from a predecessor, the sockets that are on
    /// their way out come on top.
    pub recv_buffer_total_bytes: Option<usize>,
    /// Where CPUs have sockets, two or more: does the kernel tell when it sent each upcall, so that those of
    /// several sockets can be put in order, and which came, so that no flow is installed while packets of it are
    /// unread? An eBPF program on each socket writes that into memory, 192 KiB of it. Default true. Needs `CAP_BPF`; without it all works as if this were false
    /// ([`Stats::arrival_times`] tells).
    pub arrival_times: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            dispatch: Dispatch::Auto,
            workers: None,
            placement: Placement::NearCpu,
            recv_buffer_bytes: 2 << 20,
            recv_buffer_total_bytes: None,
            arrival_times: true,
        }
    }
}

/// Collects the options of a [`Dispatcher`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until start"]
pub struct Builder {
    pub(crate) datapath: String,
    pub(crate) ports: Vec<String>,
    pub(crate) shape: Shape,
    pub(crate) install: InstallPolicy,
    pub(crate) answer_from_plan: bool,
    pub(crate) limits: Limits,
    pub(crate) lane_by: LaneBy,
    pub(crate) sample_userdata: Option<Vec<u8>>,
    pub(crate) flow_idle: Duration,
    pub(crate) flow_hard: Option<Duration>,
    pub(crate) sweep_interval: Duration,
    pub(crate) keep: bool,
    pub(crate) takeover: bool,
    pub(crate) on_port_gone: OnPortGone,
    pub(crate) inherited: Vec<Arc<Socket>>,
    pub(crate) crash_lost: u64,
    /// By predecessors.
    pub(crate) made: Vec<Made>,
}

impl Builder {
    pub(crate) fn new(datapath: String) -> Self {
        Self {
            datapath,
            ports: Vec::new(),
            shape: Shape::default(),
            install: InstallPolicy::default(),
            answer_from_plan: true,
            limits: Limits::default(),
            lane_by: LaneBy::default(),
            sample_userdata: None,
            flow_idle: Duration::from_secs(10),
            flow_hard: None,
            sweep_interval: Duration::from_secs(1),
            keep: false,
            takeover: false,
            on_port_gone: OnPortGone::default(),
            inherited: Vec::new(),
            crash_lost: 0,
            made: Vec::new(),
        }
    }

    /// Adds a network interface as a port, or all that a pattern matches, as they come and go
    /// ([`PortSpec`](crate::PortSpec)). Ports the datapath has already are served in any case.
    ///
    /// An interface that a pattern matches and that cannot be a port is told of in the log, once, and left
    /// out. One that is renamed so that no pattern matches it is taken out.
    pub fn port(mut self, interface: impl Into<String>) -> Self {
        self.ports.push(interface.into());
        self
    }

    /// Adds several.
    pub fn ports(mut self, interfaces: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.ports.extend(interfaces.into_iter().map(Into::into));
        self
    }

    /// What to receive with.
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// How flows are installed.
    pub fn install(mut self, policy: InstallPolicy) -> Self {
        self.install = policy;
        self
    }

    /// May upcalls of a flow that waits to be installed be answered with its actions, without asking the
    /// handler? The verdict said for which packets it holds ([`crate::Verdict::install`]); the kernel will
    /// not ask about them either. Not from before the ports changed or a verdict asked for a sweep.
    /// Counted in [`LedgerSnapshot::answered_from_plan`](crate::LedgerSnapshot). Default true.
    pub fn answer_from_plan(mut self, answer: bool) -> Self {
        self.answer_from_plan = answer;
        self
    }

    /// Bounds.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Which packets are kept in order: by default those of a flow.
    pub fn lane_by(mut self, lane_by: LaneBy) -> Self {
        self.lane_by = lane_by;
        self
    }

    /// Action upcalls whose cookie begins with these bytes are samples, for which nobody waits: they come
    /// after all others, and have a rate of their own. The cookie is the userdata that a flow's userspace
    /// action was given; without any bytes, all that have one are samples. Default: none is.
    pub fn sample_userdata(mut self, prefix: impl Into<Vec<u8>>) -> Self {
        self.sample_userdata = Some(prefix.into());
        self
    }

    /// A flow that matches nothing for this long is removed. Default 10 s.
    pub fn flow_idle(mut self, idle: Duration) -> Self {
        self.flow_idle = idle;
        self
    }

    /// A flow is removed at latest this long after it was installed, although it is used: its next packet
    /// comes up and is decided about anew. Sweeps remove flows, so it goes with the last one before; with less
    /// than [`Builder::sweep_interval`], with the next one. A flow that was there before, and that no
    /// dispatcher installed, counts from when it was first seen. Default `None`: flows are removed only when
    /// they idle or are wrong.
    pub fn flow_hard(mut self, hard: Option<Duration>) -> Self {
        self.flow_hard = hard;
        self
    }

    /// How often the flow table is read. Default 1 s.
    pub fn sweep_interval(mut self, interval: Duration) -> Self {
        self.sweep_interval = interval;
        self
    }

    /// Leaves datapath, ports and flows behind when the dispatcher stops.
    pub fn keep(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// Takes the datapath over even if another process listens to its upcalls.
    pub fn takeover(mut self, takeover: bool) -> Self {
        self.takeover = takeover;
        self
    }

    /// What to do when the interface of a port that was asked for vanishes. (One that is renamed stays
    /// the port that it is. A port that somebody takes out of the datapath is left out.)
    pub fn on_port_gone(mut self, policy: OnPortGone) -> Self {
        self.on_port_gone = policy;
        self
    }

    /// Takes over the upcall sockets of a predecessor ([`Dispatcher::hand_over`]): what is queued in
    /// them is served, then they are closed. The datapath must be the one they served.
    pub fn inherit(mut self, sockets: Vec<Socket>) -> Self {
        self.inherited = sockets.into_iter().map(Arc::new).collect();
        self
    }

    /// Counts what a predecessor had in its hands when it was killed: [`Stats::crash_lost`]. After an
    /// orderly end, that is nothing. What it made of datapath and ports belongs to the new dispatcher, which
    /// removes it when it stops, and ports that nobody asks for any more at once. The record is read here
    /// and now, so the predecessor must be gone.
    pub fn inherit_in_flight(mut self, record: &InFlight) -> Self {
        self.crash_lost += record.count();
        self.made.push(Made::read(record.made()));
        self
    }

    /// Opens or creates the datapath, negotiates the dispatch mode, sets up sockets and ports, and
    /// begins to hand upcalls to `handler`.
    ///
    /// Must be called on a tokio runtime, all of whose threads are in the network namespace of the
    /// datapath: sockets are opened in that of the thread that happens to run. (A process that has not
    /// called `setns` or `unshare` has nothing to think of; one that has, uses a current-thread runtime
    /// made after it.) Dropping the future before it is ready may leave behind what was created.
    ///
    /// # Errors
    ///
    /// See [`Error`]; whatever was created before the error is removed.
    pub async fn start(self, handler: impl Handler) -> Result<Dispatcher, Error> {
        Dispatcher::start(self, Box::new(handler)).await
    }

    /// As [`Builder::start`], with a [`Listener`] in the place of a handler: flows are accepted, and
    /// their upcalls received and answered one by one.
    ///
    /// # Errors
    ///
    /// As [`Builder::start`].
    pub async fn listen(self) -> Result<(Dispatcher, Listener), Error> {
        let (exchange, listener) = Exchange::new(&self.limits, self.flow_idle);
        Ok((self.start(exchange).await?, listener))
    }
}
