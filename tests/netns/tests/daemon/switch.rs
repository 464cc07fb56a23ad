//! The learning switch.

use anyhow::ensure;
use netns_tests::{Fabric, Lab, SOON, TestResult, modes, station};
use upcall_testkit::{Frame, Hosts, VlanTag, raw::ETHERTYPE_EXPERIMENTAL, wait_until};

/// A frame between two invented stations.
fn frame(from: u8, to: u8) -> Frame {
    Frame::new(station(from), station(to))
}

fn bytes(frame: &Frame) -> Vec<u8> {
    frame.raw(ETHERTYPE_EXPERIMENTAL, &[0; 46])
}

#[test]
fn unknown_is_flooded_replies_are_unicast_and_then_a_flow_does_it() -> TestResult {
    for mode in modes() {
        let lab = Lab::start(Hosts::new(4)?, |builder| builder.dispatch(mode))?;
        let mut fabric = Fabric::new(&lab.hosts)?;
        let (there, back) = (bytes(&frame(1, 2)), bytes(&frame(2, 1)));
        ensure!(fabric.reach(0, &there)? == [1, 2, 3], "unknown: to all others, and not back");
        ensure!(lab.flows()?.is_empty(), "a flood installs nothing");
        ensure!(fabric.reach(1, &back)? == [0], "the reply is unicast");
        ensure!(fabric.reach(0, &there)? == [1], "the station has been learned");
        let flows = lab.wait_flows("a flow for each way", |flows| flows.len() == 2)?;
        for (from, to) in [(1, 2), (2, 1)] {
            let (output, in_port) = (to.to_string(), format!("in_port({from})"));
            let flow = flows.iter().find(|flow| flow.key.contains(&in_port));
            ensure!(flow.is_some_and(|flow| flow.actions == output), "{flows:#?}");
        }
        let before = missed(&lab)?;
        for _ in 0..5 {
            // Sent without the marks of `reach`, which are broadcast and always come up.
            fabric.send(0, &there)?;
            fabric.wait(1, &there)?;
        }
        ensure!(missed(&lab)? == before, "packets of an installed flow come up");
        let flows = lab.flows()?;
        ensure!(flows.iter().any(|flow| flow.packets == 5), "{flows:#?}");
        let stats = lab.finish()?;
        ensure!(stats.dispatch_mode == *mode && stats.kernel_lost == 0, "{stats:?}");
        ensure!(stats.flows_installed == 2, "{stats:?}");
    }
    Ok(())
}

/// Misses that the kernel counts, now.
pub(crate) fn missed(lab: &Lab) -> anyhow::Result<u64> {
    lab.hosts.switch.block_on(async || {
        let control = ovs_datapath::Control::open().await?;
        let dp = control.datapath(netns_tests::DATAPATH).await?;
        Ok(dp.map_or(0, |dp| dp.stats.missed))
    })?
}

#[test]
fn the_flow_matches_what_the_decision_looked_at_and_no_more() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder)?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    fabric.reach(1, &bytes(&frame(2, 1)))?;
    let udp = |port| frame(1, 2).udp(([10, 9, 0, 1], port).into(), ([10, 9, 0, 2], 7).into(), b"x");
    fabric.reach(0, &udp(1)?)?;
    let flows = lab.wait_flows("a flow", |flows| flows.len() == 1)?;
    let expected = "recirc_id(0),in_port(1),eth(src=02:50:00:00:00:01,dst=02:50:00:00:00:02),\
                    eth_type(0x0800)";
    ensure!(flows[0].key == expected, "{flows:?}");
    let before = missed(&lab)?;
    // Another source port, the same flow.
    let second = udp(2)?;
    fabric.send(0, &second)?;
    fabric.wait(1, &second)?;
    ensure!(missed(&lab)? == before);
    lab.finish()?;
    Ok(())
}

#[test]
fn a_station_that_moves_takes_its_traffic_along() -> TestResult {
    let lab = Lab::start(Hosts::new(3)?, |builder| builder)?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    let (to_one, to_two) = (bytes(&frame(2, 1)), bytes(&frame(1, 2)));
    fabric.reach(0, &to_two)?;
    fabric.reach(1, &to_one)?;
    fabric.reach(0, &to_two)?;
    lab.wait_flows("a flow for each way", |flows| flows.len() == 2)?;
    // Station 1 is at host 2 now. Its first packet has no flow there.
    ensure!(fabric.reach(2, &to_two)? == [1], "its own packets");
    let mut reached = Vec::new();
    wait_until("traffic to follow the station", SOON, || {
        reached = fabric.reach(1, &to_one).unwrap_or_default();
        reached == [2]
    })?;
    // The right one is installed once it is silent.
    lab.wait_flows("the right flow instead of the wrong ones", |flows| {
        flows.iter().all(|flow| !flow.key.contains("in_port(1)") && flow.actions != "1")
            && flows.iter().any(|flow| flow.actions == "3")
    })?;
    lab.finish()?;
    Ok(())
}

#[test]
fn one_address_in_two_vlans_is_two_stations() -> TestResult {
    let lab = Lab::start(Hosts::new(3)?, |builder| builder)?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    let tagged = |from, to, id| bytes(&frame(from, to).vlan(VlanTag::new(id)));
    // Station 1 is behind host 0 in VLAN 10 and behind host 1 in VLAN 20.
    ensure!(fabric.reach(0, &tagged(1, 9, 10))? == [1, 2]);
    ensure!(fabric.reach(1, &tagged(1, 9, 20))? == [0, 2]);
    for _ in 0..2 {
        ensure!(fabric.reach(2, &tagged(2, 1, 10))? == [0], "in VLAN 10");
        ensure!(fabric.reach(2, &tagged(2, 1, 20))? == [1], "in VLAN 20");
    }
    ensure!(fabric.reach(2, &tagged(2, 1, 30))? == [0, 1], "unknown in VLAN 30");
    ensure!(fabric.reach(2, &bytes(&frame(2, 1)))? == [0, 1], "unknown without a tag");
    let flows = lab.wait_flows("a flow in each VLAN", |flows| flows.len() == 2)?;
    for (vid, output) in [(10, "1"), (20, "2")] {
        let vlan = format!("vlan(vid={vid}");
        let flow = flows.iter().find(|flow| flow.key.contains(&vlan));
        ensure!(flow.is_some_and(|flow| flow.actions == output), "{flows:#?}");
    }
    // A priority is no other station: the same flow.
    let urgent = bytes(&frame(2, 1).vlan(VlanTag::new(10).priority(5)));
    let before = missed(&lab)?;
    fabric.send(2, &urgent)?;
    fabric.wait(0, &urgent)?;
    ensure!(missed(&lab)? == before, "the priority is matched");
    lab.finish()?;
    Ok(())
}

#[test]
fn two_tags_pass_unchanged() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder)?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    let double = |from, to| bytes(&frame(from, to).vlan(VlanTag::service(7)).vlan(VlanTag::new(8)));
    ensure!(fabric.reach(0, &double(1, 2))? == [1]);
    ensure!(fabric.reach(1, &double(2, 1))? == [0]);
    lab.wait_flows("the reply's flow", |flows| flows.len() == 1)?;
    ensure!(fabric.reach(1, &double(2, 1))? == [0], "through the flow");
    lab.finish()?;
    Ok(())
}

#[test]
fn what_is_for_the_neighbour_alone_is_not_forwarded() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder)?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    for last in [0x00, 0x0e, 0x0f] {
        let reserved = Frame::new(station(1), [0x01, 0x80, 0xc2, 0, 0, last]);
        ensure!(fabric.reach(0, &bytes(&reserved))?.is_empty(), "01:80:c2:00:00:{last:02x}");
    }
    let beyond = Frame::new(station(1), [0x01, 0x80, 0xc2, 0, 0, 0x10]);
    ensure!(fabric.reach(0, &bytes(&beyond))? == [1], "01:80:c2:00:00:10 is an ordinary group");
    let stats = lab.finish()?;
    ensure!(stats.dropped == 3, "{stats:?}");
    Ok(())
}

#[test]
fn a_port_that_comes_later_is_served_and_one_that_goes_is_forgotten() -> TestResult {
    for mode in modes() {
        let hosts = Hosts::new(3)?;
        let builder = upcall_testkit::Upcalld::builder(netns_tests::DATAPATH)
            .ports(["p0", "p1"])
            .dispatch(mode)
            .stats(std::time::Duration::from_millis(20));
        let daemon = builder.start(&hosts.switch)?;
        let lab = Lab { hosts, daemon };
        add_port(&lab, "p2")?;
        lab.daemon.wait_stats("the third port", SOON, |stats| stats.ports == 4)?;
        let mut fabric = Fabric::new(&lab.hosts)?;
        ensure!(fabric.reach(2, &bytes(&frame(3, 1)))? == [0, 1], "{mode}: from the new port");
        ensure!(fabric.reach(0, &bytes(&frame(1, 3)))? == [2], "{mode}: to the new port");
        ensure!(fabric.reach(0, &bytes(&frame(1, 3)))? == [2]);
        lab.wait_flows("its flow", |flows| flows.iter().any(|flow| flow.actions == "3"))?;
        // Its device vanishes with its host's end.
        lab.hosts[2].ns.links(async |links| links.delete("eth0").await)?;
        lab.wait_flows("its flow to go", |flows| flows.iter().all(|flow| flow.actions != "3"))?;
        lab.daemon.wait_stats("two ports", SOON, |stats| stats.ports == 3)?;
        lab.finish()?;
    }
    Ok(())
}

fn add_port(lab: &Lab, name: &str) -> TestResult {
    lab.hosts.switch.block_on(async || {
        let control = ovs_datapath::Control::open().await?;
        let dp = control.datapath(netns_tests::DATAPATH).await?;
        let dp = dp.ok_or_else(|| anyhow::anyhow!("no datapath"))?;
        control.add_vport(&dp, ovs_wire::vport::VportType::Netdev, name, None, 0).await?;
        Ok(())
    })?
}
