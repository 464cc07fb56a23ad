//! The sockets of a delivery: who reads each, what memory they may take, what they have lost.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink_io::Socket;

use crate::recv_buffer::{Budget, shortfall};
use crate::{Error, SocketStats};

/// A socket and the number of the worker that reads it.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) socket: Arc<Socket>,
    pub(crate) worker: usize,
    /// Inherited: it keeps the size it has until it is read empty, or what is queued could fill it.
    inherited: bool,
}

impl Served {
    /// What is known of it. `table` has the port id of each CPU.
    pub(crate) fn stats(&self, table: &[u32]) -> SocketStats {
        let port_id = self.socket.port_id();
        let mine = |(cpu, id): (usize, &u32)| (*id == port_id).then_some(cpu);
        let info = self.socket.mem_info().ok();
        SocketStats {
            port_id,
            cpus: table.iter().enumerate().filter_map(mine).collect(),
            queued_bytes: info.map_or(0, |info| u64::from(info.queued_bytes)),
            buffer_bytes: info.map_or(0, |info| u64::from(info.recv_buffer_bytes)),
            drops: info.map_or(0, |info| u64::from(info.drops)),
        }
    }
}

/// Every socket of a delivery. Cold: locked when ports come and go and when counters are read.
#[derive(Debug)]
pub(crate) struct Sockets {
    budget: Budget,
    /// Bytes asked for on each socket now.
    asked: AtomicUsize,
    list: Mutex<Vec<Served>>,
    /// Losses of sockets that are closed.
    retired_drops: AtomicU64,
}

impl Sockets {
    /// A registry for sockets of this budget, of which so many are open already.
    pub(crate) fn new(budget: Budget, open: usize) -> Self {
        Self {
            budget,
            asked: AtomicUsize::new(budget.ask(open)),
            list: Mutex::default(),
            retired_drops: AtomicU64::new(0),
        }
    }

    /// Opens one more, in the namespace of the calling thread; the others make room for it first.
    pub(crate) fn open(&self) -> Result<Arc<Socket>, Error> {
        let mut list = self.lock();
        self.level(&mut list, 1);
        open_socket(self.asked.load(Ordering::Relaxed))
    }

    /// `worker` reads `socket` from now on.
    pub(crate) fn add(&self, socket: Arc<Socket>, worker: usize) {
        self.lock().push(Served { socket, worker, inherited: false });
    }

    /// `worker` reads what a predecessor left in `socket`.
    pub(crate) fn adopt(&self, socket: Arc<Socket>, worker: usize) {
        self.lock().push(Served { socket, worker, inherited: true });
    }

    /// Sets the sizes that `more` sockets beside those of the list leave. A size below what is queued
    /// costs nothing that is queued: the kernel looks at it when a message comes
    /// (`netlink_attachskb`, `net/netlink/af_netlink.c`).
    fn level(&self, list: &mut [Served], more: usize) {
        let ours = || list.iter().filter(|served| !served.inherited);
        let bytes = self.budget.ask(ours().count() + more);
        if self.asked.swap(bytes, Ordering::Relaxed) == bytes {
            return;
        }
        for served in ours() {
            if let Err(err) = served.socket.set_recv_buffer(bytes) {
                tracing::warn!(%err, "cannot change the receive buffer of an upcall socket");
            }
        }
    }

    /// What was asked for and not reached, with the remedy.
    pub(crate) fn warn_if_short(&self) {
        let asked = self.asked.load(Ordering::Relaxed);
        if let Some(text) = shortfall(asked, self.recv_buffer_bytes()) {
            tracing::warn!("{text}");
        }
        let total: usize = self.recv_buffers_bytes();
        if let Some(most) = self.budget.total.filter(|most| total > *most) {
            let sockets = self.len();
            tracing::warn!(
                "{sockets} upcall sockets may take {total} bytes where {most} were allowed: the \
                 kernel gives none less than some 2 kB; allow more, or use fewer sockets"
            );
        }
    }

    /// Bytes of kernel memory that all sockets together may fill.
    pub(crate) fn recv_buffers_bytes(&self) -> usize {
        let list = self.lock();
        let limits = list.iter().filter_map(|served| served.socket.mem_info().ok());
        limits.map(|info| info.recv_buffer_bytes as usize).sum()
    }

    /// The socket is about to be closed; what it lost is kept.
    pub(crate) fn remove(&self, port_id: u32) {
        let mut list = self.lock();
        if let Some(at) = list.iter().position(|served| served.socket.port_id() == port_id) {
            let served = list.swap_remove(at);
            let drops = served.socket.mem_info().map_or(0, |m| u64::from(m.drops));
            self.retired_drops.fetch_add(drops, Ordering::Relaxed);
            self.level(&mut list, 0);
        }
    }

    /// The worker that reads the socket with this port id, if there is one.
    pub(crate) fn reader_of(&self, port_id: u32) -> Option<usize> {
        let list = self.lock();
        let served = list.iter().find(|served| served.socket.port_id() == port_id)?;
        Some(served.worker)
    }

    pub(crate) fn served(&self) -> Vec<Served> {
        self.lock().clone()
    }

    /// Is it known of each when upcalls came to it?
    pub(crate) fn tell_times(&self) -> bool {
        let list = self.lock();
        !list.is_empty() && list.iter().all(|served| served.socket.records_arrivals())
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Upcalls that full sockets have cost.
    pub(crate) fn drops(&self) -> u64 {
        let drops = |served: &Served| served.socket.mem_info().map_or(0, |m| u64::from(m.drops));
        let open: u64 = self.lock().iter().map(drops).sum();
        open + self.retired_drops.load(Ordering::Relaxed)
    }

    /// Bytes of kernel memory the first socket may fill; 0 before there is one.
    pub(crate) fn recv_buffer_bytes(&self) -> usize {
        let first = self.lock().first().and_then(|served| served.socket.mem_info().ok());
        first.map_or(0, |m| m.recv_buffer_bytes as usize)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Served>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(sockets: &Sockets) -> Vec<u32> {
        let size = |served: Served| served.socket.mem_info().unwrap().recv_buffer_bytes;
        sockets.served().into_iter().map(size).collect()
    }

    #[test]
    fn sockets_make_room_for_one_more_and_grow_when_one_goes() {
        // Small enough to need no privilege.
        let sockets = Sockets::new(Budget { each: 64 << 10, total: Some(160 << 10) }, 0);
        let inherited = open_socket(64 << 10).unwrap();
        sockets.adopt(inherited.clone(), 0);
        for expected in [128 << 10, 80 << 10, 160 * 1024 / 3 / 2 * 2] {
            let socket = sockets.open().unwrap();
            sockets.add(socket, 0);
            let ours: Vec<u32> = sizes(&sockets).split_off(1);
            assert!(ours.iter().all(|size| *size == expected), "{ours:?}");
        }
        let last = sockets.served().pop().unwrap().socket.port_id();
        sockets.remove(last);
        assert_eq!(sizes(&sockets), [128 << 10, 80 << 10, 80 << 10], "the first is inherited");
    }

    #[test]
    fn a_socket_is_found_by_its_port_id_until_it_is_removed() {
        let sockets = Sockets::new(Budget { each: 4096, total: None }, 0);
        let socket = Arc::new(Socket::open().unwrap());
        let port_id = socket.port_id();
        sockets.add(socket, 3);
        assert_eq!((sockets.reader_of(port_id), sockets.len()), (Some(3), 1));
        sockets.remove(port_id);
        assert_eq!((sockets.reader_of(port_id), sockets.len()), (None, 0));
    }
}
