//! The sockets that upcalls are delivered to, in either dispatch mode.
//!
//! The mode is chosen once, when the dispatcher starts; everything else sees a set of sockets and asks
//! [`Delivery`] for what depends on the mode.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future;
use netlink_io::Socket;
use ovs_datapath::{Control, ControlError};
use ovs_features::{Decision, Finding, Support};
use ovs_wire::datapath::{Datapath, UserFeatures};
use ovs_wire::vport::Vport;
use rustix::io::Errno;
use tokio::sync::{Mutex, watch};
use upcall_core::{LatencySnapshot, LedgerSnapshot};

use crate::places::Places;
use crate::recv_buffer::Budget;
use crate::sockets::{Served, Sockets};
use crate::sources::Carries;
use crate::worker::{self, Worker};
use crate::{Assignment, DispatchMode, Error, Shape, SocketReader, WorkerStats};

/// Sockets and who reads them.
pub(crate) struct Delivery {
    workers: Vec<Worker>,
    /// Workers read sockets once it is open.
    gate: watch::Sender<bool>,
    /// Where the workers run, and why there.
    places: Places,
    by_port: PerPort,
    /// The per-CPU table: port id by CPU id, never 0; empty on kernels that have none. In per-vport
    /// mode it is the one that waits for a flip: any client of the peer's makes the kernel use it.
    table: Vec<u32>,
    /// Port id of the socket that takes the place of all those of the table for now; 0 for none.
    funnel: AtomicU32,
    sockets: Sockets,
    decision: Decision,
}

/// What is kept for each port.
enum PerPort {
    /// Nothing: sockets belong to CPUs.
    Nothing,
    /// Its socket.
    Sockets(Mutex<HashMap<u32, Arc<Socket>>>),
}

impl Delivery {
    /// Delivery by CPU: `sockets[cpu]`, each read by the worker that serves the CPU. Where there are
    /// fewer sockets than CPUs, the CPUs beyond share them in turn.
    pub(crate) async fn per_cpu(
        (workers, gate, places): (Vec<Worker>, watch::Sender<bool>, Places),
        (sockets, cpus): (Vec<Arc<Socket>>, usize),
        budget: Budget,
        decision: Decision,
    ) -> Self {
        let ids = sockets.iter().map(|s| s.port_id()).cycle();
        let table = ids.take(cpus).collect();
        let by_port = PerPort::Nothing;
        let registry = Sockets::new(budget, sockets.len());
        let this = Self::new((workers, gate, places), by_port, table, registry, decision);
        for (cpu, socket) in sockets.into_iter().enumerate() {
            this.serve(socket, this.places.worker_of(cpu), Carries::AnyFlow).await;
        }
        this
    }

    /// Delivery by port: sockets are made as ports come. `spares` take the upcalls of a kernel that
    /// someone switched to per-CPU dispatch, until it is switched back; empty where it has none.
    pub(crate) async fn per_vport(
        (workers, gate, places): (Vec<Worker>, watch::Sender<bool>, Places),
        spares: Vec<Arc<Socket>>,
        table_len: usize,
        budget: Budget,
        decision: Decision,
    ) -> Self {
        let ids = spares.iter().map(|s| s.port_id()).cycle();
        let table = ids.take(table_len).collect();
        let by_port = PerPort::Sockets(Mutex::default());
        let registry = Sockets::new(budget, spares.len());
        let this = Self::new((workers, gate, places), by_port, table, registry, decision);
        for (spare, worker) in spares.into_iter().zip((0..this.workers.len()).cycle()) {
            this.serve(spare, worker, Carries::AnyFlow).await;
        }
        this
    }

    fn new(
        (workers, gate, places): (Vec<Worker>, watch::Sender<bool>, Places),
        by_port: PerPort,
        table: Vec<u32>,
        sockets: Sockets,
        decision: Decision,
    ) -> Self {
        let funnel = AtomicU32::new(0);
        Self { workers, gate, places, by_port, table, funnel, sockets, decision }
    }

    async fn serve(&self, socket: Arc<Socket>, worker: usize, carries: Carries) {
        self.workers[worker].serve(socket.clone(), carries).await;
        self.sockets.add(socket, worker);
    }

    /// The same, for reasons that were found later.
    pub(crate) fn because(self, decision: Decision) -> Self {
        Self { decision, ..self }
    }

    /// Lets the workers read; until then upcalls queue. Whatever received before is read empty by now.
    /// What came by the spares is older than what the ports' sockets hold ([`Delivery::take_over`]).
    pub(crate) async fn open(&self) {
        if self.mode() == DispatchMode::PerVport {
            for spare in self.table.iter().collect::<HashSet<_>>() {
                if let Some(worker) = self.sockets.reader_of(*spare) {
                    self.workers[worker].drain(*spare).await;
                }
            }
        }
        self.gate.send_replace(true);
    }

    /// Why this mode.
    pub(crate) fn reason(&self) -> String {
        self.decision.reason()
    }

    /// Reads these sockets too, although the kernel was not told of them by us.
    pub(crate) async fn read_too(&self, sockets: &[Arc<Socket>]) {
        for (socket, worker) in sockets.iter().zip((0..self.workers.len()).cycle()) {
            self.workers[worker].serve(socket.clone(), Carries::AnyFlow).await;
            self.sockets.adopt(socket.clone(), worker);
        }
    }

    /// Reads these sockets empty and closes them.
    pub(crate) async fn retire(&self, sockets: &[Arc<Socket>]) {
        for socket in sockets {
            self.retire_one(socket.port_id()).await;
        }
    }

    async fn retire_one(&self, port_id: u32) {
        if let Some(worker) = self.sockets.reader_of(port_id) {
            self.workers[worker].retire(port_id).await;
            self.sockets.remove(port_id);
        }
    }

    pub(crate) fn mode(&self) -> DispatchMode {
        match self.by_port {
            PerPort::Nothing => DispatchMode::PerCpu,
            PerPort::Sockets(_) => DispatchMode::PerVport,
        }
    }

    /// Takes upcalls away from whatever receives them, so that what comes to one of the sockets is newer
    /// than all that came to those before it. In per-vport mode the spares are first, because the
    /// kernel takes their table only while it dispatches by CPU; meanwhile the ports' sockets, opened
    /// before anything is changed, are named to it. Gives what the kernel said to the table; a kernel
    /// that does not take it when it has to is left as it was.
    pub(crate) async fn take_over(
        &self,
        control: &Control,
        dp: &Datapath,
    ) -> Result<Option<Finding>, Error> {
        for port in control.vports(dp.ifindex).await? {
            self.port_id_of(port.port_no).await?;
        }
        let mut finding = None;
        if !self.table.is_empty() {
            finding = Some(ovs_features::enable_per_cpu(control, dp, &self.table).await?);
        }
        let per_vport = self.mode() == DispatchMode::PerVport;
        if per_vport || finding.as_ref().is_some_and(|f| f.support == Support::Available) {
            self.follow(control, dp.ifindex).await?;
        }
        if per_vport {
            ovs_features::enable_per_vport(control, dp, &[]).await?;
        }
        Ok(finding)
    }

    /// Makes the kernel deliver here: features, and the table with them.
    pub(crate) async fn assert(&self, control: &Control, dp: &Datapath) -> Result<(), Error> {
        match self.mode() {
            DispatchMode::PerCpu => {
                ovs_features::enable_per_cpu(control, dp, &self.table_now()).await?;
            }
            DispatchMode::PerVport => {
                ovs_features::enable_per_vport(control, dp, &self.table).await?;
            }
        }
        Ok(())
    }

    /// The table that is in force.
    fn table_now(&self) -> Cow<'_, [u32]> {
        match self.funnel.load(Ordering::Relaxed) {
            0 => Cow::Borrowed(&self.table),
            port_id => Cow::Owned(vec![port_id; self.table.len()]),
        }
    }

    /// Has the upcalls of all CPUs go to one of the sockets, or those of each to its own again. `false` if
    /// there is nothing to change: sockets are those of ports, or none has this port id.
    pub(crate) async fn funnel(
        &self,
        control: &Control,
        dp: &Datapath,
        into: Option<u32>,
    ) -> Result<bool, Error> {
        let into = into.unwrap_or(0);
        let is_there = into == 0 || self.table.contains(&into);
        if self.mode() != DispatchMode::PerCpu || !is_there {
            return Ok(false);
        }
        let before = self.funnel.swap(into, Ordering::Relaxed);
        if before == into {
            return Ok(false);
        }
        let set = self.assert(control, dp).await;
        if set.is_err() {
            self.funnel.store(before, Ordering::Relaxed);
        }
        set.map(|()| true)
    }

    /// Is the datapath as [`Delivery::assert`] left it, as far as the kernel tells?
    pub(crate) fn agrees(&self, dp: &Datapath) -> bool {
        let per_cpu = dp.features.contains(UserFeatures::DISPATCH_UPCALL_PER_CPU);
        let table = dp.per_cpu_pids.as_ref();
        per_cpu == (self.mode() == DispatchMode::PerCpu)
            && dp.features.contains(UserFeatures::UNALIGNED)
            && table.is_none_or(|reported| self.table_now().starts_with(reported))
    }

    /// Lets go of the port ids: whoever gets them next must not receive this datapath's upcalls. The
    /// features become what they were in `dp`. What cannot be undone is logged.
    pub(crate) async fn release(&self, control: &Control, dp: &Datapath) {
        let warn =
            |err: ControlError| tracing::warn!(%err, "cannot take a socket out of the datapath");
        for port in control.vports(dp.ifindex).await.unwrap_or_default() {
            match control.set_vport_upcall_pid(dp.ifindex, port.port_no, 0).await {
                Err(err) if !err.is(Errno::NODEV) => warn(err),
                _ => {}
            }
        }
        let per_cpu = dp.features | UserFeatures::DISPATCH_UPCALL_PER_CPU;
        if !self.table.is_empty()
            && let Err(err) = control.set_datapath(dp, per_cpu, Some(&[0])).await
        {
            warn(err);
        }
        if let Err(err) = control.set_datapath(dp, dp.features, None).await {
            warn(err);
        }
    }

    /// The sockets there are.
    pub(crate) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Which thread reads what the kernel sends where.
    pub(crate) fn assignment(&self) -> Assignment {
        let reader = |served: Served| SocketReader {
            port_id: served.socket.port_id(),
            thread: worker::thread_name(served.worker),
        };
        let readers = self.sockets.served().into_iter().map(reader).collect();
        Assignment { table: self.table_now().into_owned(), readers }
    }

    pub(crate) fn worker_stats(&self) -> Vec<WorkerStats> {
        let (served, table) = (self.sockets.served(), self.table_now());
        let stats = |(number, worker): (usize, &Worker)| WorkerStats {
            thread: worker::thread_name(number),
            cpus: worker.runs_on(),
            sockets: served
                .iter()
                .filter(|served| served.worker == number)
                .map(|served| served.stats(&table))
                .collect(),
            ledger: worker.ledger().snapshot(),
        };
        self.workers.iter().enumerate().map(stats).collect()
    }

    pub(crate) fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// CPUs that each worker may run on.
    pub(crate) fn worker_cpus(&self) -> Vec<Vec<usize>> {
        self.workers.iter().map(Worker::runs_on).collect()
    }

    /// Moves the workers to where they belong, if that has changed; gives the shape to build anew when
    /// there are CPUs for more workers.
    pub(crate) fn follow_cpus(&self) -> Result<Option<Shape>, Error> {
        self.places.follow(&self.workers)
    }

    /// What it was built as.
    pub(crate) fn shape(&self) -> &Shape {
        self.places.shape()
    }

    /// CPUs that have to share another one's socket.
    pub(crate) fn cpus_sharing(&self) -> usize {
        match self.by_port {
            PerPort::Nothing => {
                let ids: HashSet<u32> = self.table.iter().copied().collect();
                self.table.len() - ids.len()
            }
            PerPort::Sockets(_) => 0,
        }
    }

    /// Makes ready for a port that is about to be added: gives the port id to add it with, and the
    /// token that [`Delivery::port_added`] takes.
    pub(crate) fn before_port(&self) -> Result<(u32, Option<Arc<Socket>>), Error> {
        match &self.by_port {
            // Not used by the kernel in this mode, but there if someone switches the mode.
            PerPort::Nothing => Ok((self.table[0], None)),
            PerPort::Sockets(_) => {
                let socket = self.sockets.open()?;
                Ok((socket.port_id(), Some(socket)))
            }
        }
    }

    /// The port was added under this number.
    pub(crate) async fn port_added(&self, port_no: u32, socket: Option<Arc<Socket>>) {
        let (PerPort::Sockets(by_port), Some(socket)) = (&self.by_port, socket) else { return };
        let worker = port_no as usize % self.workers.len();
        self.serve(socket.clone(), worker, Carries::OnePort).await;
        by_port.lock().await.insert(port_no, socket);
    }

    /// Brings sockets in line with the ports there are: a port without its socket gets it, a socket
    /// without its port is read empty and closed. Port ids that someone else set are set right. Gives the ports.
    pub(crate) async fn follow(
        &self,
        control: &Control,
        dp_ifindex: i32,
    ) -> Result<Vec<Vport>, Error> {
        let ports = control.vports(dp_ifindex).await?;
        let mut failed = Ok(());
        for port in &ports {
            // One port that cannot be served must not keep the others from it.
            if let Err(err) = self.serve_port(control, dp_ifindex, port).await {
                failed = Err(err);
            }
        }
        self.retire_gone(&ports).await;
        failed.map(|()| ports)
    }

    async fn serve_port(
        &self,
        control: &Control,
        dp_ifindex: i32,
        port: &Vport,
    ) -> Result<(), Error> {
        let port_id = self.port_id_of(port.port_no).await?;
        // Without the VPORT_PIDS feature the kernel tells the first id alone.
        if port.upcall_pids == [port_id] {
            return Ok(());
        }
        match control.set_vport_upcall_pid(dp_ifindex, port.port_no, port_id).await {
            Err(err) if !err.is(Errno::NODEV) => Err(err.into()),
            _ => Ok(()),
        }
    }

    /// Are these port ids of ours?
    pub(crate) fn has(&self, port_id: u32) -> bool {
        self.sockets.reader_of(port_id).is_some()
    }

    /// Where a port's upcalls go in per-vport mode; opens its socket if it has none.
    async fn port_id_of(&self, port_no: u32) -> Result<u32, Error> {
        if let PerPort::Sockets(by_port) = &self.by_port
            && let Some(socket) = by_port.lock().await.get(&port_no)
        {
            return Ok(socket.port_id());
        }
        let (port_id, socket) = self.before_port()?;
        self.port_added(port_no, socket).await;
        Ok(port_id)
    }

    async fn retire_gone(&self, ports: &[Vport]) {
        let PerPort::Sockets(by_port) = &self.by_port else { return };
        let mut by_port = by_port.lock().await;
        let there: HashSet<u32> = ports.iter().map(|port| port.port_no).collect();
        let gone: Vec<u32> = by_port.keys().filter(|no| !there.contains(no)).copied().collect();
        for port_no in gone {
            if let Some(socket) = by_port.remove(&port_no) {
                self.retire_one(socket.port_id()).await;
            }
        }
    }

    /// Leaves what is in the sockets to whoever reads them next; waits for workers that the handler
    /// keeps no longer than this.
    pub(crate) async fn rest_within(&self, limit: Duration) {
        let rests = self.workers.iter().map(|worker| tokio::time::timeout(limit, worker.rest()));
        future::join_all(rests).await;
    }

    /// Reads all sockets empty, but those that rest, and ends the workers.
    pub(crate) async fn stop(&self) {
        self.stop_within(Duration::MAX).await;
    }

    /// As [`Delivery::stop`], but for workers that the handler keeps for longer.
    pub(crate) async fn stop_within(&self, limit: Duration) {
        let stops = self.workers.iter().map(|worker| worker.stop(limit));
        let ended = future::join_all(stops).await;
        for (number, _) in ended.iter().enumerate().filter(|(_, ended)| !**ended) {
            let thread = worker::thread_name(number);
            tracing::error!(thread, "the handler does not return; its thread is left behind");
        }
    }

    /// The workers' histograms, added up.
    pub(crate) fn latency(&self) -> LatencySnapshot {
        let mut sum = LatencySnapshot::default();
        for worker in &self.workers {
            sum += &worker.ledger().latency.snapshot();
        }
        sum
    }

    /// The workers' counters, added up.
    pub(crate) fn ledger(&self) -> LedgerSnapshot {
        let mut sum = LedgerSnapshot::default();
        for worker in &self.workers {
            sum += worker.ledger().snapshot();
        }
        sum
    }
}
