//! `upcalld run`: from settings to a running dispatcher and back.

mod watch;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use upcall::{Builder, Dispatcher, Info};

use crate::cli::RunArgs;
use crate::control::{Control, History};
use crate::crash;
use crate::dispatch_mode::told::Teller;
use crate::exit::Exit;
use crate::hand_over::{Inherited, Store};
use crate::handler::{self, Policy};
use crate::logging::{self, Levels};
use crate::metrics::Exporter;
use crate::reload::Reloader;
use crate::report::{Printer, Report};
use crate::settings::Settings;
use crate::top::snapshot::Looks;
use crate::trace::Traces;

/// Threads beside the workers: requests to the kernel, the sweep, signals.
const CONTROL_THREADS: usize = 2;

/// Pause before a datapath that was deleted is made anew.
const RECREATE_PAUSE: Duration = Duration::from_millis(200);

/// Runs until a signal or a failure.
pub(crate) fn run(args: &RunArgs) -> Result<(), Exit> {
    let settings = Settings::gather(args)?;
    let levels = logging::start(settings.log.as_deref(), settings.log_format)?;
    crash::watch(&settings.datapath, settings.crash_report.clone())?;
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

async fn serve(settings: Settings, args: &RunArgs, levels: &Levels) -> Result<(), Exit> {
    // Before anything is created: a signal during the start is served after it.
    let (signals, hangup) = (Signals::listen()?, listen_to(SignalKind::hangup())?);
    let control = Control::start(&settings)?;
    let metrics = settings.metrics.clone();
    let mut daemon = Daemon {
        reloader: Reloader::new(args, levels, settings),
        levels,
        signals,
        hangup,
        printer: Printer::start(),
        control,
        history: RefCell::default(),
        traces: Traces::default(),
        looks: Looks::default(),
        started: Instant::now(),
    };
    let exporter = Exporter::start(&metrics, daemon.control.sender()).await?;
    let served = daemon.serve().await;
    drop(exporter);
    daemon.control.finish().await;
    daemon.printer.finish();
    served
}

/// What lasts as long as the process, whatever becomes of the datapath.
struct Daemon<'a> {
    reloader: Reloader<'a>,
    levels: &'a Levels,
    signals: Signals,
    /// Asks for a reload.
    hangup: Signal,
    printer: Printer,
    control: Control,
    history: RefCell<History>,
    traces: Traces,
    looks: Looks,
    started: Instant,
}

impl Daemon<'_> {
    async fn serve(&mut self) -> Result<(), Exit> {
        let settings = self.reloader.settings();
        let mut inherited = Inherited::take(&settings)?;
        let mut store = Store::new(&settings, &inherited);
        loop {
            let ended = self.serve_datapath(inherited, &mut store).await?;
            let Ended::Deleted(failure) = ended else { return Ok(()) };
            tracing::warn!(%failure, "making the datapath anew");
            inherited = Inherited::default();
            // Whoever deletes it again and again must not keep us busy.
            tokio::select! {
                () = tokio::time::sleep(RECREATE_PAUSE) => {}
                _ = self.signals.next() => return Ok(()),
            }
        }
    }

    async fn serve_datapath(
        &mut self,
        inherited: Inherited,
        store: &mut Store,
    ) -> Result<Ended, Exit> {
        let settings = &*self.reloader.settings();
        let policy = handler::from_settings(settings);
        let dispatcher = start(settings, inherited, policy.clone()).await?;
        store.update(&dispatcher).await;
        let teller = Teller::listen(&settings.datapath);
        self.control.announce();
        announce(&dispatcher, settings).await;
        let ended =
            watch::Watch::new(self, settings, &*policy, store, teller).run(&dispatcher).await;
        if !matches!(ended, Ok(Ended::Deleted(_))) {
            notify(&[NotifyState::Stopping]);
        }
        let info = dispatcher.info().await;
        let stats = if settings.hand_over && matches!(ended, Ok(Ended::ToSuccessor)) {
            store.update(&dispatcher).await;
            dispatcher.hand_over().await
        } else {
            dispatcher.stop().await
        };
        // What ended it comes before what went wrong while ending.
        let ended = ended?;
        if settings.stats.is_some() {
            self.printer.print_last(&Report::new(true, &info, &stats?, &*policy));
        }
        Ok(ended)
    }
}

/// How the service of a datapath ended, if not by an error.
enum Ended {
    /// By a signal or a command, for good.
    Asked,
    /// By the signal that says that a successor comes.
    ToSuccessor,
    /// Somebody deleted the datapath, and it is to be made anew.
    Deleted(upcall::Failure),
}

async fn start(
    settings: &Settings,
    inherited: Inherited,
    policy: Arc<dyn Policy>,
) -> Result<Dispatcher, upcall::Error> {
    let builder = inherited.in_flight.iter().fold(builder(settings), Builder::inherit_in_flight);
    builder.inherit(inherited.sockets).start(policy).await
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
        storm_shield = settings.limits.storm_shield,
        funnel = settings.limits.funnel,
        port_rates = ?settings.limits.port_rates,
        port_queue_max = settings.limits.queue.port_upcalls_max,
        "limits"
    );
    notify(&[NotifyState::Ready, NotifyState::Status(&serving(&info))]);
}

/// The status that `systemctl status` shows.
pub(crate) fn serving(info: &Info) -> String {
    format!("serving {}, {} dispatch", info.datapath, info.mode)
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

    async fn next(&mut self) -> Ended {
        let (signal, ended) = tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", Ended::Asked),
            _ = self.interrupt.recv() => ("SIGINT", Ended::Asked),
            _ = self.successor.recv() => ("SIGUSR2", Ended::ToSuccessor),
        };
        tracing::info!(signal, "stopping");
        ended
    }
}
