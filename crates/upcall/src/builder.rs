//! Options of a dispatcher.

use std::sync::Arc;
use std::time::Duration;

use netlink_io::Socket;
use upcall_core::InstallLimits;

use crate::{Dispatch, Dispatcher, Error, Handler};

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

/// Bounds of a dispatcher; each has a counter for being reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flows on the datapath past which none is installed. Default 200,000.
    pub flows_max: u64,
    /// Worker threads at most, if their number is left to the dispatcher. Default 64.
    pub workers_max: usize,
    /// Deferred installs, for each socket.
    pub install: InstallLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows_max: 200_000, workers_max: 64, install: InstallLimits::default() }
    }
}

/// What a dispatcher receives with; can be changed while it runs ([`Dispatcher::reshape`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Dispatch mode. Default: per-CPU where the kernel has it.
    pub dispatch: Dispatch,
    /// Worker threads, from 1; `None` is one for each CPU this process may use, up to
    /// [`Limits::workers_max`]. In per-CPU mode there are at most as many as possible CPUs.
    pub workers: Option<usize>,
    /// Receive buffer asked for on each upcall socket, in bytes; the kernel doubles it. Default 2 MiB.
    pub recv_buffer_bytes: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { dispatch: Dispatch::Auto, workers: None, recv_buffer_bytes: 2 << 20 }
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
    pub(crate) limits: Limits,
    pub(crate) flow_idle: Duration,
    pub(crate) sweep_interval: Duration,
    pub(crate) keep: bool,
    pub(crate) takeover: bool,
    pub(crate) inherited: Vec<Arc<Socket>>,
}

impl Builder {
    pub(crate) fn new(datapath: String) -> Self {
        Self {
            datapath,
            ports: Vec::new(),
            shape: Shape::default(),
            install: InstallPolicy::default(),
            limits: Limits::default(),
            flow_idle: Duration::from_secs(10),
            sweep_interval: Duration::from_secs(1),
            keep: false,
            takeover: false,
            inherited: Vec::new(),
        }
    }

    /// Adds a network interface as a port. Ports the datapath has already are served in any case.
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

    /// Bounds.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// A flow that matches nothing for this long is removed. Default 10 s.
    pub fn flow_idle(mut self, idle: Duration) -> Self {
        self.flow_idle = idle;
        self
    }

    /// How often the flow table is read and revalidated. Default 1 s.
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

    /// Takes over the upcall sockets of a predecessor ([`Dispatcher::hand_over`]): what is queued in
    /// them is served, then they are closed. The datapath must be the one they served.
    pub fn inherit(mut self, sockets: Vec<Socket>) -> Self {
        self.inherited = sockets.into_iter().map(Arc::new).collect();
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
}
