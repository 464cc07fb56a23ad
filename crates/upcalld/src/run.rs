//! `upcalld run`: from settings to a running dispatcher and back.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use upcall::Dispatcher;

use crate::cli::{OnDeleted, RunArgs};
use crate::exit::Exit;
use crate::hand_over::{Inherited, Store};
use crate::handler::{self, Policy};
use crate::logging;
use crate::report::{Printer, Report};
use crate::settings::Settings;

/// Threads beside the workers: requests to the kernel, the sweep, signals.
const CONTROL_THREADS: usize = 2;

/// How often the store of sockets is brought in line with the ports that came and went.
const STORE_CHECK: Duration = Duration::from_secs(1);

/// Pause before a datapath that was deleted is made anew.
const RECREATE_PAUSE: Duration = Duration::from_millis(200);

/// Runs until a signal or a failure.
pub(crate) fn run(args: &RunArgs) -> Result<(), Exit> {
    let settings = Settings::gather(args)?;
    logging::start(settings.log_format)?;
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .enable_all()
        .build()
        .map_err(|err| Exit::Other(format!("cannot start the runtime: {err}")))?;
    runtime.block_on(serve(&settings))
}

/// Each upcall socket is a descriptor: takes all that the hard limit grants.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::debug!(limit = ?limit.maximum, "open files"),
        Err(err) => tracing::warn!(%err, "cannot raise the limit of open files"),
    }
}

async fn serve(settings: &Settings) -> Result<(), Exit> {
    // Before anything is created: a signal during the start is served after it.
    let mut signals = Signals::listen()?;
    let printer = Printer::start();
    let mut inherited = Inherited::take(settings)?;
    loop {
        let ended = serve_datapath(settings, inherited, &printer, &mut signals).await?;
        let Ended::Deleted(failure) = ended else { break };
        tracing::warn!(%failure, "making the datapath anew");
        inherited = Inherited::default();
        // Whoever deletes it again and again must not keep us busy.
        tokio::select! {
            () = tokio::time::sleep(RECREATE_PAUSE) => {}
            name = signals.next() => {
                tracing::info!(signal = name, "stopping");
                break;
            }
        }
    }
    printer.finish();
    Ok(())
}

/// How the service of a datapath ended, if not by an error.
enum Ended {
    /// By a signal.
    Asked,
    /// Somebody deleted the datapath, and it is to be made anew.
    Deleted(upcall::Failure),
}

async fn serve_datapath(
    settings: &Settings,
    inherited: Inherited,
    printer: &Printer,
    signals: &mut Signals,
) -> Result<Ended, Exit> {
    let policy = handler::from_settings(settings);
    let mut store = Store::new(settings, &inherited);
    let dispatcher = start(settings, inherited, policy.clone()).await?;
    store.update(&dispatcher).await;
    announce(&dispatcher, settings).await;
    let mut watch = Watch { settings, policy: &*policy, store: &mut store, printer };
    let ended = watch.run(&dispatcher, signals).await;
    if ended.is_err() || matches!(ended, Ok(Ended::Asked)) {
        notify(&[NotifyState::Stopping]);
    }
    let info = dispatcher.info().await;
    let stats = if settings.hand_over && matches!(ended, Ok(Ended::Asked)) {
        store.update(&dispatcher).await;
        dispatcher.hand_over().await
    } else {
        dispatcher.stop().await
    };
    // What ended it comes before what went wrong while ending.
    let ended = ended?;
    if settings.stats.is_some() {
        printer.print_last(&Report::new(true, &info, &stats?, policy.macs()));
    }
    Ok(ended)
}

async fn start(
    settings: &Settings,
    inherited: Inherited,
    policy: Arc<dyn Policy>,
) -> Result<Dispatcher, upcall::Error> {
    Dispatcher::builder(&settings.datapath)
        .ports(&settings.ports)
        .shape(settings.shape)
        .install(settings.install.into())
        .limits(settings.limits)
        .flow_idle(settings.flow_idle)
        .sweep_interval(settings.sweep_interval)
        .keep(settings.keep)
        .takeover(settings.takeover)
        .inherit(inherited.sockets)
        .start(policy)
        .await
}

/// Says what was built, with the limits it works within.
async fn announce(dispatcher: &Dispatcher, settings: &Settings) {
    let info = dispatcher.info().await;
    let ports = dispatcher.ports();
    let names: Vec<&str> = ports.iter().map(|p| p.name.as_str()).collect();
    tracing::info!(
        datapath = info.datapath,
        created = info.created,
        ports = names.join(","),
        handler = ?settings.handler,
        install = ?settings.install,
        "serving"
    );
    tracing::info!(mode = %info.mode, workers = info.workers, reason = info.reason, "dispatch");
    tracing::info!(
        recv_buffer_bytes = info.recv_buffer_bytes,
        flow_max = settings.limits.flows_max,
        mac_max = settings.mac_max,
        installs_pending_max = settings.limits.install.pending_max,
        "limits"
    );
    let status = format!("serving {}, {} dispatch", info.datapath, info.mode);
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// What goes on beside the dispatcher.
struct Watch<'a> {
    settings: &'a Settings,
    policy: &'a dyn Policy,
    store: &'a mut Store,
    printer: &'a Printer,
}

impl Watch<'_> {
    /// Reports until something ends it.
    async fn run(&mut self, dispatcher: &Dispatcher, signals: &mut Signals) -> Result<Ended, Exit> {
        let reports = self.settings.stats;
        let mut store_check = tokio::time::interval(STORE_CHECK);
        let mut ticks = tokio::time::interval(reports.unwrap_or(Duration::from_hours(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        ticks.tick().await;
        loop {
            tokio::select! {
                name = signals.next() => {
                    tracing::info!(signal = name, "stopping");
                    return Ok(Ended::Asked);
                }
                failure = dispatcher.failed() => return self.failed(failure),
                _ = store_check.tick() => self.store.update(dispatcher).await,
                _ = ticks.tick(), if reports.is_some() => self.report(dispatcher).await,
            }
        }
    }

    fn failed(&self, failure: upcall::Failure) -> Result<Ended, Exit> {
        let deleted = matches!(failure, upcall::Failure::DatapathDeleted { .. });
        if deleted && self.settings.on_deleted == OnDeleted::Recreate {
            return Ok(Ended::Deleted(failure));
        }
        Err(upcall::Error::Failed(failure).into())
    }

    async fn report(&self, dispatcher: &Dispatcher) {
        match dispatcher.stats().await {
            Ok(stats) => {
                let info = dispatcher.info().await;
                self.printer.print(&Report::new(false, &info, &stats, self.policy.macs()));
            }
            Err(err) => tracing::warn!(%err, "cannot read the counters"),
        }
    }
}

/// Tells systemd, if it started us.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(state) {
        tracing::warn!(%err, "cannot notify the service manager");
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Exit> {
        let listen = |kind| {
            signal(kind).map_err(|err| Exit::Other(format!("cannot listen to signals: {err}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
