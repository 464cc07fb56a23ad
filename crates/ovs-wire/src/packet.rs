//! The `ovs_packet` family: upcalls from the kernel and packets back to it.

use crate::attr::{Attr, Attrs};
use crate::nl::{OvsHeader, write_message};
use crate::{AttrBuilder, WireError};

/// Family name. It has no multicast group: upcalls are sent to one socket.
pub const FAMILY: &str = "ovs_packet";
/// Version of the family's protocol.
pub const VERSION: u8 = 1;

/// Commands.
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod cmd {
    pub const MISS: u8 = 1;
    pub const ACTION: u8 = 2;
    pub const EXECUTE: u8 = 3;
}

/// Attributes.
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod attr {
    pub const PACKET: u16 = 1;
    pub const KEY: u16 = 2;
    pub const ACTIONS: u16 = 3;
    pub const USERDATA: u16 = 4;
    pub const EGRESS_TUN_KEY: u16 = 5;
    pub const PROBE: u16 = 8;
    pub const MRU: u16 = 9;
    pub const LEN: u16 = 10;
    pub const HASH: u16 = 11;
    pub const UPCALL_PID: u16 = 12;
}

/// Shortest packet the kernel sends up or takes back, in bytes: an Ethernet header.
pub const PACKET_LEN_MIN: usize = 14;

/// Why the kernel sent the packet up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpcallKind {
    /// No flow matched it.
    Miss,
    /// A flow's userspace action asked for it.
    Action,
}

/// An upcall, its parts borrowed from the datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upcall<'a> {
    /// Miss or action.
    pub kind: UpcallKind,
    /// The datapath.
    pub dp_ifindex: i32,
    /// The flow key, encoded; as the packet is now, after the actions before this one.
    pub key: &'a [u8],
    /// The packet from its Ethernet header on; VLAN tags are in it.
    pub packet: &'a [u8],
    /// The userspace action's cookie.
    pub userdata: Option<&'a [u8]>,
    /// Tunnel the packet would leave by, encoded, if the action asked for it.
    pub egress_tun_key: Option<&'a [u8]>,
    /// The flow's actions, encoded, if the action asked for them.
    pub actions: Option<&'a [u8]>,
    /// Largest fragment the packet was made of, in bytes, if it was reassembled.
    pub mru: Option<u16>,
    /// Length of the packet before it was truncated, in bytes, if it was.
    pub len: Option<u32>,
    /// Receive hash: low 32 bits the hash, bit 32 computed in software, bit 33 over ports too.
    /// Since 5.5.
    pub hash: Option<u64>,
}

/// What an upcall's attributes must look like (`queue_userspace_packet`,
/// `net/openvswitch/datapath.c`); the index is the attribute's type.
const POLICY: [Option<Policy>; 13] = {
    let mut table = [None; 13];
    table[attr::PACKET as usize] = Some(Policy { what: "PACKET", min: PACKET_LEN_MIN });
    table[attr::KEY as usize] = Some(Policy { what: "KEY", min: 0 });
    table[attr::ACTIONS as usize] = Some(Policy { what: "ACTIONS", min: 0 });
    table[attr::USERDATA as usize] = Some(Policy { what: "USERDATA", min: 0 });
    table[attr::EGRESS_TUN_KEY as usize] = Some(Policy { what: "EGRESS_TUN_KEY", min: 0 });
    table[attr::MRU as usize] = Some(Policy { what: "MRU", min: 2 });
    table[attr::LEN as usize] = Some(Policy { what: "LEN", min: 4 });
    table[attr::HASH as usize] = Some(Policy { what: "HASH", min: 8 });
    table
};

#[derive(Clone, Copy)]
struct Policy {
    what: &'static str,
    min: usize,
}

impl Policy {
    fn check(self, attr: &Attr<'_>, seen: bool) -> Result<(), WireError> {
        let (what, offset, have) = (self.what, attr.offset, attr.payload.len());
        if seen {
            return Err(WireError::Duplicate { what, offset });
        }
        if have < self.min {
            return Err(WireError::Length { what, offset, need: self.min, have });
        }
        Ok(())
    }
}

impl<'a> Upcall<'a> {
    /// Reads an upcall: the payload of a message of the packet family. Attributes may come in any
    /// order; unknown ones are passed over. Allocates nothing.
    pub fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let (header, attrs) = OvsHeader::split(payload)?;
        let kind = match header.cmd {
            cmd::MISS => UpcallKind::Miss,
            cmd::ACTION => UpcallKind::Action,
            _ => {
                return Err(WireError::Invalid {
                    what: "packet command",
                    offset: 0,
                    why: "is neither a miss nor an action upcall",
                });
            }
        };
        let mut upcall = Self {
            kind,
            dp_ifindex: header.dp_ifindex,
            key: &[],
            packet: &[],
            userdata: None,
            egress_tun_key: None,
            actions: None,
            mru: None,
            len: None,
            hash: None,
        };
        let seen = upcall.read(attrs)?;
        for (kind, what) in [(attr::PACKET, "PACKET"), (attr::KEY, "KEY")] {
            if seen & (1 << kind) == 0 {
                return Err(WireError::Missing { what });
            }
        }
        Ok(upcall)
    }

    /// Takes the attributes; gives the set of types seen.
    fn read(&mut self, attrs: &'a [u8]) -> Result<u32, WireError> {
        let mut seen = 0u32;
        let mut attrs = Attrs::new(attrs);
        while let Some((kind, payload)) = attrs.step() {
            let Some(Some(policy)) = POLICY.get(kind as usize) else { continue };
            let attr = Attr { kind, payload, offset: attrs.offset(payload) };
            policy.check(&attr, seen & (1 << attr.kind) != 0)?;
            seen |= 1 << attr.kind;
            match attr.kind {
                attr::PACKET => self.packet = attr.payload,
                attr::KEY => self.key = attr.payload,
                attr::ACTIONS => self.actions = Some(attr.payload),
                attr::USERDATA => self.userdata = Some(attr.payload),
                attr::EGRESS_TUN_KEY => self.egress_tun_key = Some(attr.payload),
                attr::MRU => self.mru = Some(attr.u16("MRU")?),
                attr::LEN => self.len = Some(attr.u32("LEN")?),
                attr::HASH => self.hash = Some(attr.u64("HASH")?),
                _ => {}
            }
        }
        attrs.check()?;
        Ok(seen)
    }

    /// Was the packet cut by a truncate action before it came up?
    pub fn is_truncated(&self) -> bool {
        self.len.is_some_and(|len| len as usize > self.packet.len())
    }
}

/// A packet to be given back to the datapath with actions to apply (`OVS_PACKET_CMD_EXECUTE`).
///
/// The kernel parses the packet's headers itself and takes only metadata (input port, mark, tunnel,
/// connection tracking, recirculation) from the key.
#[derive(Debug, Clone, Copy)]
pub struct Execute<'a> {
    /// The datapath.
    pub dp_ifindex: i32,
    /// The packet from its Ethernet header on.
    pub packet: &'a [u8],
    /// The upcall's key, echoed.
    pub key: &'a [u8],
    /// Encoded actions; none drops the packet.
    pub actions: &'a [u8],
    /// The upcall's MRU, echoed: a reassembled packet must be fragmented as it came.
    pub mru: Option<u16>,
    /// The upcall's hash, echoed: later hash-based choices stay with the flow.
    pub hash: Option<u64>,
    /// Socket for upcalls that the actions cause; kernels before 6.17 ignore it.
    pub upcall_pid: Option<u32>,
}

impl<'a> Execute<'a> {
    /// The upcall's packet with `actions`, and all that O4 of the contract echoes.
    pub fn reply(upcall: &Upcall<'a>, actions: &'a [u8], upcall_pid: u32) -> Self {
        Self {
            dp_ifindex: upcall.dp_ifindex,
            packet: upcall.packet,
            key: upcall.key,
            actions,
            mru: upcall.mru,
            hash: upcall.hash,
            upcall_pid: Some(upcall_pid),
        }
    }

    /// Appends the whole message to a datagram; `family` is the packet family's id. Success is not
    /// acknowledged, an error reply repeats `seq`.
    pub fn write(&self, buf: &mut Vec<u8>, family: u16, seq: u32) -> Result<(), WireError> {
        let header = OvsHeader { cmd: cmd::EXECUTE, version: VERSION, dp_ifindex: self.dp_ifindex };
        write_message(buf, family, 0, seq, header, |b| self.fill(b))
    }

    /// Writes the attributes alone.
    pub fn fill(&self, b: &mut AttrBuilder<'_>) {
        b.bytes(attr::PACKET, self.packet)
            .bytes(attr::KEY, self.key)
            .bytes(attr::ACTIONS, self.actions);
        if let Some(mru) = self.mru {
            b.u16(attr::MRU, mru);
        }
        if let Some(hash) = self.hash {
            b.u64(attr::HASH, hash);
        }
        if let Some(pid) = self.upcall_pid {
            b.u32(attr::UPCALL_PID, pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upcall(cmd: u8, fill: impl FnOnce(&mut AttrBuilder<'_>)) -> Vec<u8> {
        let mut buf = Vec::new();
        OvsHeader { cmd, version: VERSION, dp_ifindex: 4 }.write(&mut buf, fill).unwrap();
        buf
    }

    #[test]
    fn reads_a_miss_in_any_order() {
        let buf = upcall(cmd::MISS, |b| {
            b.bytes(attr::PACKET, &[7; 60])
                .u64(attr::HASH, 1 << 33)
                .flag(40)
                .bytes(attr::KEY, &[8, 0, 3, 0, 1, 0, 0, 0]);
        });
        let upcall = Upcall::parse(&buf).unwrap();
        assert_eq!((upcall.kind, upcall.dp_ifindex), (UpcallKind::Miss, 4));
        assert_eq!((upcall.packet.len(), upcall.key.len()), (60, 8));
        assert_eq!((upcall.hash, upcall.mru), (Some(1 << 33), None));
    }

    #[test]
    fn reads_a_truncated_action_upcall() {
        let buf = upcall(cmd::ACTION, |b| {
            b.bytes(attr::KEY, &[]).bytes(attr::USERDATA, &[1, 2]).u32(attr::LEN, 102);
            b.u16(attr::MRU, 1400).bytes(attr::PACKET, &[0; 20]);
        });
        let upcall = Upcall::parse(&buf).unwrap();
        assert_eq!(upcall.userdata, Some(&[1, 2][..]));
        assert_eq!((upcall.mru, upcall.len), (Some(1400), Some(102)));
        assert!(upcall.is_truncated());
    }

    #[test]
    fn names_what_is_wrong() {
        let missing = upcall(cmd::MISS, |b| {
            b.bytes(attr::KEY, &[]);
        });
        assert_eq!(Upcall::parse(&missing), Err(WireError::Missing { what: "PACKET" }));
        let short = upcall(cmd::MISS, |b| {
            b.bytes(attr::PACKET, &[0; 13]);
        });
        assert!(matches!(Upcall::parse(&short), Err(WireError::Length { what: "PACKET", .. })));
        let twice = upcall(cmd::MISS, |b| {
            b.bytes(attr::KEY, &[]).bytes(attr::KEY, &[]);
        });
        assert!(matches!(Upcall::parse(&twice), Err(WireError::Duplicate { what: "KEY", .. })));
        assert!(matches!(
            Upcall::parse(&upcall(cmd::EXECUTE, |_| {})),
            Err(WireError::Invalid { what: "packet command", .. })
        ));
    }

    #[test]
    fn execute_echoes_what_the_contract_names() {
        let buf = upcall(cmd::MISS, |b| {
            b.bytes(attr::KEY, &[4, 0, 1, 0]).u16(attr::MRU, 1400).u64(attr::HASH, 5);
            b.bytes(attr::PACKET, &[9; 14]);
        });
        let upcall = Upcall::parse(&buf).unwrap();
        let mut out = Vec::new();
        Execute::reply(&upcall, &[8, 0, 1, 0, 2, 0, 0, 0], 77).write(&mut out, 31, 9).unwrap();
        let msg = crate::nl::NlMsgs::new(&out).next().unwrap().unwrap();
        assert_eq!((msg.kind, msg.seq), (31, 9));
        let (header, attrs) = OvsHeader::split(msg.payload).unwrap();
        assert_eq!((header.cmd, header.dp_ifindex), (cmd::EXECUTE, 4));
        let kinds: Vec<_> = Attrs::new(attrs).map(|a| a.unwrap().kind).collect();
        assert_eq!(kinds, [1, 2, 3, 9, 11, 12]);
    }
}
