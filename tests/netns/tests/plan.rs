//! Upcalls of a flow whose install is on its way are answered without asking the handler (contract O3).
#![allow(missing_docs, reason = "a test binary")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use netns_tests::traffic::last_cpu;
use netns_tests::{SOON, TestResult, modes, tell};
use upcall::{Dispatcher, Handler, MatchFields, Shape, Stats, Upcall, Verdict};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::{Plan, Receiver, UdpFlows};
use upcall_testkit::{Hosts, PingPlan, Totals, ping};

const FLOWS: u32 = 20;
const BURST: u32 = 20;
const PORT: u16 = 7000;

/// Sends everything to everybody else. Of a burst it lets the first packet wait until the last one is
/// sent: then all of them come up.
#[derive(Default)]
struct Patient {
    /// Bursts that are sent.
    sent: AtomicU32,
    /// Bursts of which a packet was seen.
    seen: AtomicU32,
    /// Upcalls of bursts that it was asked about.
    asked: AtomicU64,
}

impl Handler for Patient {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        if upcall.key().tp_dst == PORT {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let begun = Instant::now();
            let seen = self.seen.load(Ordering::SeqCst);
            while self.sent.load(Ordering::SeqCst) <= seen && begun.elapsed() < SOON {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        let fields = MatchFields::IN_PORT | MatchFields::FIVE_TUPLE;
        verdict.flood(upcall.in_port()).install(fields);
    }
}

struct Outcome {
    totals: Totals,
    stats: Stats,
    asked: u64,
}

#[test]
fn a_handler_is_asked_once_about_a_burst() -> TestResult {
    for mode in modes() {
        let Outcome { totals, stats, asked } = bursts(mode, true)?;
        let ledger = &stats.ledger;
        tell(&format!(
            "{mode}: {FLOWS} bursts of {BURST}: asked {asked} times, {} answered from the plan, {} late",
            ledger.answered_from_plan, ledger.install_stragglers
        ));
        let again = asked - u64::from(FLOWS);
        ensure!(again <= ledger.install_stragglers, "asked {asked} times: {stats:?}");
        let expected = u64::from(FLOWS * (BURST - 1)) - again;
        ensure!(ledger.answered_from_plan >= expected, "{mode}: {stats:?}");
        ensure!(totals.reordered <= ledger.install_stragglers, "{mode}: {totals:?} {stats:?}");
    }
    Ok(())
}

#[test]
fn a_handler_is_asked_about_each_packet_if_it_wants_to_be() -> TestResult {
    for mode in modes() {
        let Outcome { stats, asked, .. } = bursts(mode, false)?;
        ensure!(stats.ledger.answered_from_plan == 0, "{mode}: {stats:?}");
        // What the kernel's own thread brings late may find the flow there.
        ensure!(
            asked >= u64::from(FLOWS * BURST) * 9 / 10,
            "{mode}: asked {asked} times: {stats:?}"
        );
    }
    Ok(())
}

fn bursts(mode: &str, answer_from_plan: bool) -> anyhow::Result<Outcome> {
    let hosts = Hosts::new(2)?;
    let ports: Vec<String> = hosts.ports().map(str::to_owned).collect();
    hosts.switch.block_on(async || {
        let handler = Arc::new(Patient::default());
        let dispatch = mode.parse().map_err(anyhow::Error::msg)?;
        let shape = Shape { dispatch, ..Shape::default() };
        let builder = Dispatcher::builder("dp0").ports(ports).shape(shape);
        let builder = builder.answer_from_plan(answer_from_plan);
        let dispatcher = builder.start(handler.clone()).await?;
        let sent = std::thread::scope(|scope| scope.spawn(|| send(&hosts, &handler)).join());
        let totals = sent.ok().context("the sender panicked")??;
        let stats = dispatcher.stop().await?;
        ensure!(stats.ledger.balances() && stats.kernel.lost == 0, "{mode}: {stats:?}");
        let packets = u64::from(FLOWS * BURST);
        ensure!(totals.received == packets && totals.lost == 0, "{mode}: {totals:?} {stats:?}");
        ensure!(totals.duplicates + totals.foreign == 0, "{mode}: {totals:?}");
        Ok(Outcome { totals, stats, asked: handler.asked.load(Ordering::SeqCst) })
    })?
}

/// Burst after burst, all from one CPU.
fn send(hosts: &Hosts, handler: &Patient) -> anyhow::Result<Totals> {
    let known = PingPlan { count: 2, ..PingPlan::default() };
    let pings = ping::ping(&hosts[0].ns, hosts[1].ip4, &known)?;
    ensure!(pings.answered > 0, "{pings:?}");
    let to = SocketAddr::from((hosts[1].ip4, PORT));
    hosts[1].ns.receive_on(HOST_LINK, 0)?;
    let receiver = Receiver::udp(&hosts[1].ns, to)?;
    let mut flows = UdpFlows::open(&hosts[0].ns, to, 0, FLOWS)?;
    for flow in 0..FLOWS {
        let plan = Plan { cpus: vec![last_cpu()?], ..Plan::new(1, BURST).flows_from(flow) };
        plan.send(&mut flows)?;
        receiver.expect(flow, BURST);
        handler.sent.fetch_add(1, Ordering::SeqCst);
        receiver.wait_received(u64::from((flow + 1) * BURST), SOON)?;
        handler.seen.fetch_add(1, Ordering::SeqCst);
    }
    Ok(receiver.stop()?.totals())
}
