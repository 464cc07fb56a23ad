//! The sockets that upcalls are delivered to, in either dispatch mode.
//!
//! The mode is chosen once, when the dispatcher starts; everything else sees a set of sockets and asks
//! [`Delivery`] for what depends on the mode.

use std::collections::HashMap;
use std::sync::Arc;

use netlink_io::Socket;
use ovs_datapath::Control;
use ovs_wire::vport::Vport;
use tokio::sync::Mutex;

use crate::worker::Worker;
use crate::{DispatchMode, Error};

/// Sockets and who reads them.
pub(crate) struct Delivery {
    workers: Vec<Worker>,
    recv_buffer_bytes: usize,
    by_port: PerPort,
    /// Every socket, for statistics. Cold: locked when ports come and go and when counters are read.
    sockets: std::sync::Mutex<Vec<Arc<Socket>>>,
    /// Losses of sockets that are closed.
    retired_drops: std::sync::atomic::AtomicU64,
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
        Self::new(workers, PerPort::Nothing, sockets, recv_buffer_bytes)
    }

    /// Delivery by port: sockets are made as ports come.
    pub(crate) fn per_vport(workers: Vec<Worker>, recv_buffer_bytes: usize) -> Self {
        let by_port = PerPort::Sockets(Mutex::default());
        Self::new(workers, by_port, Vec::new(), recv_buffer_bytes)
    }

    fn new(
        workers: Vec<Worker>,
        by_port: PerPort,
        sockets: Vec<Arc<Socket>>,
        recv_buffer_bytes: usize,
    ) -> Self {
        Self {
            workers,
            recv_buffer_bytes,
            by_port,
            sockets: sockets.into(),
            retired_drops: 0.into(),
        }
    }

    pub(crate) fn mode(&self) -> DispatchMode {
        match self.by_port {
            PerPort::Nothing => DispatchMode::PerCpu,
            PerPort::Sockets(_) => DispatchMode::PerVport,
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
            PerPort::Nothing => Ok((0, None)),
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
    /// without its port is read empty and closed.
    pub(crate) async fn follow(
        &self,
        control: &Control,
        dp_ifindex: i32,
        ports: &[Vport],
    ) -> Result<(), Error> {
        let PerPort::Sockets(by_port) = &self.by_port else { return Ok(()) };
        for port in ports {
            let known = by_port.lock().await.get(&port.port_no).map(|(s, _)| s.port_id());
            let port_id = match known {
                Some(port_id) if port.upcall_pids == [port_id] => continue,
                Some(port_id) => port_id,
                None => {
                    let (port_id, socket) = self.before_port()?;
                    self.port_added(port.port_no, socket).await;
                    port_id
                }
            };
            control.set_vport_upcall_pid(dp_ifindex, port.port_no, port_id).await?;
        }
        let mut by_port = by_port.lock().await;
        let gone: Vec<u32> =
            by_port.keys().filter(|no| !ports.iter().any(|p| p.port_no == **no)).copied().collect();
        for port_no in gone {
            if let Some((socket, worker)) = by_port.remove(&port_no) {
                self.workers[worker].retire(socket.port_id()).await;
                self.forget(&socket);
            }
        }
        Ok(())
    }

    fn forget(&self, socket: &Arc<Socket>) {
        let drops = socket.mem_info().map_or(0, |m| u64::from(m.drops));
        self.retired_drops.fetch_add(drops, std::sync::atomic::Ordering::Relaxed);
        self.lock_sockets().retain(|s| !Arc::ptr_eq(s, socket));
    }

    /// Sockets there are, and upcalls that full sockets have cost.
    pub(crate) fn sockets_and_drops(&self) -> (usize, u64) {
        let sockets = self.lock_sockets();
        let open: u64 =
            sockets.iter().filter_map(|s| s.mem_info().ok()).map(|m| u64::from(m.drops)).sum();
        (sockets.len(), open + self.retired_drops.load(std::sync::atomic::Ordering::Relaxed))
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
