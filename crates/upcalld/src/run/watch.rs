//! What goes on beside a dispatcher: failures, inquiries, reports.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch as watched};

use super::datapath::{Datapath, Ended, Running};
use super::{Daemon, End, ticks};
use crate::cli::OnDeleted;
use crate::control::{self, Inquiry, SAMPLE_INTERVAL, View};
use crate::dispatch_mode::told;
use crate::exit::Exit;
use crate::hand_over::Store;
use crate::report::Report;
use crate::{counting, crash};

/// How often the store of sockets is brought in line with the ports that came and went.
const STORE_CHECK: Duration = Duration::from_secs(1);

impl Datapath<'_> {
    /// Serves until something ends it.
    ///
    /// Answers and duties are two futures that are both polled whatever the other waits for: an answer
    /// that waits its turn for the dispatcher's lock must be polled to give it up again.
    pub(super) async fn watch(
        &mut self,
        running: &Running,
        stop: &mut watched::Receiver<Option<End>>,
    ) -> Result<Ended, Exit> {
        let Self { daemon, inquiries, store, history, traces, looks, handle, .. } = self;
        let Running { dispatcher, policy, settings, .. } = running;
        let view = View {
            dispatcher,
            policy: &**policy,
            settings,
            history,
            counts: &daemon.counts,
            traces,
            looks,
            started: daemon.started,
        };
        let attended = || handle.attended_ms.store(daemon.now_ms(), Ordering::Relaxed);
        let on_deleted = || handle.settings.load().on_deleted;
        tokio::select! {
            end = asked(stop) => Ok(Ended::Asked(end)),
            failure = dispatcher.failed() => failed(failure, on_deleted()),
            () = duties(daemon, view, (running, store), attended) => unreachable!("it has no end"),
            () = answers(inquiries, view) => unreachable!("it has no end"),
        }
    }
}

/// How the process is to end, once it is.
async fn asked(stop: &mut watched::Receiver<Option<End>>) -> End {
    let end = stop.wait_for(Option::is_some).await;
    // Nobody is there to say how: for good.
    end.ok().and_then(|end| *end).unwrap_or(End::ForGood)
}

fn failed(failure: upcall::Failure, on_deleted: OnDeleted) -> Result<Ended, Exit> {
    let deleted = matches!(failure, upcall::Failure::DatapathDeleted { .. });
    if deleted && on_deleted == OnDeleted::Recreate {
        return Ok(Ended::Deleted(failure));
    }
    Err(upcall::Error::Failed(failure).into())
}

/// Answers inquiries for ever, several at a time.
async fn answers(inquiries: &mut mpsc::Receiver<Inquiry>, view: View<'_>) {
    let mut answering = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(inquiry) = inquiries.recv() => answering.push(control::answer(inquiry, view)),
            Some(()) = answering.next() => {}
            // Nobody asks, and nobody can any more.
            else => return std::future::pending().await,
        }
    }
}

/// `attended` is called whenever none of them is in hand: that they never are is what a watchdog is for.
async fn duties(
    daemon: &Daemon<'_>,
    view: View<'_>,
    (running, store): (&Running, &mut Store),
    attended: impl Fn(),
) {
    let dispatcher = view.dispatcher;
    let mut store_check = ticks(STORE_CHECK);
    let mut samples = ticks(SAMPLE_INTERVAL);
    let mut rests = ticks(daemon.watchdog.map_or(STORE_CHECK, |limit| limit / 4));
    let mut reports = ticks(daemon.stats.unwrap_or(Duration::from_hours(1)));
    reports.tick().await;
    loop {
        tokio::select! {
            question = running.teller.question() => told::answer(question, dispatcher).await,
            _ = store_check.tick() => store.update(dispatcher).await,
            _ = rests.tick() => attended(),
            _ = samples.tick() => sample(view).await,
            _ = reports.tick(), if daemon.stats.is_some() => report(daemon, view).await,
        }
    }
}

async fn sample(view: View<'_>) {
    view.traces.expire(view.dispatcher);
    view.looks.expire();
    let Ok(stats) = view.dispatcher.stats().await else { return };
    let readings = counting::all(&stats, view.policy, view.counts);
    crash::note(&view.settings.datapath, &readings);
    view.history.borrow_mut().sample(readings.into_iter().map(|r| (r.name, r.value)));
}

async fn report(daemon: &Daemon<'_>, view: View<'_>) {
    match view.dispatcher.stats().await {
        Ok(stats) => {
            let info = view.dispatcher.info().await;
            daemon.printer.print(&Report::new(false, &info, &stats, view.policy));
        }
        Err(err) => tracing::warn!(%err, "cannot read the counters"),
    }
}
