//! The funnel: the upcalls of all CPUs by one socket, while flows hop between CPUs and nobody tells when upcalls
//! were sent.
//!
//! When, `upcall-core` says ([`Funnel`]). Readers see hops and whether they keep up; a task tells the kernel.
//! Both moves are hops themselves, of all flows at once: what is left in the sockets before is older.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use netlink_io::Socket;
use ovs_datapath::Control;
use ovs_wire::datapath::Datapath;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use upcall_core::Funnel;

use crate::delivery::Delivery;
use crate::shared::Shared;

/// What readers and the task have to tell each other.
#[derive(Debug, Default)]
pub(crate) struct Funnelling {
    rule: Mutex<Funnel>,
    /// Port id of the socket that is wanted; 0 for none.
    wanted: AtomicU32,
    /// Port id of the socket by which all upcalls come; 0 while CPUs have their own.
    into: AtomicU32,
    /// It is wanted.
    call: Notify,
    /// Its reader is behind.
    behind: Notify,
    times: AtomicU64,
}

impl Funnelling {
    /// A flow came by the socket with this port id, and by another one before.
    pub(crate) fn hopped(&self, port_id: u32, now_us: u64) {
        if self.rule().hopped(now_us) && self.wanted.swap(port_id, Ordering::Relaxed) == 0 {
            self.call.notify_one();
        }
    }

    /// A round of reading left something in the socket.
    pub(crate) fn not_drained(&self, socket: &Socket) {
        if self.into.load(Ordering::Relaxed) != socket.port_id() {
            return;
        }
        let Ok(info) = socket.mem_info() else { return };
        let (queued, buffer) = (u64::from(info.queued_bytes), u64::from(info.recv_buffer_bytes));
        if self.rule().is_behind(queued, buffer) {
            self.behind.notify_one();
        }
    }

    /// Do all upcalls come by one socket now?
    pub(crate) fn is_up(&self) -> bool {
        self.into.load(Ordering::Relaxed) != 0
    }

    /// Times that it was put up.
    pub(crate) fn times(&self) -> u64 {
        self.times.load(Ordering::Relaxed)
    }

    fn rule(&self) -> MutexGuard<'_, Funnel> {
        self.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wanted(&self) -> u32 {
        loop {
            match self.wanted.load(Ordering::Relaxed) {
                0 => self.call.notified().await,
                port_id => return port_id,
            }
        }
    }

    /// The kernel was told; gives how long it is to stay.
    fn up(&self, port_id: u32, now_us: u64) -> Duration {
        // What was said of the last time.
        let _stale = self.behind.notified().now_or_never();
        self.times.fetch_add(1, Ordering::Relaxed);
        self.into.store(port_id, Ordering::Relaxed);
        Duration::from_micros(self.rule().up(now_us))
    }

    /// `behind`: not because its time was over.
    fn down(&self, now_us: u64, behind: bool) {
        self.into.store(0, Ordering::Relaxed);
        self.rule().down(now_us, behind);
        self.wanted.store(0, Ordering::Relaxed);
    }
}

/// Tells the kernel.
pub(crate) struct Funneller {
    pub(crate) control: Control,
    pub(crate) dp: Datapath,
    pub(crate) shared: Arc<Shared>,
    pub(crate) delivery: Arc<AsyncMutex<Arc<Delivery>>>,
}

impl Funneller {
    /// Works until it is aborted.
    pub(crate) async fn run(self) {
        let funnel = &self.shared.funnel;
        loop {
            let port_id = funnel.wanted().await;
            if self.set(Some(port_id)).await {
                let stay = funnel.up(port_id, self.shared.now_us());
                tracing::debug!(port_id, ?stay, "flows hop: all upcalls go by one socket");
                let behind = tokio::time::timeout(stay, funnel.behind.notified()).await.is_ok();
                tracing::debug!(port_id, behind, "each CPU's upcalls go by its own socket again");
                self.set(None).await;
                funnel.down(self.shared.now_us(), behind);
            } else {
                funnel.down(self.shared.now_us(), true);
            }
        }
    }

    /// `false` if it is not as it was to be.
    async fn set(&self, into: Option<u32>) -> bool {
        let delivery = self.delivery.lock().await;
        // A datapath that is somebody else's is left alone.
        if self.shared.taken_over.load(Ordering::Relaxed) {
            return false;
        }
        delivery.funnel(&self.control, &self.dp, into).await.unwrap_or_else(|err| {
            tracing::warn!(%err, "cannot change the per-CPU table to keep the order of flows that hop");
            false
        })
    }
}
