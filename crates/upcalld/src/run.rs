//! `upcalld run`: from settings to a running dispatcher and back.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use upcall::Dispatcher;

use crate::cli::RunArgs;
use crate::exit::Exit;
use crate::handler::{self, Policy};
use crate::logging;
use crate::report::Report;
use crate::settings::Settings;

/// Threads beside the workers: requests to the kernel, the sweep, signals.
const CONTROL_THREADS: usize = 2;

/// Runs until a signal or a failure.
pub(crate) fn run(args: &RunArgs) -> Result<(), Exit> {
    let settings = Settings::gather(args)?;
    logging::start(settings.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .enable_all()
        .build()
        .map_err(|err| Exit::Other(format!("cannot start the runtime: {err}")))?;
    runtime.block_on(serve(&settings))
}

async fn serve(settings: &Settings) -> Result<(), Exit> {
    // Before anything is created: a signal during the start is served after it.
    let mut signals = Signals::listen()?;
    let policy = handler::from_settings(settings);
    let dispatcher = start(settings, policy.clone()).await?;
    announce(&dispatcher, settings);
    let ended = watch(&dispatcher, settings, &*policy, &mut signals).await;
    notify(&[NotifyState::Stopping]);
    let info = dispatcher.info().clone();
    let stats = dispatcher.stop().await?;
    if settings.stats.is_some() {
        Report::new(true, &info, &stats, policy.macs()).print();
    }
    ended
}

async fn start(settings: &Settings, policy: Arc<dyn Policy>) -> Result<Dispatcher, upcall::Error> {
    let mut builder = Dispatcher::builder(&settings.datapath)
        .ports(&settings.ports)
        .dispatch(settings.dispatch)
        .install(settings.install.into())
        .limits(settings.limits)
        .flow_idle(settings.flow_idle)
        .sweep_interval(settings.sweep_interval)
        .keep(settings.keep)
        .takeover(settings.takeover);
    if let Some(workers) = settings.workers {
        builder = builder.workers(workers);
    }
    builder.start(policy).await
}

/// Says what was built, with the limits it works within.
fn announce(dispatcher: &Dispatcher, settings: &Settings) {
    let info = dispatcher.info();
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

/// Reports until something ends it.
async fn watch(
    dispatcher: &Dispatcher,
    settings: &Settings,
    policy: &dyn Policy,
    signals: &mut Signals,
) -> Result<(), Exit> {
    let mut ticks = tokio::time::interval(settings.stats.unwrap_or(Duration::from_hours(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    ticks.tick().await;
    loop {
        tokio::select! {
            name = signals.next() => {
                tracing::info!(signal = name, "stopping");
                return Ok(());
            }
            failure = dispatcher.failed() => return Err(upcall::Error::Failed(failure).into()),
            _ = ticks.tick(), if settings.stats.is_some() => {
                match dispatcher.stats().await {
                    Ok(stats) => {
                        Report::new(false, dispatcher.info(), &stats, policy.macs()).print();
                    }
                    Err(err) => tracing::warn!(%err, "cannot read the counters"),
                }
            }
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
