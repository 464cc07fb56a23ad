//! Changes to the dispatcher: another tool that flips the dispatch mode, a change of shape, a restart.

use std::io::Write as _;
use std::os::fd::{AsFd as _, IntoRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns_tests::traffic::{Load, Traffic, ensure_all, last_cpu};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, modes, station, tell};
use ovs_datapath::Control;
use ovs_wire::datapath::UserFeatures;
use rustix::io::Errno;
use tempfile::NamedTempFile;
use upcall::{Dispatch, Dispatcher, Handler, InFlight, InstallPolicy, Shape, Upcall, Verdict};
use upcall_testkit::daemon::{STOP_TIMEOUT, Signal};
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket, Totals, Upcalld, UpcalldBuilder, wait_until};

/// Features that an `ovs-dpctl show` sets on this kernel, and the opposite, in turn.
async fn flip(control: &Control, times: &mut usize) -> Result<()> {
    let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
    let per_cpu = UserFeatures::UNALIGNED | UserFeatures::DISPATCH_UPCALL_PER_CPU;
    let per_vport = UserFeatures::UNALIGNED | UserFeatures::VPORT_PIDS;
    let features = if (*times).is_multiple_of(2) { per_cpu } else { per_vport };
    *times += 1;
    match control.set_datapath(&dp, features, None).await {
        Err(err) if err.is(Errno::OPNOTSUPP) => Ok(()),
        other => Ok(other?),
    }
}

#[test]
fn a_tool_that_flips_the_dispatch_mode_costs_no_upcall() -> TestResult {
    for mode in modes() {
        let lab = Lab::start(Hosts::new(2)?, |builder| builder.dispatch(mode).install("never"))?;
        let traffic = Traffic::pinned(&lab.hosts)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ns, stopped) = (lab.hosts.switch.clone(), stop.clone());
        let flipper = thread::spawn(move || {
            ns.block_on(async || {
                let control = Control::open().await?;
                let mut times = 0;
                while !stopped.load(Ordering::Relaxed) {
                    flip(&control, &mut times).await?;
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
                Ok::<_, anyhow::Error>(times)
            })
        });
        let totals = traffic.finish()?;
        stop.store(true, Ordering::Relaxed);
        let times = flipper.join().map_err(|_| anyhow::anyhow!("it panicked"))???;
        ensure!(times > 10, "it was flipped {times} times only");
        ensure!(totals.lost == 0 && totals.duplicates == 0, "{mode}: {totals:?}");
        let stats = lab.finish_after_races()?;
        ensure!(stats.kernel_lost == 0, "{mode}: {stats:?}");
        // A kernel with one mode alone cannot be flipped.
        ensure!(modes().len() == 1 || stats.repairs > 0, "{mode}: nobody noticed: {stats:?}");
    }
    Ok(())
}

fn switch(hosts: &Hosts, mode: &str) -> UpcalldBuilder {
    Upcalld::builder(DATAPATH)
        .ports(hosts.ports())
        .stats(Duration::from_millis(50))
        .dispatch(mode)
        .install("never")
        .arg("--hand-over")
}

/// Upcalls of the datapath that no socket took, over both runs.
fn kernel_lost(hosts: &Hosts) -> Result<u64> {
    hosts.switch.block_on(async || {
        let dp = Control::open().await?.datapath(DATAPATH).await?.context("no datapath")?;
        Ok(dp.stats.lost)
    })?
}

/// A thousand new flows a second for five seconds, from one CPU.
fn many_flows() -> Result<Load> {
    let cpu = Some(last_cpu()?);
    Ok(Load { flows: 5000, packets_per_flow: 3, flows_per_second: 1000, cpu })
}

/// Room in each socket for all of it, however long a restart takes on a busy machine.
const ROOMY: &[u8] = b"recv_buffer_bytes = 8388608\n";

/// Below that the guest is too slow for the test to say what its name says.
const FLOWS_PER_SECOND_MIN: f64 = 250.0;

#[test]
fn a_restart_that_hands_its_sockets_over_loses_nothing_and_keeps_the_order() -> TestResult {
    let mut config = NamedTempFile::new()?;
    config.write_all(ROOMY)?;
    let path = config.path().to_str().context("a path in UTF-8")?;
    for mode in modes() {
        let hosts = Hosts::new(2)?;
        let switch = || switch(&hosts, mode).option("--config", path);
        let first = switch().start(&hosts.switch)?;
        let load = many_flows()?;
        let traffic = Traffic::start(&hosts, load.clone())?;
        // Early: on a busy machine what arrives is far behind what is sent.
        traffic.wait(5)?;
        let sockets = first.stored_sockets()?;
        ensure!(!sockets.is_empty(), "nothing is stored");
        first.signal(Signal::USR2)?;
        let exit = first.wait_exit(STOP_TIMEOUT)?;
        ensure!(exit.status.success(), "{exit:?}");
        ensure!(traffic.goes_on(), "{mode}: the traffic ended before the restart");
        let second = switch().adopt(sockets).start(&hosts.switch)?;
        let (tally, sent) = traffic.finish_whole()?;
        let (totals, rate) = (tally.totals(), f64::from(load.flows) / sent.elapsed.as_secs_f64());
        tell(&format!("figures: a restart in {mode} mode under {rate:.0} new flows/s: {totals:?}"));
        ensure!(rate > FLOWS_PER_SECOND_MIN, "the guest sent {rate:.0} new flows/s only");
        ensure_all(&totals).with_context(|| second.log())?;
        ensure!(totals.reordered == 0, "{mode}: {totals:?}");
        let lost = kernel_lost(&hosts)?;
        ensure!(lost == 0, "{mode}: the kernel lost {lost}\n{}", second.log());
        ensure!(second.log().contains("inherited sockets read empty"), "{}", second.log());
    }
    Ok(())
}

#[test]
fn a_crash_with_the_sockets_kept_loses_what_was_in_flight_at_most_and_that_is_counted() -> TestResult
{
    let mut config = NamedTempFile::new()?;
    config.write_all(ROOMY)?;
    let path = config.path().to_str().context("a path in UTF-8")?;
    // More than a worker can do, so that it has something in its hands whenever it is killed.
    let load = Load { flows: 3000, packets_per_flow: 3, flows_per_second: 20_000, cpu: None };
    let mut told = 0;
    // Again, should it be killed in a moment of rest.
    for (at, mode) in modes().iter().cycle().take(8).enumerate() {
        if at >= modes().len() && told > 0 {
            break;
        }
        let hosts = Hosts::new(2)?;
        let first = switch(&hosts, mode).option("--config", path).start(&hosts.switch)?;
        let traffic = Traffic::start(&hosts, Load { cpu: Some(last_cpu()?), ..load.clone() })?;
        traffic.wait(20)?;
        let sockets = first.stored_sockets()?;
        first.signal(Signal::KILL)?;
        first.wait_exit(SOON)?;
        let second = switch(&hosts, mode).option("--config", path).adopt(sockets);
        let second = second.start(&hosts.switch)?;
        let totals = traffic.finish()?;
        let stats = second.wait_stats("a reading of the counters", SOON, |_| true)?;
        tell(&format!("figures: a crash in {mode} mode: {totals:?}, told {}", stats.crash_lost));
        // A round of each worker and what a busy one lets wait for the others, and not a whole round more
        // than what was lost.
        let (most, round) = (64 * (stats.workers + 4), 64 + stats.workers);
        ensure!(stats.crash_lost <= most, "{mode}: {stats:?}\n{}", second.log());
        let lost = stats.crash_lost.saturating_sub(round)..=stats.crash_lost;
        ensure!(lost.contains(&totals.lost), "{mode}: {totals:?}\n{}", second.log());
        ensure!(totals.duplicates == 0, "{mode}: {totals:?}");
        ensure!(totals.reordered == 0, "{mode}: {totals:?}");
        ensure!(kernel_lost(&hosts)? == 0, "{mode}: {}", second.log());
        told += stats.crash_lost;
    }
    ensure!(told > 0, "however busy the workers were, nothing was in their hands");
    Ok(())
}

/// Holds the first upcall until it is let go.
#[derive(Default)]
struct Held {
    calls: AtomicUsize,
    go: AtomicBool,
}

impl Handler for Held {
    fn upcall(&self, _: &Upcall<'_>, _: &mut Verdict) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        while !self.go.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What a successor would read if this process were killed now.
fn told(dispatcher: &Dispatcher) -> Result<u64> {
    let fd = dispatcher.in_flight().as_fd().try_clone_to_owned()?.into_raw_fd();
    Ok(InFlight::inherit(fd)?.count())
}

#[test]
fn the_record_tells_what_is_in_a_workers_hands() -> TestResult {
    let hosts = Hosts::new(2)?;
    hosts.switch.block_on(async || {
        let handler = Arc::new(Held::default());
        let builder = Dispatcher::builder(DATAPATH).ports(hosts.ports());
        let dispatcher = builder.install(InstallPolicy::Never).start(handler.clone()).await?;
        ensure!(told(&dispatcher)? == 0);
        let sender = RawSocket::sender(&hosts[0].ns, HOST_LINK)?;
        let frame = Frame::new(station(1), station(2)).raw(ETHERTYPE_EXPERIMENTAL, &[0; 46]);
        (0..3).try_for_each(|_| sender.send(&frame))?;
        wait_until("the first upcall", SOON, || handler.calls.load(Ordering::Relaxed) > 0)?;
        // The others are in the socket, or in the lane behind this one; a lane's are taken, too.
        let held = told(&dispatcher)?;
        ensure!((1..=3).contains(&held), "{held} are in its hands");
        handler.go.store(true, Ordering::Relaxed);
        let done = || handler.calls.load(Ordering::Relaxed) == 3;
        wait_until("the others", SOON, done)?;
        wait_until("all to be answered", SOON, || told(&dispatcher).is_ok_and(|held| held == 0))?;
        dispatcher.stop().await?;
        Ok(())
    })?
}

/// Every packet to all others.
struct Hub;

impl Handler for Hub {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        verdict.flood(upcall.in_port());
    }
}

/// Shapes to change between; per-vport dispatch is there on every kernel. The buffers have room for
/// two seconds of the test's traffic: that long a change may take on a busy machine.
fn shapes() -> Vec<Shape> {
    let shape = |dispatch, workers, recv_buffer_bytes| Shape {
        dispatch,
        workers: Some(workers),
        recv_buffer_bytes,
        ..Shape::default()
    };
    vec![
        shape(Dispatch::Auto, 1, 4 << 20),
        shape(Dispatch::PerVport, 2, 4 << 20),
        shape(Dispatch::PerVport, 4, 8 << 20),
        shape(Dispatch::Auto, 4, 5 << 20),
        shape(Dispatch::Auto, 2, 6 << 20),
    ]
}

#[test]
fn a_change_of_shape_under_load_loses_nothing() -> TestResult {
    let hosts = Hosts::new(2)?;
    let ports: Vec<String> = hosts.ports().map(str::to_owned).collect();
    let switch = hosts.switch.clone();
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    let done = Arc::new(AtomicBool::new(false));
    let finished = done.clone();
    let dispatcher = thread::spawn(move || {
        switch.block_on(async || {
            let builder = Dispatcher::builder(DATAPATH).ports(ports).install(InstallPolicy::Never);
            let dispatcher = builder.start(Hub).await?;
            ready.send(())?;
            let mut changes = 0;
            for shape in shapes().into_iter().cycle() {
                if finished.load(Ordering::Relaxed) {
                    break;
                }
                let workers = shape.workers;
                dispatcher.reshape(shape).await?;
                let info = dispatcher.info().await;
                ensure!(workers == Some(info.workers), "{info:?}");
                changes += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok((changes, dispatcher.stop().await?))
        })
    });
    // Every change comes while a flow is under way, and there is time for all on a slow machine.
    let cpu = Some(last_cpu()?);
    let load = Load { flows: 50, packets_per_flow: 250, flows_per_second: 8, cpu };
    let totals = match is_ready.recv() {
        Ok(()) => Traffic::start(&hosts, load).and_then(Traffic::finish),
        // It says why when it is joined.
        Err(_) => Ok(Totals::default()),
    };
    done.store(true, Ordering::Relaxed);
    let (changes, stats) = dispatcher.join().map_err(|_| anyhow::anyhow!("it panicked"))???;
    let totals = totals?;
    ensure_all(&totals).with_context(|| format!("{changes} changes: {stats:?}"))?;
    ensure!(totals.reordered == 0, "{totals:?} in {changes} changes: {stats:?}");
    ensure!(changes >= 5, "{changes} changes only");
    ensure!(stats.kernel.lost == 0 && stats.ledger.balances(), "{stats:?}");
    Ok(())
}
