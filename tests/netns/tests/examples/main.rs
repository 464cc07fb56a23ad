//! The library's examples, run as users run them.
#![allow(missing_docs, reason = "a test binary")]

mod program;
mod tap;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::{Fabric, SOON, TestResult, flows_of, station};
use ovs_features::cpu;
use program::{Program, command};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket, raw::ETHERTYPE_EXPERIMENTAL, wait_until};

const NO_OPTIONS: &[&str] = &[];

/// A frame with a number in it.
fn frame(from: u8, to: u8, number: u8) -> Vec<u8> {
    Frame::new(station(from), station(to)).raw(ETHERTYPE_EXPERIMENTAL, &[number; 46])
}

#[test]
fn each_says_how_it_is_used() -> TestResult {
    for name in ["hub", "learning_switch", "tap", "policy"] {
        let help = command(name)?.arg("--help").output()?;
        let text = String::from_utf8(help.stdout)?;
        ensure!(help.status.success(), "{name}: {}", help.status);
        for part in ["Usage:", "<INTERFACE>...", "CAP_NET_ADMIN", "Example:"] {
            ensure!(text.contains(part), "{name} --help says nothing of {part}:\n{text}");
        }
        let bare = command(name)?.output()?;
        ensure!(bare.status.code() == Some(2), "{name} without ports: {}", bare.status);
    }
    Ok(())
}

#[test]
fn hub() -> TestResult {
    let hosts = Hosts::new(3)?;
    let hub = Program::start("hub", &hosts, NO_OPTIONS)?;
    let mut fabric = Fabric::new(&hosts)?;
    for number in 0..50 {
        ensure!(fabric.reach(0, &frame(1, 2, number))? == [1, 2], "frame {number}");
        ensure!(fabric.reach(2, &frame(3, 1, number))? == [0, 1], "frame {number}");
    }
    let counted = hub.stop()?;
    // Two hundred and more frames, most of them by a flow for each of three ports: one that is never silent is
    // installed behind 32 upcalls.
    ensure!((1..=3).contains(&counted.installed), "{counted:?}");
    ensure!(counted.received < 100 && counted.shed == 0, "{counted:?}");
    Ok(())
}

#[test]
fn learning_switch() -> TestResult {
    let hosts = Hosts::new(3)?;
    let switch = Program::start("learning_switch", &hosts, NO_OPTIONS)?;
    let mut fabric = Fabric::new(&hosts)?;
    ensure!(fabric.reach(0, &frame(1, 2, 0))? == [1, 2], "nobody knows where station 2 is");
    ensure!(fabric.reach(1, &frame(2, 1, 1))? == [0], "station 1 was heard");
    ensure!(fabric.reach(0, &frame(1, 2, 2))? == [1], "station 2 was heard");
    // Station 1 moves, and the flow to its old port with it.
    ensure!(fabric.reach(2, &frame(1, 2, 3))? == [1]);
    let mut number = 4;
    wait_until("the flow to follow the station", SOON, || {
        number += 1;
        fabric.reach(1, &frame(2, 1, number)).is_ok_and(|reached| reached == [2])
    })?;
    // One for each way. They are installed behind their packets: not necessarily yet.
    wait_until("a flow for each way", SOON, || {
        number += 1;
        let ways = [(2, frame(1, 2, number)), (1, frame(2, 1, number))];
        let sent = ways.iter().all(|(from, frame)| fabric.reach(*from, frame).is_ok());
        sent && flows_of(&hosts.switch).is_ok_and(|flows| flows.len() >= ways.len())
    })?;
    let counted = switch.stop()?;
    ensure!(counted.installed >= 2 && counted.shed == 0, "{counted:?}");
    Ok(())
}

/// Our frames' numbers that are there to be received, and those that come until `until`.
fn arrivals(link: &mut RawSocket, until: u8) -> Result<Vec<(u8, u8)>> {
    let mut all = Vec::new();
    while all.last().is_none_or(|(_, number)| *number != until) {
        let what = format!("frame {until} behind {all:?}");
        let frame = link.receive_matching(&what, SOON, |frame| ours(frame).is_some())?;
        all.extend(ours(&frame));
    }
    Ok(all)
}

/// The sender of one of our frames and its number.
fn ours(frame: &[u8]) -> Option<(u8, u8)> {
    let is_ours = frame.get(12..14)? == ETHERTYPE_EXPERIMENTAL.to_be_bytes();
    is_ours.then_some((*frame.get(11)?, *frame.get(14)?))
}

#[test]
fn policy() -> TestResult {
    const DELAY: Duration = Duration::from_millis(300);
    const ALLOWED: u8 = 1;
    const DENIED: u8 = 7;
    let hosts = Hosts::new(2)?;
    let options = ["--delay", "300ms", "--deny", "02:50:00:00:00:07"];
    let policy = Program::start("policy", &hosts, &options)?;
    cpu::pin_to(0)?;
    let sender = RawSocket::sender(&hosts[0].ns, HOST_LINK)?;
    let mut receiver = RawSocket::open(&hosts[1].ns, HOST_LINK)?;
    let began = Instant::now();
    for number in 0..10 {
        sender.send(&frame(DENIED, 2, number))?;
        sender.send(&frame(ALLOWED, 2, number))?;
    }
    let all = arrivals(&mut receiver, 9)?;
    ensure!(began.elapsed() >= DELAY, "it came before the oracle spoke");
    let in_order: Vec<_> = (0..10).map(|number| (ALLOWED, number)).collect();
    ensure!(all == in_order, "{all:?}");
    // What the oracle said is known: nothing waits for it any more.
    let began = Instant::now();
    sender.send(&frame(DENIED, 2, 10))?;
    sender.send(&frame(ALLOWED, 2, 11))?;
    ensure!(arrivals(&mut receiver, 11)? == [(ALLOWED, 11)]);
    ensure!(began.elapsed() < DELAY, "it was asked again");
    let counted = policy.stop()?;
    ensure!((counted.later, counted.shed) == (2, 0), "{counted:?}");
    // One for each station, and one more for each worker that helped with what had waited.
    ensure!(counted.installed >= 2, "{counted:?}");
    Ok(())
}
