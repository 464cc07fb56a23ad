//! How many flows there may be: as many as can be looked at in about a second.
//!
//! A look at all flows (a *dump*, with what is decided about each) bounds how soon a flow that has become
//! wrong is gone. The rule is that of the peer: a limit that falls when a dump takes long, and grows
//! slowly while dumps are fast.

use std::time::Duration;

/// Dumps that take longer lower the limit in proportion.
const SLOW: Duration = Duration::from_secs(2);
/// Dumps that take longer lower it by a quarter.
const LONG: Duration = Duration::from_millis(1300);
/// Dumps of the limit's number of flows that would take less let it grow.
const FAST: Duration = Duration::from_secs(1);
/// Never below this, unless less is allowed: a machine that stood still for a while must not be left
/// without flows.
const FLOOR: u64 = 1000;

/// A limit that follows how long dumps take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowLimit {
    max: u64,
    now: u64,
    cuts: u64,
}

impl FlowLimit {
    /// Begins with the most that is allowed.
    pub fn new(max: u64) -> Self {
        Self { max, now: max, cuts: 0 }
    }

    /// Allows another number at most. A limit that was not lowered follows.
    pub fn set_max(&mut self, max: u64) {
        self.now = if self.now == self.max { max } else { self.now.min(max) };
        self.max = max;
    }

    /// The limit now.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Is it lower than what is allowed at most?
    pub fn is_lowered(&self) -> bool {
        self.now < self.max
    }

    /// How often it was lowered.
    pub fn cuts(&self) -> u64 {
        self.cuts
    }

    /// A dump found so many flows and took so long.
    pub fn dumped(&mut self, flows: u64, took: Duration) {
        let before = self.now;
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        // What is not there takes no time: a limit far above the flows there are would be lowered in vain.
        let base = self.now.min(flows);
        let lowered = if took > SLOW {
            base.saturating_mul(1000) / took_ms
        } else if took > LONG {
            base / 4 * 3
        } else {
            if self.would_be_fast(flows, took_ms) {
                self.now = (self.now + (self.now / 8).max(FLOOR)).min(self.max);
            }
            return;
        };
        self.now = before.min(lowered.max(FLOOR)).min(self.max);
        self.cuts += u64::from(self.now < before);
    }

    /// Would a dump of as many flows as are allowed be fast? A small dump tells little of a large one: its
    /// length is that of waking up.
    fn would_be_fast(&self, flows: u64, took_ms: u64) -> bool {
        let fast_ms = FAST.as_millis() as u64;
        took_ms < fast_ms
            && (flows < self.now / 2 || flows.saturating_mul(fast_ms) / took_ms >= self.now)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_slow_dump_lowers_the_limit_and_fast_ones_raise_it_again() {
        let mut limit = FlowLimit::new(200_000);
        limit.dumped(100_000, ms(4000));
        assert_eq!((limit.now(), limit.cuts()), (25_000, 1), "as many as take a second");
        limit.dumped(25_000, ms(1500));
        assert_eq!((limit.now(), limit.cuts()), (18_750, 2));
        limit.dumped(18_750, ms(1100));
        assert_eq!((limit.now(), limit.cuts()), (18_750, 2), "neither slow nor fast");
        let dumps = (1..100).find(|_| {
            limit.dumped(limit.now(), ms(100));
            limit.now() == 200_000
        });
        assert!(dumps.is_some_and(|dumps| dumps < 30), "{dumps:?}");
        assert_eq!(limit.cuts(), 2);
    }

    #[test]
    fn what_can_be_looked_at_in_a_second_is_not_exceeded_in_growing() {
        let mut limit = FlowLimit::new(1_000_000);
        limit.dumped(50_000, ms(5000));
        assert_eq!(limit.now(), 10_000);
        limit.dumped(10_000, ms(990));
        assert_eq!(limit.now(), 11_250);
        limit.dumped(11_250, ms(999));
        assert_eq!(limit.now(), 12_656);
        limit.dumped(12_656, ms(1001));
        assert_eq!(limit.now(), 12_656);
    }

    #[test]
    fn what_is_allowed_can_change() {
        let mut limit = FlowLimit::new(10_000);
        limit.set_max(50_000);
        assert_eq!(limit.now(), 50_000, "it was not lowered");
        limit.dumped(50_000, ms(5000));
        limit.set_max(60_000);
        assert_eq!(limit.now(), 10_000);
        limit.set_max(500);
        assert_eq!(limit.now(), 500);
        limit.dumped(500, ms(60_000));
        assert_eq!(limit.now(), 500, "less than the floor was allowed");
    }

    proptest! {
        /// Whatever dumps say, the limit is allowed, leaves room for some, and falls only when one is slow.
        #[test]
        fn any_dumps_leave_a_limit_within_its_bounds(
            max in 0..1_000_000u64,
            dumps in prop::collection::vec((0..2_000_000u64, 0..100_000u64), 1..50),
        ) {
            let mut limit = FlowLimit::new(max);
            for (flows, took_ms) in dumps {
                let before = limit.now();
                limit.dumped(flows, ms(took_ms));
                prop_assert!(limit.now() <= max && limit.now() >= max.min(FLOOR));
                prop_assert!(limit.now() >= before || took_ms > 1300);
            }
        }
    }
}
