//! What a port may have taken in, and that the others notice nothing of it (contract F1, F2).
#![allow(missing_docs, reason = "a test binary")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use netns_tests::{Fabric, Lab, TestResult, modes, station, tell};
use ovs_features::cpu;
use upcall::{
    Action, Dispatcher, Handler, Limits, MatchFields, PortRates, Shape, Upcall, UpcallKind, Verdict,
};
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket};

const FLOOD: u32 = 400;
const QUIET: u8 = 40;
/// What the ports may: the quiet one stays below.
const RATE: &str = "20:100";
const BURST: u64 = 100;

fn frame(from: u8) -> Vec<u8> {
    Frame::broadcast(station(from)).raw(ETHERTYPE_EXPERIMENTAL, &[0; 46])
}

#[test]
fn a_port_over_its_rate_is_shed_and_another_is_not() -> TestResult {
    for mode in modes() {
        let lab = Lab::start(Hosts::new(3)?, |builder| {
            builder.dispatch(mode).handler("hub").install("never").option("--port-rate", RATE)
        })?;
        let mut fabric = Fabric::new(&lab.hosts)?;
        let flood = RawSocket::sender(&lab.hosts[0].ns, HOST_LINK)?;
        for number in 1..=QUIET {
            for _ in 0..FLOOD / u32::from(QUIET) {
                flood.send(&frame(0))?;
            }
            let quiet = frame(number);
            fabric.send(1, &quiet)?;
            fabric.wait(2, &quiet)?;
        }
        let stats = lab.finish()?;
        let shed = stats.shed_ports.first().context("nothing was shed")?;
        tell(&format!(
            "{mode}: of {FLOOD} frames and {QUIET} of another port: {:?}",
            stats.shed_ports
        ));
        // The hosts' own frames at their start may be a few.
        ensure!(shed.port == Some(1) && stats.shed_ports.len() == 1, "{stats:?}");
        ensure!(shed.rate == stats.shed_rate && stats.shed == stats.shed_rate, "{stats:?}");
        let admitted = u64::from(FLOOD) - shed.rate.min(u64::from(FLOOD));
        ensure!((BURST / 2..FLOOD.into()).contains(&admitted), "{admitted} admitted: {stats:?}");
        ensure!(stats.kernel_lost == 0, "{stats:?}");
    }
    Ok(())
}

const COOKIE: [u8; 4] = [1, 0, 0xca, 0xfe];

/// Has each flow send its packets up as samples, beside sending them on.
#[derive(Default)]
struct Sampler {
    port_id: AtomicU32,
    misses: AtomicU64,
    samples: AtomicU64,
}

impl Handler for Sampler {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        if upcall.key().eth_type != ETHERTYPE_EXPERIMENTAL {
            return;
        }
        if upcall.kind() == UpcallKind::Action {
            assert_eq!(upcall.userdata(), Some(&COOKIE[..]), "the flow's own cookie");
            self.samples.fetch_add(1, Ordering::SeqCst);
            return;
        }
        self.misses.fetch_add(1, Ordering::SeqCst);
        let pid = self.port_id.load(Ordering::SeqCst);
        let sample = Action::Userspace {
            pid,
            userdata: Some(&COOKIE),
            egress_tun_port: None,
            actions: false,
        };
        verdict.actions().push(&sample).expect("it is short");
        verdict.flood(upcall.in_port()).install(MatchFields::IN_PORT | MatchFields::ETH_SRC);
    }
}

#[test]
fn samples_have_a_rate_of_their_own() -> TestResult {
    const SAMPLES: u64 = 10;
    for mode in modes() {
        let hosts = Hosts::new(2)?;
        let ports: Vec<String> = hosts.ports().map(str::to_owned).collect();
        let handler = Arc::new(Sampler::default());
        let stats = hosts.switch.block_on(async || {
            let dispatch = mode.parse().map_err(anyhow::Error::msg)?;
            let sample = Some(format!("1:{SAMPLES}").parse().map_err(anyhow::Error::msg)?);
            let limits = Limits {
                port_rates: PortRates { sample, ..PortRates::default() },
                ..Limits::default()
            };
            let builder = Dispatcher::builder("dp0").ports(ports).limits(limits);
            let builder = builder.shape(Shape { dispatch, ..Shape::default() });
            let builder = builder.sample_userdata(&COOKIE[..2]);
            let dispatcher = builder.start(handler.clone()).await?;
            let socket = dispatcher.sockets().await.first().context("no socket")?.port_id();
            handler.port_id.store(socket, Ordering::SeqCst);
            let sent = std::thread::scope(|scope| scope.spawn(|| exchange(&hosts)).join());
            sent.ok().context("the sender panicked")??;
            anyhow::Ok(dispatcher.stop().await?)
        })??;
        let samples = handler.samples.load(Ordering::SeqCst);
        let (misses, shed) = (handler.misses.load(Ordering::SeqCst), stats.ledger.shed_rate);
        tell(&format!("{mode}: {misses} misses, {samples} samples, {shed} more shed"));
        ensure!(misses >= u64::from(QUIET), "a miss was refused: {stats:?}");
        ensure!(samples + shed >= u64::from(FLOOD), "each packet of a flow is a sample: {stats:?}");
        // A second more or less on an emulated machine.
        ensure!((SAMPLES..3 * SAMPLES).contains(&samples), "{samples} samples: {stats:?}");
        ensure!(stats.ledger.balances() && stats.kernel.lost == 0, "{stats:?}");
    }
    Ok(())
}

/// New flows, and packets of flows that are there.
fn exchange(hosts: &Hosts) -> TestResult {
    cpu::pin_to(0)?;
    let from = RawSocket::sender(&hosts[0].ns, HOST_LINK)?;
    let mut to = RawSocket::open(&hosts[1].ns, HOST_LINK)?;
    for number in 1..=QUIET {
        let bytes = frame(number);
        for _ in 0..=FLOOD / u32::from(QUIET) {
            from.send(&bytes)?;
            to.receive_matching("a frame", netns_tests::SOON, |got| got == bytes)?;
        }
    }
    Ok(())
}
