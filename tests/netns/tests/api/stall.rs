//! A handler that does not return.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use netns_tests::{DATAPATH, SOON, TestResult, modes};
use ovs_features::cpu;
use upcall::{Dispatcher, Handler, Limits, Upcall, Verdict};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Hosts, RawSocket};

use crate::later::wait_stats;
use crate::{arrivals, frame, number, shape};

/// Holds whoever comes until it is opened.
#[derive(Default)]
struct Door {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Door {
    fn pass(&self) {
        let is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.opened.wait_while(is_open, |is_open| !*is_open);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }
}

/// Floods; flow 0 it keeps at a door.
struct Stalls(Arc<Door>);

impl Handler for Stalls {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        if number(upcall.packet()).is_some_and(|(flow, _)| flow == 0) {
            self.0.pass();
        }
        verdict.flood(upcall.in_port());
    }
}

/// Lets the threads go however a test ends.
struct Opens(Arc<Door>);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open();
    }
}

#[test]
fn a_call_that_does_not_return_keeps_its_worker_alone() -> TestResult {
    for mode in modes() {
        let hosts = Hosts::new(2)?;
        hosts.switch.block_on(async || {
            let opens = Opens(Arc::default());
            let limits =
                Limits { handler_timeout: Duration::from_millis(100), ..Limits::default() };
            let builder = Dispatcher::builder(DATAPATH).ports(hosts.ports()).shape(shape(mode)?);
            let dispatcher = builder.limits(limits).start(Stalls(opens.0.clone())).await?;
            let link = RawSocket::open(&hosts[0].ns, HOST_LINK)?;
            cpu::pin_to(0)?;
            RawSocket::sender(&hosts[0].ns, HOST_LINK)?.send(&frame((0, 0)))?;
            wait_stats(&dispatcher, |stats| stats.handler_stalls == 1).await?;
            // Of another CPU, or in per-vport mode of another port: another worker's.
            cpu::pin_to(1)?;
            let sender = RawSocket::sender(&hosts[1].ns, HOST_LINK)?;
            (0..20).try_for_each(|number| sender.send(&frame((1, number))))?;
            let arrived = arrivals(link, 20).await.context("the other workers go on")?;
            ensure!(arrived.iter().all(|(flow, _)| *flow == 1), "{mode}: {arrived:?}");
            let began = Instant::now();
            let stats = dispatcher.stop_within(Duration::from_millis(100)).await?;
            ensure!(began.elapsed() < SOON, "{mode}: it took {:?}", began.elapsed());
            ensure!(stats.ledger.in_flight() == 1, "{mode}: {stats:?}");
            ensure!((stats.handler_stalls, stats.ledger.shed) == (1, 0), "{mode}: {stats:?}");
            anyhow::Ok(())
        })??;
    }
    Ok(())
}
