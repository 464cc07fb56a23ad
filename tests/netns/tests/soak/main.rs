//! Everything at once, for as long as is asked: flows that hop, that are set up in bursts, whose handler
//! is slow or answers later, a flood, ports that come and go, changes of shape. Every second the
//! conservation law, the order, the losses of those that do not flood and the memory are checked, and a
//! line is printed. `cargo xtask soak` runs it long; in the suite it is short, so that it stays alive.
#![allow(missing_docs, reason = "a test binary")]
#![allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]

mod changes;
mod handler;
mod order;
mod senders;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, TestResult, tell};
use upcall::{Dispatcher, InstallPolicy, Limits, Stats};
use upcall_testkit::Hosts;

use crate::handler::Soaked;
use crate::order::Ear;
use crate::senders::Senders;
use crate::watch::Watch;

/// How long, in seconds; also named by `cargo xtask soak`.
const DURATION_VAR: &str = "UPCALL_SOAK_S";
const SHORT: Duration = Duration::from_secs(8);
/// The flood is of ever new flows: beyond this they share lanes, and memory is what it was.
const LANES: usize = 1_000_000;
/// From one rest to the next.
const ROUND: Duration = Duration::from_secs(5);
/// How soon everything on its way is answered when nobody sends.
const REST: Duration = Duration::from_secs(20);
/// How long anything may take that takes a second on an idle machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// One sends, one receives, one floods.
const HOSTS: usize = 3;

fn duration() -> Result<Duration> {
    let Some(text) = std::env::var_os(DURATION_VAR) else { return Ok(SHORT) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    let seconds = seconds
        .with_context(|| format!("{DURATION_VAR}={} is no number of seconds", text.display()))?;
    Ok(Duration::from_secs(seconds))
}

#[test]
fn everything_at_once_loses_track_of_nothing() -> TestResult {
    let (duration, hosts) = (duration()?, Hosts::new(HOSTS)?);
    let handler = Arc::new(Soaked::default());
    hosts.switch.block_on(async || {
        let builder = Dispatcher::builder(DATAPATH).ports(hosts.ports());
        let builder = builder.install(InstallPolicy::Wildcard).flow_idle(Duration::from_secs(2));
        let limits = Limits { lanes: LANES, ..Limits::default() };
        let dispatcher = builder.limits(limits).start(handler.clone()).await?;
        let ear = Ear::open(&hosts[1])?;
        let senders = Senders::start(&hosts, &handler)?;
        let mut watch = Watch::new(duration, &handler, &ear);
        let soaked = soak(&dispatcher, &mut watch, &senders, duration).await;
        let sent = senders.stop();
        let stats = dispatcher.stop().await?;
        soaked?;
        let sent = sent?;
        ensure!(stats.ledger.balances(), "{stats:?}");
        tell(&watch.sum(&sent, &stats));
        watch.judge(&sent, &stats)
    })?
}

/// Changes, checks, and a rest at the end of every round, at which the law holds exactly.
async fn soak(
    dispatcher: &Dispatcher,
    watch: &mut Watch<'_>,
    senders: &Senders,
    duration: Duration,
) -> TestResult {
    let begun = Instant::now();
    for round in 0.. {
        let until = Instant::now() + ROUND;
        senders.go_on(round);
        in_time("a change of shape", changes::shape(dispatcher, round)).await?;
        while Instant::now() < until {
            in_time("a change of ports", changes::ports()).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let stats = async { Ok(dispatcher.stats().await?) };
            watch.look(&in_time("a reading of the counters", stats).await?)?;
        }
        senders.rest()?;
        watch.rested(&at_rest(dispatcher).await?)?;
        if begun.elapsed() >= duration {
            break;
        }
    }
    Ok(())
}

/// Nothing may hang.
async fn in_time<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.with_context(|| format!("{what} took longer than {PATIENCE:?}"))?
}

/// Waits until nothing is in flight; two readings that agree, as one may be between two counters.
async fn at_rest(dispatcher: &Dispatcher) -> Result<Stats> {
    let begun = Instant::now();
    let mut before = dispatcher.stats().await?;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = dispatcher.stats().await?;
        if now.ledger == before.ledger && now.ledger.balances() {
            return Ok(now);
        }
        ensure!(begun.elapsed() < REST, "nobody sends, and something is in flight: {now:?}");
        before = now;
    }
}
