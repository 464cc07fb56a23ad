//! Handlers that answer later.

use std::os::fd::{AsFd as _, IntoRawFd as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use netns_tests::{DATAPATH, SOON, TestResult, modes};
use tokio::sync::Semaphore;
use upcall::{
    Dispatcher, Handler, InstallPolicy, Limits, MatchFields, Socket, Stats, Upcall, Verdict,
};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Hosts, RawSocket};

use crate::{Numbered, arrivals, balanced, number, of, send, shape};

/// Sends frames of flow 0 on when it is told to, frames of flow 1 at once; flow 2 it never decides
/// about, and about flow 3 it panics.
struct Oracle(Arc<Semaphore>);

impl Handler for Oracle {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        let Some((flow, _)) = number(upcall.packet()) else { return };
        let (says, in_port) = (self.0.clone(), upcall.in_port());
        if flow == 1 {
            verdict.flood(in_port);
            return;
        }
        verdict.later(async move |mut verdict: Verdict| {
            if flow == 3 {
                // As a panic, without the noise.
                std::panic::resume_unwind(Box::new("a handler's own mistake"));
            }
            if flow == 2 {
                std::future::pending::<()>().await;
            }
            says.acquire().await.expect("it is never closed").forget();
            verdict.flood(in_port).install(MatchFields::IN_PORT | MatchFields::ETH_SRC);
            verdict
        });
    }
}

async fn start(
    hosts: &Hosts,
    mode: &str,
    says: Arc<Semaphore>,
    limits: Limits,
) -> Result<Dispatcher> {
    let builder = Dispatcher::builder(DATAPATH).ports(hosts.ports()).shape(shape(mode)?);
    Ok(builder.install(InstallPolicy::Never).limits(limits).start(Oracle(says)).await?)
}

/// Waits until the counters are as wanted.
pub(crate) async fn wait_stats(
    dispatcher: &Dispatcher,
    wanted: impl Fn(&Stats) -> bool,
) -> Result<Stats> {
    let readings = dispatcher.stats_every(Duration::from_millis(5));
    let found = readings.filter_map(async |stats| stats.ok().filter(&wanted));
    let mut found = std::pin::pin!(found);
    let found = tokio::time::timeout(SOON, found.next()).await;
    match found {
        Ok(Some(stats)) => Ok(stats),
        _ => anyhow::bail!("the counters are {:?}", dispatcher.stats().await?),
    }
}

#[test]
fn a_flow_waits_for_its_answer_and_others_pass() -> TestResult {
    const EACH: u8 = 20;
    for mode in modes() {
        let hosts = Hosts::new(2)?;
        hosts.switch.block_on(async || {
            let says = Arc::new(Semaphore::new(0));
            let dispatcher = start(&hosts, mode, says.clone(), Limits::default()).await?;
            let link = RawSocket::open(&hosts[1].ns, HOST_LINK)?;
            let frames = (0..EACH).flat_map(|number| [(0, number), (1, number)]);
            send(&hosts, frames.collect::<Vec<Numbered>>())?;
            let link = quick_pass(link, EACH).await?;
            let waiting = wait_stats(&dispatcher, |stats| stats.handler_pending == 1).await?;
            ensure!(waiting.lanes.lanes_detained == 1, "{waiting:?}");
            says.add_permits(usize::from(EACH));
            let slow = arrivals(link, usize::from(EACH)).await?;
            ensure!(of(0, &slow) == (0..EACH).collect::<Vec<_>>(), "{mode}: {slow:?}");
            let stats = dispatcher.stop().await?;
            ensure!(stats.ledger.deferred == u64::from(EACH), "{mode}: {stats:?}");
            ensure!(stats.ledger.shed == 0, "{mode}: {stats:?}");
            balanced(&stats)
        })??;
    }
    Ok(())
}

/// All of flow 1 arrives, in order, while flow 0 waits. Gives the link back.
async fn quick_pass(mut link: RawSocket, each: u8) -> Result<RawSocket> {
    let read = move || {
        for expected in 0..each {
            let what = format!("frame {expected} of the flow that does not wait");
            let frame = link.receive_matching(&what, SOON, |bytes| number(bytes).is_some())?;
            ensure!(number(&frame) == Some((1, expected)), "{:?}", number(&frame));
        }
        Ok(link)
    };
    tokio::task::spawn_blocking(read).await?
}

#[test]
fn an_answer_that_does_not_come_or_panics_costs_its_own_packet() -> TestResult {
    let hosts = Hosts::new(2)?;
    hosts.switch.block_on(async || {
        let limits = Limits { handler_timeout: Duration::from_millis(100), ..Limits::default() };
        let says = Arc::new(Semaphore::new(usize::MAX >> 4));
        let dispatcher = start(&hosts, modes()[0], says, limits).await?;
        let link = RawSocket::open(&hosts[1].ns, HOST_LINK)?;
        send(&hosts, [(2, 0), (3, 0), (2, 1), (3, 1), (0, 0), (1, 0)])?;
        let arrived = arrivals(link, 2).await?;
        ensure!(of(0, &arrived) == [0] && of(1, &arrived) == [0], "{arrived:?}");
        let shed = |stats: &Stats| stats.ledger.shed >= 4;
        wait_stats(&dispatcher, shed).await?;
        let stats = dispatcher.stop().await?;
        let ledger = &stats.ledger;
        ensure!((ledger.shed_handler_timeout, ledger.shed_handler_panic) == (2, 2), "{stats:?}");
        balanced(&stats)
    })?
}

#[test]
fn more_answers_than_may_be_outstanding_are_shed() -> TestResult {
    let hosts = Hosts::new(2)?;
    hosts.switch.block_on(async || {
        let says = Arc::new(Semaphore::new(0));
        let limits = Limits { pending_max: 1, ..Limits::default() };
        let dispatcher = start(&hosts, modes()[0], says.clone(), limits).await?;
        let link = RawSocket::open(&hosts[1].ns, HOST_LINK)?;
        send(&hosts, [(0, 0), (2, 0), (2, 1), (1, 0)])?;
        wait_stats(&dispatcher, |stats| stats.ledger.shed_pending_full == 2).await?;
        says.add_permits(1);
        let arrived = arrivals(link, 2).await?;
        ensure!(arrived == [(1, 0), (0, 0)], "{arrived:?}");
        balanced(&dispatcher.stop().await?)
    })?
}

#[test]
fn a_stop_waits_for_answers_no_longer_than_it_may() -> TestResult {
    let hosts = Hosts::new(2)?;
    hosts.switch.block_on(async || {
        let says = Arc::new(Semaphore::new(0));
        let dispatcher = start(&hosts, modes()[0], says.clone(), Limits::default()).await?;
        let link = RawSocket::open(&hosts[1].ns, HOST_LINK)?;
        send(&hosts, [(0, 0), (2, 0), (2, 1)])?;
        wait_stats(&dispatcher, |stats| stats.handler_pending == 2).await?;
        let answers = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            says.add_permits(1);
        };
        let began = Instant::now();
        let (stats, ()) = tokio::join!(dispatcher.stop_within(Duration::from_millis(200)), answers);
        let (stats, took) = (stats?, began.elapsed());
        // What was owed and came in time, went out; the rest was given up, not waited for.
        ensure!(arrivals(link, 1).await? == [(0, 0)]);
        ensure!(took >= Duration::from_millis(200) && took < SOON, "it took {took:?}");
        ensure!(stats.ledger.shed_stopped == 2, "{stats:?}");
        balanced(&stats).context("at the end")
    })?
}

#[test]
fn a_hand_over_answers_what_was_read_and_leaves_the_rest() -> TestResult {
    for mode in modes() {
        let hosts = Hosts::new(2)?;
        hosts.switch.block_on(async || {
            let says = Arc::new(Semaphore::new(0));
            let first = start(&hosts, mode, says.clone(), Limits::default()).await?;
            let link = RawSocket::open(&hosts[1].ns, HOST_LINK)?;
            send(&hosts, [(0, 0)])?;
            wait_stats(&first, |stats| stats.handler_pending == 1).await?;
            let inherited = copies(&first).await?;
            // It reads no more while it waits for the answer that it owes; that one comes first.
            let meanwhile = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let sent = send(&hosts, [(0, 1), (1, 0), (0, 2)]);
                says.add_permits(3);
                sent
            };
            let (stats, sent) = tokio::join!(first.hand_over(), meanwhile);
            let (stats, ()) = (stats?, sent?);
            ensure!((stats.ledger.executed, stats.ledger.shed) == (1, 0), "{mode}: {stats:?}");
            balanced(&stats)?;
            let builder = Dispatcher::builder(DATAPATH).ports(hosts.ports()).shape(shape(mode)?);
            let builder = builder.install(InstallPolicy::Never).inherit(inherited);
            let second = builder.start(Oracle(says.clone())).await?;
            let arrived = arrivals(link, 4).await?;
            ensure!(of(0, &arrived) == [0, 1, 2], "{mode}: {arrived:?}");
            balanced(&second.stop().await?)
        })??;
    }
    Ok(())
}

/// The dispatcher's sockets, as a successor gets them.
async fn copies(dispatcher: &Dispatcher) -> Result<Vec<Socket>> {
    let copy = |socket: Arc<Socket>| {
        let fd = socket.as_fd().try_clone_to_owned()?;
        Ok(Socket::inherit(fd.into_raw_fd())?)
    };
    dispatcher.sockets().await.into_iter().map(copy).collect()
}
