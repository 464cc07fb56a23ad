//! Flows that hop between CPUs, and workers that help each other (contract O2, F1).
#![allow(missing_docs, reason = "a test binary")]

use std::collections::HashSet;
use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, has_per_cpu, skip_ok};
use ovs_datapath::Control;
use ovs_features::cpu;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::{Order, Outlet as _, Plan, Receiver, UdpFlows};
use upcall_testkit::{Hosts, NetNs, PingPlan, Stats, Totals, ping, wait_until};

/// As many as do not divide the number of CPUs: with a hop every packet, each flow hops too.
const FLOWS: u32 = 3;
const PACKETS: u32 = 200;
/// Packets on their way at most: enough to be in two sockets at once. With many more, a flow hops again
/// before anybody has looked, and then nothing tells which socket's packets are the older ones.
const WINDOW: u64 = 4;

/// The sender moves to another CPU, and its flows with it, every so many packets; nothing is installed.
#[test]
fn a_flow_that_hops_between_cpus_keeps_its_order() -> TestResult {
    const NAME: &str = "a_flow_that_hops_between_cpus_keeps_its_order";
    if !has_per_cpu() {
        skip_ok(NAME, "this kernel dispatches by port alone (before 5.15)");
        return Ok(());
    }
    if cpu::usable()?.len() < 2 {
        skip_ok(NAME, "there is one CPU: nothing can hop");
        return Ok(());
    }
    for hop_every in [1, 10, 100] {
        let plan = Plan {
            hop_every,
            cpus: cpu::usable()?,
            order: Order::RoundRobin,
            ..Plan::new(FLOWS, PACKETS)
        };
        let (totals, stats) = everything_comes_up(&plan, WINDOW)?;
        println!(
            "hop every {hop_every}: {} of {} reordered; {} hops, {} waited, {} fences timed out",
            totals.reordered,
            totals.received,
            stats.lane_hops,
            stats.lane_queued,
            stats.fence_timeouts,
        );
        ensure!(totals.duplicates + totals.foreign == 0, "{totals:?}");
        ensure!(totals.lost + stats.kernel_lost == 0, "{totals:?} {stats:?}");
        ensure!(stats.lane_hops + stats.lane_queued > 0, "no flow hopped: {stats:?}");
        ensure!(stats.latency_ns["queued_lane"].count == stats.lane_queued, "{stats:?}");
        // The kernel itself may queue a later packet first, when its thread for soft interrupts steps in;
        // an emulated CPU that pauses makes that likelier.
        let allowed = totals.received / if hop_every == 1 { 100 } else { 200 };
        let allowed = allowed + stats.fence_timeouts;
        ensure!(totals.reordered <= allowed, "hop every {hop_every}: {totals:?} {stats:?}");
    }
    Ok(())
}

fn everything_comes_up(plan: &Plan, window: u64) -> anyhow::Result<(Totals, Stats)> {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder.install("never"))?;
    let totals = send_and_receive(&lab, plan, window)?;
    Ok((totals, lab.finish_after_races()?))
}

fn send_and_receive(lab: &Lab, plan: &Plan, window: u64) -> anyhow::Result<Totals> {
    let to = SocketAddr::from((lab.hosts[1].ip4, 7000));
    let known = PingPlan { count: 2, ..PingPlan::default() };
    let pings = ping::ping(&lab.hosts[0].ns, lab.hosts[1].ip4, &known)?;
    ensure!(pings.answered > 0, "{pings:?}");
    lab.hosts[1].ns.receive_on(HOST_LINK, 0)?;
    let receiver = Receiver::udp(&lab.hosts[1].ns, to)?;
    let mut flows = UdpFlows::open(&lab.hosts[0].ns, to, 0, FLOWS)?;
    let mut sent = 0;
    plan.send(&mut |flow: u32, payload: &[u8]| {
        receiver.wait_received(u64::saturating_sub(sent, window - 1), SOON)?;
        sent += 1;
        flows.send(flow, payload)
    })?;
    for flow in 0..FLOWS {
        receiver.expect(flow, plan.packets_per_flow);
    }
    receiver.wait_received(u64::from(plan.flows * plan.packets_per_flow), SOON)?;
    Ok(receiver.stop()?.totals())
}

/// How many sockets the kernel's table names.
fn sockets_of_table(ns: &NetNs) -> anyhow::Result<usize> {
    ns.block_on(async || {
        let dp = Control::open().await?.datapath(DATAPATH).await?.context("no datapath")?;
        let table = dp.per_cpu_pids.context("this kernel does not tell its table")?;
        Ok(table.into_iter().collect::<HashSet<_>>().len())
    })?
}

/// The funnel, where nobody tells when upcalls were sent: there while flows hop, gone when they do no more, and
/// nobody's doing but our own.
#[test]
fn while_flows_hop_all_upcalls_come_by_one_socket() -> TestResult {
    const NAME: &str = "while_flows_hop_all_upcalls_come_by_one_socket";
    if !has_per_cpu() {
        skip_ok(NAME, "this kernel dispatches by port alone (before 5.15)");
        return Ok(());
    }
    let cpus = cpu::usable()?;
    let plan =
        Plan { hop_every: 1, cpus, order: Order::RoundRobin, ..Plan::new(FLOWS, PACKETS / 2) };
    let lab = Lab::start(Hosts::new(2)?, |builder| {
        builder.install("never").option("--arrival-times", "off")
    })?;
    let sockets = || sockets_of_table(&lab.hosts.switch);
    let each = sockets()?;
    ensure!(each > 1, "{each} sockets are too few to hop between");
    let totals = send_and_receive(&lab, &plan, WINDOW)?;
    ensure!(sockets()? == 1, "the table names {} sockets\n{}", sockets()?, lab.daemon.log());
    ensure!(totals.lost + totals.duplicates == 0, "{totals:?}");
    wait_until("each CPU to have its own socket", SOON, || sockets().is_ok_and(|now| now == each))?;
    let one_cpu = Plan { hop_every: 0, cpus: cpu::usable()?.split_off(each - 1), ..plan };
    let totals = send_and_receive(&lab, &one_cpu, WINDOW)?;
    ensure!(totals.lost + totals.duplicates + totals.reordered == 0, "{totals:?}");
    let stats = lab.finish_after_races()?;
    ensure!(stats.funnels > 0 && stats.repairs == 0 && stats.kernel_lost == 0, "{stats:?}");
    Ok(())
}
