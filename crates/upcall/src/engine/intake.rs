//! What is made of a datagram: its upcalls, each found well-formed and claimed for its flow.

use netlink_io::Datagram;
use ovs_wire::WireError;
use ovs_wire::key::{FlowKey, KeySummary};
use ovs_wire::nl::{NlMsg, NlMsgs};
use ovs_wire::packet;
use upcall_core::{Claim, Gather, Late, PortTally, Waiting};

use super::Engine;
use super::plan::Plan;
use crate::Upcall;
use crate::deferred::Later;
use crate::shared::Shared;
use crate::sources::Registered;

/// A datagram's reading.
pub(super) struct Reading<'a> {
    pub(super) entry: &'a Registered,
    /// Its number among the socket's.
    pub(super) read: u64,
    /// Where installs wait; `None` if another worker's socket was read.
    pub(super) plan: Option<&'a mut Plan>,
    /// Upcalls wait for any worker even if they could be handled at once.
    pub(super) defer: bool,
    /// Where the storm shield of its socket counts upcalls by port, if it has one.
    pub(super) tally: Option<&'a mut PortTally>,
    /// What it is part of, if it was taken because of another upcall.
    pub(super) gather: Option<&'a Gather>,
}

impl<'a> Reading<'a> {
    /// An upcall of it, for the lanes.
    pub(super) fn late(&self, shared: &Shared, message: &'a [u8], upcall: &Upcall<'_>) -> Late<'a> {
        Late {
            message,
            flow: upcall.flow,
            source: self.entry.id,
            read: self.read,
            port: upcall.in_port().unwrap_or(u32::MAX),
            class: shared.class(upcall.wire),
            ahead: self.plan.is_none(),
            gather: self.gather,
            defer: self.defer,
        }
    }
}

impl Engine {
    pub(super) fn datagram(&mut self, mut reading: Reading<'_>, datagram: Datagram, buf: &[u8]) {
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
                Ok(msg) => self.message(&mut reading, &msg),
                Err(err) => self.malformed(&err),
            }
        }
    }

    fn message(&mut self, reading: &mut Reading<'_>, msg: &NlMsg<'_>) {
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
        let key = match FlowKey::new(upcall.key).summary() {
            Ok(key) => key,
            Err(err) => return self.malformed(&err),
        };
        if let (Some(tally), Some(port)) = (&mut reading.tally, key.in_port) {
            tally.count(port);
        }
        if self.exceeds_rate(&key, &upcall) {
            return;
        }
        let flow = self.shared.lane_key.hash(&key, &upcall);
        self.other_flows += usize::from(*self.first_flow.get_or_insert(flow) != flow);
        let (lane, claim) = self.shared.lanes.claim(flow, reading.entry.id, self.tick);
        let waits = reading.defer || claim == Claim::Wait;
        let upcall = Upcall { wire: &upcall, key: &key, flow, port_id: reading.entry.port_id() };
        if !waits || self.place(reading, msg.payload, &upcall) {
            let hopped = waits || lane.hopped();
            let plan = reading.plan.as_deref_mut().filter(|_| !hopped);
            if let Some(later) = self.decide(plan, &upcall) {
                self.detain(&reading.late(&self.shared, msg.payload, &upcall), later);
            }
        }
    }

    /// Has its port had as many as it may? Then it is shed.
    fn exceeds_rate(&self, key: &KeySummary, upcall: &packet::Upcall<'_>) -> bool {
        let Some(police) = &self.police else { return false };
        let port = key.in_port.unwrap_or(u32::MAX);
        if police.admit(port, self.shared.class(upcall), self.now_us) {
            return false;
        }
        self.ledger.shed_for(&self.ledger.shed_rate);
        self.shared.sheds.count(port, |port| &mut port.rate);
        true
    }

    /// Handles an upcall that waited. It was found well-formed when it was read. Gives what the
    /// handler answers later.
    pub(super) fn waited(&mut self, waiting: &Waiting) -> Option<Later> {
        let read = packet::Upcall::parse(&waiting.message)
            .and_then(|wire| Ok((wire, FlowKey::new(wire.key).summary()?)));
        let (wire, key) = match read {
            Ok(read) => read,
            Err(err) => {
                self.malformed(&err);
                return None;
            }
        };
        let port_id = self.shared.sources.get(waiting.source).map_or(0, |s| s.port_id());
        let flow = self.shared.lane_key.hash(&key, &wire);
        let upcall = Upcall { wire: &wire, key: &key, flow, port_id };
        if let Some(ticket) = waiting.answered() {
            self.answered(ticket, &upcall);
            return None;
        }
        let waited_us = self.now_us.saturating_sub(waiting.since_us);
        self.ledger.latency.queued_lane.record(waited_us * 1_000);
        self.decide(None, &upcall)
    }

    fn malformed(&self, err: &WireError) {
        self.ledger.malformed.add(1);
        tracing::debug!(%err, "malformed upcall");
    }
}
