//! Order of packets while their flow is set up (contract O1 and O3).

use std::net::SocketAddr;

use anyhow::ensure;
use netns_tests::{Lab, SOON, TestResult, modes};
use ovs_features::cpu;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::{Plan, Receiver, UdpFlows};
use upcall_testkit::{Hosts, PingPlan, Totals, ping};

const FLOWS: u32 = 40;
const BURST: u32 = 20;

/// Bursts of new flows from one CPU through the switch. Flows are told apart by their ports
/// (`--install exact`), so each burst sets up a flow of its own.
#[test]
fn a_burst_that_sets_its_flow_up_arrives_in_order() -> TestResult {
    for mode in modes() {
        for install in ["wildcard", "exact", "never"] {
            let lab =
                Lab::start(Hosts::new(2)?, |builder| builder.dispatch(mode).install(install))?;
            // Both hosts know each other: the bursts find no flow, but no ARP either.
            let plan = PingPlan { count: 2, ..PingPlan::default() };
            let pings = ping::ping(&lab.hosts[0].ns, lab.hosts[1].ip4, &plan)?;
            ensure!(pings.answered > 0, "{pings:?}");
            let totals = bursts(&lab.hosts)?;
            let packets = u64::from(FLOWS * BURST);
            ensure!(
                totals.received == packets && totals.lost == 0,
                "{mode}, {install}: {totals:?}"
            );
            ensure!(totals.duplicates + totals.foreign == 0, "{mode}, {install}: {totals:?}");
            let stats = lab.finish_after_races()?;
            // Without flows nothing can overtake. With them, what came up while its flow went in can
            // be overtaken (contract O3); then the ledger owns up to it.
            let late = if install == "never" { 0 } else { stats.install_stragglers };
            ensure!(totals.reordered <= late, "{mode}, {install}: {totals:?} {stats:?}");
            ensure!(stats.kernel_lost == 0, "{mode}, {install}: {stats:?}");
        }
    }
    Ok(())
}

fn bursts(hosts: &Hosts) -> anyhow::Result<Totals> {
    let to = SocketAddr::from((hosts[1].ip4, 7000));
    hosts[1].ns.receive_on(HOST_LINK, 0)?;
    let receiver = Receiver::udp(&hosts[1].ns, to)?;
    let mut flows = UdpFlows::open(&hosts[0].ns, to, 0, FLOWS)?;
    let cpus = cpu::usable()?;
    for flow in 0..FLOWS {
        let cpu = cpus[flow as usize % cpus.len()];
        let plan = Plan { cpus: vec![cpu], ..Plan::new(1, BURST).flows_from(flow) };
        plan.send(&mut flows)?;
        receiver.expect(flow, BURST);
    }
    receiver.wait_received(u64::from(FLOWS * BURST), SOON)?;
    Ok(receiver.stop()?.totals())
}
