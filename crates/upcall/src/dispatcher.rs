//! A running dispatcher.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use netlink_io::Socket;
use ovs_datapath::{Control, Events, Links};
use ovs_wire::datapath::{Datapath, DatapathStats};
use ovs_wire::vport::Vport;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use upcall_core::LedgerSnapshot;

use crate::assembly::Assembly;
use crate::builder::Builder;
use crate::delivery::Delivery;
use crate::keeper::{Keeper, to_ports};
use crate::setup::{self, Created};
use crate::shared::Shared;
use crate::sweep::{self, Sweeper};
use crate::{Error, Failure, Handler, Info, LossByCause, Ports, Shape, Stats};

/// How long the kernel may still send to sockets that it was told to forget: it swaps a table without
/// waiting for CPUs that are in the middle of an upcall (`ovs_dp_set_upcall_portids`). Those cannot be
/// preempted, so microseconds would do, were CPUs not emulated here and there.
const GRACE: Duration = Duration::from_millis(20);

/// Receives and answers the upcalls of one datapath until it is stopped.
///
/// Dropping it without [`Dispatcher::stop`] ends its threads and tasks and leaves the datapath as it
/// is, with nobody to serve it.
pub struct Dispatcher {
    control: Control,
    /// As it was at the start, counters included.
    dp: Datapath,
    /// Failed deliveries of all ports at the start.
    failed_before: u64,
    shared: Arc<Shared>,
    delivery: Arc<Mutex<Arc<Delivery>>>,
    /// What deliveries that were replaced have done.
    past: std::sync::Mutex<Past>,
    created: Created,
    keep: bool,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        // With the tasks goes the last hold on the workers, which end when nobody commands them.
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[derive(Debug, Default)]
struct Past {
    ledger: LedgerSnapshot,
    drops: u64,
}

impl Dispatcher {
    /// Options for a dispatcher of the datapath `name`, which is created if there is none.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    pub(crate) async fn start(builder: Builder, handler: Box<dyn Handler>) -> Result<Self, Error> {
        setup::check_names(&builder)?;
        let control = Control::open().await?;
        let events = Events::subscribe(&control)?;
        let (dp, created) = setup::open_or_create(&control, &builder).await?;
        let mut created = Created { datapath: created, ports: Vec::new() };
        let start = Start { control: &control, dp: &dp, builder: &builder };
        match start.assemble(handler, &mut created).await {
            Ok(parts) => Ok(Self::run(&builder, control, dp, created, parts, events)),
            Err(err) => {
                created.remove(&control, &dp).await;
                Err(err)
            }
        }
    }

    fn run(
        builder: &Builder,
        control: Control,
        dp: Datapath,
        created: Created,
        parts: Parts,
        events: Events,
    ) -> Self {
        let Parts { shared, delivery, sweep_sockets, failed_before } = parts;
        let sweeper = Sweeper::new(shared.clone(), builder.flow_idle);
        let delivery = Arc::new(Mutex::new(delivery));
        let keeper = Keeper {
            control: control.clone(),
            dp: dp.clone(),
            shared: shared.clone(),
            delivery: delivery.clone(),
        };
        let sweeping = sweeper.run(sweep_sockets, builder.sweep_interval);
        let tasks = vec![
            supervise("the sweep of the flow table", shared.clone(), sweeping),
            supervise("the watch over the datapath", shared.clone(), keeper.run(events)),
        ];
        Self {
            control,
            dp,
            failed_before,
            shared,
            delivery,
            past: std::sync::Mutex::default(),
            created,
            keep: builder.keep,
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
            created: self.created.datapath,
            recv_buffer_bytes: delivery.recv_buffer_bytes(),
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
        let (sockets, drops) = delivery.sockets_and_drops();
        let mut ledger = delivery.ledger();
        let past = self.past();
        ledger += past.ledger;
        Ok(Stats {
            ledger,
            kernel,
            lost: LossByCause::classify(kernel.lost, failed, drops + past.drops),
            sockets,
            cpus_sharing: delivery.cpus_sharing(),
            ports: self.shared.ports.load().len(),
            flows_current: kernel.flows,
            repairs: self.shared.repairs.load(Ordering::Relaxed),
            handler_panics: self.shared.handler_panics.load(Ordering::Relaxed),
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

    /// Changes what the dispatcher receives with, under load, without losing an upcall or its order:
    /// the kernel is told of new sockets, the old ones are read empty and closed, then the new ones are
    /// read. (Per-vport dispatch on a kernel that has per-CPU dispatch keeps every upcall, but may
    /// reorder: the table that waits behind it can be set only while the kernel dispatches by CPU.)
    ///
    /// # Errors
    ///
    /// As [`Builder::start`]; then all stays as it was.
    pub async fn reshape(&self, shape: Shape) -> Result<(), Error> {
        let mut current = self.delivery.lock().await;
        let assembly =
            Assembly { control: &self.control, dp: &self.dp, shared: &self.shared, shape };
        let next = match assembly.deliver(&[]).await {
            Ok(next) => next,
            Err(err) => {
                // A step that failed may have changed the datapath already.
                current.follow(&self.control, self.dp.ifindex).await?;
                current.assert(&self.control, &self.dp).await?;
                return Err(err);
            }
        };
        let old = std::mem::replace(&mut *current, Arc::new(next));
        tokio::time::sleep(GRACE).await;
        let (_, drops) = old.sockets_and_drops();
        old.stop().await;
        current.open();
        let mut past = self.past();
        past.ledger += old.ledger();
        past.drops += drops;
        Ok(())
    }

    /// The sockets that the kernel sends upcalls to. Whoever holds them when this process ends, holds
    /// the upcalls: see [`Dispatcher::hand_over`].
    pub async fn sockets(&self) -> Vec<Arc<Socket>> {
        self.delivery.lock().await.sockets()
    }

    /// Stops without a word to the kernel: upcalls go on queueing in the sockets, which a successor
    /// must hold by now ([`Dispatcher::sockets`], [`Builder::inherit`]). Nothing is removed.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell the datapath's counters; it is stopped in any case.
    pub async fn hand_over(mut self) -> Result<Stats, Error> {
        self.end_tasks().await;
        let stats = self.stats().await;
        let delivery = self.delivery.lock().await.clone();
        delivery.stop().await;
        self.last_reading(stats, &delivery)
    }

    /// Stops: the kernel is told to send no more upcalls, those that are queued are answered, what was
    /// created is removed unless it is to be kept, and the sockets are closed. Gives the last reading
    /// of the counters. After [`Failure::TakenOver`] nothing is touched.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell the datapath's counters; it is stopped in any case.
    pub async fn stop(mut self) -> Result<Stats, Error> {
        self.end_tasks().await;
        let stats = self.stats().await;
        let delivery = self.delivery.lock().await.clone();
        let ours = !self.shared.taken_over.load(Ordering::Relaxed);
        if ours {
            delivery.release(&self.control, &self.dp).await;
        }
        delivery.stop().await;
        if ours && !self.keep {
            self.remove().await;
        }
        self.last_reading(stats, &delivery)
    }

    fn last_reading(
        &self,
        stats: Result<Stats, Error>,
        delivery: &Delivery,
    ) -> Result<Stats, Error> {
        let mut ledger = delivery.ledger();
        ledger += self.past().ledger;
        stats.map(|stats| Stats { ledger, ..stats })
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

    fn past(&self) -> std::sync::MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn flush(control: &Control, dp: &Datapath) {
    if let Err(err) = control.delete_flow(dp.ifindex, None).await {
        tracing::warn!(%err, "cannot remove the flows");
    }
}

/// Runs a task that must not end; that it does is a failure.
fn supervise(
    what: &'static str,
    shared: Arc<Shared>,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let why = match AssertUnwindSafe(task).catch_unwind().await {
            Ok(()) => "it came to an end",
            Err(_) => "it panicked",
        };
        shared.fail(Failure::TaskEnded { what, why });
    })
}

/// What a start produces.
struct Parts {
    shared: Arc<Shared>,
    delivery: Arc<Delivery>,
    sweep_sockets: [Arc<Socket>; 2],
    failed_before: u64,
}

/// The steps between a datapath and a dispatcher.
struct Start<'a> {
    control: &'a Control,
    dp: &'a Datapath,
    builder: &'a Builder,
}

impl Start<'_> {
    async fn assemble(
        &self,
        handler: Box<dyn Handler>,
        created: &mut Created,
    ) -> Result<Parts, Error> {
        let Self { control, dp, builder } = *self;
        let families = control.families();
        let shared = Shared::new(
            handler,
            dp.ifindex,
            families.packet.id,
            families.flow.id,
            builder.install,
            builder.limits,
        );
        let sweep_sockets = sweep::open_sockets()?;
        let vports = control.vports(dp.ifindex).await?;
        let failed_before = failed_deliveries(&vports).unwrap_or(0);
        let links = Links::open()?;
        // What can be refused is found out before anything is changed.
        for name in &builder.ports {
            setup::check_port(control, &links, dp, name).await?;
        }
        let assembly = Assembly { control, dp, shared: &shared, shape: builder.shape };
        let delivery = assembly.deliver(&builder.inherited).await?;
        if let Err(err) = self.connect(&links, &shared, &delivery, created).await {
            delivery.release(control, dp).await;
            delivery.stop().await;
            return Err(err);
        }
        let delivery = Arc::new(delivery);
        Ok(Parts { shared, delivery, sweep_sockets, failed_before })
    }

    /// Adds the ports, and opens the gate once the handler knows them and what a predecessor left is
    /// answered: what comes before, queues.
    async fn connect(
        &self,
        links: &Links,
        shared: &Shared,
        delivery: &Delivery,
        created: &mut Created,
    ) -> Result<(), Error> {
        self.add_ports(links, delivery, created).await?;
        shared.set_ports(to_ports(delivery.follow(self.control, self.dp.ifindex).await?));
        let inherited = &self.builder.inherited;
        if !inherited.is_empty() {
            tokio::time::sleep(GRACE).await;
            delivery.retire(inherited).await;
            tracing::info!(sockets = inherited.len(), "inherited sockets read empty and closed");
        }
        delivery.open();
        Ok(())
    }

    async fn add_ports(
        &self,
        links: &Links,
        delivery: &Delivery,
        created: &mut Created,
    ) -> Result<(), Error> {
        for name in &self.builder.ports {
            let (port_id, socket) = delivery.before_port()?;
            let added = setup::add_port(self.control, links, self.dp, name, port_id).await?;
            if let Some(port) = added {
                created.ports.push(port.port_no);
                delivery.port_added(port.port_no, socket).await;
            }
        }
        Ok(())
    }
}

/// Deliveries that failed, over all ports; `None` on kernels that do not count them.
fn failed_deliveries(ports: &[Vport]) -> Option<u64> {
    ports.iter().map(|port| port.upcall_stats.map(|stats| stats.fail)).sum()
}
