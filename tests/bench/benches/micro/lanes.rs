//! The lane of an upcall: found, or claimed anew.

use criterion::Criterion;
use upcall_core::{Claim, Lanes, QueueLimits, SourceId, Tick};

use crate::Group;

/// Microseconds after which a lane counts as idle, and more.
const IDLE_US: u64 = 3_000_000;

/// Spreads the numbers from 0 on over 64 bits (`splitmix64`, Steele and others, 2014).
fn hash(flow: u64) -> u64 {
    let mut x = flow.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub(crate) fn all(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "lanes");
    for (name, flows) in
        [("one flow", 1), ("100,000 flows", 100_000), ("1,000,000 flows", 1_000_000)]
    {
        let claims = Claims::new(flows);
        let mut flow = 0;
        group.bench(&format!("{name}, hit"), || {
            flow = (flow + 1) % flows;
            claims.claim(flow, 0);
        });
    }
    for (name, flows) in [("100,000 lanes", 100_000), ("1,000,000 lanes", 1_000_000)] {
        let claims = Claims::new(flows);
        let mut flow = flows;
        group.bench(&format!("{name}, a new flow"), || {
            flow += 1;
            claims.claim(flow, flow / flows * IDLE_US);
        });
    }
}

/// Lanes that a number of flows have.
struct Claims {
    lanes: Lanes,
    source: SourceId,
}

impl Claims {
    fn new(flows: u64) -> Self {
        let lanes = Lanes::new(flows as usize, QueueLimits::default());
        let this = Self { lanes, source: SourceId::new(1).expect("not 0") };
        (0..flows).for_each(|flow| this.claim(flow, 0));
        this
    }

    fn claim(&self, flow: u64, now_us: u64) {
        let (_, claim) = self.lanes.claim(hash(flow), self.source, Tick::of_us(now_us), || true);
        assert_eq!(claim, Claim::Run, "nothing of it is on its way");
    }
}
