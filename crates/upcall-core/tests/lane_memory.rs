//! What flows cost in memory (contract B1): a fixed sum, whatever their number. The only test of its
//! process, which is measured.
#![cfg(not(any(loom, miri)))]
#![allow(missing_docs, reason = "a test binary")]

use allocation_counter::measure;
use upcall_core::{Lanes, QueueLimits, SourceId, Tick};

const MB: u64 = 1_000_000;

/// Spreads the numbers from 0 on over 64 bits (`splitmix64`, Steele and others, 2014).
fn hash(flow: u64) -> u64 {
    let mut x = flow.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The process's resident memory.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.expect("it says how much") * 1024
}

#[test]
fn flows_cost_what_was_allowed_and_no_more() {
    for (limit, flows, allowed) in [(100_000, 100_000, 2 * MB), (1_000_000, 1_000_000, 17 * MB)] {
        let before = resident_bytes();
        let mut lanes = None;
        let heap = measure(|| lanes = Some(Lanes::new(limit, QueueLimits::default())));
        let lanes = lanes.unwrap();
        let source = SourceId::new(1).unwrap();
        let claims = measure(|| {
            for flow in 0..flows {
                lanes.claim(hash(flow), source, Tick::of_us(0), || true);
            }
        });
        let resident = resident_bytes().saturating_sub(before);
        println!("{flows} flows: {} bytes of heap, {resident} resident", heap.bytes_current);
        assert!(heap.bytes_current.cast_unsigned() <= allowed, "{heap:?}");
        assert!(resident <= allowed + MB, "{resident} bytes resident");
        assert_eq!(claims.count_total, 0, "a flow is not worth an allocation: {claims:?}");
    }
}
