//! The sockets that upcalls are delivered to, in either dispatch mode.
//!
//! The mode is chosen once, when the dispatcher starts; everything else sees a set of sockets and asks
//! [`Delivery`] for what depends on the mode.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use netlink_io::Socket;
use ovs_datapath::{Control, ControlError};
use ovs_features::Decision;
use ovs_wire::datapath::{Datapath, UserFeatures};
use ovs_wire::vport::Vport;
use rustix::io::Errno;
use tokio::sync::{Mutex, watch};
use upcall_core::LedgerSnapshot;

use crate::worker::Worker;
use crate::{DispatchMode, Error};

/// Sockets and who reads them.
pub(crate) struct Delivery {
    workers: Vec<Worker>,
    /// Workers read sockets once it is open.
    gate: watch::Sender<bool>,
    recv_buffer_bytes: usize,
    by_port: PerPort,
    /// The per-CPU table: port id by CPU id, never 0; empty on kernels that have none. In per-vport
    /// mode it is the one that waits for a flip: any client of the peer's makes the kernel use it.
    table: Vec<u32>,
    /// Every socket, for statistics. Cold: locked when ports come and go and when counters are read.
    sockets: std::sync::Mutex<Vec<Arc<Socket>>>,
    /// Losses of sockets that are closed.
    retired_drops: AtomicU64,
    decision: Decision,
}

/// What is kept for each port.
enum PerPort {
    /// Nothing: sockets belong to CPUs.
    Nothing,
    /// Its socket and the worker that reads it.
    Sockets(Mutex<HashMap<u32, (Arc<Socket>, usize)>>),
}

impl Delivery {
    /// Delivery by CPU: `sockets[cpu]`, each read by the worker that serves the CPU. Where there are
    /// fewer sockets than CPUs, the CPUs beyond share them in turn.
    pub(crate) async fn per_cpu(
        (workers, gate): (Vec<Worker>, watch::Sender<bool>),
        (sockets, cpus): (Vec<Arc<Socket>>, usize),
        cpu_to_worker: impl Fn(usize) -> usize,
        recv_buffer_bytes: usize,
        decision: Decision,
    ) -> Self {
        for (cpu, socket) in sockets.iter().enumerate() {
            workers[cpu_to_worker(cpu)].serve(socket.clone()).await;
        }
        let ids = sockets.iter().map(|s| s.port_id()).cycle();
        let table = ids.take(cpus).collect();
        let by_port = PerPort::Nothing;
        Self::new((workers, gate), by_port, table, sockets, recv_buffer_bytes, decision)
    }

    /// Delivery by port: sockets are made as ports come. `spares` take the upcalls of a kernel that
    /// someone switched to per-CPU dispatch, until it is switched back; empty where it has none.
    pub(crate) async fn per_vport(
        (workers, gate): (Vec<Worker>, watch::Sender<bool>),
        spares: Vec<Arc<Socket>>,
        table_len: usize,
        recv_buffer_bytes: usize,
        decision: Decision,
    ) -> Self {
        for (socket, worker) in spares.iter().zip(workers.iter().cycle()) {
            worker.serve(socket.clone()).await;
        }
        let ids = spares.iter().map(|s| s.port_id()).cycle();
        let table = ids.take(table_len).collect();
        let by_port = PerPort::Sockets(Mutex::default());
        Self::new((workers, gate), by_port, table, spares, recv_buffer_bytes, decision)
    }

    fn new(
        (workers, gate): (Vec<Worker>, watch::Sender<bool>),
        by_port: PerPort,
        table: Vec<u32>,
        sockets: Vec<Arc<Socket>>,
        recv_buffer_bytes: usize,
        decision: Decision,
    ) -> Self {
        Self {
            workers,
            gate,
            recv_buffer_bytes,
            by_port,
            table,
            sockets: sockets.into(),
            retired_drops: AtomicU64::new(0),
            decision,
        }
    }

    /// The same, for reasons that were found later.
    pub(crate) fn because(self, decision: Decision) -> Self {
        Self { decision, ..self }
    }

    /// Lets the workers read; until then upcalls queue.
    pub(crate) fn open(&self) {
        self.gate.send_replace(true);
    }

    /// Why this mode.
    pub(crate) fn reason(&self) -> String {
        self.decision.reason()
    }

    /// Reads these sockets too, although the kernel was not told of them by us.
    pub(crate) async fn read_too(&self, sockets: &[Arc<Socket>]) {
        for (socket, worker) in sockets.iter().zip(self.workers.iter().cycle()) {
            worker.serve(socket.clone()).await;
        }
        self.lock_sockets().extend_from_slice(sockets);
    }

    /// Reads these sockets empty and closes them.
    pub(crate) async fn retire(&self, sockets: &[Arc<Socket>]) {
        for (socket, worker) in sockets.iter().zip(self.workers.iter().cycle()) {
            worker.retire(socket.port_id()).await;
            self.forget(socket);
        }
    }

    pub(crate) fn mode(&self) -> DispatchMode {
        match self.by_port {
            PerPort::Nothing => DispatchMode::PerCpu,
            PerPort::Sockets(_) => DispatchMode::PerVport,
        }
    }

    /// Makes the kernel deliver here: features, and the table with them.
    pub(crate) async fn assert(&self, control: &Control, dp: &Datapath) -> Result<(), Error> {
        match self.mode() {
            DispatchMode::PerCpu => {
                ovs_features::enable_per_cpu(control, dp, &self.table).await?;
            }
            DispatchMode::PerVport => {
                ovs_features::enable_per_vport(control, dp, &self.table).await?;
            }
        }
        Ok(())
    }

    /// Is the datapath as [`Delivery::assert`] left it, as far as the kernel tells?
    pub(crate) fn agrees(&self, dp: &Datapath) -> bool {
        let per_cpu = dp.features.contains(UserFeatures::DISPATCH_UPCALL_PER_CPU);
        let table = dp.per_cpu_pids.as_ref();
        per_cpu == (self.mode() == DispatchMode::PerCpu)
            && dp.features.contains(UserFeatures::UNALIGNED)
            && table.is_none_or(|reported| self.table.starts_with(reported))
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

    /// Bytes of kernel memory a socket may fill; 0 before there is one.
    pub(crate) fn recv_buffer_bytes(&self) -> usize {
        let sockets = self.lock_sockets();
        sockets.first().and_then(|s| s.mem_info().ok()).map_or(0, |m| m.recv_buffer_bytes as usize)
    }

    /// The per-CPU table: port id by CPU id, never 0.
    pub(crate) fn table(&self) -> &[u32] {
        &self.table
    }

    pub(crate) fn worker_count(&self) -> usize {
        self.workers.len()
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

    /// Every socket there is.
    pub(crate) fn sockets(&self) -> Vec<Arc<Socket>> {
        self.lock_sockets().clone()
    }

    /// Makes ready for a port that is about to be added: gives the port id to add it with, and the
    /// token that [`Delivery::port_added`] takes.
    pub(crate) fn before_port(&self) -> Result<(u32, Option<Arc<Socket>>), Error> {
        match &self.by_port {
            // Not used by the kernel in this mode, but there if someone switches the mode.
            PerPort::Nothing => Ok((self.table[0], None)),
            PerPort::Sockets(_) => {
                let socket = open_socket(self.recv_buffer_bytes)?;
                Ok((socket.port_id(), Some(socket)))
            }
        }
    }

    /// The port was added under this number.
    pub(crate) async fn port_added(&self, port_no: u32, socket: Option<Arc<Socket>>) {
        let (PerPort::Sockets(by_port), Some(socket)) = (&self.by_port, socket) else { return };
        let worker = port_no as usize % self.workers.len();
        self.workers[worker].serve(socket.clone()).await;
        self.lock_sockets().push(socket.clone());
        by_port.lock().await.insert(port_no, (socket, worker));
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
        self.lock_sockets().iter().any(|socket| socket.port_id() == port_id)
    }

    /// Where a port's upcalls go in per-vport mode; opens its socket if it has none.
    async fn port_id_of(&self, port_no: u32) -> Result<u32, Error> {
        if let PerPort::Sockets(by_port) = &self.by_port
            && let Some((socket, _)) = by_port.lock().await.get(&port_no)
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
            if let Some((socket, worker)) = by_port.remove(&port_no) {
                self.workers[worker].retire(socket.port_id()).await;
                self.forget(&socket);
            }
        }
    }

    fn forget(&self, socket: &Arc<Socket>) {
        let drops = socket.mem_info().map_or(0, |m| u64::from(m.drops));
        self.retired_drops.fetch_add(drops, Ordering::Relaxed);
        self.lock_sockets().retain(|s| !Arc::ptr_eq(s, socket));
    }

    /// Sockets there are, and upcalls that full sockets have cost.
    pub(crate) fn sockets_and_drops(&self) -> (usize, u64) {
        let sockets = self.lock_sockets();
        let open: u64 =
            sockets.iter().filter_map(|s| s.mem_info().ok()).map(|m| u64::from(m.drops)).sum();
        (sockets.len(), open + self.retired_drops.load(Ordering::Relaxed))
    }

    fn lock_sockets(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Socket>>> {
        self.sockets.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Reads all sockets empty and ends the workers.
    pub(crate) async fn stop(&self) {
        for worker in &self.workers {
            worker.stop().await;
        }
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

/// Opens an upcall socket in the namespace of the calling thread.
pub(crate) fn open_socket(recv_buffer_bytes: usize) -> Result<Arc<Socket>, Error> {
    let socket = Socket::open().map_err(Error::system(
        "open a netlink socket for upcalls (too many open files? raise 'ulimit -n')",
    ))?;
    socket
        .set_recv_buffer(recv_buffer_bytes)
        .map_err(Error::system("set the receive buffer of an upcall socket"))?;
    Ok(Arc::new(socket))
}
