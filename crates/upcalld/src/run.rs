//! `upcalld run`: from settings to running dispatchers and back.

mod datapath;
mod watch;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch as watched;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::Instrument as _;
use upcall::{Builder, Dispatcher, Info};

use crate::cli::RunArgs;
use crate::control::{self, After, Control, Counts, Desk, Handle, SAMPLE_INTERVAL};
use crate::crash;
use crate::exit::Exit;
use crate::hand_over::Inherited;
use crate::logging::{self, Levels};
use crate::metrics::Exporter;
use crate::reload::Reloader;
use crate::report::Printer;
use crate::settings::{AllSettings, Settings};
use datapath::{Datapath, Running};

/// Threads beside the workers: requests to the kernel, the sweep, signals.
const CONTROL_THREADS: usize = 2;

/// Shortest time of a watchdog that is kept to.
const WATCHDOG_MIN: Duration = Duration::from_millis(40);

/// Runs until a signal or a failure.
pub(crate) fn run(args: &RunArgs) -> Result<(), Exit> {
    let settings = AllSettings::gather(args)?;
    let levels = logging::start(settings.process.log.as_deref(), settings.process.log_format)?;
    crash::watch(settings.process.crash_report.clone())?;
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .enable_all()
        .build()
        .map_err(|err| Exit::Other(format!("cannot start the runtime: {err}")))?;
    runtime.block_on(serve(settings, args, &levels))
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

async fn serve(settings: AllSettings, args: &RunArgs, levels: &Levels) -> Result<(), Exit> {
    // Before anything is created: a signal during the start is served after it.
    let (signals, hangup) = (Signals::listen()?, listen_to(SignalKind::hangup())?);
    let mut control = Control::start(&settings)?;
    let exporter = Exporter::start(&settings.process.metrics, control.sender()).await?;
    let daemon = Daemon {
        stats: settings.process.stats,
        reloader: Reloader::new(args, levels, settings),
        levels,
        printer: Printer::start(),
        counts: control.counts().clone(),
        started: Instant::now(),
        watchdog: sd_notify::watchdog_enabled().map(|limit| limit.max(WATCHDOG_MIN)),
    };
    let served = daemon.serve(&mut control, signals, hangup).await;
    drop(exporter);
    control.finish().await;
    daemon.printer.finish();
    served
}

/// How the process is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// For good.
    ForGood,
    /// With a successor that goes on.
    ToSuccessor,
}

/// What lasts as long as the process, whatever becomes of the datapaths.
struct Daemon<'a> {
    /// How often counters are printed.
    stats: Option<Duration>,
    reloader: Reloader<'a>,
    levels: &'a Levels,
    printer: Printer,
    counts: Arc<Counts>,
    started: Instant,
    /// After this time without a sign of life the service manager takes us for dead.
    watchdog: Option<Duration>,
}

impl Daemon<'_> {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    async fn serve(
        &self,
        control: &mut Control,
        signals: Signals,
        hangup: Signal,
    ) -> Result<(), Exit> {
        let settings = self.reloader.settings();
        let mut inherited = Inherited::take(&settings)?;
        let datapath = |of: &Arc<Settings>| {
            Datapath::new(self, of.clone(), inherited.remove(&of.datapath).unwrap_or_default())
        };
        let mut datapaths: Vec<Datapath<'_>> = settings.datapaths.iter().map(datapath).collect();
        let running = start_all(&mut datapaths).await?;
        let handles: Vec<Handle> = datapaths.iter().map(|dp| dp.handle.clone()).collect();
        control.announce();
        say_ready(&running).await;
        let (stop, stops) = watched::channel(None);
        let mut serving = FuturesUnordered::new();
        for (datapath, running) in datapaths.into_iter().zip(running) {
            let span = datapath.span.clone();
            serving.push(datapath.serve(running, stops.clone()).instrument(span));
        }
        let ended = self.until_end(&mut serving, &handles, (control, signals, hangup)).await;
        notify(&[NotifyState::Stopping]);
        // All at once, each within its time. After a failure of one a service manager starts us again, as after
        // a crash.
        stop.send_replace(Some(*ended.as_ref().unwrap_or(&End::ToSuccessor)));
        let mut ended = ended.map(drop);
        while let Some(other) = serving.next().await {
            // What ended it comes before what went wrong while ending.
            ended = ended.and(other);
        }
        ended
    }

    /// Goes on until one of the datapaths ends, or that is asked for.
    async fn until_end(
        &self,
        serving: &mut FuturesUnordered<impl Future<Output = Result<(), Exit>>>,
        handles: &[Handle],
        (control, mut signals, mut hangup): (&mut Control, Signals, Signal),
    ) -> Result<End, Exit> {
        let (reloader, levels) = (&self.reloader, self.levels);
        let desk = Desk { datapaths: handles, reloader, levels, counts: &self.counts };
        tokio::select! {
            Some(ended) = serving.next() => ended.map(|()| End::ForGood),
            () = answers(control, desk) => Ok(End::ForGood),
            end = signals.next() => Ok(end),
            () = reloads(&mut hangup, desk) => unreachable!("it has no end"),
            () = self.signs_of_life(handles) => unreachable!("it has no end"),
        }
    }

    /// Tells the service manager that the duties of all datapaths are attended to, and the log what was held
    /// back.
    async fn signs_of_life(&self, datapaths: &[Handle]) {
        let limit = self.watchdog.unwrap_or(Duration::from_hours(1));
        let (mut alive, mut held_back) = (ticks(limit / 4), ticks(SAMPLE_INTERVAL));
        let is_attended = |handle: &Handle| {
            let idle_ms = self.now_ms().saturating_sub(handle.attended_ms.load(Ordering::Relaxed));
            !handle.is_served.load(Ordering::Relaxed) || u128::from(idle_ms) < limit.as_millis()
        };
        loop {
            tokio::select! {
                _ = held_back.tick() => self.levels.tell_held_back(),
                _ = alive.tick(), if self.watchdog.is_some() => {
                    if datapaths.iter().all(is_attended) {
                        notify(&[NotifyState::Watchdog]);
                    }
                }
            }
        }
    }
}

/// Starts all datapaths, or none: those that could be are stopped again when one could not.
async fn start_all(datapaths: &mut [Datapath<'_>]) -> Result<Vec<Running>, Exit> {
    let several = datapaths.len() > 1;
    let starting = datapaths.iter_mut().map(|datapath| {
        let span = datapath.span.clone();
        datapath.start().instrument(span)
    });
    let started = join_all(starting).await;
    if started.iter().all(Result::is_ok) {
        return started.into_iter().collect();
    }
    let (mut failure, mut ending) = (None, Vec::new());
    for (datapath, started) in datapaths.iter_mut().zip(started) {
        match started {
            Ok(running) => ending.push(datapath.end(running, End::ToSuccessor)),
            Err(err) => {
                if several {
                    tracing::error!(datapath = datapath.handle.name, %err, "cannot be served");
                }
                failure.get_or_insert(err);
            }
        }
    }
    join_all(ending).await;
    Err(failure.unwrap_or_else(|| unreachable!("one of them has failed")))
}

/// Answers questions until one asks to end. There are no more at once than clients.
///
/// It is polled whatever else goes on: an answer that waits its turn for a lock must be polled to give it up
/// again.
async fn answers(control: &mut Control, desk: Desk<'_>) {
    let mut answering = FuturesUnordered::new();
    loop {
        tokio::select! {
            question = control.question() => answering.push(desk.answer(question)),
            Some(after) = answering.next() => if after == After::Exit {
                tracing::info!("stopping");
                return;
            },
        }
    }
}

/// Reloads the configuration whenever that is asked for.
async fn reloads(hangup: &mut Signal, desk: Desk<'_>) {
    loop {
        // No more signals: nobody will ask.
        if hangup.recv().await.is_none() {
            return std::future::pending().await;
        }
        tracing::info!(signal = "SIGHUP", "reloading the configuration");
        // What became of it is logged, counted, and told to the service manager.
        let _told = control::reload(desk).await;
    }
}

/// Ticks, the first at once; those that could not be kept are left out.
fn ticks(interval: Duration) -> Interval {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// The dispatcher that the settings ask for.
pub(crate) fn builder(settings: &Settings) -> Builder {
    let builder = Dispatcher::builder(&settings.datapath);
    let sample = settings.sample_userdata.iter();
    let builder = sample.fold(builder, |builder, prefix| builder.sample_userdata(&**prefix));
    builder
        .ports(&settings.ports)
        .shape(settings.shape.clone())
        .install(settings.install.into())
        .answer_from_plan(settings.answer_from_plan)
        .limits(settings.limits)
        .flow_idle(settings.flow_idle)
        .flow_hard(settings.flow_hard)
        .sweep_interval(settings.sweep_interval)
        .keep(settings.keep)
        .takeover(settings.takeover)
        .on_port_gone(settings.on_port_gone.into())
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
    tracing::info!(policy = %info.placement, workers = info.worker_cpus_text(), "placement");
    tracing::info!(
        recv_buffer_bytes = info.recv_buffer_bytes,
        recv_buffers_bytes = info.recv_buffers_bytes,
        recv_buffer_total_bytes = settings.shape.recv_buffer_total_bytes,
        flow_max = settings.limits.flows_max,
        mac_max = settings.switch.macs_max,
        installs_pending_max = settings.limits.install.pending_max,
        arrival_times = settings.shape.arrival_times,
        storm_shield = settings.limits.storm_shield,
        funnel = settings.limits.funnel,
        port_rates = ?settings.limits.port_rates,
        port_queue_max = settings.limits.queue.port_upcalls_max,
        "limits"
    );
}

/// The status that `systemctl status` shows, of what each datapath says of itself.
pub(crate) fn status(served: &[String]) -> String {
    format!("serving {}", served.join("; "))
}

/// What a datapath says of itself there.
pub(crate) fn serving(info: &Info) -> String {
    format!("{}, {} dispatch", info.datapath, info.mode)
}

/// Tells the service manager that all datapaths are served.
async fn say_ready(running: &[Running]) {
    let infos = join_all(running.iter().map(|running| running.dispatcher.info())).await;
    let served: Vec<String> = infos.iter().map(serving).collect();
    notify(&[NotifyState::Ready, NotifyState::Status(&status(&served))]);
}

/// Tells systemd, if it started us.
pub(crate) fn notify(state: &[NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(state) {
        tracing::warn!(%err, "cannot notify the service manager");
    }
}

fn listen_to(kind: SignalKind) -> Result<Signal, Exit> {
    signal(kind).map_err(|err| Exit::Other(format!("cannot listen to signals: {err}")))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// A service manager sends it where it restarts the daemon: `RestartKillSignal=`.
    successor: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Exit> {
        Ok(Self {
            terminate: listen_to(SignalKind::terminate())?,
            interrupt: listen_to(SignalKind::interrupt())?,
            successor: listen_to(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> End {
        let (signal, end) = tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", End::ForGood),
            _ = self.interrupt.recv() => ("SIGINT", End::ForGood),
            _ = self.successor.recv() => ("SIGUSR2", End::ToSuccessor),
        };
        tracing::info!(signal, "stopping");
        end
    }
}
