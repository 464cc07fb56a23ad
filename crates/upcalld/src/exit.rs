//! Exit statuses: what a script can tell from how the daemon ended.

use std::process::ExitCode;

use upcall::ErrorKind;

/// Appended to `--help`.
pub(crate) const HELP: &str = "\
Exit status:
  0  stopped on request (SIGTERM, SIGINT)
  1  failed while running, or for a reason that is none of the following
  2  the command line asks for something impossible: a bad flag or name, no such interface
  3  the configuration file cannot be read or is wrong
  4  a privilege is missing (CAP_NET_ADMIN)
  5  the kernel lacks the module or a feature that was demanded
  6  the datapath or an interface is in use by someone else";

/// What ended the daemon.
#[derive(Debug)]
pub(crate) enum Exit {
    Usage(String),
    Config(String),
    /// The kernel could not be asked anything.
    NothingAsked(String),
    Dispatcher(upcall::Error),
    Other(String),
}

impl Exit {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::Config(_) => 3,
            Self::NothingAsked(_) => 4,
            Self::Other(_) => 1,
            Self::Dispatcher(err) => match err.kind() {
                ErrorKind::Usage => 2,
                ErrorKind::Permission => 4,
                ErrorKind::Unsupported => 5,
                ErrorKind::Conflict => 6,
                _ => 1,
            },
        })
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usage(text)
            | Self::Config(text)
            | Self::NothingAsked(text)
            | Self::Other(text) => f.write_str(text),
            Self::Dispatcher(err) => err.fmt(f),
        }
    }
}

impl From<upcall::Error> for Exit {
    fn from(err: upcall::Error) -> Self {
        Self::Dispatcher(err)
    }
}
