//! Changes to the dispatcher: another tool that flips the dispatch mode, a change of shape, a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, modes};
use ovs_datapath::Control;
use ovs_wire::datapath::UserFeatures;
use rustix::io::Errno;
use upcall::{Dispatch, Dispatcher, Handler, InstallPolicy, Shape, Upcall, Verdict};
use upcall_testkit::daemon::Signal;
use upcall_testkit::{Hosts, Upcalld, UpcalldBuilder};

use crate::traffic::{Traffic, ensure_all};

/// Does a change of sockets keep the order in this mode? A kernel with per-CPU dispatch takes the table
/// that waits behind per-vport dispatch only while it dispatches by CPU, for a moment in which packets
/// of a flow go another way.
fn keeps_order(mode: &str) -> bool {
    mode == "per-cpu" || modes().len() == 1
}

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

#[test]
fn a_restart_that_hands_its_sockets_over_loses_nothing_and_keeps_the_order() -> TestResult {
    for mode in modes() {
        let hosts = Hosts::new(2)?;
        let first = switch(&hosts, mode).start(&hosts.switch)?;
        let traffic = Traffic::pinned(&hosts)?;
        traffic.wait(20)?;
        let sockets = first.stored_sockets()?;
        ensure!(!sockets.is_empty(), "nothing is stored");
        let exit = first.stop()?;
        ensure!(exit.status.success(), "{exit:?}");
        let second = switch(&hosts, mode).adopt(sockets).start(&hosts.switch)?;
        let totals = traffic.finish()?;
        ensure_all(&totals).with_context(|| second.log())?;
        ensure!(totals.reordered == 0 || !keeps_order(mode), "{mode}: {totals:?}");
        let lost = kernel_lost(&hosts)?;
        ensure!(lost == 0, "{mode}: the kernel lost {lost}\n{}", second.log());
        ensure!(second.log().contains("inherited sockets read empty"), "{}", second.log());
    }
    Ok(())
}

#[test]
fn a_crash_with_the_sockets_kept_loses_what_was_in_flight_at_most() -> TestResult {
    for mode in modes() {
        let hosts = Hosts::new(2)?;
        let first = switch(&hosts, mode).start(&hosts.switch)?;
        let traffic = Traffic::pinned(&hosts)?;
        traffic.wait(20)?;
        let sockets = first.stored_sockets()?;
        first.signal(Signal::KILL)?;
        first.wait_exit(SOON)?;
        let second = switch(&hosts, mode).adopt(sockets).start(&hosts.switch)?;
        let totals = traffic.finish()?;
        // One round of one worker: the sender has one CPU at a time.
        ensure!(totals.lost <= 64, "{mode}: {totals:?}\n{}", second.log());
        ensure!(totals.duplicates == 0, "{mode}: {totals:?}");
        ensure!(totals.reordered == 0 || !keeps_order(mode), "{mode}: {totals:?}");
        ensure!(kernel_lost(&hosts)? == 0, "{mode}: {}", second.log());
    }
    Ok(())
}

/// Every packet to all others.
struct Hub;

impl Handler for Hub {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        verdict.flood(upcall.in_port());
    }
}

/// Shapes to change between; per-vport dispatch is there on every kernel.
fn shapes() -> Vec<Shape> {
    let shape = |dispatch, workers, recv_buffer_bytes| Shape {
        dispatch,
        workers: Some(workers),
        recv_buffer_bytes,
    };
    vec![
        shape(Dispatch::Auto, 1, 1 << 20),
        shape(Dispatch::PerVport, 2, 1 << 20),
        shape(Dispatch::PerVport, 4, 4 << 20),
        shape(Dispatch::Auto, 4, 256 << 10),
        shape(Dispatch::Auto, 2, 2 << 20),
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
                dispatcher.reshape(shape).await?;
                let info = dispatcher.info().await;
                ensure!(shape.workers == Some(info.workers), "{info:?}");
                changes += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok((changes, dispatcher.stop().await?))
        })
    });
    if is_ready.recv().is_ok() {
        let totals = Traffic::pinned(&hosts)?.finish();
        done.store(true, Ordering::Relaxed);
        let totals = totals?;
        ensure_all(&totals)?;
        ensure!(totals.reordered == 0 || !keeps_order("per-vport"), "{totals:?}");
    }
    let (changes, stats) = dispatcher.join().map_err(|_| anyhow::anyhow!("it panicked"))???;
    ensure!(changes >= 5, "{changes} changes only");
    ensure!(stats.kernel.lost == 0 && stats.ledger.balances(), "{stats:?}");
    Ok(())
}
