//! The end of a dispatcher.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ovs_datapath::Control;
use ovs_wire::datapath::Datapath;

use crate::deferred::Stage;
use crate::delivery::Delivery;
use crate::{Dispatcher, Error, Stats};

/// How long a dispatcher that stops waits for its answers, unless it is told.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long workers may take to shed what was not answered in time: they ask nobody.
const SHED_LIMIT: Duration = Duration::from_secs(1);
/// How long workers may take to end, which they do as soon as the handler lets them.
const END_LIMIT: Duration = Duration::from_secs(4);
/// Time between two looks at what is still to be answered.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl Dispatcher {
    /// Stops without a word to the kernel: upcalls go on queueing in the sockets, which a successor
    /// must hold by now ([`Dispatcher::sockets`], [`crate::Builder::inherit`]). Nothing is removed. What
    /// was read is answered, what is in the sockets is the successor's. The handler has 5 seconds to give
    /// the answers that it owes; what is not answered then is shed and counted.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell the datapath's counters; it is stopped in any case.
    pub async fn hand_over(mut self) -> Result<Stats, Error> {
        self.end_tasks().await;
        let stats = self.stats().await;
        // The successor's upcalls of a flow must not be overtaken by it.
        let _held = self.shared.hold_installs();
        let delivery = self.delivery.lock().await.clone();
        delivery.rest_within(END_LIMIT).await;
        self.settle(DEADLINE, || false).await;
        delivery.stop_within(END_LIMIT).await;
        self.last_reading(stats, &delivery)
    }

    /// As [`Dispatcher::stop_within`] 5 seconds.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell the datapath's counters; it is stopped in any case.
    pub async fn stop(self) -> Result<Stats, Error> {
        self.stop_within(DEADLINE).await
    }

    /// Stops: the kernel is told to send no more upcalls, those that are queued are answered, what was
    /// created is removed unless it is to be kept, and the sockets are closed. Gives the last reading
    /// of the counters. After [`crate::Failure::TakenOver`] nothing is touched.
    ///
    /// What is not answered after `limit` is shed and counted
    /// ([`LedgerSnapshot::shed_stopped`](crate::LedgerSnapshot)), and futures of the handler are dropped.
    /// With a limit of zero nothing that is queued is answered. A call of the handler that is running
    /// cannot be cut short: one that does not return keeps its thread for itself, and what that had in
    /// its hands stays [in flight](crate::LedgerSnapshot::in_flight) in the counters. That is found out at
    /// most 5 seconds after the limit.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell the datapath's counters; it is stopped in any case.
    pub async fn stop_within(mut self, limit: Duration) -> Result<Stats, Error> {
        self.end_tasks().await;
        let stats = self.stats().await;
        let delivery = self.delivery.lock().await.clone();
        let ours = !self.shared.taken_over.load(Ordering::Relaxed);
        if ours {
            delivery.release(&self.control, &self.dp).await;
        }
        self.settle(limit, || !self.shared.sources.all_answered()).await;
        delivery.stop_within(END_LIMIT).await;
        if ours && !self.keep {
            self.remove().await;
        }
        self.last_reading(stats, &delivery)
    }

    /// Waits until all is answered, or the time is up: from then on nothing is asked or waited for.
    async fn settle(&self, limit: Duration, unread: impl Fn() -> bool) {
        let shared = &self.shared;
        let owed = || shared.deferred.pending() > 0 || shared.lanes.any_queued();
        wait_while(limit, || owed() || unread()).await;
        shared.deferred.advance(Stage::Closing);
        if owed() || unread() {
            shared.deferred.advance(Stage::Closed);
            wait_while(SHED_LIMIT, owed).await;
        }
    }

    fn last_reading(
        &self,
        stats: Result<Stats, Error>,
        delivery: &Delivery,
    ) -> Result<Stats, Error> {
        let (ledger, latency) = self.work_done(delivery);
        let handler_pending = self.shared.deferred.pending();
        stats.map(|stats| Stats { ledger, latency, handler_pending, ..stats })
    }

    async fn end_tasks(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
    }

    /// Removes what was created; on a datapath that was there before, also the flows, which nobody
    /// revalidates from now on.
    async fn remove(&self) {
        if !self.created.datapath {
            flush(&self.control, &self.dp).await;
        }
        self.created.remove(&self.control, &self.dp).await;
    }
}

async fn wait_while(limit: Duration, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while is_so() && Instant::now() < deadline {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

pub(crate) async fn flush(control: &Control, dp: &Datapath) {
    if let Err(err) = control.delete_flow(dp.ifindex, None).await {
        tracing::warn!(%err, "cannot remove the flows");
    }
}
