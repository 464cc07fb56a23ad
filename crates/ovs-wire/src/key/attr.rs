//! One attribute of a flow key, typed.

use crate::key::layout::{
    ArpKey, CtTuple4, CtTuple6, EthernetKey, IcmpKey, Ipv4Key, Ipv6Key, LAYOUT_MAX, NdKey, PortsKey,
};
use crate::key::{FlowKey, VlanTci, kind};
use crate::{Attr, AttrBuilder, WireError};

/// One attribute of a key, of a mask, or of the value that a set action writes.
///
/// In a mask the same layouts hold bits instead of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyAttr<'a> {
    /// What is inside a VLAN header: the key from its Ethernet type on.
    Encap(FlowKey<'a>),
    /// `skb->priority`.
    Priority(u32),
    /// Number of the port the packet came in by.
    InPort(u32),
    /// Ethernet addresses.
    Ethernet(EthernetKey),
    /// VLAN tag.
    Vlan(VlanTci),
    /// Ethernet type; the tag protocol id if a VLAN attribute follows.
    EtherType(u16),
    /// IPv4 header.
    Ipv4(Ipv4Key),
    /// IPv6 header.
    Ipv6(Ipv6Key),
    /// TCP ports.
    Tcp(PortsKey),
    /// UDP ports.
    Udp(PortsKey),
    /// `ICMPv4` type and code.
    Icmp(IcmpKey),
    /// `ICMPv6` type and code.
    Icmpv6(IcmpKey),
    /// ARP or RARP.
    Arp(ArpKey),
    /// IPv6 neighbour discovery.
    Nd(NdKey),
    /// `skb->mark`.
    SkbMark(u32),
    /// Tunnel attributes (`enum ovs_tunnel_key_attr`), encoded.
    Tunnel(&'a [u8]),
    /// SCTP ports.
    Sctp(PortsKey),
    /// TCP flags, in the low 12 bits.
    TcpFlags(u16),
    /// Hash that a `hash` action computed.
    DpHash(u32),
    /// Recirculation id; 0 for a packet that came from a port.
    RecircId(u32),
    /// MPLS label stack entries, outermost first: big-endian u32 each, at least one.
    Mpls(&'a [u8]),
    /// Connection-tracking state bits (`OVS_CS_F_*`).
    CtState(u32),
    /// Connection-tracking zone.
    CtZone(u16),
    /// Connection mark.
    CtMark(u32),
    /// Connection labels.
    CtLabels([u8; 16]),
    /// Original direction of the connection, IPv4.
    CtOrigTuple4(CtTuple4),
    /// Original direction of the connection, IPv6.
    CtOrigTuple6(CtTuple6),
    /// Network service header attributes (`enum ovs_nsh_key_attr`), encoded.
    Nsh(&'a [u8]),
    /// IPv6 extension headers that are there (`OFPIEH12_*`); kernel 5.18 and later.
    Ipv6ExtHdrs(u16),
    /// An attribute that this crate does not know.
    Unknown {
        /// Its type.
        kind: u16,
        /// Its value.
        payload: &'a [u8],
    },
}

impl<'a> KeyAttr<'a> {
    /// Reads an attribute of a key or a mask.
    pub fn parse(attr: &Attr<'a>) -> Result<Self, WireError> {
        let ports = |what| attr.array(what).map(|b| PortsKey::from_bytes(&b));
        let icmp = |what| attr.array(what).map(|b| IcmpKey::from_bytes(&b));
        Ok(match attr.kind {
            kind::ENCAP => Self::Encap(FlowKey::new(attr.payload)),
            kind::PRIORITY => Self::Priority(attr.u32("PRIORITY")?),
            kind::IN_PORT => Self::InPort(attr.u32("IN_PORT")?),
            kind::ETHERNET => Self::Ethernet(EthernetKey::from_bytes(&attr.array("ETHERNET")?)),
            kind::VLAN => Self::Vlan(VlanTci(attr.be16("VLAN")?)),
            kind::ETHERTYPE => Self::EtherType(attr.be16("ETHERTYPE")?),
            kind::IPV4 => Self::Ipv4(Ipv4Key::from_bytes(&attr.array("IPV4")?)),
            kind::IPV6 => Self::Ipv6(Ipv6Key::from_bytes(&attr.array("IPV6")?)),
            kind::TCP => Self::Tcp(ports("TCP")?),
            kind::UDP => Self::Udp(ports("UDP")?),
            kind::ICMP => Self::Icmp(icmp("ICMP")?),
            kind::ICMPV6 => Self::Icmpv6(icmp("ICMPV6")?),
            kind::ARP => Self::Arp(ArpKey::from_bytes(&attr.array("ARP")?)),
            kind::ND => Self::Nd(NdKey::from_bytes(&attr.array("ND")?)),
            kind::SKB_MARK => Self::SkbMark(attr.u32("SKB_MARK")?),
            kind::TUNNEL => Self::Tunnel(attr.payload),
            kind::SCTP => Self::Sctp(ports("SCTP")?),
            kind::TCP_FLAGS => Self::TcpFlags(attr.be16("TCP_FLAGS")?),
            kind::DP_HASH => Self::DpHash(attr.u32("DP_HASH")?),
            kind::RECIRC_ID => Self::RecircId(attr.u32("RECIRC_ID")?),
            kind::MPLS => Self::Mpls(mpls(attr)?),
            kind::CT_STATE => Self::CtState(attr.u32("CT_STATE")?),
            kind::CT_ZONE => Self::CtZone(attr.u16("CT_ZONE")?),
            kind::CT_MARK => Self::CtMark(attr.u32("CT_MARK")?),
            kind::CT_LABELS => Self::CtLabels(attr.array("CT_LABELS")?),
            kind::CT_ORIG_TUPLE_IPV4 => {
                Self::CtOrigTuple4(CtTuple4::from_bytes(&attr.array("CT_ORIG_TUPLE_IPV4")?))
            }
            kind::CT_ORIG_TUPLE_IPV6 => {
                Self::CtOrigTuple6(CtTuple6::from_bytes(&attr.array("CT_ORIG_TUPLE_IPV6")?))
            }
            kind::NSH => Self::Nsh(attr.payload),
            kind::IPV6_EXTHDRS => Self::Ipv6ExtHdrs(attr.u16("IPV6_EXTHDRS")?),
            kind => Self::Unknown { kind, payload: attr.payload },
        })
    }

    /// Type of the attribute.
    pub fn kind(&self) -> u16 {
        match *self {
            Self::Encap(_) => kind::ENCAP,
            Self::Priority(_) => kind::PRIORITY,
            Self::InPort(_) => kind::IN_PORT,
            Self::Ethernet(_) => kind::ETHERNET,
            Self::Vlan(_) => kind::VLAN,
            Self::EtherType(_) => kind::ETHERTYPE,
            Self::Ipv4(_) => kind::IPV4,
            Self::Ipv6(_) => kind::IPV6,
            Self::Tcp(_) => kind::TCP,
            Self::Udp(_) => kind::UDP,
            Self::Icmp(_) => kind::ICMP,
            Self::Icmpv6(_) => kind::ICMPV6,
            Self::Arp(_) => kind::ARP,
            Self::Nd(_) => kind::ND,
            Self::SkbMark(_) => kind::SKB_MARK,
            Self::Tunnel(_) => kind::TUNNEL,
            Self::Sctp(_) => kind::SCTP,
            Self::TcpFlags(_) => kind::TCP_FLAGS,
            Self::DpHash(_) => kind::DP_HASH,
            Self::RecircId(_) => kind::RECIRC_ID,
            Self::Mpls(_) => kind::MPLS,
            Self::CtState(_) => kind::CT_STATE,
            Self::CtZone(_) => kind::CT_ZONE,
            Self::CtMark(_) => kind::CT_MARK,
            Self::CtLabels(_) => kind::CT_LABELS,
            Self::CtOrigTuple4(_) => kind::CT_ORIG_TUPLE_IPV4,
            Self::CtOrigTuple6(_) => kind::CT_ORIG_TUPLE_IPV6,
            Self::Nsh(_) => kind::NSH,
            Self::Ipv6ExtHdrs(_) => kind::IPV6_EXTHDRS,
            Self::Unknown { kind, .. } => kind,
        }
    }

    /// Appends the attribute.
    pub fn write(&self, b: &mut AttrBuilder<'_>) {
        b.bytes(self.kind(), self.payload(&mut [0; LAYOUT_MAX]));
    }

    /// The payload: the encoded bytes that the attribute borrows, or its layout in `scratch`.
    pub(crate) fn payload<'s>(&'s self, scratch: &'s mut [u8; LAYOUT_MAX]) -> &'s [u8] {
        match *self {
            Self::Encap(key) => key.as_bytes(),
            Self::Tunnel(raw) | Self::Nsh(raw) | Self::Mpls(raw) => raw,
            Self::Unknown { payload, .. } => payload,
            Self::Priority(v)
            | Self::InPort(v)
            | Self::SkbMark(v)
            | Self::DpHash(v)
            | Self::RecircId(v)
            | Self::CtState(v)
            | Self::CtMark(v) => fill(scratch, v.to_ne_bytes()),
            Self::CtZone(v) | Self::Ipv6ExtHdrs(v) => fill(scratch, v.to_ne_bytes()),
            Self::Vlan(VlanTci(v)) | Self::EtherType(v) | Self::TcpFlags(v) => {
                fill(scratch, v.to_be_bytes())
            }
            Self::Ethernet(v) => fill(scratch, v.to_bytes()),
            Self::Ipv4(v) => fill(scratch, v.to_bytes()),
            Self::Ipv6(v) => fill(scratch, v.to_bytes()),
            Self::Tcp(v) | Self::Udp(v) | Self::Sctp(v) => fill(scratch, v.to_bytes()),
            Self::Icmp(v) | Self::Icmpv6(v) => fill(scratch, v.to_bytes()),
            Self::Arp(v) => fill(scratch, v.to_bytes()),
            Self::Nd(v) => fill(scratch, v.to_bytes()),
            Self::CtLabels(v) => fill(scratch, v),
            Self::CtOrigTuple4(v) => fill(scratch, v.to_bytes()),
            Self::CtOrigTuple6(v) => fill(scratch, v.to_bytes()),
        }
    }
}

fn fill<const N: usize>(scratch: &mut [u8; LAYOUT_MAX], bytes: [u8; N]) -> &[u8] {
    let out = &mut scratch[..N];
    out.copy_from_slice(&bytes);
    out
}

fn mpls<'a>(attr: &Attr<'a>) -> Result<&'a [u8], WireError> {
    if attr.payload.is_empty() || !attr.payload.len().is_multiple_of(4) {
        return Err(WireError::Invalid {
            what: "MPLS",
            offset: attr.offset,
            why: "is not a sequence of 4-byte label stack entries",
        });
    }
    Ok(attr.payload)
}
