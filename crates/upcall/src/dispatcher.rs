//! A running dispatcher.

mod hot;
mod inspect;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::{FutureExt, Stream, stream};
use netlink_io::Socket;
use ovs_datapath::{Control, Events, LinkEvents, Links};
use ovs_wire::datapath::{Datapath, DatapathStats};
use ovs_wire::vport::Vport;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::Instrument as _;
use upcall_core::{LatencySnapshot, LedgerSnapshot};

pub use hot::{HotFlow, HotFlows};
pub use inspect::{FlowFilter, FlowQuery, FlowText};

use crate::assembly::Assembly;
use crate::builder::Builder;
use crate::cpu_keeper::CpuKeeper;
use crate::deferred::Stage;
use crate::delivery::Delivery;
use crate::funnel::Funneller;
use crate::keeper::{Keeper, Known, to_ports};
use crate::members::Members;
use crate::places;
use crate::recruit::Recruiter;
use crate::reshape::Reshaper;
use crate::setup::{self, Created};
use crate::shared::{Config, Shared};
use crate::stall;
use crate::sweep::{self, Sweeper};
use crate::{Assignment, Error, Failure, Handler, InFlight, Info, LossByCause};
use crate::{Ports, Stats, SweepStats, grace};

/// Receives and answers the upcalls of one datapath until it is stopped.
///
/// Dropping it without [`Dispatcher::stop`] ends its threads and tasks and leaves the datapath as it
/// is, with nobody to serve it.
pub struct Dispatcher {
    pub(crate) control: Control,
    /// As it was at the start, counters included.
    pub(crate) dp: Datapath,
    /// Failed deliveries of all ports at the start.
    failed_before: u64,
    /// Upcalls lost with a predecessor.
    crash_lost: u64,
    pub(crate) shared: Arc<Shared>,
    pub(crate) delivery: Arc<Mutex<Arc<Delivery>>>,
    pub(crate) reshaper: Reshaper,
    pub(crate) links: Links,
    /// What it was started with, or changed to since.
    pub(crate) options: Mutex<Builder>,
    /// Asks the keeper to look at the ports.
    pub(crate) follow_now: mpsc::Sender<oneshot::Sender<()>>,
    pub(crate) created: Created,
    pub(crate) keep: bool,
    sweeps: Arc<std::sync::Mutex<SweepStats>>,
    pub(crate) tasks: Vec<JoinHandle<()>>,
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.shared.deferred.advance(Stage::Closed);
        // With the tasks goes the last hold on the workers, which end when nobody commands them.
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Dispatcher {
    /// Options for a dispatcher of the datapath `name`, which is created if there is none.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    pub(crate) async fn start(builder: Builder, handler: Box<dyn Handler>) -> Result<Self, Error> {
        let specs = setup::check_names(&builder)?;
        builder.shape.placement.check(&places::topology()?)?;
        let control = Control::open().await?;
        let events = Events::subscribe(&control)?;
        let link_events = LinkEvents::subscribe()?;
        let (dp, created) = setup::open_or_create(&control, &builder).await?;
        let members = Arc::new(Members::new(specs));
        let mut created = Created { datapath: created, members };
        let start = Start { control: &control, dp: &dp, builder: &builder };
        match start.assemble(handler, &created.members).await {
            Ok(parts) => {
                created.inherit(&builder.made, &control, &dp).await;
                Ok(Self::run(builder, control, dp, created, parts, (events, link_events)))
            }
            Err(err) => {
                created.remove(&control, &dp).await;
                Err(err)
            }
        }
    }

    fn run(
        builder: Builder,
        control: Control,
        dp: Datapath,
        created: Created,
        parts: Parts,
        (events, link_events): (Events, LinkEvents),
    ) -> Self {
        let Parts { shared, delivery, sweep_sockets, failed_before, links } = parts;
        let sweeper = Sweeper::new(shared.clone());
        let delivery = Arc::new(Mutex::new(delivery));
        let keeper = Keeper {
            control: control.clone(),
            dp: dp.clone(),
            shared: shared.clone(),
            delivery: delivery.clone(),
            links: links.clone(),
            members: created.members.clone(),
            on_port_gone: builder.on_port_gone,
            known: Known::default(),
        };
        let reshaper = Reshaper {
            control: control.clone(),
            dp: dp.clone(),
            shared: shared.clone(),
            past: Arc::default(),
        };
        let cpu_keeper = CpuKeeper { reshaper: reshaper.clone(), delivery: delivery.clone() };
        let funneller = Funneller {
            control: control.clone(),
            dp: dp.clone(),
            shared: shared.clone(),
            delivery: delivery.clone(),
        };
        let sweeps = sweeper.stats();
        let sweeping = sweeper.run(sweep_sockets);
        // One at a time, whoever asks waits.
        let (follow_now, asked) = mpsc::channel(1);
        let tasks = vec![
            supervise("the sweep of the flow table", shared.clone(), sweeping),
            supervise(
                "the watch over the datapath",
                shared.clone(),
                keeper.run(events, link_events, asked),
            ),
            supervise("the watch over the CPUs", shared.clone(), cpu_keeper.run()),
            supervise("the watch over flows that hop", shared.clone(), funneller.run()),
            supervise("the watch over the handler", shared.clone(), stall::watch(shared.clone())),
        ];
        Self {
            control,
            dp,
            failed_before,
            crash_lost: builder.crash_lost,
            shared,
            delivery,
            reshaper,
            links,
            follow_now,
            created,
            keep: builder.keep,
            options: Mutex::new(Builder { inherited: Vec::new(), ..builder }),
            sweeps,
            tasks,
        }
    }

    /// What it is now.
    pub async fn info(&self) -> Info {
        let delivery = self.delivery.lock().await;
        Info {
            datapath: self.dp.name.clone(),
            kernel: ovs_features::kernel_release(),
            mode: delivery.mode(),
            reason: delivery.reason(),
            workers: delivery.worker_count(),
            placement: delivery.shape().placement.clone(),
            worker_cpus: delivery.worker_cpus(),
            created: self.created.datapath,
            recv_buffer_bytes: delivery.sockets().recv_buffer_bytes(),
            recv_buffers_bytes: delivery.sockets().recv_buffers_bytes(),
        }
    }

    /// The datapath's ports now.
    pub fn ports(&self) -> Arc<Ports> {
        self.shared.ports.load_full()
    }

    /// All counters now.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell the datapath's counters.
    pub async fn stats(&self) -> Result<Stats, Error> {
        let now = self.control.datapath(&self.dp.name).await?.map_or(self.dp.stats, |dp| dp.stats);
        let was = self.dp.stats;
        let kernel = DatapathStats {
            hit: now.hit.saturating_sub(was.hit),
            missed: now.missed.saturating_sub(was.missed),
            lost: now.lost.saturating_sub(was.lost),
            flows: now.flows,
        };
        // None of a datapath that somebody deleted.
        let vports = self.control.vports(self.dp.ifindex).await.unwrap_or_default();
        let failed = failed_deliveries(&vports);
        let failed = failed.map(|now| now.saturating_sub(self.failed_before));
        let delivery = self.delivery.lock().await;
        let (sockets, drops) = (delivery.sockets().len(), delivery.sockets().drops());
        let past_drops = self.reshaper.past().drops;
        let (ledger, latency) = self.work_done(&delivery);
        let (sockets_shielded, ports_shielded) = self.shared.shields.read();
        let flow_limit = self.shared.flow_room.limit();
        Ok(Stats {
            ledger,
            latency,
            kernel,
            lost: LossByCause::classify(kernel.lost, failed, drops + past_drops),
            lanes: self.shared.lanes.stats(),
            sheds: self.shared.sheds.read(),
            sockets,
            cpus_sharing: delivery.cpus_sharing(),
            arrival_times: delivery.sockets().tell_times(),
            ports: self.shared.ports.load().len(),
            funnels: self.shared.funnel.times(),
            funnelled: self.shared.funnel.is_up(),
            sockets_shielded,
            ports_shielded,
            flows_current: kernel.flows,
            flow_limit: flow_limit.now(),
            flow_limit_cuts: flow_limit.cuts(),
            sweeps: *self.sweeps.lock().unwrap_or_else(PoisonError::into_inner),
            flows_gone: self.shared.flow_counts.total(),
            flow_counts_forgotten: self.shared.flow_counts.forgotten(),
            repairs: self.shared.repairs.load(Ordering::Relaxed),
            ports_vanished: self.shared.ports_vanished.load(Ordering::Relaxed),
            crash_lost: self.crash_lost,
            handler_panics: self.shared.handler_panics.load(Ordering::Relaxed),
            handler_stalls: self.shared.handler_stalls.load(Ordering::Relaxed),
            handler_pending: self.shared.deferred.pending(),
        })
    }

    /// All counters now, and then at every interval; one that comes due while a reading takes long is
    /// left out. An item is an error when [`Dispatcher::stats`] would be; the stream goes on.
    pub fn stats_every(
        &self,
        interval: Duration,
    ) -> impl Stream<Item = Result<Stats, Error>> + Send + '_ {
        // Tokio refuses an interval of nothing.
        let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        stream::unfold(ticks, async move |mut ticks| {
            ticks.tick().await;
            Some((self.stats().await, ticks))
        })
    }

    /// Waits until the dispatcher can no longer do its work; for ever if all is well.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.shared.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().unwrap_or_else(|| unreachable!("waited for it")),
            Err(_) => std::future::pending().await,
        }
    }

    /// The sockets that the kernel sends upcalls to. Whoever holds them when this process ends, holds
    /// the upcalls: see [`Dispatcher::hand_over`].
    pub async fn sockets(&self) -> Vec<Arc<Socket>> {
        let served = self.delivery.lock().await.sockets().served();
        served.into_iter().map(|served| served.socket).collect()
    }

    /// Which worker thread reads what the kernel sends where, now.
    pub async fn assignment(&self) -> Assignment {
        self.delivery.lock().await.assignment()
    }

    /// What the workers of this delivery and of those before it have done.
    pub(crate) fn work_done(&self, delivery: &Delivery) -> (LedgerSnapshot, LatencySnapshot) {
        let past = self.reshaper.past();
        let (mut ledger, mut latency) = (delivery.ledger(), delivery.latency());
        ledger += past.ledger;
        latency += &past.latency;
        (ledger, latency)
    }
}

/// Runs a task that must not end; that it does is a failure. What it logs is within the span of its starter.
fn supervise(
    what: &'static str,
    shared: Arc<Shared>,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let supervised = async move {
        let why = match AssertUnwindSafe(task).catch_unwind().await {
            Ok(()) => "it came to an end",
            Err(_) => "it panicked",
        };
        shared.fail(Failure::TaskEnded { what, why });
    };
    tokio::spawn(supervised.in_current_span())
}

/// What a start produces.
struct Parts {
    shared: Arc<Shared>,
    delivery: Arc<Delivery>,
    sweep_sockets: [Arc<Socket>; 2],
    failed_before: u64,
    links: Links,
}

/// The steps between a datapath and a dispatcher.
struct Start<'a> {
    control: &'a Control,
    dp: &'a Datapath,
    builder: &'a Builder,
}

impl Start<'_> {
    async fn assemble(&self, handler: Box<dyn Handler>, members: &Members) -> Result<Parts, Error> {
        let Self { control, dp, builder } = *self;
        let families = control.families();
        let config = Config {
            dp_ifindex: dp.ifindex,
            packet_family: families.packet.id,
            flow_family: families.flow.id,
            install: builder.install,
            answer_from_plan: builder.answer_from_plan,
            limits: builder.limits,
            lane_by: builder.lane_by,
            sample_userdata: builder.sample_userdata.clone(),
            life: builder.life(),
        };
        let in_flight = InFlight::create();
        let in_flight = in_flight.map_err(Error::system("make the record of upcalls in flight"))?;
        let shared = Shared::new(handler, config, Arc::new(in_flight));
        if builder.crash_lost > 0 {
            tracing::warn!(
                crash_lost = builder.crash_lost,
                "the predecessor was killed with upcalls in its hands; these are lost, at most"
            );
        }
        let sweep_sockets = sweep::open_sockets()?;
        let vports = control.vports(dp.ifindex).await?;
        let failed_before = failed_deliveries(&vports).unwrap_or(0);
        let links = Links::open()?;
        // What can be refused is found out before anything is changed.
        for name in members.awaited() {
            setup::check_port(control, &links, dp, &name).await?;
        }
        let shape = builder.shape.clone();
        // What is newer than what is inherited waits in sockets that are not read yet.
        let held = (!builder.inherited.is_empty()).then(|| shared.hold_installs());
        let assembly = Assembly { control, dp, shared: &shared, shape, previous: None };
        let delivery = assembly.deliver(&builder.inherited).await?;
        if let Err(err) = self.connect(&links, &shared, &delivery, members).await {
            delivery.release(control, dp).await;
            delivery.stop().await;
            return Err(err);
        }
        drop(held);
        let delivery = Arc::new(delivery);
        Ok(Parts { shared, delivery, sweep_sockets, failed_before, links })
    }

    /// Adds the ports, and opens the gate once the handler knows them and what a predecessor left is
    /// answered: what comes before, queues.
    async fn connect(
        &self,
        links: &Links,
        shared: &Shared,
        delivery: &Delivery,
        members: &Members,
    ) -> Result<(), Error> {
        let Self { control, dp, .. } = *self;
        let recruiter = Recruiter { control, links, dp, delivery, members };
        for name in members.awaited() {
            recruiter.serve(&name).await?;
        }
        let mut vports = delivery.follow(control, dp.ifindex).await?;
        members.compare(&vports, &[]);
        if members.any_pattern() {
            recruiter.by_pattern(&vports).await?;
            vports = delivery.follow(control, dp.ifindex).await?;
            members.compare(&vports, &[]);
        }
        shared.set_ports(to_ports(vports, members));
        let inherited = &self.builder.inherited;
        if !inherited.is_empty() {
            grace::upcalls_under_way().await;
            delivery.retire(inherited).await;
            tracing::info!(sockets = inherited.len(), "inherited sockets read empty and closed");
        }
        delivery.open().await;
        Ok(())
    }
}

/// Deliveries that failed, over all ports; `None` on kernels that do not count them.
fn failed_deliveries(ports: &[Vport]) -> Option<u64> {
    ports.iter().map(|port| port.upcall_stats.map(|stats| stats.fail)).sum()
}
