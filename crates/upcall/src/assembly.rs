//! Building a delivery: workers and sockets in the shape that was asked for.

use std::fs::File;
use std::sync::Arc;

use netlink_io::Socket;
use ovs_datapath::Control;
use ovs_features::{Decision, DispatchMode, Finding, Support, Wanted, cpu};
use ovs_wire::datapath::Datapath;
use tokio::sync::watch;

use crate::delivery::{Delivery, open_socket};
use crate::shared::Shared;
use crate::worker::Worker;
use crate::{Error, Shape};

/// What a delivery is built from.
pub(crate) struct Assembly<'a> {
    pub(crate) control: &'a Control,
    pub(crate) dp: &'a Datapath,
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) shape: Shape,
}

impl Assembly<'_> {
    /// Builds sockets and workers, and switches the datapath to them. What comes queues until
    /// [`Delivery::open`]. `inherited` sockets are given to the workers as well.
    pub(crate) async fn deliver(&self, inherited: &[Arc<Socket>]) -> Result<Delivery, Error> {
        let mut decision = self.decide().await?;
        if decision.mode == DispatchMode::PerCpu {
            let delivery = self.per_cpu(decision.clone()).await?;
            delivery.read_too(inherited).await;
            let table = delivery.table();
            let finding = ovs_features::enable_per_cpu(self.control, self.dp, table).await?;
            let taken = finding.support == Support::Available;
            decision.findings.push(finding);
            if taken {
                delivery.follow(self.control, self.dp.ifindex).await?;
                return Ok(delivery.because(decision));
            }
            delivery.stop().await;
            decision.mode = DispatchMode::PerVport;
        }
        let delivery = self.per_vport(decision).await?;
        delivery.read_too(inherited).await;
        delivery.follow(self.control, self.dp.ifindex).await?;
        delivery.assert(self.control, self.dp).await?;
        Ok(delivery)
    }

    async fn decide(&self) -> Result<Decision, Error> {
        let findings = ovs_features::survey(self.control, self.dp).await?;
        let decision = ovs_features::choose(self.shape.dispatch, findings);
        if self.shape.dispatch == Wanted::PerCpu && decision.mode == DispatchMode::PerVport {
            return Err(Error::NoPerCpu { reason: decision.reason() });
        }
        Ok(decision)
    }

    fn open_sockets(&self, count: usize) -> Result<Vec<Arc<Socket>>, Error> {
        (0..count).map(|_| open_socket(self.shape.recv_buffer_bytes)).collect()
    }

    /// A socket for each CPU, or for as many as can be had: the others share. A CPU without a socket
    /// would lose its upcalls.
    fn open_cpu_sockets(&self, cpus: usize) -> Result<Vec<Arc<Socket>>, Error> {
        let reserve = Reserve::take()?;
        let mut sockets = Vec::with_capacity(cpus);
        for _ in 0..cpus {
            match open_socket(self.shape.recv_buffer_bytes) {
                Ok(socket) => sockets.push(socket),
                Err(err) if sockets.is_empty() => return Err(err),
                Err(err) => {
                    let sharing = cpus - sockets.len();
                    tracing::warn!(%err, cpus, sharing, "CPUs share upcall sockets");
                    break;
                }
            }
        }
        drop(reserve);
        Ok(sockets)
    }

    async fn per_cpu(&self, decision: Decision) -> Result<Delivery, Error> {
        let (usable, cpus) = (usable_cpus()?, table_len()?);
        let gate = watch::Sender::new(false);
        // Workers first: where descriptors run out, CPUs can share sockets.
        let workers = self.start_workers(cpus, true, &gate)?;
        let sockets = self.open_cpu_sockets(cpus)?;
        let count = workers.len();
        // A CPU's worker is the one that runs on it, where there is one.
        let cpu_to_worker =
            |cpu: usize| usable.iter().position(|c| *c == cpu).unwrap_or(cpu) % count;
        let bytes = self.shape.recv_buffer_bytes;
        Ok(Delivery::per_cpu((workers, gate), (sockets, cpus), cpu_to_worker, bytes, decision)
            .await)
    }

    async fn per_vport(&self, decision: Decision) -> Result<Delivery, Error> {
        let gate = watch::Sender::new(false);
        // Ports belong to no CPU.
        let workers = self.start_workers(usize::MAX, false, &gate)?;
        let has_table = decision.findings.iter().all(|f: &Finding| f.support == Support::Available);
        let spares = self.open_sockets(if has_table { workers.len() } else { 0 })?;
        let bytes = self.shape.recv_buffer_bytes;
        Ok(Delivery::per_vport((workers, gate), spares, table_len()?, bytes, decision).await)
    }

    /// Starts the workers; if there is one for each usable CPU and they serve CPUs, each stays on its
    /// own. The limit is for a default that a large host would carry too far: a number that was asked
    /// for is obeyed.
    fn start_workers(
        &self,
        sockets: usize,
        by_cpu: bool,
        gate: &watch::Sender<bool>,
    ) -> Result<Vec<Worker>, Error> {
        let usable = usable_cpus()?;
        let default = usable.len().min(self.shared.limits.workers_max);
        let wanted = self.shape.workers.unwrap_or(default).max(1);
        let count = wanted.min(sockets);
        if count < wanted {
            tracing::warn!(wanted, workers = count, "more workers than sockets are of no use");
        }
        let pinned = by_cpu && count == usable.len();
        let start = |i: usize| {
            Worker::start(i, pinned.then(|| usable[i]), self.shared.clone(), gate.subscribe())
        };
        (0..count).map(start).collect()
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

fn usable_cpus() -> Result<Vec<usize>, Error> {
    cpu::usable().map_err(Error::system("read this process's CPU affinity"))
}

fn table_len() -> Result<usize, Error> {
    cpu::table_len().map_err(Error::system("count the CPUs of this host"))
}
