//! What goes on beside a dispatcher: signals, failures, questions, reports.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use sd_notify::NotifyState;
use tokio::signal::unix::Signal;
use tokio::time::{Interval, MissedTickBehavior};
use upcall::Dispatcher;

use super::{Daemon, Ended, Signals, notify};
use crate::cli::OnDeleted;
use crate::control::{self, After, Control, Counts, History, SAMPLE_INTERVAL, View};
use crate::dispatch_mode::told::{self, Teller};
use crate::exit::Exit;
use crate::hand_over::Store;
use crate::handler::Policy;
use crate::logging::Levels;
use crate::reload::Reloader;
use crate::report::{Printer, Report};
use crate::settings::Settings;
use crate::top::snapshot::Looks;
use crate::trace::Traces;
use crate::{counting, crash};

/// How often the store of sockets is brought in line with the ports that came and went.
const STORE_CHECK: Duration = Duration::from_secs(1);

/// Shortest time between two signs of life.
const WATCHDOG_MIN: Duration = Duration::from_millis(10);

/// The parts of the daemon that one run of a dispatcher works with.
pub(super) struct Watch<'a> {
    sight: Sight<'a>,
    signals: &'a mut Signals,
    hangup: &'a mut Signal,
    control: &'a mut Control,
    store: &'a mut Store,
    teller: Teller,
}

/// What is looked at, not changed.
#[derive(Clone, Copy)]
struct Sight<'a> {
    settings: &'a Settings,
    reloader: &'a Reloader<'a>,
    levels: &'a Levels,
    policy: &'a dyn Policy,
    printer: &'a Printer,
    history: &'a RefCell<History>,
    traces: &'a Traces,
    looks: &'a Looks,
    started: Instant,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        daemon: &'a mut Daemon<'_>,
        settings: &'a Settings,
        policy: &'a dyn Policy,
        store: &'a mut Store,
        teller: Teller,
    ) -> Self {
        let Daemon {
            reloader,
            levels,
            signals,
            hangup,
            printer,
            control,
            history,
            traces,
            looks,
            started,
        } = daemon;
        let started = *started;
        let sight =
            Sight { settings, reloader, levels, policy, printer, history, traces, looks, started };
        Self { sight, signals, hangup, control, store, teller }
    }

    /// Serves until something ends it.
    ///
    /// Answers and duties are two futures that are both polled whatever the other waits for: an answer
    /// that waits its turn for the dispatcher's lock must be polled to give it up again.
    pub(super) async fn run(self, dispatcher: &Dispatcher) -> Result<Ended, Exit> {
        let Self { sight, signals, hangup, control, store, teller } = self;
        let counts = control.counts().clone();
        let view = sight.view(dispatcher, &counts);
        tokio::select! {
            ended = sight.duties(dispatcher, &counts, (signals, store, &teller)) => ended,
            () = reloads(hangup, view) => unreachable!("it has no end"),
            () = answers(control, view) => {
                tracing::info!("stopping");
                Ok(Ended::Asked)
            }
        }
    }
}

/// Reloads the configuration whenever that is asked for.
async fn reloads(hangup: &mut Signal, view: View<'_>) {
    loop {
        // No more signals: nobody will ask.
        if hangup.recv().await.is_none() {
            return std::future::pending().await;
        }
        tracing::info!(signal = "SIGHUP", "reloading the configuration");
        // What became of it is logged, counted, and told to the service manager.
        let _told = control::reload(view).await;
    }
}

/// Answers questions until one asks to end. There are no more at once than clients.
async fn answers(control: &mut Control, view: View<'_>) {
    let mut answering = FuturesUnordered::new();
    loop {
        tokio::select! {
            question = control.question() => answering.push(control::answer(question, view)),
            Some(after) = answering.next() => if after == After::Exit {
                return;
            },
        }
    }
}

impl<'a> Sight<'a> {
    fn view(self, dispatcher: &'a Dispatcher, counts: &'a Counts) -> View<'a> {
        let Self { settings, reloader, levels, policy, history, traces, looks, started, .. } = self;
        View {
            dispatcher,
            policy,
            settings,
            reloader,
            levels,
            history,
            counts,
            traces,
            looks,
            started,
        }
    }

    async fn duties(
        self,
        dispatcher: &Dispatcher,
        counts: &Counts,
        (signals, store, teller): (&mut Signals, &mut Store, &Teller),
    ) -> Result<Ended, Exit> {
        let mut store_check = ticks(STORE_CHECK);
        let mut samples = ticks(SAMPLE_INTERVAL);
        let mut reports = ticks(self.settings.stats.unwrap_or(Duration::from_hours(1)));
        reports.tick().await;
        // Half of the time after which the service manager takes us for dead.
        let watchdog = sd_notify::watchdog_enabled().map(|limit| (limit / 2).max(WATCHDOG_MIN));
        let mut alive = ticks(watchdog.unwrap_or(Duration::from_hours(1)));
        loop {
            tokio::select! {
                ended = signals.next() => return Ok(ended),
                failure = dispatcher.failed() => return self.failed(failure),
                question = teller.question() => told::answer(question, dispatcher).await,
                _ = store_check.tick() => store.update(dispatcher).await,
                _ = samples.tick() => self.sample(dispatcher, counts).await,
                _ = alive.tick(), if watchdog.is_some() => notify(&[NotifyState::Watchdog]),
                _ = reports.tick(), if self.settings.stats.is_some() => {
                    self.report(dispatcher).await;
                }
            }
        }
    }

    fn failed(self, failure: upcall::Failure) -> Result<Ended, Exit> {
        let deleted = matches!(failure, upcall::Failure::DatapathDeleted { .. });
        if deleted && self.reloader.settings().on_deleted == OnDeleted::Recreate {
            return Ok(Ended::Deleted(failure));
        }
        Err(upcall::Error::Failed(failure).into())
    }

    async fn sample(self, dispatcher: &Dispatcher, counts: &Counts) {
        self.levels.tell_held_back();
        self.traces.expire(dispatcher);
        self.looks.expire();
        let Ok(stats) = dispatcher.stats().await else { return };
        let readings = counting::all(&stats, self.policy, counts);
        crash::note(&readings);
        self.history.borrow_mut().sample(readings.into_iter().map(|r| (r.name, r.value)));
    }

    async fn report(self, dispatcher: &Dispatcher) {
        match dispatcher.stats().await {
            Ok(stats) => {
                let info = dispatcher.info().await;
                self.printer.print(&Report::new(false, &info, &stats, self.policy));
            }
            Err(err) => tracing::warn!(%err, "cannot read the counters"),
        }
    }
}

/// Ticks, the first at once; those that could not be kept are left out.
fn ticks(interval: Duration) -> Interval {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}
