//! The other handlers, and what is installed on demand.

use anyhow::ensure;
use netns_tests::{Fabric, Lab, TestResult, modes, station};
use upcall_testkit::{Frame, Hosts, VlanTag, raw::ETHERTYPE_EXPERIMENTAL};

use crate::switch::missed;

fn frame(from: u8, to: u8) -> Vec<u8> {
    Frame::new(station(from), station(to)).raw(ETHERTYPE_EXPERIMENTAL, &[0; 46])
}

fn tagged(from: u8, to: u8) -> Vec<u8> {
    let frame = Frame::new(station(from), station(to)).vlan(VlanTag::new(10));
    frame.raw(ETHERTYPE_EXPERIMENTAL, &[0; 46])
}

#[test]
fn a_hub_sends_everything_to_all_others() -> TestResult {
    for mode in modes() {
        let configure =
            |builder: upcall_testkit::UpcalldBuilder| builder.handler("hub").dispatch(mode);
        let lab = Lab::start(Hosts::new(3)?, configure)?;
        let mut fabric = Fabric::new(&lab.hosts)?;
        for _ in 0..2 {
            ensure!(fabric.reach(0, &frame(1, 2))? == [1, 2]);
            ensure!(fabric.reach(1, &frame(2, 1))? == [0, 2]);
            // Not by `reach`: its untagged broadcast may have a flow before the tagged frame has.
            fabric.send(2, &tagged(3, 1))?;
            fabric.wait(0, &tagged(3, 1))?;
            fabric.wait(1, &tagged(3, 1))?;
        }
        // One flow for each port that has spoken: the input port is all it looks at.
        let first = |flow: &netns_tests::FlowText| flow.key.contains("in_port(1)");
        let flows = lab.wait_flows("a flow for the first port", |flows| flows.iter().any(first))?;
        ensure!(flows.iter().filter(|f| first(f)).all(|f| f.actions == "0,2,3"), "{flows:#?}");
        let vlan = |flow: &netns_tests::FlowText| flow.key.contains("vlan(");
        lab.wait_flows("a flow for tagged packets", |flows| flows.iter().any(vlan))?;
        lab.finish()?;
    }
    Ok(())
}

#[test]
fn a_cross_connect_joins_pairs_and_nothing_else() -> TestResult {
    let lab = Lab::start(Hosts::new(4)?, |builder| {
        let builder = builder.handler("cross-connect").option("--cross-connect", "p0=p2");
        builder.option("--cross-connect", "p3=p1")
    })?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    for round in 0..2 {
        for (from, to) in [(0, 2), (2, 0), (1, 3), (3, 1)] {
            let frame = frame(from as u8, 0x10 + round);
            fabric.send(from, &frame)?;
            fabric.wait(to, &frame)?;
        }
    }
    let flows = lab.wait_flows("a flow for each way", |flows| flows.len() == 4)?;
    for (in_port, output) in [(1, "3"), (3, "1"), (2, "4"), (4, "2")] {
        // The flow says all: it goes to the peer and nowhere else.
        let key = format!("recirc_id(0),in_port({in_port}),eth()");
        let flow = flows.iter().find(|flow| flow.key == key);
        ensure!(flow.is_some_and(|flow| flow.actions == output), "{flows:#?}");
    }
    let stats = lab.finish()?;
    ensure!(stats.flows_installed == 4, "{stats:?}");
    Ok(())
}

#[test]
fn install_never_brings_every_packet_up() -> TestResult {
    for mode in modes() {
        let lab = Lab::start(Hosts::new(2)?, |builder| builder.install("never").dispatch(mode))?;
        let mut fabric = Fabric::new(&lab.hosts)?;
        fabric.reach(1, &frame(2, 1))?;
        let before = missed(&lab)?;
        for _ in 0..10 {
            fabric.send(0, &frame(1, 2))?;
            fabric.wait(1, &frame(1, 2))?;
        }
        ensure!(missed(&lab)? == before + 10, "{mode}");
        ensure!(lab.flows()?.is_empty());
        let stats = lab.finish()?;
        ensure!(stats.flows_installed == 0, "{stats:?}");
        ensure!(stats.upcalls_received == stats.kernel_missed, "{stats:?}");
    }
    Ok(())
}

#[test]
fn install_exact_makes_a_flow_of_each_connection() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder.install("exact"))?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    fabric.reach(1, &frame(2, 1))?;
    for port in [1000, 1001] {
        let (from, to) = (([10, 9, 0, 1], port).into(), ([10, 9, 0, 2], 7).into());
        let udp = Frame::new(station(1), station(2)).udp(from, to, b"x")?;
        ensure!(fabric.reach(0, &udp)? == [1]);
    }
    let flows = lab.wait_flows("two flows", |flows| flows.len() == 2)?;
    ensure!(flows.iter().all(|flow| flow.exact), "{flows:#?}");
    for port in [1000, 1001] {
        let ports = format!("udp(src={port},dst=7)");
        ensure!(flows.iter().any(|flow| flow.key.ends_with(&ports)), "{flows:#?}");
    }
    lab.finish()?;
    Ok(())
}

#[test]
fn one_worker_serves_all_sockets() -> TestResult {
    for mode in modes() {
        let configure = |builder: upcall_testkit::UpcalldBuilder| {
            builder.option("--workers", "1").dispatch(mode)
        };
        let lab = Lab::start(Hosts::new(3)?, configure)?;
        let mut fabric = Fabric::new(&lab.hosts)?;
        for cpu in ovs_features::cpu::usable()? {
            ovs_features::cpu::pin_to(cpu)?;
            ensure!(fabric.reach(0, &frame(1, 9))? == [1, 2], "from CPU {cpu}, {mode}");
        }
        ensure!(fabric.reach(2, &frame(3, 1))? == [0]);
        let stats = lab.finish()?;
        ensure!(stats.workers == 1 && stats.sockets >= 4, "{stats:?}");
    }
    Ok(())
}
