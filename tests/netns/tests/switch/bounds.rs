//! Limits of addresses, static addresses, flood control: what is over, and where it is counted.

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, Lab, TestResult, ctl, ctl_json, modes};
use serde_json::Value;
use upcall_testkit::VlanTag;

use super::{Arrivals, BROADCAST, Links, lab, mac};

/// Three hosts in one VLAN of their own.
const BEHIND: [(Option<VlanTag>, usize); 3] = [(None, 1), (None, 2), (None, 1)];
const MARKS: [(usize, Option<VlanTag>); 3] = [(1, None), (2, None), (1, None)];

fn reach(links: &mut Links, from: usize, stations: (usize, usize)) -> Result<Vec<usize>> {
    let packet = links.packet(mac(stations.0), mac(stations.1));
    let arrivals: Arrivals = links.reach((from, None), packet, &MARKS)?;
    Ok(arrivals.into_iter().map(|(host, _)| host).collect())
}

fn counted(lab: &Lab, name: &str) -> Result<u64> {
    let all = ctl_json(lab, "coverage/show")?;
    all[name]["total"].as_u64().with_context(|| format!("no {name}: {all}"))
}

/// What `fdb/stats-show` says of a port.
fn port(lab: &Lab, number: u32) -> Result<Value> {
    let shown = ctl_json(lab, "fdb/stats-show")?;
    let ports = shown["ports"].as_array().with_context(|| format!("no ports: {shown}"))?;
    let found = ports.iter().find(|port| port["port"] == number);
    found.cloned().with_context(|| format!("no port {number}: {shown}"))
}

#[test]
fn a_port_at_its_limit_learns_no_more_and_is_flooded() -> TestResult {
    for mode in modes() {
        // The mark that follows a packet has an address, too.
        let lab = lab(3, "[port.p0]\nmac_max = 3\n", |builder| builder.dispatch(mode))?;
        let mut links = Links::new(&lab, &BEHIND)?;
        // Stations 10 to 14 are behind p0; 20 behind p1 asks for them.
        for station in 10..=14 {
            ensure!(reach(&mut links, 0, (station, 20))? == [1, 2], "{mode}: {station}");
        }
        let known = |station| if station < 12 { vec![0] } else { vec![0, 2] };
        for station in 10..=14 {
            let got = reach(&mut links, 1, (20, station))?;
            ensure!(got == known(station), "{mode}: to {station}: {got:?}");
        }
        let shown = port(&lab, 1)?;
        ensure!(shown["macs"] == 3 && shown["macs_max"] == 3, "{mode}: {shown}");
        let refused = counted(&lab, "port_macs_refused")?;
        ensure!(refused == 3 && shown["macs_refused"] == refused, "{mode}: {refused} {shown}");
        // Who is known elsewhere and comes to a full port is not left where it was.
        ensure!(reach(&mut links, 2, (20, 10))? == [0], "{mode}: to 10");
        ensure!(reach(&mut links, 0, (20, 10))?.is_empty(), "{mode}: 10 is behind the same port");
        ensure!(reach(&mut links, 1, (10, 20))? == [0, 2], "{mode}: 10 took its place along");
        // Places that are free are taken.
        ctl(&lab, &["fdb/flush"])?;
        ensure!(reach(&mut links, 0, (14, 21))? == [1, 2], "{mode}");
        ensure!(reach(&mut links, 1, (21, 14))? == [0], "{mode}: 14 has a place now");
        lab.finish_after_races()?;
    }
    Ok(())
}

#[test]
fn a_static_address_stays_and_nobody_else_has_it() -> TestResult {
    // Station 10 is behind p0, which may learn nothing.
    let config = "[port.p0]\nmac_max = 0\nstatic_macs = ['02:50:00:00:00:0b']\n";
    for mode in modes() {
        let lab = lab(3, config, |builder| builder.dispatch(mode).option("--mac-age", "2s"))?;
        let mut links = Links::new(&lab, &BEHIND)?;
        let shown = ctl(&lab, &["fdb/show"])?;
        ensure!(shown.contains("    1     0  02:50:00:00:00:0b  static\n"), "{shown}");
        ensure!(reach(&mut links, 1, (20, 10))? == [0], "{mode}: known before it has spoken");
        ensure!(
            reach(&mut links, 2, (10, 20))?.is_empty(),
            "{mode}: at another port it is dropped"
        );
        ensure!(counted(&lab, "static_mac_refused")? == 1, "{mode}");
        ctl(&lab, &["fdb/flush"])?;
        ensure!(reach(&mut links, 1, (20, 10))? == [0], "{mode}: still there");
        ensure!(reach(&mut links, 0, (10, 20))? == [1], "{mode}: it may speak at home");
        let entries = ctl_json(&lab, "fdb/show")?[DATAPATH].clone();
        let fixed = entries.as_array().context("no list")?.iter().filter(|e| e["static"] == true);
        ensure!(fixed.count() == 1, "{entries}");
        lab.finish_after_races()?;
    }
    Ok(())
}

const SENT: u64 = 60;
const BURST: u64 = 10;

#[test]
fn floods_over_their_rate_are_dropped_and_counted_by_cause() -> TestResult {
    let config =
        "multicast_rate = '1:10'\n[port.p0]\nbroadcast_rate = '1:10'\nunknown_rate = '1:10'\n";
    let causes =
        [("broadcast", BROADCAST), ("multicast", [1, 0, 0x5e, 0, 0, 1]), ("unknown", mac(99))];
    for mode in modes() {
        let lab = lab(3, config, |builder| builder.dispatch(mode))?;
        let mut links = Links::new(&lab, &[])?;
        let hello = links.packet(mac(20), BROADCAST);
        links.send(1, &hello.bytes(None))?;
        links.wait(2, hello)?;
        for (cause, to) in causes {
            let before = counted(&lab, &format!("flood_{cause}_over"))?;
            for _ in 0..SENT {
                let packet = links.packet(mac(10), to);
                links.send(0, &packet.bytes(None))?;
            }
            // Known, so not bounded; and behind those that are.
            let last = links.packet(mac(10), mac(20));
            links.send(0, &last.bytes(None))?;
            links.wait(1, last)?;
            let over = counted(&lab, &format!("flood_{cause}_over"))? - before;
            let shown = port(&lab, 1)?;
            ensure!(shown["flood_over"][cause] == over, "{mode} {cause}: {over} {shown}");
            // One more is let through each second.
            ensure!((SENT / 2..=SENT - BURST).contains(&over), "{mode} {cause}: {over} over");
        }
        // Others are not bounded by what p0 may, and known stations not at all.
        ensure!(
            port(&lab, 2)?["flood_over"]
                == serde_json::json!({"broadcast": 0, "multicast": 0, "unknown": 0})
        );
        for _ in 0..SENT {
            let packet = links.packet(mac(10), mac(20));
            links.send(0, &packet.bytes(None))?;
            links.wait(1, packet)?;
        }
        let stats = lab.finish()?;
        ensure!(stats.dropped >= SENT && stats.kernel_lost == 0, "{stats:?}");
    }
    Ok(())
}
