//! Netlink and generic-netlink framing: message headers, acknowledgements, extended acknowledgements.

use crate::attr::{Attrs, align};
use crate::{AttrBuilder, WireError};

/// Bytes of `struct nlmsghdr`.
pub const NLMSG_HDR_LEN: usize = 16;
/// Bytes of `struct genlmsghdr` and `struct ovs_header` together.
pub const OVS_HDR_LEN: usize = 8;
/// Message type of an acknowledgement or error.
pub const NLMSG_ERROR: u16 = 2;
/// Message type that ends a dump.
pub const NLMSG_DONE: u16 = 3;

/// Request flag: this is a request. Every message to the kernel has it.
pub const NLM_F_REQUEST: u16 = 0x1;
/// Request flag: acknowledge success too (errors are always reported).
pub const NLM_F_ACK: u16 = 0x4;
/// Request flag: send the notification of the change back as a reply.
pub const NLM_F_ECHO: u16 = 0x8;
/// Request flag: dump all objects.
pub const NLM_F_DUMP: u16 = 0x300;
/// Request flag: fail with `EEXIST` if the object exists.
pub const NLM_F_EXCL: u16 = 0x200;
/// Request flag: create the object.
pub const NLM_F_CREATE: u16 = 0x400;
/// Reply flag: extended-acknowledgement attributes follow.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// Reply flag: the request's payload is not repeated in the acknowledgement.
const NLM_F_CAPPED: u16 = 0x100;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation.
const EXT_ACK_MSG: u16 = 1;

/// Commands of the families that manage objects (`OVS_DP_CMD_*`, `OVS_VPORT_CMD_*`, `OVS_FLOW_CMD_*`),
/// which are numbered alike.
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod object_cmd {
    pub const NEW: u8 = 1;
    pub const DEL: u8 = 2;
    pub const GET: u8 = 3;
    pub const SET: u8 = 4;
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// One netlink message of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NlMsg<'a> {
    /// `nlmsg_type`: a family id, [`NLMSG_ERROR`] or [`NLMSG_DONE`].
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`; 0 in upcalls.
    pub seq: u32,
    /// `nlmsg_pid`: port id of the requester in replies and notifications; 0 in upcalls.
    pub portid: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// Iterates the messages of a datagram; ends after an error.
#[derive(Debug, Clone)]
pub struct NlMsgs<'a> {
    buf: &'a [u8],
    pos: usize,
}

impl<'a> NlMsgs<'a> {
    /// Iterates `datagram`.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self { buf: datagram, pos: 0 }
    }
}

impl<'a> Iterator for NlMsgs<'a> {
    type Item = Result<NlMsg<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.buf[self.pos..];
        if rest.is_empty() {
            return None;
        }
        let (what, offset, have) = ("netlink message", self.pos, rest.len());
        let len = if have < NLMSG_HDR_LEN { NLMSG_HDR_LEN } else { u32_at(rest, 0) as usize };
        if len < NLMSG_HDR_LEN || len > have {
            self.pos = self.buf.len();
            return Some(Err(WireError::Truncated {
                what,
                offset,
                need: len.max(NLMSG_HDR_LEN),
                have,
            }));
        }
        self.pos = (offset + align(len)).min(self.buf.len());
        Some(Ok(NlMsg {
            kind: u16_at(rest, 4),
            flags: u16_at(rest, 6),
            seq: u32_at(rest, 8),
            portid: u32_at(rest, 12),
            payload: &rest[NLMSG_HDR_LEN..len],
        }))
    }
}

/// The payload of an [`NLMSG_ERROR`] message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NlAck<'a> {
    /// Positive errno; 0 is an acknowledgement of success.
    pub errno: i32,
    /// The kernel's explanation, if it gave one.
    pub ext_ack: Option<&'a str>,
}

impl<'a> NlAck<'a> {
    /// Reads the acknowledgement in `msg`.
    pub fn parse(msg: &NlMsg<'a>) -> Result<Self, WireError> {
        let (what, p) = ("netlink error message", msg.payload);
        if p.len() < 4 {
            return Err(WireError::Truncated { what, offset: 0, need: 4, have: p.len() });
        }
        let errno = i32::from_ne_bytes([p[0], p[1], p[2], p[3]]).saturating_neg();
        Ok(Self { errno, ext_ack: Self::explanation(msg.flags, &p[4..]) })
    }

    /// The message attribute behind the repeated request header; anything odd there is no
    /// explanation, never an error: the errno is what counts.
    fn explanation(flags: u16, repeated: &'a [u8]) -> Option<&'a str> {
        if flags & NLM_F_ACK_TLVS == 0 || repeated.len() < NLMSG_HDR_LEN {
            return None;
        }
        let skip =
            if flags & NLM_F_CAPPED != 0 { NLMSG_HDR_LEN } else { u32_at(repeated, 0) as usize };
        let attrs = Attrs::new(repeated.get(align(skip)..)?);
        attrs.find(EXT_ACK_MSG).ok()??.str("ext_ack").ok()
    }
}

/// The generic-netlink header with Open vSwitch's own behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OvsHeader {
    /// Command of the family.
    pub cmd: u8,
    /// Version of the family's protocol.
    pub version: u8,
    /// Interface index of the datapath's local port; 0 if the datapath is named by an attribute.
    pub dp_ifindex: i32,
}

impl OvsHeader {
    /// Splits a message's payload into header and attributes.
    pub fn split(payload: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let Some((head, attrs)) = payload.split_first_chunk::<OVS_HDR_LEN>() else {
            return Err(WireError::Truncated {
                what: "generic netlink and datapath header",
                offset: 0,
                need: OVS_HDR_LEN,
                have: payload.len(),
            });
        };
        let [cmd, version, _, _, i0, i1, i2, i3] = *head;
        Ok((Self { cmd, version, dp_ifindex: i32::from_ne_bytes([i0, i1, i2, i3]) }, attrs))
    }

    /// Appends the header and the attributes that `fill` writes: a message without `nlmsghdr`.
    /// On an error `buf` is as it was.
    pub fn write(
        self,
        buf: &mut Vec<u8>,
        fill: impl FnOnce(&mut AttrBuilder<'_>),
    ) -> Result<(), WireError> {
        let start = buf.len();
        buf.extend([self.cmd, self.version, 0, 0]);
        buf.extend(self.dp_ifindex.to_ne_bytes());
        let mut attrs = AttrBuilder::new(buf);
        fill(&mut attrs);
        let done = attrs.finish();
        if done.is_err() {
            buf.truncate(start);
        }
        done
    }
}

/// Appends a whole message to a datagram under construction. On an error `buf` is as it was.
pub fn write_message(
    buf: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    seq: u32,
    header: OvsHeader,
    fill: impl FnOnce(&mut AttrBuilder<'_>),
) -> Result<(), WireError> {
    let start = buf.len();
    let mut netlink = [0u8; 16];
    netlink[4..6].copy_from_slice(&kind.to_ne_bytes());
    netlink[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    netlink[8..12].copy_from_slice(&seq.to_ne_bytes());
    buf.extend_from_slice(&netlink);
    if let Err(err) = header.write(buf, fill) {
        buf.truncate(start);
        return Err(err);
    }
    let len = (buf.len() - start) as u32;
    buf[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: OvsHeader = OvsHeader { cmd: 3, version: 1, dp_ifindex: 42 };

    #[test]
    fn two_messages_in_one_datagram_come_back() {
        let mut buf = Vec::new();
        for seq in [1, 2] {
            write_message(&mut buf, 30, NLM_F_ACK, seq, HEADER, |b| {
                b.u8(1, 9);
            })
            .unwrap();
        }
        let all: Vec<_> = NlMsgs::new(&buf).collect::<Result<_, _>>().unwrap();
        assert_eq!(all.iter().map(|m| m.seq).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(all[1].flags, NLM_F_REQUEST | NLM_F_ACK);
        let (header, attrs) = OvsHeader::split(all[1].payload).unwrap();
        assert_eq!(header, HEADER);
        assert_eq!(Attrs::new(attrs).find(1).unwrap().unwrap().payload, [9]);
    }

    #[test]
    fn a_message_that_does_not_fit_leaves_the_buffer_alone() {
        let mut buf = vec![0; 8];
        let err = write_message(&mut buf, 30, 0, 1, HEADER, |b| {
            b.bytes(1, &vec![0; 70_000]);
        });
        assert!(err.is_err());
        assert_eq!(buf.len(), 8);
    }

    #[test]
    fn reads_errno_and_explanation() {
        let mut payload = (-22i32).to_ne_bytes().to_vec();
        payload.extend([0; NLMSG_HDR_LEN]);
        AttrBuilder::new(&mut payload).str(EXT_ACK_MSG, "bad key");
        let msg = NlMsg {
            kind: NLMSG_ERROR,
            flags: NLM_F_CAPPED | NLM_F_ACK_TLVS,
            seq: 1,
            portid: 0,
            payload: &payload,
        };
        assert_eq!(NlAck::parse(&msg), Ok(NlAck { errno: 22, ext_ack: Some("bad key") }));
    }

    #[test]
    fn a_length_beyond_the_datagram_is_an_error() {
        let mut buf = vec![0; 20];
        buf[0] = 200;
        let err = NlMsgs::new(&buf).next().unwrap().unwrap_err();
        assert!(matches!(err, WireError::Truncated { need: 200, have: 20, .. }));
    }
}
