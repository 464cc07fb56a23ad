//! The few bytes of the ABI that the floor needs, read and written without any check: what a message of
//! the kernel has at least, and where.

const PACKET: u16 = 1;
const KEY: u16 = 2;
const ACTIONS: u16 = 3;
const HASH: u16 = 11;
const KEY_IN_PORT: u16 = 3;
const ACTION_OUTPUT: u16 = 1;
const FLOW_KEY: u16 = 1;
const FLOW_ACTIONS: u16 = 2;

/// `nlmsghdr`, `genlmsghdr` and `ovs_header`.
const HEADERS: usize = 24;
const NLM_F_REQUEST: u16 = 1;
const CMD_EXECUTE: u8 = 3;
const CMD_FLOW_NEW: u8 = 1;

/// What of an upcall is answered.
pub(crate) struct Upcall<'a> {
    key: &'a [u8],
    packet: &'a [u8],
    hash: &'a [u8],
    pub(crate) in_port: u32,
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = rest.first_chunk::<4>()?;
        let len = u16::from_ne_bytes([head[0], head[1]]) as usize;
        let value = rest.get(4..len)?;
        rest = rest.get((len + 3) & !3..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]), value))
    })
}

impl<'a> Upcall<'a> {
    pub(crate) fn read(message: &'a [u8]) -> Self {
        let mut upcall = Self { key: &[], packet: &[], hash: &[], in_port: 0 };
        for (kind, value) in attributes(message.get(HEADERS..).unwrap_or_default()) {
            match kind {
                PACKET => upcall.packet = value,
                KEY => upcall.key = value,
                HASH => upcall.hash = value,
                _ => {}
            }
        }
        let port = attributes(upcall.key).find(|(kind, _)| *kind == KEY_IN_PORT);
        if let Some((_, &[a, b, c, d])) = port {
            upcall.in_port = u32::from_ne_bytes([a, b, c, d]);
        }
        upcall
    }
}

/// Where answers go.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) packet_family: u16,
    pub(crate) flow_family: u16,
    pub(crate) dp_ifindex: i32,
}

impl Target {
    /// Appends an EXECUTE that sends the packet to `port`. Its key names the input port alone: the kernel
    /// reads the headers from the packet, and takes an absent attribute of the metadata for zero
    /// (`ovs_flow_key_extract_userspace`, `net/openvswitch/flow.c`), which saves it a tenth of the work.
    pub(crate) fn execute(self, out: &mut Vec<u8>, upcall: &Upcall<'_>, port: u32) {
        self.message(out, self.packet_family, CMD_EXECUTE, |out| {
            attribute(out, PACKET, upcall.packet);
            attribute(out, KEY, &word(KEY_IN_PORT, upcall.in_port));
            attribute(out, ACTIONS, &word(ACTION_OUTPUT, port));
            attribute(out, HASH, upcall.hash);
        });
    }

    /// Appends a flow with exactly this key.
    pub(crate) fn install(self, out: &mut Vec<u8>, upcall: &Upcall<'_>, port: u32) {
        self.message(out, self.flow_family, CMD_FLOW_NEW, |out| {
            attribute(out, FLOW_KEY, upcall.key);
            attribute(out, FLOW_ACTIONS, &word(ACTION_OUTPUT, port));
        });
    }

    fn message(self, out: &mut Vec<u8>, family: u16, cmd: u8, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        let mut head = [0; HEADERS];
        head[4..6].copy_from_slice(&family.to_ne_bytes());
        head[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        head[16..18].copy_from_slice(&[cmd, 1]);
        head[20..24].copy_from_slice(&self.dp_ifindex.to_ne_bytes());
        out.extend_from_slice(&head);
        fill(out);
        let len = (out.len() - start) as u32;
        out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }
}

/// A nest of one attribute, a host-endian u32: an action list, or a key.
fn word(kind: u16, value: u32) -> [u8; 8] {
    let [k0, k1] = kind.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    [8, 0, k0, k1, v0, v1, v2, v3]
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize((out.len() + 3) & !3, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_wire::nl::{NlMsgs, OvsHeader};
    use ovs_wire::{AttrBuilder, packet};

    /// What the floor writes, the product's parser reads: they share no code.
    #[test]
    fn an_answer_is_what_the_kernel_expects() {
        let mut message = vec![0; HEADERS];
        let key = [8, 0, 3, 0, 7, 0, 0, 0];
        let mut attrs = AttrBuilder::new(&mut message);
        attrs.bytes(KEY, &key).u64(HASH, 9).bytes(PACKET, &[5; 61]);
        let upcall = Upcall::read(&message);
        assert_eq!((upcall.in_port, upcall.packet.len()), (7, 61));
        let mut out = Vec::new();
        let target = Target { packet_family: 31, flow_family: 32, dp_ifindex: 4 };
        target.execute(&mut out, &upcall, 2);
        target.install(&mut out, &upcall, 2);
        let all: Vec<_> = NlMsgs::new(&out).map(Result::unwrap).collect();
        assert_eq!(all.iter().map(|msg| msg.kind).collect::<Vec<_>>(), [31, 32]);
        let (header, attrs) = OvsHeader::split(all[0].payload).unwrap();
        assert_eq!((header.cmd, header.dp_ifindex), (packet::cmd::EXECUTE, 4));
        let kinds: Vec<_> = ovs_wire::Attrs::new(attrs).map(|a| a.unwrap().kind).collect();
        assert_eq!(kinds, [PACKET, KEY, ACTIONS, HASH]);
    }
}
