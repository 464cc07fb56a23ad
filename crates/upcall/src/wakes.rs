//! When a worker was woken: the time since when its sockets are known to hold something.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::clock::Clock;

/// One wake-up of so many is measured: the clock is not free.
const EVERY: u32 = 16;

/// The last wake-up of one thread. The runtime asks for what threads may share; none do.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    count: AtomicU32,
    /// 0 if it is not known.
    at_us: AtomicU64,
}

impl Wakes {
    /// The thread was woken.
    pub(crate) fn woken(&self, clock: Clock) {
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count.wrapping_add(1), Ordering::Relaxed);
        let at_us = if count.is_multiple_of(EVERY) { clock.now_us().max(1) } else { 0 };
        self.at_us.store(at_us, Ordering::Relaxed);
    }

    /// It looks at its sockets anew without having slept: what it finds, no wake-up told of.
    pub(crate) fn looks_anew(&self) {
        self.at_us.store(0, Ordering::Relaxed);
    }

    /// When it was woken to what it does now, if that was measured.
    pub(crate) fn last_us(&self) -> Option<u64> {
        Some(self.at_us.load(Ordering::Relaxed)).filter(|at_us| *at_us > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wake_up_of_so_many_is_known_until_the_thread_looks_anew() {
        let (wakes, clock) = (Wakes::default(), Clock::start());
        let known = |_: u32| {
            wakes.woken(clock);
            wakes.last_us().is_some()
        };
        let known: Vec<u32> = (0..=2 * EVERY).filter(|at| known(*at)).collect();
        assert_eq!(known, [0, EVERY, 2 * EVERY]);
        wakes.looks_anew();
        assert_eq!(wakes.last_us(), None);
    }
}
