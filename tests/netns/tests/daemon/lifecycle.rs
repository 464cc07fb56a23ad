//! How the daemon starts and ends, and what it leaves.

use anyhow::{Context as _, ensure};
use netns_tests::{DATAPATH, Fabric, Lab, SOON, TestResult, flows_of, modes, since, station};
use ovs_datapath::Control;
use ovs_wire::datapath::{Datapath, UserFeatures};
use ovs_wire::vport::{Vport, VportType};
use upcall_testkit::daemon::Signal;
use upcall_testkit::{Frame, Hosts, NetNs, raw::ETHERTYPE_EXPERIMENTAL, wait_until};

fn frame(from: u8, to: u8) -> Vec<u8> {
    Frame::new(station(from), station(to)).raw(ETHERTYPE_EXPERIMENTAL, &[0; 46])
}

/// The datapath with its ports; `None` if there is none.
fn datapath(ns: &NetNs) -> anyhow::Result<Option<(Datapath, Vec<Vport>)>> {
    ns.block_on(async || {
        let control = Control::open().await?;
        let Some(dp) = control.datapath(DATAPATH).await? else { return Ok(None) };
        let ports = control.vports(dp.ifindex).await?;
        Ok(Some((dp, ports)))
    })?
}

/// Makes two stations known to each other, with a flow for one way.
fn learn(lab: &Lab) -> TestResult {
    let mut fabric = Fabric::new(&lab.hosts)?;
    fabric.reach(0, &frame(1, 2))?;
    fabric.reach(1, &frame(2, 1))?;
    lab.wait_flows("a flow", |flows| flows.len() == 1)?;
    Ok(())
}

#[test]
fn both_signals_end_it_and_nothing_is_left() -> TestResult {
    let newest = modes()[0];
    let oldest = modes()[modes().len() - 1];
    for (mode, signal) in [(newest, Signal::TERM), (oldest, Signal::INT)] {
        let lab = Lab::start(Hosts::new(2)?, |builder| builder.dispatch(mode))?;
        learn(&lab)?;
        let Lab { hosts, daemon } = lab;
        daemon.signal(signal)?;
        let exit = daemon.wait_exit(SOON)?;
        ensure!(exit.status.code() == Some(0), "{signal:?}: {}\n{}", exit.status, exit.log);
        ensure!(exit.stats.is_some_and(|stats| stats.final_line));
        ensure!(datapath(&hosts.switch)?.is_none(), "{signal:?} leaves the datapath");
        let links = hosts.switch.links(async |links| links.list().await)?;
        let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
        ensure!(names == ["lo", "p0", "p1"], "{names:?}");
        ensure!(links.iter().all(|link| link.controller.is_none()), "{links:?}");
    }
    Ok(())
}

#[test]
fn keep_leaves_datapath_ports_and_flows_and_the_next_run_takes_them_over() -> TestResult {
    for mode in modes() {
        let lab = Lab::start(Hosts::new(2)?, |builder| builder.arg("--keep").dispatch(mode))?;
        learn(&lab)?;
        let Lab { hosts, daemon } = lab;
        let exit = daemon.stop()?;
        ensure!(exit.status.success(), "{}", exit.log);
        let (dp, ports) = datapath(&hosts.switch)?.context("the datapath is kept")?;
        ensure!(ports.len() == 3 && flows_of(&hosts.switch)?.len() == 1);
        no_socket_is_left(&dp, &ports)?;
        // The next run finds the flow, learns from it, and leaves what it did not create.
        let lab =
            Lab::start(hosts, |builder| builder.dispatch(mode).option("--sweep-interval", "20ms"))?;
        lab.daemon.wait_stats("an address", SOON, |stats| stats.macs > 0)?;
        let Lab { hosts, daemon } = lab;
        ensure!(daemon.stop()?.status.success());
        let (dp, ports) = datapath(&hosts.switch)?.context("it was there before")?;
        ensure!(ports.len() == 3, "the ports were there before: {ports:?}");
        no_socket_is_left(&dp, &ports)?;
        ensure!(flows_of(&hosts.switch)?.is_empty(), "nobody revalidates the flows any more");
    }
    Ok(())
}

/// The next owner of a port id must not receive this datapath's upcalls.
fn no_socket_is_left(dp: &Datapath, ports: &[Vport]) -> TestResult {
    let per_cpu = dp.features.contains(UserFeatures::DISPATCH_UPCALL_PER_CPU);
    let targets: Vec<u32> = if per_cpu {
        dp.per_cpu_pids.clone().unwrap_or_default()
    } else {
        ports.iter().flat_map(|port| port.upcall_pids.clone()).collect()
    };
    ensure!(targets.iter().all(|pid| *pid == 0), "{dp:?} {ports:?}");
    Ok(())
}

#[test]
fn a_datapath_that_was_there_is_adopted_with_its_ports() -> TestResult {
    for mode in modes() {
        let hosts = Hosts::new(3)?;
        hosts.switch.block_on(async || {
            let control = Control::open().await?;
            let dp = control.create_datapath(DATAPATH, UserFeatures::UNALIGNED).await?;
            control.add_vport(&dp, VportType::Netdev, "p2", Some(7), 0).await.map(drop)
        })??;
        let daemon = upcall_testkit::Upcalld::builder(DATAPATH)
            .ports(["p0", "p1"])
            .dispatch(mode)
            .start(&hosts.switch)?;
        let mut fabric = Fabric::new(&hosts)?;
        ensure!(fabric.reach(2, &frame(3, 1))? == [0, 1], "{mode}: from the port that was there");
        ensure!(fabric.reach(0, &frame(1, 3))? == [2], "{mode}: to it");
        let exit = daemon.stop()?;
        ensure!(exit.status.success(), "{}", exit.log);
        let (_, ports) = datapath(&hosts.switch)?.context("it is no datapath of the daemon's")?;
        let numbers: Vec<u32> = ports.iter().map(|port| port.port_no).collect();
        ensure!(numbers == [0, 7], "what it added is gone, the rest is there: {numbers:?}");
    }
    Ok(())
}

#[test]
fn a_deleted_datapath_ends_it_and_the_message_says_who_did_it() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder)?;
    let Lab { hosts, daemon } = lab;
    let deleted = hosts.switch.block_on(async || {
        let control = Control::open().await?;
        let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
        control.delete_datapath(&dp).await?;
        // The connection stays open, so that its owner can be found.
        anyhow::Ok(daemon.wait_exit(SOON)?)
    })??;
    ensure!(deleted.status.code() == Some(1), "{}\n{}", deleted.status, deleted.log);
    let pid = format!("(pid {})", std::process::id());
    let last = deleted.log.lines().last().unwrap_or_default();
    ensure!(last.contains("was deleted by") && last.contains(&pid), "{}", deleted.log);
    Ok(())
}

#[test]
fn the_table_covers_every_possible_cpu() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder)?;
    let (dp, ports) = datapath(&lab.hosts.switch)?.context("no datapath")?;
    let length = ovs_features::cpu::table_len()?;
    if since(6, 1) {
        let table = dp.per_cpu_pids.context("the kernel reports the table from 6.1")?;
        let mut distinct = table.clone();
        distinct.sort_unstable();
        distinct.dedup();
        ensure!(table.len() == length && distinct.len() == length, "{table:?}");
        ensure!(!table.contains(&0), "{table:?}");
        ensure!(dp.features == UserFeatures::UNALIGNED | UserFeatures::DISPATCH_UPCALL_PER_CPU);
    } else {
        ensure!(dp.per_cpu_pids.is_none());
        ensure!(ports.iter().all(|port| port.upcall_pids.len() == 1), "{ports:?}");
    }
    lab.finish()?;
    Ok(())
}

#[test]
fn it_tells_the_watchdog_that_it_is_alive() -> TestResult {
    // Every 200 ms at least; it is told twice as often.
    let lab = Lab::start(Hosts::new(2)?, |builder| builder.env("WATCHDOG_USEC", "200000"))?;
    wait_until("ten signs of life", SOON, || lab.daemon.alive() >= 10)?;
    lab.finish()?;
    let lab = Lab::start(Hosts::new(2)?, |builder| builder)?;
    lab.daemon.wait_stats("counters", SOON, |_| true)?;
    ensure!(lab.daemon.alive() == 0, "nobody asked for it");
    lab.finish()?;
    Ok(())
}
