//! A running dispatcher.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use netlink_io::Socket;
use ovs_datapath::{Control, Events, Links};
use ovs_features::{DispatchMode, Finding, Support, cpu};
use ovs_wire::datapath::{Datapath, DatapathStats};
use ovs_wire::vport::Vport;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use upcall_core::LedgerSnapshot;

use crate::builder::Builder;
use crate::delivery::{Delivery, open_socket};
use crate::keeper::{Keeper, to_ports};
use crate::setup::{self, Created};
use crate::shared::Shared;
use crate::sweep::{self, Sweeper};
use crate::worker::Worker;
use crate::{Error, Failure, Handler, Info, LossByCause, Ports, Stats};

/// Receives and answers the upcalls of one datapath until it is stopped.
///
/// Dropping it without [`Dispatcher::stop`] leaves the datapath as it is.
pub struct Dispatcher {
    control: Control,
    /// As it was at the start, counters included.
    dp: Datapath,
    /// Failed deliveries of all ports at the start.
    failed_before: u64,
    shared: Arc<Shared>,
    delivery: Arc<Delivery>,
    created: Created,
    keep: bool,
    info: Info,
    tasks: Vec<JoinHandle<()>>,
    failures: Mutex<mpsc::Receiver<Failure>>,
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
        let started = Start { control: &control, dp: &dp, builder: &builder };
        match started.assemble(handler, &mut created).await {
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
        let Parts { shared, delivery, info, failures, sweep_sockets, failed_before } = parts;
        let delivery = Arc::new(delivery);
        let sweeper = Sweeper::new(shared.clone(), builder.flow_idle);
        let keeper = Keeper {
            control: control.clone(),
            dp: dp.clone(),
            shared: shared.clone(),
            delivery: delivery.clone(),
        };
        let tasks = vec![
            tokio::spawn(sweeper.run(sweep_sockets, builder.sweep_interval)),
            tokio::spawn(keeper.run(events)),
        ];
        Self {
            control,
            dp,
            failed_before,
            shared,
            delivery,
            created,
            keep: builder.keep,
            info,
            tasks,
            failures: Mutex::new(failures),
        }
    }

    /// What it is.
    pub fn info(&self) -> &Info {
        &self.info
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
        let mut ledger = LedgerSnapshot::default();
        for worker in self.delivery.workers() {
            ledger += worker.ledger().snapshot();
        }
        let (sockets, full) = self.delivery.sockets_and_drops();
        let failed = self.failed_deliveries().await?;
        let failed = failed.map(|now| now.saturating_sub(self.failed_before));
        Ok(Stats {
            ledger,
            kernel,
            lost: LossByCause::classify(kernel.lost, failed, full),
            sockets,
            ports: self.shared.ports.load().len(),
            flows_current: kernel.flows,
            repairs: self.shared.repairs.load(Ordering::Relaxed),
        })
    }

    async fn failed_deliveries(&self) -> Result<Option<u64>, Error> {
        Ok(failed_deliveries(&self.control.vports(self.dp.ifindex).await?))
    }

    /// Waits until the dispatcher can no longer do its work; for ever if all is well.
    pub async fn failed(&self) -> Failure {
        match self.failures.lock().await.recv().await {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// Stops: upcalls that were read are answered, what was created is removed unless it is to be
    /// kept, and the sockets are closed. Gives the last reading of the counters.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell the datapath's counters; it is stopped in any case.
    pub async fn stop(self) -> Result<Stats, Error> {
        for task in &self.tasks {
            task.abort();
        }
        let before = self.stats().await;
        if self.keep {
            self.release().await;
        } else {
            self.remove().await;
        }
        let ledgers: Vec<_> = self.delivery.workers().iter().map(|w| w.ledger().clone()).collect();
        self.join().await;
        let mut stats = before?;
        stats.ledger = LedgerSnapshot::default();
        for ledger in ledgers {
            stats.ledger += ledger.snapshot();
        }
        Ok(stats)
    }

    /// Removes what was created; on a datapath that was there before, also the flows, which nobody
    /// revalidates from now on.
    async fn remove(&self) {
        if !self.created.datapath {
            if let Err(err) = self.control.delete_flow(self.dp.ifindex, None).await {
                tracing::warn!(%err, "cannot remove the flows");
            }
            self.release().await;
        }
        self.created.remove(&self.control, &self.dp).await;
    }

    async fn release(&self) {
        if let Err(err) = self.delivery.release(&self.control, &self.dp).await {
            tracing::warn!(%err, "cannot take our sockets out of the datapath");
        }
    }

    async fn join(self) {
        for task in self.tasks {
            let _ = task.await;
        }
        // The tasks that shared it are gone.
        if let Ok(delivery) = Arc::try_unwrap(self.delivery) {
            delivery.stop().await;
        }
    }
}

/// What a start produces.
struct Parts {
    shared: Arc<Shared>,
    delivery: Delivery,
    info: Info,
    failures: mpsc::Receiver<Failure>,
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
        let (failed, failures) = mpsc::channel(1);
        let families = self.control.families();
        let shared = Shared::new(
            handler,
            self.dp.ifindex,
            families.packet.id,
            families.flow.id,
            self.builder.install,
            self.builder.limits,
            failed,
        );
        let sweep_sockets = sweep::open_sockets()?;
        let (mode, findings) = setup::survey(self.control, self.dp, self.builder.dispatch).await?;
        let (delivery, findings) = self.deliver(&shared, mode, findings).await?;
        self.add_ports(&delivery, created).await?;
        let vports = self.control.vports(self.dp.ifindex).await?;
        let failed_before = failed_deliveries(&vports).unwrap_or(0);
        delivery.follow(self.control, self.dp.ifindex, &vports).await?;
        shared.set_ports(to_ports(vports));
        let info = self.info(&delivery, created, findings.last());
        Ok(Parts { shared, delivery, info, failures, sweep_sockets, failed_before })
    }

    fn info(&self, delivery: &Delivery, created: &Created, decided: Option<&Finding>) -> Info {
        Info {
            datapath: self.dp.name.clone(),
            kernel: ovs_features::kernel_release(),
            mode: delivery.mode(),
            reason: decided.map_or_else(String::new, |f| f.evidence.clone()),
            workers: delivery.workers().len(),
            created: created.datapath,
            recv_buffer_bytes: delivery.recv_buffer_bytes(),
        }
    }

    /// Sets up the sockets of a mode. Per-CPU can still turn out to be refused.
    async fn deliver(
        &self,
        shared: &Arc<Shared>,
        mode: DispatchMode,
        mut findings: Vec<Finding>,
    ) -> Result<(Delivery, Vec<Finding>), Error> {
        if mode == DispatchMode::PerCpu {
            let sockets = self.open_per_cpu_sockets()?;
            let table: Vec<u32> = sockets.iter().map(|s| s.port_id()).collect();
            let finding = ovs_features::enable_per_cpu(self.control, self.dp, &table).await?;
            let taken = finding.support == Support::Available;
            findings.push(finding);
            if taken {
                return Ok((self.per_cpu(shared, sockets).await?, findings));
            }
        }
        let workers = self.start_workers(shared, usize::MAX)?;
        let has_table = findings.iter().all(|f| f.support == Support::Available);
        let bytes = self.builder.limits.recv_buffer_bytes;
        let spares = if has_table { workers.len() } else { 0 };
        let spares = (0..spares).map(|_| open_socket(bytes)).collect::<Result<_, _>>()?;
        let delivery = Delivery::per_vport(workers, spares, table_len()?, bytes).await;
        delivery.assert(self.control, self.dp).await?;
        Ok((delivery, findings))
    }

    fn open_per_cpu_sockets(&self) -> Result<Vec<Arc<Socket>>, Error> {
        (0..table_len()?).map(|_| open_socket(self.builder.limits.recv_buffer_bytes)).collect()
    }

    async fn per_cpu(
        &self,
        shared: &Arc<Shared>,
        sockets: Vec<Arc<Socket>>,
    ) -> Result<Delivery, Error> {
        let usable = usable_cpus()?;
        let workers = self.start_workers(shared, sockets.len())?;
        let count = workers.len();
        // A CPU's worker is the one that runs on it, where there is one.
        let cpu_to_worker =
            |cpu: usize| usable.iter().position(|c| *c == cpu).unwrap_or(cpu) % count;
        let bytes = self.builder.limits.recv_buffer_bytes;
        Ok(Delivery::per_cpu(workers, sockets, cpu_to_worker, bytes).await)
    }

    /// Starts the workers; one for each usable CPU stays on its CPU, fewer or more run anywhere.
    fn start_workers(&self, shared: &Arc<Shared>, sockets: usize) -> Result<Vec<Worker>, Error> {
        let usable = usable_cpus()?;
        let wanted = self.builder.workers.unwrap_or(usable.len());
        let count = wanted.min(self.builder.limits.workers_max).min(sockets).max(1);
        let pinned = count == usable.len();
        (0..count).map(|i| Worker::start(i, pinned.then(|| usable[i]), shared.clone())).collect()
    }

    async fn add_ports(&self, delivery: &Delivery, created: &mut Created) -> Result<(), Error> {
        let links = Links::open()?;
        for name in &self.builder.ports {
            let (port_id, socket) = delivery.before_port()?;
            let added = setup::add_port(self.control, &links, self.dp, name, port_id).await?;
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

fn usable_cpus() -> Result<Vec<usize>, Error> {
    cpu::usable().map_err(Error::system("read this process's CPU affinity"))
}

fn table_len() -> Result<usize, Error> {
    cpu::table_len().map_err(Error::system("count the CPUs of this host"))
}
