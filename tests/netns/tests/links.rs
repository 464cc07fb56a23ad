//! Interfaces of ports that are renamed, vanish and come back.
#![allow(missing_docs, reason = "a test binary")]

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult};
use ovs_datapath::Control;
use upcall_testkit::links::Veth;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Hosts, PingPlan, ping, wait_until};

fn ensure_pings(lab: &Lab) -> TestResult {
    let plan = PingPlan { count: 3, ..PingPlan::default() };
    let pings = ping::ping(&lab.hosts[0].ns, lab.hosts[1].ip4, &plan)?;
    let log = lab.daemon.log();
    ensure!(pings.answered > 0 && pings.unanswered_after_first() == 0, "{pings:?}\n{log}");
    Ok(())
}

fn rename(lab: &Lab, from: &str, to: &str) -> TestResult {
    // Kernels before 6.2 rename only what is down.
    Ok(lab.hosts.switch.links(async |links| {
        links.down(from).await?;
        links.rename(from, to).await?;
        links.up(to).await
    })?)
}

fn delete(lab: &Lab, name: &str) -> TestResult {
    Ok(lab.hosts.switch.links(async |links| links.delete(name).await)?)
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

/// Names of the datapath's ports, by number.
fn ports(lab: &Lab) -> Result<Vec<(u32, String)>> {
    lab.hosts.switch.block_on(async || {
        let control = Control::open().await?;
        let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
        let ports = control.vports(dp.ifindex).await?;
        Ok(ports.into_iter().map(|port| (port.port_no, port.name)).collect())
    })?
}

fn has_port(lab: &Lab, name: &str) -> bool {
    ports(lab).is_ok_and(|ports| ports.iter().any(|(_, port)| port == name))
}

fn cross_connect(hosts: Hosts) -> Result<Lab> {
    Lab::start(hosts, |builder| builder.handler("cross-connect").option("--cross-connect", "p0=p1"))
}

#[test]
fn a_renamed_port_stays_the_port_it_was_configured_as() -> TestResult {
    let lab = cross_connect(Hosts::new(2)?)?;
    ensure_pings(&lab)?;
    let before = ports(&lab)?;
    rename(&lab, "p1", "renamed")?;
    lab.daemon.wait_log("port p1 is now called renamed", SOON)?;
    let after = ports(&lab)?;
    ensure!(after.len() == before.len() && after[2] == (before[2].0, "renamed".to_owned()));
    ensure!(!lab.daemon.log().contains("port gone"), "{}", lab.daemon.log());
    ensure_pings(&lab)?;
    // Flows are judged by the ports there are: the cross-connect must find its pair still.
    let flows = lab.wait_flows("flows both ways", |flows| flows.len() >= 2)?;
    ensure!(flows.iter().all(|flow| flow.actions != "drop"), "{flows:?}");
    let stats = lab.finish_after_races()?;
    ensure!(stats.ports_vanished == 0, "{stats:?}");
    Ok(())
}

#[test]
fn an_interface_that_vanishes_is_waited_for_and_made_the_port_again() -> TestResult {
    let lab = cross_connect(Hosts::new(2)?)?;
    for times in 1..=2 {
        ensure_pings(&lab)?;
        delete(&lab, "p1")?;
        let gone =
            |stats: &upcall_testkit::Stats| (stats.ports_vanished, stats.ports) == (times, 2);
        lab.daemon.wait_stats("the loss of a port", SOON, gone)?;
        ensure!(!has_port(&lab, "p1"));
        connect(&lab, 1, "p1")?;
        wait_until("the port", SOON, || has_port(&lab, "p1")).with_context(|| lab.daemon.log())?;
        lab.daemon.wait_stats("the port", SOON, |stats| stats.ports == 3)?;
    }
    ensure_pings(&lab)?;
    ensure!(lab.daemon.log().contains("waiting for one of that name"), "{}", lab.daemon.log());
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn a_renamed_interface_that_vanishes_is_waited_for_by_its_configured_name() -> TestResult {
    let lab = cross_connect(Hosts::new(2)?)?;
    rename(&lab, "p1", "renamed")?;
    lab.daemon.wait_log("port p1 is now called renamed", SOON)?;
    delete(&lab, "renamed")?;
    lab.daemon.wait_stats("the loss of a port", SOON, |stats| stats.ports_vanished == 1)?;
    connect(&lab, 1, "p1")?;
    wait_until("the port", SOON, || has_port(&lab, "p1")).with_context(|| lab.daemon.log())?;
    ensure_pings(&lab)?;
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn an_interface_that_is_there_again_before_it_was_missed_is_a_port_again() -> TestResult {
    let lab = cross_connect(Hosts::new(2)?)?;
    for times in 1..=5 {
        delete(&lab, "p1")?;
        connect(&lab, 1, "p1")?;
        let back =
            |stats: &upcall_testkit::Stats| (stats.ports_vanished, stats.ports) == (times, 3);
        lab.daemon.wait_stats("the port", SOON, back)?;
    }
    ensure_pings(&lab)?;
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn an_interface_that_leaves_the_namespace_and_returns_is_a_port_again() -> TestResult {
    let lab = cross_connect(Hosts::new(2)?)?;
    let (elsewhere, here) = (upcall_testkit::NetNs::new("away")?, lab.hosts.switch.clone());
    here.links(async |links| links.move_to("p1", &elsewhere).await)?;
    lab.daemon.wait_stats("the loss of a port", SOON, |stats| stats.ports_vanished == 1)?;
    elsewhere.links(async |links| links.move_to("p1", &here).await)?;
    here.links(async |links| links.up("p1").await)?;
    wait_until("the port", SOON, || has_port(&lab, "p1")).with_context(|| lab.daemon.log())?;
    ensure_pings(&lab)?;
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn a_vanished_interface_ends_the_daemon_if_that_was_asked_for() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder.option("--on-port-gone", "exit"))?;
    delete(&lab, "p1")?;
    let exit = lab.daemon.wait_exit(SOON)?;
    ensure!(exit.status.code() == Some(1), "{exit:?}");
    ensure!(exit.log.contains("the interface of port 'p1' of datapath 'dp0' is gone"), "{exit:?}");
    Ok(())
}

#[test]
fn a_port_that_somebody_takes_out_stays_out() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder)?;
    let (number, _) = ports(&lab)?.into_iter().find(|(_, name)| name == "p1").context("no p1")?;
    lab.hosts.switch.block_on(async || {
        let control = Control::open().await?;
        let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
        control.delete_vport(dp.ifindex, number).await?;
        anyhow::Ok(())
    })??;
    lab.daemon.wait_stats("the loss of a port", SOON, |stats| stats.ports == 2)?;
    // What would bring it back: its interface changes, and another one is noticed after that.
    rename(&lab, "p1", "q1")?;
    rename(&lab, "q1", "p1")?;
    rename(&lab, "p0", "q0")?;
    lab.daemon.wait_log("port p0 is now called q0", SOON)?;
    ensure!(!has_port(&lab, "p1"), "{}", lab.daemon.log());
    let stats = lab.finish_after_races()?;
    ensure!(stats.ports_vanished == 0, "{stats:?}");
    Ok(())
}
