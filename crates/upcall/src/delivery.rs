//! The sockets that upcalls are delivered to, in either dispatch mode.
//!
//! The mode is chosen once, when the dispatcher starts; everything else sees a set of sockets and asks
//! [`Delivery`] for what depends on the mode.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use netlink_io::Socket;
use ovs_datapath::{Control, ControlError};
use ovs_wire::datapath::{Datapath, UserFeatures};
use ovs_wire::vport::Vport;
use rustix::io::Errno;
use tokio::sync::Mutex;

use crate::worker::Worker;
use crate::{DispatchMode, Error};

/// Sockets and who reads them.
pub(crate) struct Delivery {
    workers: Vec<Worker>,
    recv_buffer_bytes: usize,
    by_port: PerPort,
    /// The per-CPU table: port id by CPU id, never 0; empty on kernels that have none. In per-vport
    /// mode it is the one that waits for a flip: any client of the peer's makes the kernel use it.
    table: Vec<u32>,
    /// Every socket, for statistics. Cold: locked when ports come and go and when counters are read.
    sockets: std::sync::Mutex<Vec<Arc<Socket>>>,
    /// Losses of sockets that are closed.
    retired_drops: AtomicU64,
}

/// What is kept for each port.
enum PerPort {
    /// Nothing: sockets belong to CPUs.
    Nothing,
    /// Its socket and the worker that reads it.
    Sockets(Mutex<HashMap<u32, (Arc<Socket>, usize)>>),
}

impl Delivery {
    /// Delivery by CPU: `sockets[cpu]`, each read by the worker that serves the CPU.
    pub(crate) async fn per_cpu(
        workers: Vec<Worker>,
        sockets: Vec<Arc<Socket>>,
        cpu_to_worker: impl Fn(usize) -> usize,
        recv_buffer_bytes: usize,
    ) -> Self {
        for (cpu, socket) in sockets.iter().enumerate() {
            workers[cpu_to_worker(cpu)].serve(socket.clone()).await;
        }
        let table = sockets.iter().map(|s| s.port_id()).collect();
        Self::new(workers, PerPort::Nothing, table, sockets, recv_buffer_bytes)
    }

    /// Delivery by port: sockets are made as ports come. `spares` take the upcalls of a kernel that
    /// someone switched to per-CPU dispatch, until it is switched back; empty where it has none.
    pub(crate) async fn per_vport(
        workers: Vec<Worker>,
        spares: Vec<Arc<Socket>>,
        table_len: usize,
        recv_buffer_bytes: usize,
    ) -> Self {
        for (socket, worker) in spares.iter().zip(workers.iter().cycle()) {
            worker.serve(socket.clone()).await;
        }
        let ids = spares.iter().map(|s| s.port_id()).cycle();
        let table = ids.take(table_len).collect();
        let by_port = PerPort::Sockets(Mutex::default());
        Self::new(workers, by_port, table, spares, recv_buffer_bytes)
    }

    fn new(
        workers: Vec<Worker>,
        by_port: PerPort,
        table: Vec<u32>,
        sockets: Vec<Arc<Socket>>,
        recv_buffer_bytes: usize,
    ) -> Self {
        Self {
            workers,
            recv_buffer_bytes,
            by_port,
            table,
            sockets: sockets.into(),
            retired_drops: AtomicU64::new(0),
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

    /// Lets go of the port ids: whoever gets them next must not receive this datapath's upcalls.
    pub(crate) async fn release(
        &self,
        control: &Control,
        dp: &Datapath,
    ) -> Result<(), ControlError> {
        for port in control.vports(dp.ifindex).await? {
            control.set_vport_upcall_pid(dp.ifindex, port.port_no, 0).await?;
        }
        let (features, per_cpu) = (UserFeatures::UNALIGNED, UserFeatures::DISPATCH_UPCALL_PER_CPU);
        if !self.table.is_empty() {
            control.set_datapath(dp, features | per_cpu, Some(&[0])).await?;
        }
        match self.mode() {
            DispatchMode::PerCpu => Ok(()),
            DispatchMode::PerVport => control.set_datapath(dp, features, None).await,
        }
    }

    /// Bytes of kernel memory a socket may fill; 0 before there is one.
    pub(crate) fn recv_buffer_bytes(&self) -> usize {
        let sockets = self.lock_sockets();
        sockets.first().and_then(|s| s.mem_info().ok()).map_or(0, |m| m.recv_buffer_bytes as usize)
    }

    pub(crate) fn workers(&self) -> &[Worker] {
        &self.workers
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
    /// without its port is read empty and closed. Port ids that someone else set are set right.
    pub(crate) async fn follow(
        &self,
        control: &Control,
        dp_ifindex: i32,
        ports: &[Vport],
    ) -> Result<(), Error> {
        for port in ports {
            let port_id = self.port_id_of(port.port_no).await?;
            // Without the VPORT_PIDS feature the kernel tells the first id alone.
            if port.upcall_pids.first() != Some(&port_id) || port.upcall_pids.len() > 1 {
                match control.set_vport_upcall_pid(dp_ifindex, port.port_no, port_id).await {
                    Err(err) if !err.is(Errno::NODEV) => return Err(err.into()),
                    _ => {}
                }
            }
        }
        self.retire_gone(ports).await;
        Ok(())
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
        let gone: Vec<u32> =
            by_port.keys().filter(|no| !ports.iter().any(|p| p.port_no == **no)).copied().collect();
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
    pub(crate) async fn stop(self) {
        for worker in self.workers {
            worker.stop().await;
        }
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
