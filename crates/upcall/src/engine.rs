//! The way of one upcall, from datagram to batch, on the thread that read it.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use netlink_io::{Datagram, Socket};
use ovs_wire::flow::FlowPut;
use ovs_wire::key::FlowKey;
use ovs_wire::mask::MatchFields;
use ovs_wire::nl::{NlMsg, NlMsgs};
use ovs_wire::packet::{self, Execute, UpcallKind};
use ovs_wire::{AttrBuilder, WireError};
use upcall_core::{InstallPlan, Ledger, Offer};

use crate::batch::{Batch, Op};
use crate::shared::Shared;
use crate::{InstallPolicy, Upcall, Verdict};

/// Datagrams of one round: enough to spread a system call's cost, few enough that the other sockets
/// of the worker wait less than a millisecond.
const ROUND_MAX: usize = 64;
/// Bytes of a receive buffer: a packet attribute ends at 65,531 bytes, key and rest take under 2 KiB.
const DATAGRAM_MAX: usize = 72 << 10;

/// Everything a worker needs to handle upcalls. It never blocks and never waits.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    batch: Batch,
    verdict: Verdict,
    buf: Vec<u8>,
    mask: Vec<u8>,
    hasher: foldhash::quality::RandomState,
    started: Instant,
    now_us: u64,
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Round {
    /// Was the socket read empty?
    pub(crate) drained: bool,
    /// Datagrams read.
    pub(crate) received: usize,
}

/// What a socket's upcalls share beside the engine.
pub(crate) struct Source<'a> {
    /// Its port id, echoed in EXECUTE.
    pub(crate) port_id: u32,
    /// Its flows that wait to be installed.
    pub(crate) plan: &'a mut InstallPlan,
    /// The epoch of decisions that the plan's installs are from ([`Shared::epoch`]).
    pub(crate) epoch: &'a mut u64,
}

impl Engine {
    /// An engine that answers on `tx`.
    pub(crate) fn new(shared: Arc<Shared>, ledger: Arc<Ledger>, tx: Arc<Socket>) -> Self {
        Self {
            shared,
            ledger,
            batch: Batch::new(tx),
            verdict: Verdict::new(),
            buf: vec![0; DATAGRAM_MAX],
            mask: Vec::with_capacity(512),
            hasher: foldhash::quality::RandomState::default(),
            started: Instant::now(),
            now_us: 0,
        }
    }

    /// Limits of the plan of each socket.
    pub(crate) fn install_limits(&self) -> upcall_core::InstallLimits {
        self.shared.limits.install
    }

    /// Reads and handles up to a round of datagrams, then sends the answers, then the installs that
    /// are due.
    ///
    /// # Errors
    ///
    /// What `recv` fails with; everything read before is answered.
    pub(crate) fn round(
        &mut self,
        mut source: Source<'_>,
        mut recv: impl FnMut(&mut [u8]) -> io::Result<Option<Datagram>>,
    ) -> io::Result<Round> {
        self.now_us = self.started.elapsed().as_micros() as u64;
        self.verdict.ports = self.shared.ports.load_full();
        self.follow_epoch(&mut source);
        let mut buf = std::mem::take(&mut self.buf);
        let mut round = Round { drained: false, received: 0 };
        let mut failed = None;
        while round.received < ROUND_MAX {
            match recv(&mut buf) {
                Ok(Some(datagram)) => {
                    round.received += 1;
                    self.datagram(&mut source, datagram, &buf);
                }
                Ok(None) => {
                    round.drained = true;
                    break;
                }
                Err(err) => {
                    failed = Some(err);
                    break;
                }
            }
        }
        self.buf = buf;
        self.end_round(&mut source, round.drained);
        failed.map_or(Ok(round), Err)
    }

    fn end_round(&mut self, source: &mut Source<'_>, drained: bool) {
        self.follow_epoch(source);
        let (ledger, batch) = (&self.ledger, &mut self.batch);
        let end = source.plan.end_round(self.now_us, drained, |message| batch.put(ledger, message));
        ledger.install_deferrals.add(end.deferred);
        ledger.install_forced.add(end.forced);
        batch.flush(ledger);
    }

    /// Gives up installs that were decided before something was learned that may make them wrong.
    fn follow_epoch(&self, source: &mut Source<'_>) {
        let epoch = self.shared.epoch();
        if *source.epoch != epoch {
            *source.epoch = epoch;
            source.plan.clear();
        }
    }

    fn datagram(&mut self, source: &mut Source<'_>, datagram: Datagram, buf: &[u8]) {
        if datagram.is_truncated() {
            self.ledger.received.add(1);
            self.malformed(&WireError::Truncated {
                what: "upcall datagram",
                offset: 0,
                need: datagram.full_len,
                have: datagram.len,
            });
            return;
        }
        for msg in NlMsgs::new(&buf[..datagram.len]) {
            self.ledger.received.add(1);
            match msg {
                Ok(msg) => self.message(source, &msg),
                Err(err) => self.malformed(&err),
            }
        }
    }

    fn message(&mut self, source: &mut Source<'_>, msg: &NlMsg<'_>) {
        if msg.kind != self.shared.packet_family || msg.portid != 0 {
            return self.ledger.foreign.add(1);
        }
        let upcall = match packet::Upcall::parse(msg.payload) {
            Ok(upcall) => upcall,
            Err(err) => return self.malformed(&err),
        };
        if upcall.dp_ifindex != self.shared.dp_ifindex {
            return self.ledger.foreign.add(1);
        }
        match FlowKey::new(upcall.key).summary() {
            Ok(key) => self.decide(source, &Upcall { wire: &upcall, key: &key }),
            Err(err) => self.malformed(&err),
        }
    }

    fn malformed(&self, err: &WireError) {
        self.ledger.malformed.add(1);
        tracing::debug!(%err, "malformed upcall");
    }

    fn decide(&mut self, source: &mut Source<'_>, upcall: &Upcall<'_>) {
        self.verdict.clear();
        let (handler, verdict) = (&self.shared.handler, &mut self.verdict);
        if catch_unwind(AssertUnwindSafe(|| handler.upcall(upcall, verdict))).is_err() {
            self.ledger.shed.add(1);
            self.ledger.shed_handler_panic.add(1);
            return;
        }
        if self.verdict.revalidate {
            self.shared.revalidate();
        }
        self.execute(source.port_id, upcall.wire);
        if let Some(fields) = self.verdict.install
            && upcall.kind() == UpcallKind::Miss
            && self.knows(upcall.in_port())
        {
            self.install(source.plan, upcall.wire, fields);
        }
    }

    /// A verdict about a port that the handler was not told of yet is good for one packet alone.
    fn knows(&self, port: Option<u32>) -> bool {
        port.is_none_or(|number| self.verdict.ports.by_number(number).is_some())
    }

    fn execute(&mut self, port_id: u32, upcall: &packet::Upcall<'_>) {
        if self.verdict.actions.is_empty() {
            self.ledger.dropped.add(1);
            self.ledger.completed.add(1);
            return;
        }
        let execute = Execute::reply(upcall, self.verdict.actions.as_bytes(), port_id);
        let (seq, family) = (self.batch.seq(Op::Execute), self.shared.packet_family);
        let written = self.batch.execute(&self.ledger, |buf| execute.write(buf, family, seq));
        if let Err(err) = written {
            self.ledger.shed.add(1);
            self.ledger.shed_unwritable.add(1);
            tracing::debug!(%err, "a verdict cannot be written as a message");
        }
    }

    fn install(
        &mut self,
        plan: &mut InstallPlan,
        upcall: &packet::Upcall<'_>,
        fields: MatchFields,
    ) {
        let exact = match self.shared.install {
            InstallPolicy::Never => return,
            InstallPolicy::Exact => true,
            InstallPolicy::Wildcard => fields == MatchFields::EXACT,
        };
        match self.offer(plan, upcall, fields, exact) {
            Ok(Offer::Planned) => {}
            Ok(Offer::Duplicate) => self.ledger.duplicate_misses.add(1),
            Ok(Offer::Straggler) => self.ledger.install_stragglers.add(1),
            Ok(Offer::Full) => self.ledger.install_overflow.add(1),
            Err(NotInstalled::NoRoom) => self.ledger.flow_limit_hits.add(1),
            Err(NotInstalled::Unwritable(err)) => {
                tracing::debug!(%err, "a flow cannot be written as a message");
            }
        }
    }

    fn offer(
        &mut self,
        plan: &mut InstallPlan,
        upcall: &packet::Upcall<'_>,
        fields: MatchFields,
        exact: bool,
    ) -> Result<Offer, NotInstalled> {
        let key = FlowKey::new(upcall.key);
        let mut hasher = self.hasher.build_hasher();
        if exact {
            hasher.write(upcall.key);
        } else {
            key.hash_masked(fields, &mut hasher)?;
        }
        let (shared, mask, batch) = (&self.shared, &mut self.mask, &mut self.batch);
        let actions = self.verdict.actions.as_bytes();
        plan.offer(hasher.finish(), self.now_us, |buf| {
            if !shared.take_flow_room() {
                return Err(NotInstalled::NoRoom);
            }
            mask.clear();
            if !exact {
                key.write_mask(fields, &mut AttrBuilder::new(mask))?;
            }
            let put = FlowPut {
                dp_ifindex: upcall.dp_ifindex,
                key: upcall.key,
                mask: (!exact).then_some(mask.as_slice()),
                actions,
                probe: false,
            };
            Ok(put.write(buf, shared.flow_family, 0, batch.seq(Op::FlowPut))?)
        })
    }
}

/// Why no install was planned.
enum NotInstalled {
    NoRoom,
    Unwritable(WireError),
}

impl From<WireError> for NotInstalled {
    fn from(err: WireError) -> Self {
        Self::Unwritable(err)
    }
}

#[cfg(test)]
mod tests;
