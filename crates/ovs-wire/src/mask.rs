//! Masks: which parts of a key a flow matches.
//!
//! A handler says which [`MatchFields`] its decision looked at; [`FlowKey::write_mask`] writes the
//! attributes of the MASK that matches them, with what the kernel demands in addition
//! (`ovs_nla_get_match`, `match_validate`, `net/openvswitch/flow_netlink.c`):
//!
//! * the recirculation id, or the flow would catch packets of another stage,
//! * the Ethernet type for anything above it, the IP protocol for transport fields, and the fragment
//!   type, since later fragments have no transport header,
//! * on a tagged packet the tag protocol, the bit that says "tagged", the key's nesting, and the
//!   Ethernet type behind the tag: the kernel takes a nest whose mask is all zero for an absent one
//!   (`__parse_flow_nlattrs`), and refuses the tag without it,
//! * for an IEEE 802.2 frame, which has no Ethernet type in its key, the Ethernet type all the same.
//!
//! That untagged packets are untagged is matched by the kernel itself.

mod hash;
mod spans;
#[cfg(test)]
mod tests;
mod tunnel;

use crate::key::{FlowKey, KeyAttr, LAYOUT_MAX, VlanTci, kind};
use crate::{Attr, AttrBuilder, Attrs, WireError};

bitflags::bitflags! {
    /// Parts of a key. One flag may stand for several attributes: a port is TCP's, UDP's or SCTP's.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct MatchFields: u32 {
        /// Input port; also the absence of one.
        const IN_PORT = 1;
        /// Ethernet source address.
        const ETH_SRC = 1 << 1;
        /// Ethernet destination address.
        const ETH_DST = 1 << 2;
        /// Ethernet type behind VLAN headers; also the absence of one.
        const ETH_TYPE = 1 << 3;
        /// VLAN ids. Whether there is a tag, and its protocol, is always matched.
        const VLAN_VID = 1 << 4;
        /// VLAN priorities.
        const VLAN_PCP = 1 << 5;
        /// IPv4 or IPv6 source address.
        const IP_SRC = 1 << 6;
        /// IPv4 or IPv6 destination address.
        const IP_DST = 1 << 7;
        /// IP protocol.
        const IP_PROTO = 1 << 8;
        /// IPv4 type of service, IPv6 traffic class.
        const IP_TOS = 1 << 9;
        /// IPv4 time to live, IPv6 hop limit.
        const IP_TTL = 1 << 10;
        /// IP fragment type.
        const IP_FRAG = 1 << 11;
        /// TCP, UDP or SCTP source port, ICMP type.
        const TP_SRC = 1 << 12;
        /// TCP, UDP or SCTP destination port, ICMP code.
        const TP_DST = 1 << 13;
        /// TCP flags.
        const TCP_FLAGS = 1 << 14;
        /// ARP and RARP, all fields.
        const ARP = 1 << 15;
        /// IPv6 neighbour discovery, all fields.
        const ND = 1 << 16;
        /// Recirculation id; always matched.
        const RECIRC_ID = 1 << 17;
        /// `skb->priority`.
        const SKB_PRIORITY = 1 << 18;
        /// `skb->mark`.
        const SKB_MARK = 1 << 19;
        /// Hash that a `hash` action computed.
        const DP_HASH = 1 << 20;
        /// Tunnel headers of a packet that has them. (That a packet has none is not matched by
        /// this; match the input port for that.)
        const TUNNEL = 1 << 21;
        /// Connection tracking: state, zone, mark, labels, original tuple.
        const CT = 1 << 22;
        /// IPv6 flow label.
        const IPV6_LABEL = 1 << 23;
        /// IPv6 extension headers.
        const IPV6_EXTHDRS = 1 << 24;
        /// MPLS label stack.
        const MPLS = 1 << 25;
        /// Network service header.
        const NSH = 1 << 26;
        /// Attributes that this crate does not know.
        const OTHER = 1 << 27;
    }
}

impl MatchFields {
    /// All fields there are.
    pub const ALL: Self = Self::all();
    /// The whole key. A `FLOW_NEW` without a MASK attribute means this, and is how to say it.
    pub const EXACT: Self = Self::ALL;
    /// Addresses, protocol and ports of a transport connection.
    pub const FIVE_TUPLE: Self = Self::ETH_TYPE
        .union(Self::IP_SRC)
        .union(Self::IP_DST)
        .union(Self::IP_PROTO)
        .union(Self::TP_SRC)
        .union(Self::TP_DST);
    /// What is in the transport header.
    const TRANSPORT: Self = Self::TP_SRC.union(Self::TP_DST).union(Self::TCP_FLAGS).union(Self::ND);
    /// What depends on the Ethernet type. Connection tracking does for its original tuple.
    const ABOVE_ETHERNET: Self = Self::TRANSPORT
        .union(Self::IP_SRC)
        .union(Self::IP_DST)
        .union(Self::IP_PROTO)
        .union(Self::IP_TOS)
        .union(Self::IP_TTL)
        .union(Self::IP_FRAG)
        .union(Self::IPV6_LABEL)
        .union(Self::IPV6_EXTHDRS)
        .union(Self::ARP)
        .union(Self::MPLS)
        .union(Self::NSH)
        .union(Self::CT);

    /// These fields and those the kernel wants matched with them.
    #[must_use]
    pub fn with_required(self) -> Self {
        let mut fields = self | Self::RECIRC_ID;
        if self.intersects(Self::TRANSPORT) {
            fields |= Self::IP_PROTO | Self::IP_FRAG;
        }
        if self.intersects(Self::ABOVE_ETHERNET) {
            fields |= Self::ETH_TYPE;
        }
        fields
    }
}

/// VLAN headers that the kernel parses, and so the deepest nest of a key.
pub const KEY_DEPTH_MAX: usize = 2;

/// Whether an Ethernet type announces a VLAN tag (`eth_type_vlan`, `include/linux/if_vlan.h`).
pub(crate) fn is_tag_protocol(eth_type: &[u8]) -> bool {
    matches!(eth_type, [0x81, 0x00] | [0x88, 0xa8])
}

impl FlowKey<'_> {
    /// Appends the payload of the MASK attribute that matches `fields` of this key, and what the
    /// kernel wants matched with them, in the key's own order. On an error, what was appended is of
    /// no use; the builder remembers the error too.
    ///
    /// For [`MatchFields::EXACT`] leave the MASK attribute out instead: the kernel then also matches
    /// what is absent from the key.
    pub fn write_mask(
        &self,
        fields: MatchFields,
        b: &mut AttrBuilder<'_>,
    ) -> Result<(), WireError> {
        let fields = fields.with_required();
        if let Err(err) = write_level(self.as_bytes(), fields, 0, b) {
            b.fail(err);
        }
        b.finish()
    }
}

/// What is matched behind every VLAN tag, so that the nest's mask is not all zero.
const BEHIND_A_TAG: MatchFields = MatchFields::ETH_TYPE;

/// Bits of a VLAN tag that are matched.
fn tag_bits(fields: MatchFields) -> VlanTci {
    let mut bits = VlanTci::PRESENT;
    if fields.contains(MatchFields::VLAN_VID) {
        bits |= VlanTci::VID_MASK;
    }
    if fields.contains(MatchFields::VLAN_PCP) {
        bits |= VlanTci::PCP_MASK;
    }
    VlanTci(bits)
}

/// What a level of the key has shown so far.
#[derive(Default)]
struct Seen {
    in_port: bool,
    ethernet: bool,
    eth_type: bool,
}

fn write_level(
    nest: &[u8],
    fields: MatchFields,
    depth: usize,
    b: &mut AttrBuilder<'_>,
) -> Result<(), WireError> {
    let mut seen = Seen { ethernet: depth > 0, ..Seen::default() };
    let tagged = tag_of(nest)?;
    for attr in Attrs::new(nest) {
        let attr = attr?;
        match attr.kind {
            kind::IN_PORT => seen.in_port = true,
            kind::ETHERNET => seen.ethernet = true,
            kind::ETHERTYPE => seen.eth_type = true,
            _ => {}
        }
        match (attr.kind, tagged) {
            (kind::ETHERTYPE, Tag::Present) => KeyAttr::EtherType(u16::MAX).write(b),
            // A tag that was cut off has an empty nest. The kernel matches it by itself, and refuses
            // to have it in the mask.
            (kind::ETHERTYPE | kind::VLAN | kind::ENCAP, Tag::CutOff)
            | (kind::VLAN | kind::ENCAP, Tag::None) => {}
            (kind::VLAN, Tag::Present) => KeyAttr::Vlan(tag_bits(fields)).write(b),
            (kind::ENCAP, Tag::Present) => write_encap(&attr, fields, depth, b),
            _ => write_attr(&attr, fields, b)?,
        }
    }
    if depth == 0 && !seen.in_port && fields.contains(MatchFields::IN_PORT) {
        KeyAttr::InPort(u32::MAX).write(b);
    }
    if seen.ethernet && !seen.eth_type && fields.contains(MatchFields::ETH_TYPE) {
        KeyAttr::EtherType(u16::MAX).write(b);
    }
    Ok(())
}

/// Whether a level of a key has a VLAN tag.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    None,
    CutOff,
    Present,
}

fn tag_of(nest: &[u8]) -> Result<Tag, WireError> {
    match Attrs::new(nest).find(kind::VLAN)? {
        None => Ok(Tag::None),
        Some(tci) if VlanTci(tci.be16("VLAN")?).present() => Ok(Tag::Present),
        Some(_) => Ok(Tag::CutOff),
    }
}

fn write_encap(attr: &Attr<'_>, fields: MatchFields, depth: usize, b: &mut AttrBuilder<'_>) {
    if depth == KEY_DEPTH_MAX {
        let why = "is nested deeper than the kernel's two VLAN headers";
        return b.fail(WireError::Invalid { what: "ENCAP", offset: attr.offset, why });
    }
    b.nest(kind::ENCAP, |b| {
        if let Err(err) = write_level(attr.payload, fields | BEHIND_A_TAG, depth + 1, b) {
            b.fail(err);
        }
    });
}

fn write_attr(
    attr: &Attr<'_>,
    fields: MatchFields,
    b: &mut AttrBuilder<'_>,
) -> Result<(), WireError> {
    match attr.kind {
        kind::TUNNEL if fields.contains(MatchFields::TUNNEL) => {
            return tunnel::write_tunnel(attr.payload, b);
        }
        kind::NSH if fields.contains(MatchFields::NSH) => {
            return tunnel::write_mirror(kind::NSH, attr.payload, b);
        }
        kind::TUNNEL | kind::NSH => return Ok(()),
        _ => {}
    }
    let mut bits = [0; LAYOUT_MAX];
    if let Some(layout) = spans::layout(attr.kind) {
        layout.check(attr)?;
        layout.fill(fields, &mut bits);
        let bits = &bits[..layout.len];
        // The Ethernet header is what says that a flow is of Ethernet packets.
        if attr.kind == kind::ETHERNET || bits.iter().any(|&byte| byte != 0) {
            b.bytes(attr.kind, bits);
        }
    } else if spans::opaque(attr.kind).is_some_and(|field| fields.contains(field)) {
        write_ones(attr.kind, attr.payload.len(), b);
    }
    Ok(())
}

fn write_ones(kind: u16, len: usize, b: &mut AttrBuilder<'_>) {
    const ONES: [u8; 64] = [0xff; 64];
    match ONES.get(..len) {
        Some(ones) => b.bytes(kind, ones),
        None => b.bytes(kind, &vec![0xff; len]),
    };
}
