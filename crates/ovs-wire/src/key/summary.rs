//! What dispatching a packet needs to know of its key, read in one pass.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::key::layout::{ArpKey, EthernetKey, IcmpKey, Ipv4Key, Ipv6Key, PortsKey};
use crate::key::{FlowKey, MacAddr, VlanTci, kind};
use crate::{Attr, Attrs, WireError};

/// Network-layer addresses of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum L3Addrs {
    /// No network layer that the kernel parses.
    #[default]
    None,
    /// IPv4.
    Ipv4 {
        /// Source address.
        src: Ipv4Addr,
        /// Destination address.
        dst: Ipv4Addr,
    },
    /// IPv6.
    Ipv6 {
        /// Source address.
        src: Ipv6Addr,
        /// Destination address.
        dst: Ipv6Addr,
    },
    /// ARP or RARP.
    Arp {
        /// Sender protocol address.
        sip: Ipv4Addr,
        /// Target protocol address.
        tip: Ipv4Addr,
        /// Opcode: 1 request, 2 reply.
        op: u16,
    },
}

/// The parts of a flow key that lanes, filters and a learning switch look at. What is absent from
/// the key is `None` or zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct KeySummary {
    /// Input port; `None` for a packet without one (an EXECUTE without `IN_PORT`).
    pub in_port: Option<u32>,
    /// Recirculation id; 0 for a packet that came from a port.
    pub recirc_id: u32,
    /// Ethernet source address.
    pub eth_src: MacAddr,
    /// Ethernet destination address.
    pub eth_dst: MacAddr,
    /// Ethernet type behind all VLAN headers; 0 for frames that have a length there (802.2).
    pub eth_type: u16,
    /// The outermost VLAN tag.
    pub vlan: Option<VlanTci>,
    /// Its tag protocol: 0x8100, or 0x88a8 of a service tag; 0 where there is no tag.
    pub vlan_tpid: u16,
    /// Network-layer addresses.
    pub l3: L3Addrs,
    /// IP protocol.
    pub ip_proto: u8,
    /// Type of service or traffic class.
    pub ip_tos: u8,
    /// `enum ovs_frag_type`: 0 whole, 1 first fragment, 2 later fragment.
    pub ip_frag: u8,
    /// TCP, UDP or SCTP source port; ICMP type.
    pub tp_src: u16,
    /// TCP, UDP or SCTP destination port; ICMP code.
    pub tp_dst: u16,
    /// TCP flags.
    pub tcp_flags: u16,
    /// `skb->priority`.
    pub skb_priority: u32,
    /// `skb->mark`.
    pub skb_mark: u32,
    /// Connection-tracking state bits.
    pub ct_state: u32,
    /// Whether the packet came out of a tunnel.
    pub tunnel: bool,
    /// Whether the key says anything beside the input port that is not in the packet's headers: a mark, a
    /// tunnel, connection tracking, recirculation.
    pub metadata: bool,
}

impl FlowKey<'_> {
    /// Reads the key, VLAN nests included, in one pass and without allocation.
    ///
    /// An attribute that occurs twice counts with its last value; no kernel writes one twice.
    pub fn summary(&self) -> Result<KeySummary, WireError> {
        let mut out = KeySummary::default();
        let mut read = out.take_head(self.as_bytes());
        let mut ethernet = read > 0;
        let mut level = Some(self.as_bytes());
        while let Some(nest) = level.take() {
            out.eth_type = 0;
            let mut attrs = Attrs::starting_at(nest, std::mem::take(&mut read));
            while let Some((kind, payload)) = attrs.step() {
                if kind == kind::ENCAP {
                    level = Some(payload);
                    if out.vlan_tpid == 0 {
                        out.vlan_tpid = out.eth_type;
                    }
                } else {
                    ethernet |= kind == kind::ETHERNET;
                    out.take(&Attr { kind, payload, offset: attrs.offset(payload) })?;
                }
            }
            attrs.check()?;
        }
        // The Ethernet type of a packet without an Ethernet header is metadata, too.
        out.metadata |= !ethernet
            || out.tunnel
            || (out.recirc_id | out.skb_priority | out.skb_mark | out.ct_state) != 0;
        Ok(out)
    }
}

impl KeySummary {
    /// The key that an EXECUTE needs of this one, `key` in its encoded form: the kernel reads headers
    /// from the packet and takes metadata alone from the key (`ovs_flow_key_extract_userspace`,
    /// `net/openvswitch/flow.c`), so that a short key spares it the reading of the rest.
    pub fn execute_key<'k>(&self, key: &'k [u8], short: &'k mut [u8; 8]) -> &'k [u8] {
        let Some(in_port) = self.in_port.filter(|_| !self.metadata) else { return key };
        short[..2].copy_from_slice(&8u16.to_ne_bytes());
        short[2..4].copy_from_slice(&kind::IN_PORT.to_ne_bytes());
        short[4..].copy_from_slice(&in_port.to_ne_bytes());
        short
    }

    #[inline]
    fn take(&mut self, attr: &Attr<'_>) -> Result<(), WireError> {
        match attr.kind {
            kind::RECIRC_ID => self.recirc_id = attr.u32("RECIRC_ID")?,
            kind::PRIORITY => self.skb_priority = attr.u32("PRIORITY")?,
            kind::IN_PORT => self.in_port = Some(attr.u32("IN_PORT")?),
            kind::SKB_MARK => self.skb_mark = attr.u32("SKB_MARK")?,
            kind::CT_STATE => self.ct_state = attr.u32("CT_STATE")?,
            kind::TUNNEL => self.tunnel = true,
            kind::ETHERNET => {
                let eth = EthernetKey::from_bytes(&attr.array("ETHERNET")?);
                (self.eth_src, self.eth_dst) = (eth.src, eth.dst);
            }
            kind::ETHERTYPE => self.eth_type = attr.be16("ETHERTYPE")?,
            kind::VLAN => {
                let tci = VlanTci(attr.be16("VLAN")?);
                self.vlan.get_or_insert(tci);
            }
            kind::IPV4 => self.ipv4(Ipv4Key::from_bytes(&attr.array("IPV4")?)),
            kind::IPV6 => self.ipv6(Ipv6Key::from_bytes(&attr.array("IPV6")?)),
            kind::ARP => {
                let arp = ArpKey::from_bytes(&attr.array("ARP")?);
                self.l3 = L3Addrs::Arp { sip: arp.sip, tip: arp.tip, op: arp.op };
            }
            kind::TCP | kind::UDP | kind::SCTP => {
                let ports = PortsKey::from_bytes(&attr.array("transport ports")?);
                (self.tp_src, self.tp_dst) = (ports.src, ports.dst);
            }
            kind::ICMP | kind::ICMPV6 => {
                let icmp = IcmpKey::from_bytes(&attr.array("ICMP")?);
                (self.tp_src, self.tp_dst) = (icmp.kind as u16, icmp.code as u16);
            }
            kind::TCP_FLAGS => self.tcp_flags = attr.be16("TCP_FLAGS")?,
            kind::ND | kind::MPLS | kind::NSH | kind::IPV6_EXTHDRS => {}
            kind::DP_HASH | kind::CT_MARK => self.metadata |= attr.payload != [0; 4],
            kind::CT_ZONE => self.metadata |= attr.payload != [0; 2],
            kind::CT_LABELS => self.metadata |= attr.payload != [0; 16],
            // More of connection tracking, and what later kernels may add.
            _ => self.metadata |= attr.payload.iter().any(|byte| *byte != 0),
        }
        Ok(())
    }

    fn ipv4(&mut self, ip: Ipv4Key) {
        self.l3 = L3Addrs::Ipv4 { src: ip.src, dst: ip.dst };
        (self.ip_proto, self.ip_tos, self.ip_frag) = (ip.proto, ip.tos, ip.frag);
    }

    fn ipv6(&mut self, ip: Ipv6Key) {
        self.l3 = L3Addrs::Ipv6 { src: ip.src, dst: ip.dst };
        (self.ip_proto, self.ip_tos, self.ip_frag) = (ip.proto, ip.tclass, ip.frag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AttrBuilder;

    fn summary(fill: impl FnOnce(&mut AttrBuilder<'_>)) -> (Vec<u8>, KeySummary) {
        let mut key = Vec::new();
        let mut b = AttrBuilder::new(&mut key);
        b.u32(kind::IN_PORT, 7).u32(kind::SKB_MARK, 0).u32(kind::DP_HASH, 0);
        fill(&mut b);
        let summary = FlowKey::new(&key).summary().unwrap();
        (key, summary)
    }

    #[test]
    fn what_the_packet_says_itself_is_left_out_of_an_execute() {
        let (key, plain) = summary(|b| _ = b.bytes(kind::ETHERNET, &[2; 12]));
        let mut short = [0; 8];
        let short = plain.execute_key(&key, &mut short);
        assert_eq!(short, &key[..8], "the input port alone");
    }

    #[test]
    fn the_outermost_tag_is_told_with_its_protocol() {
        let tag = |b: &mut AttrBuilder<'_>, tpid, vid| {
            b.be16(kind::ETHERTYPE, tpid).be16(kind::VLAN, VlanTci::new(vid, 0).0);
        };
        let (_, double) = summary(|b| {
            tag(b, 0x88a8, 7);
            b.nest(kind::ENCAP, |b| {
                tag(b, 0x8100, 8);
                b.nest(kind::ENCAP, |b| _ = b.be16(kind::ETHERTYPE, 0x800));
            });
        });
        assert_eq!((double.vlan.map(VlanTci::vid), double.vlan_tpid), (Some(7), 0x88a8));
        assert_eq!(double.eth_type, 0x800);
        let (_, none) = summary(|b| _ = b.be16(kind::ETHERTYPE, 0x800));
        assert_eq!((none.vlan, none.vlan_tpid), (None, 0));
    }

    #[test]
    fn metadata_goes_back_whole() {
        let fills: [fn(&mut AttrBuilder<'_>); 6] = [
            |b| _ = b.bytes(kind::ETHERNET, &[2; 12]).u32(kind::SKB_MARK, 1),
            |b| _ = b.bytes(kind::ETHERNET, &[2; 12]).u32(kind::DP_HASH, 1),
            |b| _ = b.bytes(kind::ETHERNET, &[2; 12]).u16(kind::CT_ZONE, 1),
            |b| _ = b.bytes(kind::ETHERNET, &[2; 12]).nest(kind::TUNNEL, |_| {}),
            |b| _ = b.bytes(kind::ETHERNET, &[2; 12]).u32(99, 1),
            |b| _ = b.be16(kind::ETHERTYPE, 0x800),
        ];
        for fill in fills {
            let (key, summary) = summary(fill);
            assert_eq!(summary.execute_key(&key, &mut [0; 8]), key);
        }
    }
}
