//! The engine and a worker on sockets of somebody who plays the kernel: for `tests/bench` alone, with the
//! feature `bench`. Nothing in it is part of the API.

use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use netlink_io::Datagram;
use ovs_features::cpu;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use upcall_core::{Ledger, PortTally};

use crate::engine::{Engine, Source};
use crate::roam::Room;
use crate::shared::{Config, FlowLife, Shared};
use crate::sources::Carries;
use crate::worker::Worker;
use crate::{
    Error, Handler, InFlight, InstallPolicy, LaneBy, LedgerSnapshot, Limits, Port, Ports, Socket,
};

/// How long a worker may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What upcalls say of themselves.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    /// Index of the datapath.
    pub dp_ifindex: i32,
    /// Id of the packet family.
    pub packet_family: u16,
    /// Id of the flow family.
    pub flow_family: u16,
    /// Ports: from 1 on, so many.
    pub ports: u32,
}

/// Has the kernel tell when upcalls come to this socket, as a dispatcher does.
///
/// # Errors
///
/// What the kernel refuses.
pub fn record_arrivals(socket: &Socket) -> io::Result<()> {
    socket.record_arrivals(crate::engine::ALIKE)
}

/// A dispatcher's state without a datapath; it answers from its plans.
fn shared(
    ids: Ids,
    handler: impl Handler,
    install: InstallPolicy,
    limits: Limits,
) -> io::Result<Arc<Shared>> {
    let config = Config {
        dp_ifindex: ids.dp_ifindex,
        packet_family: ids.packet_family,
        flow_family: ids.flow_family,
        install,
        limits,
        answer_from_plan: true,
        lane_by: LaneBy::default(),
        sample_userdata: None,
        life: FlowLife { idle: Duration::MAX, hard: None, sweep_interval: Duration::MAX },
    };
    let shared = Shared::new(Box::new(handler), config, Arc::new(InFlight::create()?));
    let port = |number| Port { number, name: format!("p{number}") };
    shared.set_ports(Ports::new((1..=ids.ports).map(port).collect()));
    Ok(shared)
}

/// A socket's reader on the calling thread.
pub struct Reader {
    engine: Engine,
    source: Source,
    tally: PortTally,
    ledger: Arc<Ledger>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("ledger", &self.ledger.snapshot()).finish_non_exhaustive()
    }
}

impl Reader {
    /// A reader of `socket`, if there is one, that answers on `tx`.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn new(
        (ids, limits): (Ids, Limits),
        (handler, install): (impl Handler, InstallPolicy),
        (socket, tx): (Option<Arc<Socket>>, Arc<Socket>),
    ) -> io::Result<Self> {
        let shared = shared(ids, handler, install, limits)?;
        let source = Source::new(shared.sources.add(socket, Carries::AnyFlow)?, limits.install);
        let (ledger, slot) = (Arc::new(Ledger::default()), shared.in_flight.slot()?);
        let engine = Engine::new(shared, ledger.clone(), slot, tx);
        Ok(Self { engine, source, tally: PortTally::default(), ledger })
    }

    /// Reads its socket empty and answers, as a worker that was woken does.
    ///
    /// # Errors
    ///
    /// What receiving fails with.
    pub fn read_empty(&mut self) -> io::Result<()> {
        let entry = self.source.entry.clone();
        let recv = |buf: &mut [u8]| entry.socket().map_or(Ok(None), |socket| socket.recv(buf));
        while !self.round(recv)? {}
        Ok(())
    }

    /// Answers these datagrams as if they had been in the socket.
    ///
    /// # Errors
    ///
    /// None; for the sake of [`Reader::read_empty`].
    pub fn read(&mut self, datagrams: &[Vec<u8>]) -> io::Result<()> {
        let mut rest = datagrams.iter();
        while !self.round(|buf| {
            Ok(rest.next().map(|datagram| {
                buf[..datagram.len()].copy_from_slice(datagram);
                Datagram { len: datagram.len(), full_len: datagram.len() }
            }))
        })? {}
        Ok(())
    }

    /// `true` if nothing is left, neither upcalls nor installs.
    fn round(
        &mut self,
        recv: impl FnMut(&mut [u8]) -> io::Result<Option<Datagram>>,
    ) -> io::Result<bool> {
        let round = self.engine.round(&mut self.source, Some(&mut self.tally), recv)?;
        Ok(round.drained && self.source.is_settled())
    }

    /// Its counters.
    pub fn ledger(&self) -> LedgerSnapshot {
        self.ledger.snapshot()
    }
}

/// Worker threads, as a dispatcher has them.
pub struct Running {
    workers: Vec<Worker>,
    runtime: Runtime,
    /// Open as long as this lives.
    _gate: watch::Sender<bool>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("ledger", &self.ledger()).finish_non_exhaustive()
    }
}

impl Running {
    /// Starts a worker that reads `socket`, and others that help it: one for each of `tx`, which it answers on.
    /// They run on any CPU.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn start(
        (ids, limits): (Ids, Limits),
        (handler, install): (impl Handler, InstallPolicy),
        (socket, tx): (Arc<Socket>, Vec<Socket>),
    ) -> Result<Self, Error> {
        let shared = shared(ids, handler, install, limits).map_err(Error::system("prepare"))?;
        let gate = watch::Sender::new(true);
        let cpus = cpu::affinity(None).map_err(Error::system("read the affinity"))?;
        let room = Room { near: cpus.clone(), far: cpus };
        let start = |(number, tx)| {
            Worker::start((number, room.clone()), tx, shared.clone(), gate.subscribe())
        };
        let workers = tx.into_iter().enumerate().map(start).collect::<Result<Vec<_>, _>>()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::system("start a runtime"))?;
        runtime.block_on(workers[0].serve(socket, Carries::AnyFlow));
        Ok(Self { workers, runtime, _gate: gate })
    }

    /// Their counters, added up.
    pub fn ledger(&self) -> LedgerSnapshot {
        let mut sum = LedgerSnapshot::default();
        self.workers.iter().for_each(|worker| sum += worker.ledger().snapshot());
        sum
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for worker in &self.workers {
            assert!(self.runtime.block_on(worker.stop(STOP_LIMIT)), "a worker does not end");
        }
    }
}
