//! The time, for everything that one dispatcher does.

use std::time::Instant;

/// A monotonic clock that the workers share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// A clock that is at 0 now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Microseconds since its start.
    pub(crate) fn now_us(self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }

    /// Nanoseconds since its start.
    pub(crate) fn now_ns(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}
