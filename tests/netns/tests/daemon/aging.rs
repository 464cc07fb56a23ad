//! What is not used is forgotten.

use anyhow::ensure;
use netns_tests::{Fabric, Lab, SOON, TestResult, station};
use upcall_testkit::{Frame, Hosts, raw::ETHERTYPE_EXPERIMENTAL, wait_until};

fn frame(from: u8, to: u8) -> Vec<u8> {
    Frame::new(station(from), station(to)).raw(ETHERTYPE_EXPERIMENTAL, &[0; 46])
}

#[test]
fn a_silent_station_is_forgotten_and_flooded_to_again() -> TestResult {
    let lab = Lab::start(Hosts::new(3)?, |builder| {
        builder.option("--mac-age", "300ms").option("--sweep-interval", "50ms")
    })?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    fabric.reach(0, &frame(1, 2))?;
    ensure!(lab.daemon.wait_stats("addresses", SOON, |stats| stats.macs > 0)?.macs >= 1);
    lab.daemon.wait_stats("all addresses to age", SOON, |stats| stats.macs == 0)?;
    ensure!(fabric.reach(1, &frame(2, 1))? == [0, 2], "station 1 is unknown again");
    lab.finish()?;
    Ok(())
}

#[test]
fn a_flow_that_is_used_keeps_its_source_known() -> TestResult {
    let lab = Lab::start(Hosts::new(3)?, |builder| {
        builder.option("--mac-age", "400ms").option("--sweep-interval", "50ms")
    })?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    let (there, back) = (frame(1, 2), frame(2, 1));
    fabric.reach(0, &there)?;
    fabric.reach(1, &back)?;
    fabric.reach(0, &there)?;
    lab.wait_flows("a flow for each way", |flows| flows.len() == 2)?;
    // Both ways are used by flows alone, for several times the age of an address. How long a packet
    // takes on a busy machine is nobody's promise, so what is checked is that none was flooded.
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_millis(1200) {
        fabric.send(0, &there)?;
        fabric.wait(1, &there)?;
        fabric.send(1, &back)?;
        fabric.wait(0, &back)?;
    }
    ensure!(fabric.reach(0, &there)? == [1], "still known");
    lab.finish()?;
    Ok(())
}

#[test]
fn a_flow_that_is_not_used_idles_out() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| {
        builder.option("--flow-idle", "200ms").option("--sweep-interval", "50ms")
    })?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    fabric.reach(0, &frame(1, 2))?;
    fabric.reach(1, &frame(2, 1))?;
    lab.daemon.wait_stats("a flow", SOON, |stats| stats.flows_installed == 1)?;
    lab.wait_flows("it to idle out", <[_]>::is_empty)?;
    // The addresses outlive the flow: the next packet is unicast, and installs it again.
    ensure!(fabric.reach(1, &frame(2, 1))? == [0]);
    wait_until("the second install", SOON, || {
        lab.daemon.stats().is_some_and(|stats| stats.flows_installed == 2)
    })?;
    lab.finish()?;
    Ok(())
}
