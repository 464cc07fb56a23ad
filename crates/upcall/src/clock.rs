//! The time, for everything that one dispatcher does.

use std::time::Instant;

use crate::flow_dump::monotonic_ms;

/// A monotonic clock that the workers share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
    /// The same moment on the clock of the kernel's flows.
    start_ms: u64,
}

impl Clock {
    /// A clock that is at 0 now.
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), start_ms: monotonic_ms() }
    }

    /// A time of this clock as that of the kernel's flows.
    pub(crate) fn to_monotonic_ms(self, us: u64) -> u64 {
        self.start_ms + us / 1_000
    }

    /// Microseconds since its start.
    pub(crate) fn now_us(self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Nanoseconds since its start.
    pub(crate) fn now_ns(self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}
