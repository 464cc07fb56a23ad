//! Ports that are asked for by a pattern of names: they follow the interfaces there are.
#![allow(missing_docs, reason = "a test binary")]

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult};
use ovs_datapath::Control;
use ovs_wire::datapath::UserFeatures;
use ovs_wire::vport::VportType;
use upcall_testkit::links::Veth;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Hosts, PingPlan, Upcalld, ping, wait_until};

/// A daemon that takes what these patterns match.
fn start(hosts: Hosts, patterns: &[&str]) -> Result<Lab> {
    let builder = Upcalld::builder(DATAPATH).ports(patterns.iter().copied());
    let daemon = builder.stats(std::time::Duration::from_millis(20)).start(&hosts.switch)?;
    Ok(Lab { hosts, daemon })
}

/// Names of the datapath's ports but its own.
fn ports(lab: &Lab) -> Result<Vec<String>> {
    let mut names = lab
        .hosts
        .switch
        .block_on(async || {
            let control = Control::open().await?;
            let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
            let ports = control.vports(dp.ifindex).await?;
            anyhow::Ok(ports.into_iter().map(|port| port.name).filter(|name| name != DATAPATH))
        })??
        .collect::<Vec<_>>();
    names.sort();
    Ok(names)
}

fn wait_ports(lab: &Lab, wanted: &[&str]) -> TestResult {
    let there = || ports(lab).is_ok_and(|ports| ports == wanted);
    wait_until("the ports", SOON, there)
        .with_context(|| format!("{:?}, not {wanted:?}\n{}", ports(lab), lab.daemon.log()))?;
    // The handler knows them too.
    let count = wanted.len() as u64 + 1;
    lab.daemon.wait_stats("the ports", SOON, |stats| stats.ports == count)?;
    Ok(())
}

fn ensure_pings(lab: &Lab, to: usize) -> TestResult {
    let plan = PingPlan { count: 3, timeout: SOON, ..PingPlan::default() };
    let pings = ping::ping(&lab.hosts[0].ns, lab.hosts[to].ip4, &plan)?;
    ensure!(
        pings.answered > 0 && pings.unanswered_after_first() == 0,
        "{pings:?}\n{}",
        lab.daemon.log()
    );
    Ok(())
}

/// Makes the link of a host again, whose near end is called `name`.
fn connect(lab: &Lab, host: usize, name: &str) -> TestResult {
    let host = &lab.hosts[host];
    lab.hosts.switch.links(async |links| {
        links.add_veth(&Veth::new(name, HOST_LINK).peer_in(&host.ns).peer_mac(host.mac)).await?;
        links.up(name).await
    })?;
    Ok(host.ns.links(async |links| {
        links.up(HOST_LINK).await?;
        links.add_address(HOST_LINK, IpAddr::V4(host.ip4), 24).await
    })?)
}

fn veth(lab: &Lab, name: &str) -> TestResult {
    let peer = format!("{name}-far");
    Ok(lab.hosts.switch.links(async |links| links.add_veth(&Veth::new(name, &peer)).await)?)
}

fn rename(lab: &Lab, from: &str, to: &str) -> TestResult {
    Ok(lab.hosts.switch.links(async |links| {
        links.down(from).await?;
        links.rename(from, to).await?;
        links.up(to).await
    })?)
}

fn delete(lab: &Lab, name: &str) -> TestResult {
    Ok(lab.hosts.switch.links(async |links| links.delete(name).await)?)
}

#[test]
fn interfaces_made_after_the_start_become_ports_and_those_deleted_leave() -> TestResult {
    let lab = start(Hosts::new(3)?, &["p[0-9]"])?;
    wait_ports(&lab, &["p0", "p1", "p2"])?;
    ensure_pings(&lab, 2)?;
    for _ in 0..3 {
        delete(&lab, "p2")?;
        wait_ports(&lab, &["p0", "p1"])?;
        connect(&lab, 2, "p7")?;
        wait_ports(&lab, &["p0", "p1", "p7"])?;
        ensure_pings(&lab, 2)?;
        delete(&lab, "p7")?;
        connect(&lab, 2, "p2")?;
        wait_ports(&lab, &["p0", "p1", "p2"])?;
    }
    ensure_pings(&lab, 2)?;
    veth(&lab, "q1")?;
    ensure_pings(&lab, 1)?;
    wait_ports(&lab, &["p0", "p1", "p2"])?;
    let log = lab.daemon.log();
    // One that is taken before it is brought up is told as what it is then.
    let mut bad = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
    ensure!(bad.all(|line| line.contains("interface is down")), "{log}");
    let stats = lab.finish_after_races()?;
    ensure!(stats.ports_vanished == 0, "nobody waited for one by name: {stats:?}");
    Ok(())
}

#[test]
fn a_hundred_interfaces_that_come_and_go_at_once_are_followed() -> TestResult {
    let lab = start(Hosts::new(2)?, &["p?", "x*a"])?;
    wait_ports(&lab, &["p0", "p1"])?;
    let names: Vec<String> = (0..100).map(|number| format!("x{number:02}a")).collect();
    lab.hosts.switch.links(async |links| {
        for name in &names {
            links.add_veth(&Veth::new(name, &format!("{name}-far"))).await?;
        }
        Ok(())
    })?;
    let wanted: Vec<&str> =
        ["p0", "p1"].into_iter().chain(names.iter().map(String::as_str)).collect();
    wait_ports(&lab, &wanted)?;
    ensure_pings(&lab, 1)?;
    lab.hosts.switch.links(async |links| {
        for name in &names {
            links.delete(name).await?;
        }
        Ok(())
    })?;
    wait_ports(&lab, &["p0", "p1"])?;
    ensure_pings(&lab, 1)?;
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn an_interface_is_a_port_while_its_name_matches() -> TestResult {
    let lab = start(Hosts::new(3)?, &["p*"])?;
    wait_ports(&lab, &["p0", "p1", "p2"])?;
    veth(&lab, "other")?;
    rename(&lab, "other", "p-now")?;
    wait_ports(&lab, &["p-now", "p0", "p1", "p2"])?;
    rename(&lab, "p2", "p22")?;
    wait_ports(&lab, &["p-now", "p0", "p1", "p22"])?;
    ensure_pings(&lab, 2)?;
    rename(&lab, "p-now", "gone")?;
    wait_ports(&lab, &["p0", "p1", "p22"])?;
    // It is still there, and can come back.
    rename(&lab, "gone", "p-again")?;
    wait_ports(&lab, &["p-again", "p0", "p1", "p22"])?;
    ensure_pings(&lab, 1)?;
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn what_cannot_be_a_port_is_named_once_and_harms_no_other() -> TestResult {
    let hosts = Hosts::new(2)?;
    hosts.switch.links(async |links| links.add_veth(&Veth::new("taken", "far")).await)?;
    let (other, port_no) = hosts.switch.block_on(async || {
        let control = Control::open().await?;
        let dp = control.create_datapath("dp1", UserFeatures::UNALIGNED).await?;
        let port = control.add_vport(&dp, VportType::Netdev, "taken", None, 0).await?;
        anyhow::Ok((dp, port.port_no))
    })??;
    let lab = start(hosts, &["*"])?;
    wait_ports(&lab, &["far", "p0", "p1"])?;
    ensure_pings(&lab, 1)?;
    veth(&lab, "new")?;
    wait_ports(&lab, &["far", "new", "new-far", "p0", "p1"])?;
    let log = lab.daemon.log();
    for (interface, why) in
        [("lo", "loopback"), ("taken", "datapath 'dp1'"), ("dp1", "a datapath's own")]
    {
        let told = |line: &&str| {
            line.contains("matches what cannot be one")
                && line.contains(&format!("interface=\"{interface}\""))
        };
        let lines: Vec<_> = log.lines().filter(told).collect();
        ensure!(lines.len() == 1 && lines[0].contains(why), "{interface}: {lines:?}\n{log}");
    }
    // Free again, it is a port at once.
    lab.hosts
        .switch
        .block_on(async || Control::open().await?.delete_vport(other.ifindex, port_no).await)??;
    wait_ports(&lab, &["far", "new", "new-far", "p0", "p1", "taken"])?;
    ensure_pings(&lab, 1)?;
    lab.hosts.switch.block_on(async || Control::open().await?.delete_datapath(&other).await)??;
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn a_port_that_somebody_takes_out_stays_out_while_its_interface_is_there() -> TestResult {
    let lab = start(Hosts::new(3)?, &["p*"])?;
    wait_ports(&lab, &["p0", "p1", "p2"])?;
    lab.hosts.switch.block_on(async || {
        let control = Control::open().await?;
        let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
        let ports = control.vports(dp.ifindex).await?;
        let port = ports.iter().find(|port| port.name == "p2").context("no p2")?;
        control.delete_vport(dp.ifindex, port.port_no).await?;
        anyhow::Ok(())
    })??;
    wait_ports(&lab, &["p0", "p1"])?;
    // What would bring it back: something changes about it, and another interface is taken in.
    lab.hosts.switch.links(async |links| links.down("p2").await)?;
    veth(&lab, "p9")?;
    wait_ports(&lab, &["p0", "p1", "p9", "p9-far"])?;
    delete(&lab, "p2")?;
    connect(&lab, 2, "p2")?;
    wait_ports(&lab, &["p0", "p1", "p2", "p9", "p9-far"])?;
    ensure_pings(&lab, 2)?;
    lab.finish_after_races()?;
    Ok(())
}
