//! Lanes one step at a time.
#![cfg(not(loom))]
#![allow(missing_docs, reason = "a test binary")]

use std::collections::HashSet;

use upcall_core::{
    Claim, Class, Fence, Gather, Lanes, Late, Placed, QueueLimits, SourceId, Tick, Work,
};

const FLOW: u64 = 7 << 32;
const FENCE_US: u64 = 50;

fn id(source: u16) -> SourceId {
    SourceId::new(source).expect("not 0")
}

/// A gatherer that takes longer than a fence may: what it had found first went on without, and then it
/// finds what comes before that.
#[test]
fn what_a_late_gather_finds_holds_nothing_up() {
    let limits = QueueLimits { fence_us: FENCE_US, ..QueueLimits::default() };
    let lanes = Lanes::new(64, limits);
    assert_eq!(lanes.claim(FLOW, id(2), Tick::of_us(0), || true).1, Claim::Run);
    let hold = Fence { source: id(1), through: 1 };
    let gather = Gather { id: 1, hold: Some(hold), ..Gather::default() };
    let place = |source| {
        let arrival = Late {
            message: &[source as u8],
            flow: FLOW,
            source: id(source),
            read: 1,
            sent_ns: None,
            port: 1,
            class: Class::Miss,
            ahead: true,
            gather: Some(&gather),
            in_doubt: false,
            defer: true,
        };
        lanes.place(&arrival, || 0, |_| &gather)
    };
    assert_eq!(place(3), Placed::Waits);
    assert!(lanes.open_fences(FENCE_US, |_| false), "its time is up");
    assert_eq!(place(2), Placed::Waits, "it was the flow's last known socket");
    let mut work = Work::default();
    lanes.take(8, &mut work);
    assert!(work.is_empty(), "the first one waits for its gather");
    assert!(lanes.open_fences(0, |fence| *fence == hold));
    lanes.take(8, &mut work);
    let order: Vec<_> = work.upcalls().map(|upcall| upcall.message[0]).collect();
    assert_eq!(order, [2, 3]);
    lanes.finish(&mut work);
    assert!(!lanes.any_queued());
}

/// Spreads the numbers from 0 on over 64 bits (`splitmix64`, Steele and others, 2014).
fn hash(flow: u64) -> u64 {
    let mut x = flow.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// An interpreter takes a hundredth of everything.
const PART: usize = if cfg!(miri) { 100 } else { 1 };

/// Lanes for `limit` flows, with `flows` seen once each, and how many different lanes those have.
fn fill(limit: usize, flows: u64) -> (Lanes, usize) {
    let lanes = Lanes::new(limit, QueueLimits::default());
    let source = id(1);
    let mut different = HashSet::new();
    for flow in 0..flows {
        let (lane, claim) = lanes.claim(hash(flow), source, Tick::of_us(0), || true);
        assert_eq!(claim, Claim::Run, "of one socket, all may run");
        different.insert(lane);
    }
    (lanes, different.len())
}

#[test]
fn flows_beyond_the_limit_share_lanes() {
    let flows = 1_000_000 / PART;
    let (lanes, different) = fill(10_000 / PART, flows as u64);
    println!("{flows} flows in {different} of {} lanes", lanes.capacity());
    assert!(different <= lanes.capacity());
    assert!(different * 10 >= lanes.capacity() * 9, "all lanes are used: {different}");
}

#[test]
fn flows_within_the_limit_hardly_share() {
    let flows = 50_000 / PART;
    let (_, different) = fill(2 * flows, flows as u64);
    assert!(different * 100 >= flows * 99, "{different} lanes for {flows} flows");
}

/// A packet that is known to be older than one whose answer the handler owes comes behind it all the same: the
/// lane would wait for an answer at its head that is not there.
#[test]
fn what_is_older_than_a_question_comes_behind_it() {
    let lanes = Lanes::new(64, QueueLimits::default());
    let arrival = |number: &'static [u8], source, sent_ns| Late {
        message: number,
        flow: FLOW,
        source: id(source),
        read: 1,
        sent_ns: Some(sent_ns),
        port: 1,
        class: Class::Miss,
        ahead: false,
        gather: None,
        in_doubt: false,
        defer: false,
    };
    assert_eq!(lanes.claim(FLOW, id(1), Tick::of_us(0), || true).1, Claim::Run);
    let ticket = lanes.detain(&arrival(&[3], 1, 30), || 0).expect("there is room");
    let nothing = Gather::default();
    for (number, sent_ns) in [(&[2], 20), (&[4], 40), (&[1], 10)] {
        let placed = lanes.place(&arrival(number, 2, sent_ns), || 0, |_| &nothing);
        assert_eq!(placed, Placed::Waits);
    }
    assert!(lanes.answered(ticket), "it is at the head");
    let mut work = Work::default();
    lanes.open_fences(0, |_| true);
    lanes.take(8, &mut work);
    let order: Vec<_> = work.upcalls().map(|upcall| upcall.message[0]).collect();
    assert_eq!(order, [3, 1, 2, 4]);
}
