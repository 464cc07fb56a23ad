//! The sweep of the flow table: what idles or has become wrong is deleted.
//!
//! The kernel's table is the only record of what is installed. A sweep dumps it, a piece at a time,
//! and asks the handler about each flow; so it also covers flows of an earlier run.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netlink_io::Socket;
use ovs_wire::action::Actions;
use ovs_wire::flow::{self, Flow};
use ovs_wire::key::FlowKey;
use ovs_wire::nl::{OvsHeader, write_message};

use crate::flow_dump::{self, monotonic_ms};
use crate::shared::Shared;
use crate::{Error, Fate, FlowView, Handler, Ports, SweepStats};

/// Deletions are sent once they take this many bytes.
const DELETE_BYTES_MAX: usize = 16 << 10;
/// Shortest time between two sweeps: a storm of moving addresses must not turn into sweeps alone.
const SWEEP_GAP: Duration = Duration::from_millis(20);

/// How long a flow may rest while there are more than are allowed.
const CROWDED_IDLE: Duration = Duration::from_millis(100);

/// Pause after a sweep as a multiple of its length, so that sweeps take a fifth of a CPU at most.
const SWEEP_SHARE: u32 = 4;

/// Reads the flow table at intervals and when asked to.
pub(crate) struct Sweeper {
    shared: Arc<Shared>,
    /// First sight of flows that have matched nothing yet, by key; made anew in each sweep.
    unused_since_ms: HashMap<u64, u64>,
    hasher: foldhash::quality::RandomState,
    /// The first sweep only shows the handler what there is: a flow of an earlier run may come before
    /// the one that teaches its destination.
    first: bool,
    stats: Arc<Mutex<SweepStats>>,
}

/// What one sweep found.
#[derive(Debug, Default)]
struct Found {
    flows: u64,
    deleted: u64,
    unused_since_ms: HashMap<u64, u64>,
}

impl Sweeper {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let hasher = foldhash::quality::RandomState::default();
        let (unused_since_ms, stats) = (HashMap::new(), Arc::default());
        Self { shared, unused_since_ms, hasher, first: true, stats }
    }

    /// What its sweeps find.
    pub(crate) fn stats(&self) -> Arc<Mutex<SweepStats>> {
        self.stats.clone()
    }

    /// Sweeps for ever. `sockets` are for the dump and for deletions: replies to one must not push
    /// out those to the other.
    pub(crate) async fn run(mut self, mut sockets: [Arc<Socket>; 2]) {
        loop {
            let timer = tokio::time::sleep(self.shared.life.load().sweep_interval);
            tokio::select! {
                () = timer => {}
                () = self.shared.sweep_now.notified() => {}
            }
            let started = Instant::now();
            let swept = self.sweep(&sockets).await;
            let took = started.elapsed();
            match swept {
                Ok(found) => self.settle(found, took),
                Err(err) => {
                    tracing::warn!(%err, "a sweep of the flow table failed");
                    // The rest of an unfinished dump would be taken for the next one.
                    sockets = open_sockets().unwrap_or(sockets);
                }
            }
            tokio::time::sleep(SWEEP_GAP.max(took * SWEEP_SHARE)).await;
        }
    }

    fn settle(&mut self, found: Found, took: Duration) {
        self.first = false;
        self.shared.flow_room.swept(found.flows, found.flows - found.deleted, took);
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).add(found.flows, took);
        self.unused_since_ms = found.unused_since_ms;
        if found.deleted > 0 {
            let Found { flows, deleted, .. } = found;
            tracing::debug!(flows, deleted, ?took, "swept the flow table");
        }
    }

    /// Past the limit flows must not rest for long.
    fn idle_max(&self) -> Duration {
        let idle = self.shared.life.load().idle;
        if self.shared.flow_room.excess() > 0 { idle.min(CROWDED_IDLE) } else { idle }
    }

    async fn sweep(&mut self, [dump, delete]: &[Arc<Socket>; 2]) -> io::Result<Found> {
        self.shared.guarded(Handler::begin_sweep);
        let ports = self.shared.ports.load_full();
        let (family, dp_ifindex) = (self.shared.flow_family, self.shared.dp_ifindex);
        let mut pass = Pass {
            sweeper: self,
            ports: &ports,
            delete,
            now_ms: monotonic_ms(),
            idle_max: self.idle_max(),
            found: Found::default(),
            deletions: Vec::new(),
        };
        flow_dump::read(dump, family, dp_ifindex, |flow| pass.flow(flow)).await?;
        pass.flush()?;
        Ok(pass.found)
    }
}

/// One reading of the flow table.
struct Pass<'a> {
    sweeper: &'a Sweeper,
    ports: &'a Ports,
    delete: &'a Socket,
    now_ms: u64,
    /// Flows that were not used for this long are deleted.
    idle_max: Duration,
    found: Found,
    deletions: Vec<u8>,
}

impl Pass<'_> {
    fn flow(&mut self, flow: &Flow<'_>) -> io::Result<()> {
        self.found.flows += 1;
        let Ok(key) = FlowKey::new(flow.key).summary() else { return Ok(()) };
        let idle = self.idle(flow);
        let view = FlowView {
            key: &key,
            mask: flow.mask,
            actions: Actions::new(flow.actions),
            packets: flow.stats.packets,
            idle,
        };
        let shared = &self.sweeper.shared;
        let fate = shared.guarded(|handler| handler.revalidate(&view, self.ports));
        let wrong = fate == Some(Fate::Delete) && !self.sweeper.first;
        if wrong || idle >= self.idle_max {
            self.delete(flow)?;
        }
        Ok(())
    }

    /// Time since the flow was used; for one that never was, since a sweep first saw it.
    fn idle(&mut self, flow: &Flow<'_>) -> Duration {
        let since_ms = flow.used_ms.unwrap_or_else(|| {
            let id = self.sweeper.hasher.hash_one(flow.key);
            let first = self.sweeper.unused_since_ms.get(&id).copied().unwrap_or(self.now_ms);
            // No more than there are flows, whose number has a limit.
            self.found.unused_since_ms.insert(id, first);
            first
        });
        Duration::from_millis(self.now_ms.saturating_sub(since_ms))
    }

    fn delete(&mut self, flow: &Flow<'_>) -> io::Result<()> {
        self.found.deleted += 1;
        // Its successor starts anew.
        self.found.unused_since_ms.remove(&self.sweeper.hasher.hash_one(flow.key));
        let header =
            OvsHeader { cmd: flow::cmd::DEL, version: flow::VERSION, dp_ifindex: flow.dp_ifindex };
        let family = self.sweeper.shared.flow_family;
        write_message(&mut self.deletions, family, 0, 2, header, |b| match flow.ufid {
            Some(ufid) => drop(b.bytes(flow::attr::UFID, ufid)),
            None => drop(b.bytes(flow::attr::KEY, flow.key)),
        })
        .map_err(io::Error::other)?;
        if self.deletions.len() >= DELETE_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    /// Sends the deletions. A flow that is gone already is an error reply of no interest.
    fn flush(&mut self) -> io::Result<()> {
        if !self.deletions.is_empty() {
            self.delete.send(&self.deletions)?;
            self.deletions.clear();
            let mut replies = [0; 4096];
            while self.delete.recv(&mut replies)?.is_some() {}
        }
        Ok(())
    }
}

/// Sockets for a sweeper, opened in the namespace of the calling thread.
pub(crate) fn open_sockets() -> Result<[Arc<Socket>; 2], Error> {
    let open = || {
        Socket::open().map(Arc::new).map_err(Error::system("open a netlink socket for the sweep"))
    };
    Ok([open()?, open()?])
}
