//! The one error type of the crate.

use std::io;
use std::time::Duration;

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the test kit could not do what it was asked. The text of each holds its cause, so none has a
/// `source`: a chain would say it twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a system call.
    #[error("cannot {what}: {cause}")]
    System {
        /// The operation, as a verb with its object: "open a network namespace".
        what: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The kernel refused a request about a link or an address, or the answer made no sense.
    #[error("cannot {what}: {cause}")]
    Link {
        /// The operation, as a verb with its object: "bring p0 up".
        what: String,
        /// The kernel's answer in words.
        cause: String,
    },
    /// A link of this name is not in the namespace.
    #[error("no link named {name} in this namespace")]
    NoSuchLink {
        /// The name that was looked for.
        name: String,
    },
    /// The caller asked for something outside the documented bounds.
    #[error("{0}")]
    Invalid(String),
    /// A condition did not become true in time.
    #[error("waited {} for {what}, in vain", humantime::format_duration(*.waited))]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// The daemon ended, or did not do what it had to; its log is included.
    #[error("upcalld {what}\n--- upcalld's log ---\n{log}\n--- end of log ---")]
    Daemon {
        /// What it did: "ended with exit status: 1 before it was ready".
        what: String,
        /// The newest lines of its standard error.
        log: String,
    },
}

impl Error {
    /// An [`Error::System`] maker for `map_err`: `.map_err(Error::system("open a socket"))`.
    pub(crate) fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |cause| Self::System { what, cause: cause.into() }
    }
}
