//! Building a delivery: workers and sockets in the shape that was asked for.

use std::fs::File;
use std::io;
use std::sync::Arc;

use netlink_io::Socket;
use ovs_datapath::Control;
use ovs_features::{Decision, DispatchMode, Finding, Support, Topology, Wanted};
use ovs_wire::datapath::Datapath;
use tokio::sync::watch;

use crate::delivery::Delivery;
use crate::engine::ALIKE;
use crate::places::{Places, topology};
use crate::recv_buffer::Budget;
use crate::roam::Room;
use crate::shared::Shared;
use crate::sockets::open_socket;
use crate::worker::Worker;
use crate::{Error, Shape, grace};

/// What a delivery is built from.
pub(crate) struct Assembly<'a> {
    pub(crate) control: &'a Control,
    pub(crate) dp: &'a Datapath,
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) shape: Shape,
    /// What receives until then, and again if the datapath cannot be switched over.
    pub(crate) previous: Option<&'a Delivery>,
}

impl Assembly<'_> {
    /// Builds sockets and workers, and switches the datapath to them. What comes queues until
    /// [`Delivery::open`]. `inherited` sockets are given to the workers as well.
    pub(crate) async fn deliver(&self, inherited: &[Arc<Socket>]) -> Result<Delivery, Error> {
        let delivery = self.switch_over(inherited).await?;
        delivery.sockets().warn_if_short();
        Ok(delivery)
    }

    async fn switch_over(&self, inherited: &[Arc<Socket>]) -> Result<Delivery, Error> {
        let mut decision = self.decide().await?;
        if decision.mode == DispatchMode::PerCpu {
            let delivery = self.per_cpu(decision.clone()).await?;
            delivery.read_too(inherited).await;
            decision.findings.extend(self.take_over(&delivery).await?);
            if decision.findings.iter().all(|f| f.support == Support::Available) {
                return Ok(delivery.because(decision));
            }
            delivery.stop().await;
            decision.mode = DispatchMode::PerVport;
        }
        let delivery = self.per_vport(decision).await?;
        delivery.read_too(inherited).await;
        self.take_over(&delivery).await?;
        Ok(delivery)
    }

    /// On an error the datapath goes back to what it had, and what came meanwhile is answered.
    async fn take_over(&self, delivery: &Delivery) -> Result<Option<Finding>, Error> {
        let taken = delivery.take_over(self.control, self.dp).await;
        if taken.is_err() {
            let mut reverted = Ok(None);
            match self.previous {
                Some(previous) => reverted = previous.take_over(self.control, self.dp).await,
                None => delivery.release(self.control, self.dp).await,
            }
            grace::upcalls_under_way().await;
            delivery.stop().await;
            reverted?;
        }
        taken
    }

    async fn decide(&self) -> Result<Decision, Error> {
        let findings = ovs_features::survey(self.control, self.dp).await?;
        let decision = ovs_features::choose(self.shape.dispatch, findings);
        if self.shape.dispatch == Wanted::PerCpu && decision.mode == DispatchMode::PerVport {
            return Err(Error::NoPerCpu { reason: decision.reason() });
        }
        Ok(decision)
    }

    fn budget(&self) -> Budget {
        let Shape { recv_buffer_bytes: each, recv_buffer_total_bytes: total, .. } = self.shape;
        Budget { each, total }
    }

    fn open_sockets(&self, count: usize) -> Result<Vec<Arc<Socket>>, Error> {
        let bytes = self.budget().ask(count);
        (0..count).map(|_| open_socket(bytes)).collect()
    }

    /// A socket for each CPU, or for as many as can be had: the others share. A CPU without a socket
    /// would lose its upcalls.
    fn open_cpu_sockets(&self, cpus: usize) -> Result<Vec<Arc<Socket>>, Error> {
        let reserve = Reserve::take()?;
        let mut sockets = Vec::with_capacity(cpus);
        for _ in 0..cpus {
            match open_socket(self.budget().ask(cpus)) {
                Ok(socket) => sockets.push(socket),
                Err(err) if sockets.is_empty() => return Err(err),
                Err(err) => {
                    let sharing = cpus - sockets.len();
                    tracing::warn!(%err, cpus, sharing, "CPUs share upcall sockets");
                    break;
                }
            }
        }
        // One socket is a queue.
        if self.shape.arrival_times && sockets.len() > 1 {
            record_arrivals(&sockets);
        }
        drop(reserve);
        Ok(sockets)
    }

    async fn per_cpu(&self, decision: Decision) -> Result<Delivery, Error> {
        let topology = topology()?;
        let cpus = topology.table_len();
        let gate = watch::Sender::new(false);
        let places = self.places(topology, Some(cpus));
        // Workers first: where descriptors run out, CPUs can share sockets.
        let workers = self.start_workers(&places, &gate)?;
        let sockets = self.open_cpu_sockets(cpus)?;
        let budget = self.budget();
        Ok(Delivery::per_cpu((workers, gate, places), (sockets, cpus), budget, decision).await)
    }

    async fn per_vport(&self, decision: Decision) -> Result<Delivery, Error> {
        let topology = topology()?;
        let cpus = topology.table_len();
        let gate = watch::Sender::new(false);
        // Ports belong to no CPU.
        let places = self.places(topology, None);
        let workers = self.start_workers(&places, &gate)?;
        let has_table = decision.findings.iter().all(|f: &Finding| f.support == Support::Available);
        let spares = self.open_sockets(if has_table { workers.len() } else { 0 })?;
        let budget = self.budget();
        Ok(Delivery::per_vport((workers, gate, places), spares, cpus, budget, decision).await)
    }

    /// `cpus`: the sockets there are at most, if workers serve CPUs.
    fn places(&self, topology: Topology, cpus: Option<usize>) -> Places {
        Places::plan(self.shape.clone(), self.shared.limits.load().workers_max, topology, cpus)
    }

    fn start_workers(
        &self,
        places: &Places,
        gate: &watch::Sender<bool>,
    ) -> Result<Vec<Worker>, Error> {
        let start = |(number, room): (usize, Room)| {
            let tx = Socket::open().map_err(Error::system("open a netlink socket for answers"))?;
            Worker::start((number, room), tx, self.shared.clone(), gate.subscribe())
        };
        let workers = places.planned().into_iter().enumerate().map(start);
        let workers = workers.collect::<Result<Vec<_>, _>>()?;
        places.settled(&workers);
        Ok(workers)
    }
}

/// Has the kernel tell when upcalls come, so that the order between the sockets is known.
fn record_arrivals(sockets: &[Arc<Socket>]) {
    if let Err(err) = netlink_io::record_arrivals(sockets.iter().map(|socket| &**socket), ALIKE) {
        let remedy =
            if err.kind() == io::ErrorKind::PermissionDenied { " (give it CAP_BPF)" } else { "" };
        tracing::info!(
            %err,
            "the kernel does not tell when upcalls were sent{remedy}: the order of flows that change CPU is kept \
             as far as it can be seen"
        );
    }
}

/// Descriptors held while sockets are opened, so that some are left for what needs one now and then: a
/// word to the service manager, a look at `/proc`.
struct Reserve(#[allow(dead_code, reason = "held, not used")] [File; 4]);

impl Reserve {
    fn take() -> Result<Self, Error> {
        let open = || File::open("/dev/null").map_err(Error::system("open a file"));
        Ok(Self([open()?, open()?, open()?, open()?]))
    }
}
