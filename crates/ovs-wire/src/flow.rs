//! The `ovs_flow` family (`OVS_FLOW_CMD_*`, `OVS_FLOW_ATTR_*`).

use crate::attr::Attrs;
pub use crate::nl::object_cmd as cmd;
use crate::nl::{NLM_F_DUMP, OvsHeader, write_message};
use crate::{AttrBuilder, WireError};

/// Family name and multicast group name.
pub const FAMILY: &str = "ovs_flow";
/// Version of the family's protocol.
pub const VERSION: u8 = 1;

/// Attributes.
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod attr {
    pub const KEY: u16 = 1;
    pub const ACTIONS: u16 = 2;
    pub const STATS: u16 = 3;
    pub const TCP_FLAGS: u16 = 4;
    pub const USED: u16 = 5;
    pub const CLEAR: u16 = 6;
    pub const MASK: u16 = 7;
    pub const PROBE: u16 = 8;
    pub const UFID: u16 = 9;
    pub const UFID_FLAGS: u16 = 10;
}

/// What the kernel leaves out of a flow that it describes (`OVS_UFID_F_OMIT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Omit {
    /// Nothing.
    #[default]
    Nothing,
    /// Key, mask and actions: identity, counters and times are left. A flow without a unique id is
    /// identified by its key, which is there in any case.
    Terse,
}

impl Omit {
    fn fill(self, b: &mut AttrBuilder<'_>) {
        if self == Self::Terse {
            b.u32(attr::UFID_FLAGS, 0b111);
        }
    }
}

/// `struct ovs_flow_stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowStats {
    /// Packets that matched.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A flow as the kernel describes it, its parts borrowed from the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow<'a> {
    /// The datapath.
    pub dp_ifindex: i32,
    /// Encoded key.
    pub key: &'a [u8],
    /// Encoded mask; empty if the flow matches exactly.
    pub mask: &'a [u8],
    /// Encoded actions; empty drops.
    pub actions: &'a [u8],
    /// Counters; absent while they are zero.
    pub stats: FlowStats,
    /// TCP flags seen, or-ed.
    pub tcp_flags: u8,
    /// When a packet last matched, in milliseconds of `CLOCK_MONOTONIC`; absent if none has.
    pub used_ms: Option<u64>,
    /// Unique id, if the flow was installed with one.
    pub ufid: Option<&'a [u8]>,
}

impl<'a> Flow<'a> {
    /// Reads a reply or notification: a message's payload. Gives its command too.
    pub fn parse(payload: &'a [u8]) -> Result<(u8, Self), WireError> {
        let (header, attrs) = OvsHeader::split(payload)?;
        let mut flow = Self { dp_ifindex: header.dp_ifindex, ..Self::default() };
        for attr in Attrs::new(attrs) {
            let attr = attr?;
            match attr.kind {
                attr::KEY => flow.key = attr.payload,
                attr::MASK => flow.mask = attr.payload,
                attr::ACTIONS => flow.actions = attr.payload,
                attr::STATS => flow.stats = read_stats(attr.array("flow STATS")?),
                attr::TCP_FLAGS => flow.tcp_flags = attr.u8("flow TCP_FLAGS")?,
                attr::USED => flow.used_ms = Some(attr.u64("flow USED")?),
                attr::UFID => flow.ufid = Some(attr.payload),
                _ => {}
            }
        }
        Ok((header.cmd, flow))
    }
}

fn read_stats(b: [u8; 16]) -> FlowStats {
    let half = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| b[at + i]));
    FlowStats { packets: half(0), bytes: half(8) }
}

/// A flow to be installed (`OVS_FLOW_CMD_NEW` without create or exclusive flags: it is created, or
/// the actions of the flow with this key are replaced).
#[derive(Debug, Clone, Copy)]
pub struct FlowPut<'a> {
    /// The datapath.
    pub dp_ifindex: i32,
    /// The upcall's key, echoed.
    pub key: &'a [u8],
    /// Encoded mask; `None` matches the key exactly.
    pub mask: Option<&'a [u8]>,
    /// Encoded actions; none drops.
    pub actions: &'a [u8],
    /// Only ask whether the kernel would take it: no logging there. The flow is installed
    /// nevertheless and must be deleted.
    pub probe: bool,
    /// Unique id, 1 to 16 bytes: from then on the flow is found and deleted by that, and not by its key.
    /// Without one the kernel keeps a copy of the key as it was sent.
    pub ufid: Option<&'a [u8]>,
}

impl FlowPut<'_> {
    /// Appends the whole message to a datagram; `family` is the flow family's id. Success is not
    /// acknowledged unless `flags` ask for it; an error reply repeats `seq`.
    pub fn write(
        &self,
        buf: &mut Vec<u8>,
        family: u16,
        flags: u16,
        seq: u32,
    ) -> Result<(), WireError> {
        let header = OvsHeader { cmd: cmd::NEW, version: VERSION, dp_ifindex: self.dp_ifindex };
        write_message(buf, family, flags, seq, header, |b| self.fill(b))
    }

    /// The payload of such a message.
    pub fn write_payload(&self, buf: &mut Vec<u8>) -> Result<(), WireError> {
        let header = OvsHeader { cmd: cmd::NEW, version: VERSION, dp_ifindex: self.dp_ifindex };
        header.write(buf, |b| self.fill(b))
    }

    fn fill(&self, b: &mut AttrBuilder<'_>) {
        b.bytes(attr::KEY, self.key);
        if let Some(mask) = self.mask {
            b.bytes(attr::MASK, mask);
        }
        b.bytes(attr::ACTIONS, self.actions);
        if self.probe {
            b.flag(attr::PROBE);
        }
        if let Some(ufid) = self.ufid {
            b.bytes(attr::UFID, ufid);
        }
    }
}

/// Appends a request for all flows of a datapath to a datagram.
pub fn write_dump(
    buf: &mut Vec<u8>,
    (family, seq): (u16, u32),
    dp_ifindex: i32,
    omit: Omit,
) -> Result<(), WireError> {
    let header = OvsHeader { cmd: cmd::GET, version: VERSION, dp_ifindex };
    write_message(buf, family, NLM_F_DUMP, seq, header, |b| omit.fill(b))
}

/// Appends a request to delete a flow, which is found by its unique id if it has one, else by its key. With
/// [`NLM_F_ECHO`](crate::nl::NLM_F_ECHO) in `flags` the reply is the flow as it was at its end.
pub fn write_delete(
    buf: &mut Vec<u8>,
    (family, flags, seq): (u16, u16, u32),
    flow: &Flow<'_>,
) -> Result<(), WireError> {
    let header = OvsHeader { cmd: cmd::DEL, version: VERSION, dp_ifindex: flow.dp_ifindex };
    write_message(buf, family, flags, seq, header, |b| match flow.ufid {
        Some(ufid) => drop(b.bytes(attr::UFID, ufid)),
        None => drop(b.bytes(attr::KEY, flow.key)),
    })
}

/// Payload of a request about the flow with `key`: `cmd::GET` or `cmd::DEL`. `None` with GET as a
/// dump lists all flows; `None` with DEL deletes all flows.
pub fn write_by_key(
    buf: &mut Vec<u8>,
    cmd: u8,
    dp_ifindex: i32,
    key: Option<&[u8]>,
) -> Result<(), WireError> {
    OvsHeader { cmd, version: VERSION, dp_ifindex }.write(buf, |b| {
        if let Some(key) = key {
            b.bytes(attr::KEY, key);
        }
    })
}

/// Payload of a request about the flow with this unique id (1 to 16 bytes).
pub fn write_by_ufid(
    buf: &mut Vec<u8>,
    cmd: u8,
    dp_ifindex: i32,
    ufid: &[u8],
) -> Result<(), WireError> {
    OvsHeader { cmd, version: VERSION, dp_ifindex }.write(buf, |b| {
        b.bytes(attr::UFID, ufid);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_dumped_flow() {
        let mut buf = Vec::new();
        OvsHeader { cmd: cmd::NEW, version: VERSION, dp_ifindex: 6 }
            .write(&mut buf, |b| {
                b.bytes(attr::KEY, &[1; 8]).bytes(attr::ACTIONS, &[2; 4]).u64(attr::USED, 1234);
                b.bytes(attr::STATS, &[3u64.to_ne_bytes(), 180u64.to_ne_bytes()].concat());
                b.u8(attr::TCP_FLAGS, 2).bytes(attr::MASK, &[5; 8]);
            })
            .unwrap();
        let (_, flow) = Flow::parse(&buf).unwrap();
        assert_eq!(flow.stats, FlowStats { packets: 3, bytes: 180 });
        assert_eq!((flow.used_ms, flow.tcp_flags, flow.mask.len()), (Some(1234), 2, 8));
    }

    #[test]
    fn a_put_without_a_mask_has_none() {
        let put = FlowPut {
            dp_ifindex: 1,
            key: &[0; 4],
            mask: None,
            actions: &[],
            probe: true,
            ufid: None,
        };
        let kinds = |put: FlowPut<'_>| {
            let mut buf = Vec::new();
            put.write_payload(&mut buf).unwrap();
            let (_, attrs) = OvsHeader::split(&buf).unwrap();
            Attrs::new(attrs).map(|a| a.unwrap().kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(put), [attr::KEY, attr::ACTIONS, attr::PROBE]);
        let put = FlowPut { mask: Some(&[0; 4]), ufid: Some(&[7; 16]), probe: false, ..put };
        assert_eq!(kinds(put), [attr::KEY, attr::MASK, attr::ACTIONS, attr::UFID]);
    }

    #[test]
    fn a_flow_is_deleted_by_its_id_if_it_has_one() {
        let flow = Flow { dp_ifindex: 1, key: &[1; 8], ..Flow::default() };
        for (flow, kind) in [(flow, attr::KEY), (Flow { ufid: Some(&[7; 16]), ..flow }, attr::UFID)]
        {
            let mut buf = Vec::new();
            write_delete(&mut buf, (30, 0, 2), &flow).unwrap();
            let message = crate::nl::NlMsgs::new(&buf).next().unwrap().unwrap();
            let (header, attrs) = OvsHeader::split(message.payload).unwrap();
            let kinds: Vec<_> = Attrs::new(attrs).map(|a| a.unwrap().kind).collect();
            assert_eq!((header.cmd, kinds.as_slice()), (cmd::DEL, [kind].as_slice()));
        }
    }

    #[test]
    fn statistics_of_a_wrong_length_are_refused() {
        let mut buf = Vec::new();
        OvsHeader { cmd: 1, version: 1, dp_ifindex: 1 }
            .write(&mut buf, |b| {
                b.bytes(attr::STATS, &[0; 15]);
            })
            .unwrap();
        assert!(matches!(Flow::parse(&buf), Err(WireError::Length { what: "flow STATS", .. })));
    }
}
