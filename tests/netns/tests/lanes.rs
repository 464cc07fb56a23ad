//! Flows that hop between CPUs, and workers that help each other (contract O2, F1).
#![allow(missing_docs, reason = "a test binary")]

use std::net::SocketAddr;

use anyhow::ensure;
use netns_tests::{Lab, SOON, TestResult, has_per_cpu, skip_ok};
use ovs_features::cpu;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::{Order, Outlet as _, Plan, Receiver, UdpFlows};
use upcall_testkit::{Hosts, PingPlan, Stats, Totals, ping};

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
        receiver.expect(flow, PACKETS);
    }
    receiver.wait_received(u64::from(FLOWS * PACKETS), SOON)?;
    let totals = receiver.stop()?.totals();
    Ok((totals, lab.finish_after_races()?))
}
