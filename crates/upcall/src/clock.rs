//! The time, for everything that one dispatcher does.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

/// A monotonic clock that the workers share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
    /// The same moment on the kernel's clock, in nanoseconds.
    start_ns: u64,
}

impl Clock {
    /// A clock that is at 0 now.
    pub(crate) fn start() -> Self {
        let kernel = clock_gettime(ClockId::Monotonic);
        let start_ns =
            kernel.tv_sec.cast_unsigned() * 1_000_000_000 + kernel.tv_nsec.cast_unsigned();
        Self { start: Instant::now(), start_ns }
    }

    /// A time of this clock as that of the kernel's flows.
    pub(crate) fn to_monotonic_ms(self, us: u64) -> u64 {
        self.start_ns / 1_000_000 + us / 1_000
    }

    /// A time of the kernel's, in nanoseconds, as one of this clock; 0 if it is before its start.
    pub(crate) fn of_kernel_ns(self, ns: u64) -> u64 {
        ns.saturating_sub(self.start_ns) / 1_000
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
