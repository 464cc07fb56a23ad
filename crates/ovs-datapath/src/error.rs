//! Errors that name the party at fault.

use std::io;

use ovs_wire::WireError;
use rustix::io::Errno;

/// Why a control request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No netlink socket could be had from the operating system.
    #[error("cannot open a netlink socket ({call}): {source}")]
    Socket {
        /// The system call.
        call: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The kernel has no such generic-netlink family: the openvswitch module is neither loaded nor
    /// could the kernel load it.
    #[error("the kernel has no '{family}' family: the openvswitch module is not loaded")]
    NoFamily {
        /// Family asked for.
        family: &'static str,
    },
    /// The kernel refused a request.
    #[error("the kernel refused to {op}: {}{}", errno_text(*errno), ext_ack.as_ref().map(|m| format!(" ({m})")).unwrap_or_default())]
    Refused {
        /// What was asked for, as the end of "refused to …".
        op: String,
        /// Its errno.
        errno: i32,
        /// Its explanation, if it gave one.
        ext_ack: Option<String>,
    },
    /// The kernel sent a reply that does not follow the ABI.
    #[error("the kernel's reply to the request to {op} is malformed: {source}")]
    BadReply {
        /// What was asked for.
        op: String,
        /// What is wrong.
        source: WireError,
    },
    /// The request cannot be expressed in netlink (a name or list too long).
    #[error("the request to {op} cannot be written: {source}")]
    BadRequest {
        /// What was to be asked for.
        op: String,
        /// What does not fit.
        source: WireError,
    },
    /// The kernel did not answer in time, or the reply was lost.
    #[error("no answer from the kernel to the request to {op} within {limit_ms} ms")]
    NoAnswer {
        /// What was asked for.
        op: String,
        /// The limit in milliseconds.
        limit_ms: u64,
    },
    /// The connection's task is gone: the runtime it was made on was shut down.
    #[error("the netlink connection is closed")]
    Closed,
    /// A question about a network device failed.
    #[error("cannot {op}: {message}")]
    Link {
        /// What was asked for.
        op: String,
        /// What the kernel or the connection said.
        message: String,
    },
}

impl ControlError {
    /// The errno of a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Was it a refusal with this errno?
    pub fn is(&self, errno: Errno) -> bool {
        self.errno() == Some(errno.raw_os_error())
    }
}

/// "File exists (errno 17)".
fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    text.replace("(os error ", "(errno ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_and_why() {
        let err = ControlError::Refused {
            op: "add port 'eth0'".into(),
            errno: 17,
            ext_ack: Some("busy".into()),
        };
        assert_eq!(
            err.to_string(),
            "the kernel refused to add port 'eth0': File exists (errno 17) (busy)"
        );
        assert!(err.is(Errno::EXIST));
    }
}
