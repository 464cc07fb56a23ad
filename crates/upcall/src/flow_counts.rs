//! What flows had counted that are gone.
//!
//! The kernel's counters end with their flow. What a flow had counted when it was removed goes into the
//! totals, and is remembered for the flow, so that it counts on when it is installed again.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use ovs_wire::flow::{Flow, FlowStats};

/// Flows that are remembered; with one more the one that was removed first is forgotten. Less than 1 MiB.
const FLOWS_MAX: usize = 16_384;

/// Counters of flows that were removed.
#[derive(Debug)]
pub(crate) struct FlowCounts {
    hasher: RandomState,
    flows_max: usize,
    gone: Mutex<Gone>,
}

#[derive(Debug, Default)]
struct Gone {
    total: FlowStats,
    /// By key and mask.
    by_flow: HashMap<u64, FlowStats, RandomState>,
    /// The one that was removed first at the front.
    order: VecDeque<u64>,
    forgotten: u64,
}

impl Default for FlowCounts {
    fn default() -> Self {
        Self::new(FLOWS_MAX)
    }
}

impl FlowCounts {
    fn new(flows_max: usize) -> Self {
        Self { hasher: RandomState::default(), flows_max, gone: Mutex::default() }
    }

    /// A flow was removed, and this was its end: with key and mask, as the kernel tells them.
    pub(crate) fn ended(&self, flow: &Flow<'_>) {
        self.add(flow.stats);
        if flow.stats.packets > 0 {
            self.remember(self.hash(flow), flow.stats);
        }
    }

    /// A flow was removed of which no more is known than its counters.
    pub(crate) fn add(&self, stats: FlowStats) {
        let mut gone = self.lock();
        gone.total = sum(gone.total, stats);
    }

    fn remember(&self, id: u64, stats: FlowStats) {
        let mut gone = self.lock();
        if let Some(known) = gone.by_flow.get_mut(&id) {
            *known = sum(*known, stats);
            return;
        }
        if gone.order.len() >= self.flows_max
            && let Some(first) = gone.order.pop_front()
        {
            gone.by_flow.remove(&first);
            gone.forgotten += 1;
        }
        gone.by_flow.insert(id, stats);
        gone.order.push_back(id);
    }

    /// What a flow counts now, and had counted each time it was removed before, as far as that is
    /// remembered.
    pub(crate) fn since_first(&self, flow: &Flow<'_>) -> FlowStats {
        let gone = self.lock();
        if gone.by_flow.is_empty() {
            return flow.stats;
        }
        let before = gone.by_flow.get(&self.hash(flow)).copied().unwrap_or_default();
        sum(before, flow.stats)
    }

    /// What all flows that are gone had counted.
    pub(crate) fn total(&self) -> FlowStats {
        self.lock().total
    }

    /// Flows whose counters were forgotten because there were too many; they are in the total still.
    pub(crate) fn forgotten(&self) -> u64 {
        self.lock().forgotten
    }

    fn hash(&self, flow: &Flow<'_>) -> u64 {
        self.hasher.hash_one((flow.key, flow.mask))
    }

    fn lock(&self) -> MutexGuard<'_, Gone> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum(a: FlowStats, b: FlowStats) -> FlowStats {
    FlowStats {
        packets: a.packets.saturating_add(b.packets),
        bytes: a.bytes.saturating_add(b.bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(key: &[u8], packets: u64) -> Flow<'_> {
        let stats = FlowStats { packets, bytes: 60 * packets };
        Flow { key, mask: &[1; 4], stats, ..Flow::default() }
    }

    #[test]
    fn a_flow_counts_on_when_it_is_installed_again() {
        let counts = FlowCounts::default();
        assert_eq!(counts.since_first(&flow(b"a", 2)).packets, 2);
        counts.ended(&flow(b"a", 5));
        counts.ended(&flow(b"a", 7));
        counts.ended(&flow(b"b", 1));
        counts.add(FlowStats { packets: 10, bytes: 600 });
        assert_eq!(counts.since_first(&flow(b"a", 3)), FlowStats { packets: 15, bytes: 900 });
        assert_eq!(counts.since_first(&flow(b"c", 3)).packets, 3);
        assert_eq!(counts.total(), FlowStats { packets: 23, bytes: 1380 });
    }

    #[test]
    fn no_more_flows_are_remembered_than_may_be_and_the_total_knows_all() {
        let counts = FlowCounts::new(2);
        for key in [b"a", b"b", b"c", b"b"] {
            counts.ended(&flow(key, 1));
        }
        counts.ended(&flow(b"d", 0));
        let packets = |key| counts.since_first(&flow(key, 0)).packets;
        assert_eq!([b"a", b"b", b"c", b"d"].map(|key| packets(key)), [0, 2, 1, 0]);
        assert_eq!((counts.total().packets, counts.forgotten()), (4, 1));
    }
}
