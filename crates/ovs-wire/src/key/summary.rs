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
}

impl FlowKey<'_> {
    /// Reads the key, VLAN nests included, in one pass and without allocation.
    ///
    /// An attribute that occurs twice counts with its last value; no kernel writes one twice.
    pub fn summary(&self) -> Result<KeySummary, WireError> {
        let mut out = KeySummary::default();
        let mut level = Some(self.as_bytes());
        while let Some(nest) = level.take() {
            out.eth_type = 0;
            for attr in Attrs::new(nest) {
                let attr = attr?;
                if attr.kind == kind::ENCAP {
                    level = Some(attr.payload);
                } else {
                    out.take(&attr)?;
                }
            }
        }
        Ok(out)
    }
}

impl KeySummary {
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
            _ => {}
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
