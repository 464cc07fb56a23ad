//! Options of a dispatcher.

use std::time::Duration;

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
    /// Receive buffer asked for on each upcall socket, in bytes; the kernel doubles it. Default 2 MiB.
    pub recv_buffer_bytes: usize,
    /// Worker threads at most. Default 64.
    pub workers_max: usize,
    /// Deferred installs, for each socket.
    pub install: InstallLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows_max: 200_000,
            recv_buffer_bytes: 2 << 20,
            workers_max: 64,
            install: InstallLimits::default(),
        }
    }
}

/// Collects the options of a [`Dispatcher`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until start"]
pub struct Builder {
    pub(crate) datapath: String,
    pub(crate) ports: Vec<String>,
    pub(crate) dispatch: Dispatch,
    pub(crate) workers: Option<usize>,
    pub(crate) install: InstallPolicy,
    pub(crate) limits: Limits,
    pub(crate) flow_idle: Duration,
    pub(crate) sweep_interval: Duration,
    pub(crate) keep: bool,
    pub(crate) takeover: bool,
}

impl Builder {
    pub(crate) fn new(datapath: String) -> Self {
        Self {
            datapath,
            ports: Vec::new(),
            dispatch: Dispatch::Auto,
            workers: None,
            install: InstallPolicy::default(),
            limits: Limits::default(),
            flow_idle: Duration::from_secs(10),
            sweep_interval: Duration::from_secs(1),
            keep: false,
            takeover: false,
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

    /// Dispatch mode; default per-CPU where the kernel has it.
    pub fn dispatch(mut self, wanted: Dispatch) -> Self {
        self.dispatch = wanted;
        self
    }

    /// Number of worker threads, from 1; default one for each CPU this process may use. Limited by
    /// [`Limits::workers_max`] and, in per-CPU mode, by the number of sockets.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
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

    /// Opens or creates the datapath, negotiates the dispatch mode, sets up sockets and ports, and
    /// begins to hand upcalls to `handler`.
    ///
    /// Must be called on a tokio runtime, in the network namespace of the datapath.
    ///
    /// # Errors
    ///
    /// See [`Error`]; whatever was created before the error is removed.
    pub async fn start(self, handler: impl Handler) -> Result<Dispatcher, Error> {
        Dispatcher::start(self, Box::new(handler)).await
    }
}
