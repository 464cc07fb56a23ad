//! The sweep of the flow table: what idles or has become wrong is deleted.
//!
//! The kernel's table is the only record of what is installed. A sweep dumps it, a piece at a time,
//! and asks the handler about each flow; so it also covers flows of an earlier run.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_io::{AsyncSocket, Socket};
use ovs_wire::action::Actions;
use ovs_wire::flow::{self, Flow};
use ovs_wire::key::FlowKey;
use ovs_wire::nl::{
    NLM_F_DUMP, NLMSG_DONE, NLMSG_ERROR, NlAck, NlMsg, NlMsgs, OvsHeader, write_message,
};
use rustix::time::{ClockId, clock_gettime};

use crate::shared::Shared;
use crate::{Error, Fate, FlowView, Handler, Ports};

/// Deletions are sent once they take this many bytes.
const DELETE_BYTES_MAX: usize = 16 << 10;
/// Bytes of a piece of a dump; the kernel fills at most 32 KiB.
const DUMP_PIECE_MAX: usize = 64 << 10;
/// How long the kernel may take for one piece.
const PIECE_LIMIT: Duration = Duration::from_secs(5);
/// Shortest time between two sweeps: a storm of moving addresses must not turn into sweeps alone.
const SWEEP_GAP: Duration = Duration::from_millis(20);

/// Pause after a sweep as a multiple of its length, so that sweeps take a fifth of a CPU at most.
const SWEEP_SHARE: u32 = 4;

/// Reads the flow table at intervals and when asked to.
pub(crate) struct Sweeper {
    shared: Arc<Shared>,
    flow_idle: Duration,
    /// First sight of flows that have matched nothing yet, by key; made anew in each sweep.
    unused_since_ms: HashMap<u64, u64>,
    hasher: foldhash::quality::RandomState,
    /// The first sweep only shows the handler what there is: a flow of an earlier run may come before
    /// the one that teaches its destination.
    first: bool,
}

/// What one sweep found.
#[derive(Debug, Default)]
struct Found {
    flows: u64,
    deleted: u64,
    unused_since_ms: HashMap<u64, u64>,
}

impl Sweeper {
    pub(crate) fn new(shared: Arc<Shared>, flow_idle: Duration) -> Self {
        let hasher = foldhash::quality::RandomState::default();
        Self { shared, flow_idle, unused_since_ms: HashMap::new(), hasher, first: true }
    }

    /// Sweeps for ever. `sockets` are for the dump and for deletions: replies to one must not push
    /// out those to the other.
    pub(crate) async fn run(mut self, mut sockets: [Arc<Socket>; 2], interval: Duration) {
        loop {
            let timer = tokio::time::sleep(interval);
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
        self.shared.flows_counted(found.flows - found.deleted);
        self.unused_since_ms = found.unused_since_ms;
        if found.deleted > 0 {
            let Found { flows, deleted, .. } = found;
            tracing::debug!(flows, deleted, ?took, "swept the flow table");
        }
    }

    async fn sweep(&mut self, [dump, delete]: &[Arc<Socket>; 2]) -> io::Result<Found> {
        self.shared.guarded(Handler::begin_sweep);
        let ports = self.shared.ports.load_full();
        let socket = AsyncSocket::new(dump.clone())?;
        let mut pass = Pass {
            sweeper: self,
            ports: &ports,
            delete,
            now_ms: monotonic_ms(),
            found: Found::default(),
            deletions: Vec::new(),
        };
        dump.send(&pass.dump_request()?)?;
        let mut buf = vec![0; DUMP_PIECE_MAX];
        let mut done = false;
        while !done {
            let mut ready = tokio::time::timeout(PIECE_LIMIT, socket.readable()).await??;
            while let Some(piece) = ready.try_recv(&mut buf)? {
                done |= pass.piece(&buf[..piece.len])?;
            }
        }
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
    found: Found,
    deletions: Vec<u8>,
}

impl Pass<'_> {
    fn dump_request(&self) -> io::Result<Vec<u8>> {
        let shared = &self.sweeper.shared;
        let header = OvsHeader {
            cmd: flow::cmd::GET,
            version: flow::VERSION,
            dp_ifindex: shared.dp_ifindex,
        };
        let mut request = Vec::new();
        write_message(&mut request, shared.flow_family, NLM_F_DUMP, 1, header, |_| {})
            .map_err(io::Error::other)?;
        Ok(request)
    }

    /// Handles a piece of the dump; `true` at its end.
    fn piece(&mut self, datagram: &[u8]) -> io::Result<bool> {
        for msg in NlMsgs::new(datagram) {
            let msg = msg.map_err(io::Error::other)?;
            match msg.kind {
                NLMSG_DONE => return check_done(&msg).map(|()| true),
                NLMSG_ERROR => {
                    let ack = NlAck::parse(&msg).map_err(io::Error::other)?;
                    return Err(io::Error::from_raw_os_error(ack.errno));
                }
                kind if kind == self.sweeper.shared.flow_family => self.flow(&msg)?,
                _ => {}
            }
        }
        Ok(false)
    }

    fn flow(&mut self, msg: &NlMsg<'_>) -> io::Result<()> {
        let (_, flow) = Flow::parse(msg.payload).map_err(io::Error::other)?;
        self.found.flows += 1;
        let Ok(key) = FlowKey::new(flow.key).summary() else { return Ok(()) };
        let idle = self.idle(&flow);
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
        if wrong || idle >= self.sweeper.flow_idle {
            self.delete(&flow)?;
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

/// The end of a dump carries an errno of its own: of a datapath that is gone, say.
fn check_done(msg: &NlMsg<'_>) -> io::Result<()> {
    match NlAck::parse(msg) {
        Ok(ack) if ack.errno > 0 => Err(io::Error::from_raw_os_error(ack.errno)),
        _ => Ok(()),
    }
}

/// The clock of the kernel's `used` times.
fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1000 + now.tv_nsec.cast_unsigned() / 1_000_000
}

/// Sockets for a sweeper, opened in the namespace of the calling thread.
pub(crate) fn open_sockets() -> Result<[Arc<Socket>; 2], Error> {
    let open = || {
        Socket::open().map(Arc::new).map_err(Error::system("open a netlink socket for the sweep"))
    };
    Ok([open()?, open()?])
}
