//! Many flows: what they cost at rest, to show, to set right after a change, and to delete.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, RawSocket, wait_until};

use crate::bed::Bed;
use crate::contestant::{Contestant, Install};
use crate::measure::per;

/// Stations behind host 0, which send, and behind host 1, to which they do: a flow for each pair, which is
/// nearly as many as both may have by default.
const SENDERS: u16 = 495;
const RECEIVERS: u16 = 400;
const FLOWS: u64 = SENDERS as u64 * RECEIVERS as u64;
/// Frames between two looks at how far the contestant is: fewer than its socket holds.
const STRETCH: u16 = 1_000;
/// How long the flows are left alone.
const REST: Duration = Duration::from_secs(5);
/// How long a flow may be without a packet.
pub(crate) const IDLE: Duration = Duration::from_secs(40);
/// How long anything may take that is done to all flows.
const LIMIT: Duration = Duration::from_mins(5);
/// Time between two frames that look whether a flow is right.
const PROBE_EVERY: Duration = Duration::from_millis(1);
/// Flows of some senders that are looked at.
const PROBED: [u16; 4] = [0, 150, 300, SENDERS - 1];

/// 198,000 flows of a switch that learns: set up, left alone, shown, one station of theirs moved, and
/// idled out.
pub(crate) fn flow_life(contestant: Contestant) -> Result<Value> {
    let bed = Bed::new(contestant, Install::Learned, 3)?;
    set_up(&bed)?;
    let flows = bed.kernel()?.flows;
    let rest = share_at_rest(&bed)?;
    let shown = Instant::now();
    let lines = bed.running.appctl(&["dpctl/dump-flows"])?.lines().count() as u64;
    let shown = nanoseconds(shown);
    ensure!(lines * 10 > flows * 9, "{lines} lines tell of {flows} flows");
    let moved_ns = move_station(&bed, RECEIVERS / 2)?;
    let used = bed.usage()?;
    let begun = Instant::now();
    let gone = || bed.kernel().is_ok_and(|kernel| kernel.flows == 0);
    wait_until("all flows to idle out", LIMIT, gone)?;
    let idled = begun.elapsed();
    let used = bed.usage()?.since(used);
    bed.stop()?;
    Ok(json!({
        "flows": flows,
        "rest_percent": rest,
        "shown_ns": per(shown, lines),
        "moved_ns": moved_ns,
        "idled_cpu_ns": per(used.cpu_ns, flows),
        "idled_s": idled.as_secs_f64(),
    }))
}

/// One frame of each receiver, so that it is known, and one of each sender to each.
fn set_up(bed: &Bed) -> Result<()> {
    for number in 0..RECEIVERS {
        bed.links[1].send(&frame(receiver(number), sender(0)))?;
    }
    let (before, mut sent) = (bed.arrived(1)?, 0);
    for to in 0..RECEIVERS {
        for from in 0..SENDERS {
            bed.links[0].send(&frame(sender(from), receiver(to)))?;
            sent += 1;
            if sent % u64::from(STRETCH) == 0 {
                bed.wait_arrived(1, before, sent)?;
                bed.running.allow_flows(2 * FLOWS)?;
            }
        }
    }
    bed.wait_arrived(1, before, sent)
}

/// CPU that the contestant takes while nothing happens, in percent of one.
fn share_at_rest(bed: &Bed) -> Result<f64> {
    let (used, begun) = (bed.usage()?, Instant::now());
    std::thread::sleep(REST);
    let used = bed.usage()?.since(used);
    Ok(100.0 * per(used.cpu_ns, nanoseconds(begun)))
}

/// Moves a receiver from host 1 to host 2; gives the nanoseconds until flows to it are right again.
fn move_station(bed: &Bed, number: u16) -> Result<u64> {
    let moved = receiver(number);
    let mut there = RawSocket::open(&bed.hosts[2].ns, HOST_LINK)?;
    let begun = Instant::now();
    bed.links[2].send(&frame(moved, sender(0)))?;
    for from in PROBED {
        let probe = frame(sender(from), moved);
        loop {
            bed.links[0].send(&probe)?;
            if there.receive(PROBE_EVERY)?.is_some_and(|frame| frame.starts_with(&probe)) {
                break;
            }
            ensure!(begun.elapsed() < LIMIT, "a flow to a station that moved is never set right");
        }
    }
    Ok(nanoseconds(begun))
}

fn sender(number: u16) -> [u8; 6] {
    station(1, number)
}

fn receiver(number: u16) -> [u8; 6] {
    station(2, number)
}

fn station(side: u8, number: u16) -> [u8; 6] {
    let [high, low] = number.to_be_bytes();
    [2, 0, 0, side, high, low]
}

/// A frame of a protocol that no stack knows.
fn frame(source: [u8; 6], destination: [u8; 6]) -> Vec<u8> {
    Frame::new(source, destination).raw(ETHERTYPE_EXPERIMENTAL, &[0; 46])
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
