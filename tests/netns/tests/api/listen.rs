//! The listener: flows are accepted, their upcalls received and answered.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use netns_tests::{DATAPATH, SOON, TestResult, modes};
use upcall::{
    ActionBuf, Builder, Dispatcher, Error, ErrorKind, Flow, FlowUpcall, Limits, Listener,
    MatchFields,
};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Hosts, RawSocket};

use crate::{arrivals, balanced, number, of, send, shape};

fn builder(hosts: &Hosts, mode: &str) -> Result<Builder> {
    Ok(Dispatcher::builder(DATAPATH).ports(hosts.ports()).shape(shape(mode)?))
}

/// The next flow that is one of ours; what a host says by itself is dropped.
async fn accept(listener: &mut Listener) -> Result<(Flow, FlowUpcall)> {
    let ours = async {
        loop {
            let mut flow = listener.accept().await.context("the listener ended")?;
            let first = flow.recv().await.context("a flow without an upcall")?;
            if number(first.packet()).is_some() {
                return Ok((flow, first));
            }
        }
    };
    tokio::time::timeout(SOON, ours).await.context("no flow came")?
}

async fn recv(flow: &mut Flow) -> Result<FlowUpcall> {
    let next = tokio::time::timeout(SOON, flow.recv()).await.context("no upcall came")?;
    next.context("the flow ended")
}

/// To all other ports.
fn flood(upcall: &FlowUpcall) -> ActionBuf {
    let mut actions = ActionBuf::default();
    for port in upcall.ports() {
        if Some(port.number) != upcall.in_port() {
            actions.output(port.number);
        }
    }
    actions
}

#[test]
fn flows_are_accepted_and_answered_one_by_one() -> TestResult {
    const EACH: u8 = 10;
    for mode in modes() {
        let hosts = Hosts::new(2)?;
        hosts.switch.block_on(async || {
            let (dispatcher, mut listener) = builder(&hosts, mode)?.listen().await?;
            let link = RawSocket::open(&hosts[1].ns, HOST_LINK)?;
            let frames: Vec<_> = (0..EACH).flat_map(|number| [(0, number), (1, number)]).collect();
            send(&hosts, frames)?;
            let (mut slow, held) = accept(&mut listener).await?;
            let (mut quick, first) = accept(&mut listener).await?;
            ensure!(slow.id() != quick.id() && held.flow() == slow.id());
            // The whole of one flow, while the other's first upcall is not answered.
            let mut first = Some(first);
            for expected in 0..EACH {
                let upcall = match first.take() {
                    Some(first) => first,
                    None => recv(&mut quick).await?,
                };
                ensure!(number(upcall.packet()) == Some((1, expected)), "{upcall:?}");
                let actions = flood(&upcall);
                upcall.execute(&actions)?;
            }
            let early = arrivals(link, usize::from(EACH)).await?;
            ensure!(of(1, &early) == (0..EACH).collect::<Vec<_>>(), "{mode}: {early:?}");
            // As a stream; every other packet is dropped, one way or the other.
            held.discard()?;
            for expected in 1..EACH {
                let upcall = tokio::time::timeout(SOON, slow.next()).await?.context("it ended")?;
                ensure!(number(upcall.packet()) == Some((0, expected)), "{upcall:?}");
                if expected % 2 == 0 {
                    drop(upcall);
                } else {
                    let actions = flood(&upcall);
                    upcall.execute(&actions)?;
                }
            }
            let stats = dispatcher.stop().await?;
            ensure!(stats.ledger.dropped >= u64::from(EACH) / 2, "{mode}: {stats:?}");
            ensure!(stats.ledger.shed == 0, "{mode}: {stats:?}");
            balanced(&stats)?;
            ensure!(slow.recv().await.is_none() && quick.recv().await.is_none(), "they end");
            ensure!(listener.accept().await.is_none(), "it ends");
            anyhow::Ok(())
        })??;
    }
    Ok(())
}

#[test]
fn an_installed_flow_comes_up_no_more_and_an_idle_one_ends() -> TestResult {
    let hosts = Hosts::new(2)?;
    hosts.switch.block_on(async || {
        let idle = Duration::from_millis(300);
        let builder = builder(&hosts, modes()[0])?.flow_idle(idle);
        let builder = builder.sweep_interval(Duration::from_millis(50));
        let (dispatcher, mut listener) = builder.listen().await?;
        send(&hosts, [(0, 0)])?;
        let (mut flow, upcall) = accept(&mut listener).await?;
        let actions = flood(&upcall);
        upcall.install(
            MatchFields::IN_PORT | MatchFields::ETH_SRC | MatchFields::ETH_DST,
            &actions,
        )?;
        let installed = async {
            while dispatcher.stats().await?.ledger.flows_installed() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(SOON, installed).await.context("no flow was installed")??;
        let link = RawSocket::open(&hosts[1].ns, HOST_LINK)?;
        send(&hosts, [(0, 1)])?;
        ensure!(arrivals(link, 1).await? == [(0, 1)]);
        let end = tokio::time::timeout(SOON, flow.recv()).await.context("it is idle")?;
        ensure!(end.is_none(), "it was installed: {end:?}");
        balanced(&dispatcher.stop().await?)
    })?
}

#[test]
fn what_nobody_takes_is_bounded_and_counted() -> TestResult {
    let hosts = Hosts::new(2)?;
    hosts.switch.block_on(async || {
        let handler_timeout = Duration::from_millis(200);
        let limits = Limits { accept_max: 1, handler_timeout, ..Limits::default() };
        let builder = builder(&hosts, modes()[0])?.limits(limits);
        let (dispatcher, mut listener) = builder.listen().await?;
        // One waits to be accepted; there is room for no other.
        send(&hosts, (0..10).map(|flow| (flow, 0)))?;
        let (_flow, upcall) = accept_late(&dispatcher, &mut listener).await?;
        let late = upcall.execute(&ActionBuf::default()).expect_err("it timed out");
        ensure!(matches!(late, Error::AnsweredTooLate) && late.kind() == ErrorKind::Handler);
        drop(listener);
        send(&hosts, [(20, 0)])?;
        let refused = async {
            while dispatcher.stats().await?.ledger.shed_listener_full < 10 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(SOON, refused).await.context("without a listener")??;
        let stats = dispatcher.stop().await?;
        ensure!(stats.ledger.shed_handler_timeout >= 1, "{stats:?}");
        balanced(&stats)
    })?
}

/// Accepts a flow and holds its upcall until the dispatcher gives it up.
async fn accept_late(
    dispatcher: &Dispatcher,
    listener: &mut Listener,
) -> Result<(Flow, FlowUpcall)> {
    let mut flow = listener.accept().await.context("the listener ended")?;
    let upcall = recv(&mut flow).await?;
    let given_up = async {
        while dispatcher.stats().await?.ledger.shed_handler_timeout == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(SOON, given_up).await.context("it is still waited for")??;
    ensure!(!upcall.is_awaited());
    Ok((flow, upcall))
}

#[test]
fn tasks_answer_flows_side_by_side() -> TestResult {
    const FLOWS: u8 = 16;
    const EACH: u8 = 8;
    let hosts = Hosts::new(2)?;
    hosts.switch.block_on(async || {
        let (dispatcher, listener) = builder(&hosts, modes()[0])?.listen().await?;
        let link = RawSocket::open(&hosts[1].ns, HOST_LINK)?;
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = asked.clone();
        let serving = tokio::spawn(listener.for_each_concurrent(None, move |mut flow| {
            let asked = counted.clone();
            async move {
                while let Some(upcall) = flow.recv().await {
                    asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let actions = flood(&upcall);
                    let _too_late = upcall.execute(&actions);
                }
            }
        }));
        send(
            &hosts,
            (0..EACH).flat_map(|n| (0..FLOWS).map(move |flow| (flow, n))).collect::<Vec<_>>(),
        )?;
        let all = arrivals(link, usize::from(FLOWS) * usize::from(EACH)).await?;
        for flow in 0..FLOWS {
            ensure!(of(flow, &all) == (0..EACH).collect::<Vec<_>>(), "flow {flow}: {all:?}");
        }
        let stats = dispatcher.stop().await?;
        balanced(&stats)?;
        ensure!(asked.load(std::sync::atomic::Ordering::Relaxed) as u64 == stats.ledger.deferred);
        tokio::time::timeout(SOON, serving).await.context("the listener did not end")??;
        anyhow::Ok(())
    })?
}
