//! Fairness between ports in per-vport mode, where each has a socket of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns_tests::traffic::{Load, Traffic, ensure_all};
use netns_tests::{DATAPATH, TestResult, tell};
use ovs_features::cpu;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::{Outlet, Plan, RawFlows, Receiver};
use upcall_testkit::{Frame, Hosts, RawSocket, Tally, Upcalld};

/// Threads that flood one port: more than a worker can keep up with.
const FLOODERS: usize = 2;
/// Flows of the flood between two looks at whether it is to end.
const FLOOD_FLOWS: u32 = 256;

/// A flood is what makes its own packets wait for longer.
const QUEUE_MIN: Duration = Duration::from_millis(100);

/// A port that is flooded with new flows until it is told to end.
struct Flood {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<Result<u32>>>,
    receiver: Receiver,
}

impl Flood {
    /// From the third host to the fourth.
    fn start(hosts: &Hosts) -> Result<Self> {
        let (stop, to) = (Arc::new(AtomicBool::new(false)), SocketAddr::from((hosts[3].ip4, 7000)));
        let receiver = Receiver::udp(&hosts[3].ns, to)?;
        let mut senders = Vec::new();
        for (number, cpu) in cpu::usable()?.into_iter().cycle().take(FLOODERS).enumerate() {
            let link = RawSocket::sender(&hosts[2].ns, HOST_LINK)?;
            let frame = Frame::new(hosts[2].mac, hosts[3].mac);
            let from = SocketAddr::from((hosts[2].ip4, 20_000 + number as u16));
            let first = Plan { cpus: vec![cpu], ..Plan::new(FLOOD_FLOWS, 1) };
            let first = first.flows_from(number as u32 * (u32::MAX / FLOODERS as u32));
            let stop = stop.clone();
            senders.push(thread::spawn(move || {
                let build = |_, payload: &[u8]| frame.udp(from, to, payload);
                flood(first, RawFlows::new(&link, build), &stop)
            }));
        }
        Ok(Self { stop, senders, receiver })
    }

    /// Packets that were sent, and what came of them.
    fn finish(self) -> Result<(u32, Tally)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sent = 0;
        for sender in self.senders {
            sent += sender.join().map_err(|_| anyhow::anyhow!("a flooder panicked"))??;
        }
        Ok((sent, self.receiver.stop()?))
    }
}

/// Sends a plan again and again, with other flows each time; gives the number of packets.
fn flood(mut plan: Plan, mut flows: impl Outlet, stop: &AtomicBool) -> Result<u32> {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        plan.send(&mut flows)?;
        plan.first_flow += plan.flows;
        sent += plan.flows;
    }
    Ok(sent)
}

/// Median and 95th percentile of the time that the first packet of each flow took.
fn latency(tally: &Tally) -> Result<(Duration, Duration)> {
    let mut all: Vec<u64> = tally.flows().map(|(_, flow)| flow.first_latency_ns).collect();
    all.sort_unstable();
    let median = *all.get(all.len() / 2).context("no packet arrived")?;
    let late = *all.get(all.len() * 95 / 100).unwrap_or(&median);
    Ok((Duration::from_nanos(median), Duration::from_nanos(late)))
}

fn wires(hosts: &Hosts, workers: &str) -> Result<Upcalld> {
    let builder = Upcalld::builder(DATAPATH).ports(hosts.ports()).dispatch("per-vport");
    let wires = builder.handler("cross-connect").option("--cross-connect", "p0=p1");
    let wires = wires.option("--cross-connect", "p2=p3").install("never");
    let daemon = wires.option("--workers", workers).stats(Duration::from_millis(100));
    Ok(daemon.start(&hosts.switch)?)
}

/// Contract F1 for sockets of their own: with one worker for both ports the flooded socket is always
/// ready, and must leave the other its turns.
#[test]
fn a_port_that_floods_its_socket_takes_nothing_from_another_port() -> TestResult {
    for workers in ["1", "4"] {
        let hosts = Hosts::new(4)?;
        let daemon = wires(&hosts, workers)?;
        let load = Load { flows: 100, packets_per_flow: 1, flows_per_second: 100, cpu: None };
        let (alone, alone_late) = latency(&Traffic::start(&hosts, load)?.finish_whole()?.0)?;
        let flood = Flood::start(&hosts)?;
        let load = Load { flows: 300, packets_per_flow: 1, flows_per_second: 100, cpu: None };
        let (quiet, _) = Traffic::start(&hosts, load)?.finish_whole()?;
        let (sent, flooded) = flood.finish()?;
        let stats = daemon.stop()?.stats.context("no counters")?;
        ensure_all(&quiet.totals()).with_context(|| format!("{workers} workers: {stats:?}"))?;
        let (median, late) = latency(&quiet)?;
        let (flood_median, _) = latency(&flooded)?;
        tell(&format!(
            "figures: fairness, {workers} workers: {sent} packets flood a port ({} lost there, median \
             {flood_median:.1?}); 100 new flows/s at another: median {median:.1?} (alone {alone:.1?}), 95% \
             within {late:.1?}",
            stats.lost_full
        ));
        ensure!(flood_median > QUEUE_MIN, "it was no flood: {stats:?}");
        // A full socket is a standing queue; the quiet port waits for a turn, not for that queue.
        // On a machine so busy that even alone it waits, it is not to wait much longer.
        let allowed = (flood_median / 4).max(alone * 4);
        ensure!(median < allowed, "the quiet port waits: {median:?}, {alone:?}, {flood_median:?}");
        let allowed = flood_median.max(alone_late * 4);
        ensure!(late < allowed, "the quiet port waits: {late:?}, {alone_late:?}, {flood_median:?}");
    }
    Ok(())
}
