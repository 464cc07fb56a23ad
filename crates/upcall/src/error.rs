//! Errors that name cause and remedy.

use std::io;

use ovs_datapath::ControlError;
use rustix::io::Errno;

/// Why a dispatcher could not be started or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The openvswitch module is not there.
    #[error(
        "the kernel ({kernel}) has no Open vSwitch datapath: load the module with 'modprobe openvswitch' (packages linux-image or linux-modules-extra have it)"
    )]
    NoModule {
        /// Release of the running kernel.
        kernel: String,
    },
    /// `CAP_NET_ADMIN` is missing.
    #[error(
        "not permitted to {op}: run as root or give the program CAP_NET_ADMIN in this network namespace"
    )]
    NotPermitted {
        /// What was refused.
        op: String,
    },
    /// A name that no device can have.
    #[error("'{name}' cannot name a {what}: {why}")]
    BadName {
        /// "datapath" or "port".
        what: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The datapath's name belongs to another kind of device.
    #[error(
        "cannot create datapath '{name}': there is a network interface of that name; choose another with --datapath"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Another process listens to the datapath's upcalls.
    #[error(
        "datapath '{name}' is served by {owner}: stop it first, choose another datapath, or take it over with --takeover"
    )]
    Served {
        /// The datapath.
        name: String,
        /// The other process, as far as it could be found.
        owner: String,
    },
    /// There is no such port.
    #[error("the datapath has no port {port}")]
    NoPort {
        /// The number.
        port: u32,
    },
    /// A port's device does not exist.
    #[error(
        "there is no network interface '{name}' in this network namespace: 'ip link' lists those there are"
    )]
    NoInterface {
        /// The name.
        name: String,
    },
    /// A port's device belongs to something else.
    #[error("interface '{name}' is in use by {by}: remove it there first")]
    InterfaceInUse {
        /// The interface.
        name: String,
        /// What it is a member of.
        by: String,
    },
    /// A port's device cannot be a port.
    #[error("interface '{name}' cannot be a port of a datapath: {why}")]
    InterfaceUnusable {
        /// The interface.
        name: String,
        /// Why.
        why: String,
    },
    /// Per-CPU dispatch was demanded where there is none.
    #[error("per-CPU dispatch is not available: {reason}; use --dispatch auto or per-vport")]
    NoPerCpu {
        /// Why.
        reason: String,
    },
    /// Workers were to run on CPUs that they cannot run on.
    #[error("cannot place workers on CPU {cpus}: {why}")]
    BadPlacement {
        /// The CPUs, as a list.
        cpus: String,
        /// Why not.
        why: String,
    },
    /// An option cannot be changed while a dispatcher runs.
    #[error(
        "{option} cannot change while it runs: it is {is}, wanted is {wanted}; start anew (a restart that hands over the sockets loses nothing)"
    )]
    Fixed {
        /// The option of [`Builder`](crate::Builder).
        option: &'static str,
        /// What it is.
        is: String,
        /// What it was to be.
        wanted: String,
    },
    /// The operating system refused a resource.
    #[error("cannot {op}: {source}")]
    System {
        /// What was to be done.
        op: String,
        /// What it said.
        source: io::Error,
    },
    /// Anything else the kernel refused.
    #[error(transparent)]
    Control(ControlError),
    /// The answer to an upcall came when the dispatcher no longer waited for it.
    #[error(
        "the answer came too late, the upcall is shed: answer faster, or allow more with Limits::handler_timeout"
    )]
    AnsweredTooLate,
    /// A running dispatcher broke down.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Why a running dispatcher can no longer do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The datapath was deleted.
    #[error("datapath '{name}' was deleted by {by}")]
    DatapathDeleted {
        /// Its name.
        name: String,
        /// Who did it, as far as it could be found.
        by: String,
    },
    /// Another process serves the datapath now. Stopping leaves it to that process.
    #[error("datapath '{name}' was taken over by {by}")]
    TakenOver {
        /// Its name.
        name: String,
        /// Who did it, as far as it could be found.
        by: String,
    },
    /// The interface of a port that was asked for vanished, and waiting was not asked for.
    #[error("the interface of port '{name}' of datapath '{datapath}' is gone")]
    PortGone {
        /// The name that the port was asked for by.
        name: String,
        /// The datapath.
        datapath: String,
    },
    /// A task that must run as long as the dispatcher does has ended.
    #[error("{what} ended: {why}")]
    TaskEnded {
        /// Which.
        what: &'static str,
        /// Why.
        why: &'static str,
    },
    /// A worker thread ended.
    #[error("worker {worker} ended: {why}")]
    WorkerEnded {
        /// Its number.
        worker: usize,
        /// Why.
        why: String,
    },
}

/// Whose fault, for an exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something impossible: a bad name, an interface that is not there.
    Usage,
    /// A privilege is missing.
    Permission,
    /// The kernel lacks a feature or the module.
    Unsupported,
    /// Something or someone else holds what was asked for.
    Conflict,
    /// The kernel, or the operating system, refused something for a reason that is none of these.
    Kernel,
    /// The handler, or whoever answers for it.
    Handler,
    /// The dispatcher itself: a bug.
    Internal,
    /// Somebody took away what was served: the datapath, or a port that must be there.
    Gone,
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoModule { .. } | Self::NoPerCpu { .. } => ErrorKind::Unsupported,
            Self::NotPermitted { .. } => ErrorKind::Permission,
            Self::BadName { .. }
            | Self::NoPort { .. }
            | Self::NoInterface { .. }
            | Self::InterfaceUnusable { .. }
            | Self::Fixed { .. }
            | Self::BadPlacement { .. } => ErrorKind::Usage,
            Self::NameTaken { .. }
            | Self::Served { .. }
            | Self::InterfaceInUse { .. }
            | Self::Failed(Failure::TakenOver { .. }) => ErrorKind::Conflict,
            Self::AnsweredTooLate => ErrorKind::Handler,
            Self::Failed(Failure::TaskEnded { .. } | Failure::WorkerEnded { .. }) => {
                ErrorKind::Internal
            }
            Self::Failed(Failure::DatapathDeleted { .. } | Failure::PortGone { .. }) => {
                ErrorKind::Gone
            }
            Self::System { .. } | Self::Control(_) => ErrorKind::Kernel,
        }
    }

    pub(crate) fn system(op: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let op = op.into();
        move |source| Self::System { op, source }
    }
}

impl From<ControlError> for Error {
    fn from(err: ControlError) -> Self {
        match err {
            ControlError::NoFamily { .. } => {
                Self::NoModule { kernel: ovs_features::kernel_release() }
            }
            ControlError::Refused { op, errno, .. } if errno == Errno::PERM.raw_os_error() => {
                Self::NotPermitted { op }
            }
            other => Self::Control(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_become_causes_with_remedies() {
        let denied = ControlError::Refused { op: "x".into(), errno: 1, ext_ack: None };
        assert_eq!(Error::from(denied).kind(), ErrorKind::Permission);
        let absent = ControlError::NoFamily { family: "ovs_datapath" };
        let err = Error::from(absent);
        assert_eq!(err.kind(), ErrorKind::Unsupported);
        assert!(err.to_string().contains("modprobe openvswitch"), "{err}");
    }

    #[test]
    fn every_message_is_one_line() {
        let err = Error::Served { name: "dp0".into(), owner: "ovs-vswitchd (pid 7)".into() };
        assert!(!err.to_string().contains('\n'));
    }
}
