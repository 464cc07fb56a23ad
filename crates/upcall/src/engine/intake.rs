//! What is made of a datagram: its upcalls, each found well-formed and claimed for its flow.

use netlink_io::{Alike, Datagram};
use ovs_wire::WireError;
use ovs_wire::key::{FlowKey, KeySummary, kind};
use ovs_wire::nl::{NlMsg, NlMsgs};
use ovs_wire::packet;
use upcall_core::{Claim, Gather, Lane, Late, PortTally, Tick, Waiting};

use super::Engine;
use super::plan::Plan;
use crate::Upcall;
use crate::deferred::Later;
use crate::shared::Shared;
use crate::sources::{Registered, Sent, Taken};

/// Where an upcall's key begins, as an attribute: it is the first one (`queue_userspace_packet`,
/// `net/openvswitch/datapath.c`), behind a netlink header (`struct nlmsghdr`), a generic-netlink header and an OVS
/// header.
const KEY_AT: u16 = 16 + 4 + 4;
/// Packets of a flow have the same key, as a rule, so far: behind that are a TCP packet's flags, if it is of no
/// tunnel and no VLAN. With one, some flows look like others: that costs a look into a socket.
const KEY_MAX: u16 = 132;

/// Upcalls that may be of one flow; by their port, the storm shield samples them.
pub(crate) const ALIKE: Alike = Alike { at: KEY_AT, max: KEY_MAX, word: kind::IN_PORT };

/// A datagram's reading.
pub(super) struct Reading<'a> {
    pub(super) entry: &'a Registered,
    pub(super) taken: Taken,
    /// Where installs wait; `None` if another worker's socket was read.
    pub(super) plan: Option<&'a mut Plan>,
    /// Was something in other sockets a moment ago?
    pub(super) others_hold: bool,
    /// May older packets of the upcall at hand's flow be in other sockets?
    pub(super) in_doubt: bool,
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
            read: self.taken.read,
            sent_ns: self.entry.sent_ns(self.taken),
            port: upcall.in_port().unwrap_or(u32::MAX),
            class: shared.class(upcall.wire),
            ahead: self.plan.is_none(),
            gather: self.gather,
            in_doubt: self.in_doubt,
            defer: self.defer,
        }
    }

    /// Claims the lane of an upcall of it, whose packets all have this key, if there is one.
    fn claim(
        &mut self,
        shared: &Shared,
        key: Option<&[u8]>,
        flow: u64,
        now: Tick,
    ) -> (Lane, Claim) {
        // What is part of a gather was looked for already.
        let is_first =
            || self.gather.is_some() || shared.sources.is_first(self.entry, self.taken, key);
        let mut is_known = true;
        let is_first_of_new = || {
            is_known = false;
            is_first()
        };
        let (lane, mut claim) = shared.lanes.claim(flow, self.entry.id, now, is_first_of_new);
        // The flow may have been elsewhere and be back. Without a key anything would be taken for it.
        let may_be_back = is_known && self.others_hold && key.is_some();
        if may_be_back && claim == Claim::Run && !is_first() {
            claim = Claim::Doubt;
        }
        self.in_doubt = claim == Claim::Doubt;
        (lane, claim)
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
        let one_key = self.shared.lane_key.is_one_key(&key).then_some(upcall.key);
        let (lane, claim) = reading.claim(&self.shared, one_key, flow, self.tick);
        let waits = reading.defer || claim != Claim::Run;
        let sent = Sent::To(reading.entry, reading.taken);
        let port_id = reading.entry.port_id();
        let upcall = Upcall { wire: &upcall, key: &key, flow, port_id, sent };
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
        let sent = Sent::At(waiting.sent_ns);
        let upcall = Upcall { wire: &wire, key: &key, flow, port_id, sent };
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

#[cfg(test)]
mod tests {
    use ovs_wire::AttrBuilder;
    use ovs_wire::key::{EthernetKey, Ipv4Key, KeyAttr, PortsKey};

    use super::*;

    #[test]
    fn what_makes_flows_alike_ends_between_ports_and_flags() {
        let mut key = Vec::new();
        let mut b = AttrBuilder::new(&mut key);
        // The order of `__ovs_nla_put_key`, `net/openvswitch/flow_netlink.c`.
        let upto_ports = [
            KeyAttr::RecircId(0),
            KeyAttr::DpHash(0),
            KeyAttr::Priority(0),
            KeyAttr::InPort(1),
            KeyAttr::SkbMark(0),
            KeyAttr::CtState(0),
            KeyAttr::CtZone(0),
            KeyAttr::CtMark(0),
            KeyAttr::CtLabels([0; 16]),
            KeyAttr::Ethernet(EthernetKey::from_bytes(&[0; 12])),
            KeyAttr::EtherType(0x0800),
            KeyAttr::Ipv4(Ipv4Key::from_bytes(&[0; 12])),
            KeyAttr::Tcp(PortsKey::from_bytes(&[0; 4])),
        ];
        for attr in upto_ports {
            attr.write(&mut b);
        }
        b.finish().unwrap();
        assert_eq!(usize::from(KEY_MAX), key.len());
        let mut message = Vec::new();
        let header = ovs_wire::nl::OvsHeader { cmd: 1, version: 1, dp_ifindex: 7 };
        ovs_wire::nl::write_message(&mut message, 30, 0, 0, header, |b| {
            b.bytes(1, &key);
        })
        .unwrap();
        assert_eq!(message[usize::from(ALIKE.at) + 4..], key);
    }
}
