//! Handlers that do not return: found, told and counted, as nothing can take a thread out of a call.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::crew::Mate;
use crate::shared::Shared;

/// Time between two looks at least.
const LOOK_MIN: Duration = Duration::from_millis(10);

/// Works until it is aborted.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let mut watch = StallWatch::new(shared.limits.load().handler_timeout);
    let mut looks = tokio::time::interval((watch.limit / 4).max(LOOK_MIN));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let stalled = watch.look(&shared.crew.mates(), Instant::now());
        shared.handler_stalls.fetch_add(stalled, Ordering::Relaxed);
    }
}

/// Sees how long workers are at one piece of work: that has a limit of its own, so one that takes longer
/// by far is kept by the handler.
struct StallWatch {
    limit: Duration,
    seen: Vec<Seen>,
}

/// A worker that was at work at the last look.
struct Seen {
    mate: Arc<Mate>,
    /// The number of that work.
    work: u64,
    since: Instant,
    told: bool,
}

impl StallWatch {
    fn new(limit: Duration) -> Self {
        Self { limit, seen: Vec::new() }
    }

    /// Tells of workers that are at one work for longer than the limit, and gives their number: each
    /// counts once.
    fn look(&mut self, mates: &[Arc<Mate>], now: Instant) -> u64 {
        self.seen.retain(|seen| seen.mate.at_work() == Some(seen.work));
        for mate in mates {
            let is_new = !self.seen.iter().any(|seen| Arc::ptr_eq(&seen.mate, mate));
            if let Some(work) = mate.at_work().filter(|_| is_new) {
                self.seen.push(Seen { mate: mate.clone(), work, since: now, told: false });
            }
        }
        let limit = self.limit;
        let stalls = |seen: &&mut Seen| !seen.told && now.duration_since(seen.since) >= limit;
        let stalled = self.seen.iter_mut().filter(stalls).map(|seen| {
            seen.told = true;
            let thread = seen.mate.thread();
            tracing::warn!(thread, ?limit, "a call of the handler keeps a worker for too long");
        });
        stalled.count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_is_at_one_work_for_too_long_counts_once() {
        let mates = [(); 2].map(|()| Arc::new(Mate::default()));
        let mut watch = StallWatch::new(Duration::from_secs(1));
        let began = Instant::now();
        let mut look_at = |s: u64| watch.look(&mates, began + Duration::from_secs(s));
        for mate in &mates {
            mate.begin();
        }
        assert_eq!(look_at(0), 0);
        // One of them goes on.
        mates[1].end();
        mates[1].begin();
        assert_eq!(look_at(1), 1);
        assert_eq!(look_at(2), 1, "the other one, at its second work");
        assert_eq!(look_at(3), 0, "both are told");
        for mate in &mates {
            mate.end();
        }
        assert_eq!(look_at(9), 0, "at rest");
        mates[0].begin();
        assert_eq!((look_at(10), look_at(11)), (0, 1), "again");
    }
}
