//! What the demo does, in order: build, start, ping, load, stop, count.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use upcall_testkit::daemon::Exit;
use upcall_testkit::traffic::{Receiver, UdpCounters, udp_counters};
use upcall_testkit::{
    Error, Hosts, PingPlan, PingReport, Stats, Tally, Totals, Upcalld, ping, wait_until,
};

use crate::Args;
use crate::live::Live;
use crate::load::{Load, UDP_PORT};
use crate::picture::Picture;

/// Name of the datapath, in a namespace of its own.
pub(crate) const DATAPATH: &str = "demo0";

const STATS_EVERY: Duration = Duration::from_millis(250);

/// How long packets may be under way when the last has been sent.
const DRAIN: Duration = Duration::from_secs(3);

const PINGS: PingPlan =
    PingPlan { count: 5, interval: Duration::from_millis(20), timeout: Duration::from_secs(2) };

/// Everything that was measured.
pub(crate) struct Outcome {
    pub(crate) pings: Vec<PingReport>,
    pub(crate) tallies: Vec<Tally>,
    pub(crate) sent: u64,
    /// What the UDP stacks of the hosts refused.
    pub(crate) refused: UdpCounters,
    pub(crate) traffic: Duration,
    pub(crate) stats: Stats,
    pub(crate) exit: Exit,
}

pub(crate) fn run(args: &Args, stop: &AtomicBool, live: &mut Live) -> Result<Outcome> {
    live.step(&format!("building {} hosts around a switch", args.hosts));
    let hosts = Hosts::new(usize::from(args.hosts)).context("cannot build the hosts")?;
    let directory = tempfile::tempdir().context("cannot make a directory for a socket")?;
    let metrics = args.picture.then(|| directory.path().join("metrics"));
    let mut daemon = start(args, &hosts, metrics.as_deref())?;
    live.step("upcalld is ready; pinging between all hosts");
    let pings = guarded(&mut daemon, || ping_all(&hosts))?;
    live.step("sending bursts of new flows, and a steady stream between all hosts");
    let receivers = hosts
        .iter()
        .map(|host| Receiver::udp(&host.ns, (host.ip4, UDP_PORT).into()))
        .collect::<Result<Vec<_>, _>>()?;
    let started = Instant::now();
    let length = Duration::from_secs(args.seconds.into());
    let load = Load::new(&hosts, &receivers, stop, length, args.picture);
    let picture =
        metrics.map(|socket| Picture::begin(&args.upcalld, &daemon, socket)).transpose()?;
    load_hosts(&hosts, &load, &receivers, &mut daemon, stop, live)?;
    picture.map_or(Ok(()), Picture::print)?;
    let traffic = started.elapsed();
    // What is not there by then is lost, and counted so.
    let arrived = || sum(&receivers).received >= load.sent();
    let _lost_if_late = wait_until("the last packets", DRAIN, arrived);
    load.tell_receivers();
    let sent = load.sent();
    let tallies = receivers.into_iter().map(Receiver::stop).collect::<Result<Vec<_>, _>>()?;
    let exit = daemon.stop()?;
    let Some(stats) = exit.stats.clone().filter(|stats| stats.final_line) else {
        bail!("upcalld ended without its last statistics ({})\n{}", exit.status, exit.log);
    };
    let mut refused = UdpCounters::default();
    for host in hosts.iter() {
        refused = refused + udp_counters(&host.ns)?;
    }
    Ok(Outcome { pings, tallies, sent, refused, traffic, stats, exit })
}

/// Starts the daemon; its metrics are at the path `metrics`, if anywhere.
fn start(args: &Args, hosts: &Hosts, metrics: Option<&Path>) -> Result<Upcalld, Error> {
    let mut builder =
        Upcalld::builder(DATAPATH).program(&args.upcalld).ports(hosts.ports()).stats(STATS_EVERY);
    if let Some(mode) = &args.dispatch {
        builder = builder.dispatch(mode);
    }
    if let Some(install) = &args.install {
        builder = builder.install(install);
    }
    if let Some(metrics) = metrics {
        builder = builder.option("--metrics", &metrics.display().to_string());
    }
    builder.start(&hosts.switch)
}

/// Does `work`; if it fails and upcalld has died, that is what is told.
fn guarded<T>(daemon: &mut Upcalld, work: impl FnOnce() -> Result<T>) -> Result<T> {
    work().inspect_err(|_| {
        if !daemon.is_running() {
            eprintln!("upcalld has died; its log:\n{}", daemon.log());
        }
    })
}

/// Each host pings each other one; the hosts at the same time.
fn ping_all(hosts: &Hosts) -> Result<Vec<PingReport>> {
    thread::scope(|scope| {
        let from_one = |index: usize| {
            let others = hosts.iter().filter(move |to| to.index != index);
            others.map(|to| ping::ping(&hosts[index].ns, to.ip4, &PINGS)).collect::<Vec<_>>()
        };
        let threads: Vec<_> =
            (0..hosts.len()).map(|index| scope.spawn(move || from_one(index))).collect();
        let reports = threads.into_iter().flat_map(join);
        reports.collect::<Result<Vec<_>, _>>().context("cannot ping")
    })
}

/// Runs all senders to their end, and watches.
fn load_hosts(
    hosts: &Hosts,
    load: &Load<'_>,
    receivers: &[Receiver],
    daemon: &mut Upcalld,
    stop: &AtomicBool,
    live: &mut Live,
) -> Result<()> {
    let started = Instant::now();
    thread::scope(|scope| {
        let mut senders = vec![scope.spawn(|| load.bursts())];
        senders.extend(hosts.iter().map(|host| scope.spawn(|| load.steady(host))));
        senders.extend(load.varied.then(|| scope.spawn(|| load.flood())));
        while senders.iter().any(|sender| !sender.is_finished()) {
            if !daemon.is_running() {
                stop.store(true, Ordering::Relaxed);
                bail!("upcalld has died; its log:\n{}", daemon.log());
            }
            let stats = daemon.stats().unwrap_or_default();
            live.show(started.elapsed().as_secs(), &stats, &sum(receivers), load.sent());
            thread::sleep(Duration::from_millis(50));
        }
        senders.into_iter().try_for_each(join).context("cannot send")
    })
}

fn sum(receivers: &[Receiver]) -> Totals {
    receivers.iter().map(Receiver::totals).fold(Totals::default(), |sum, one| sum + one)
}

pub(crate) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
