//! Flow keys: what the kernel found in a packet's headers and metadata.
//!
//! A key is the payload of a KEY attribute, kept as the kernel encoded it so that it can be echoed
//! byte for byte. The kernel writes metadata first, then the Ethernet header, for each VLAN header its
//! tag protocol as `ETHERTYPE`, `VLAN` and an `ENCAP` that nests the rest, then Ethernet type, network
//! and transport header (`__ovs_nla_put_key`, `net/openvswitch/flow_netlink.c`). Nothing here needs
//! that order; what is read for every packet is quicker with it.

mod attr;
mod head;
pub mod kind;
mod layout;
mod summary;
mod types;

pub use attr::KeyAttr;
pub(crate) use layout::LAYOUT_MAX;
pub use layout::{
    ArpKey, CtTuple4, CtTuple6, EthernetKey, IcmpKey, Ipv4Key, Ipv6Key, NdKey, PortsKey,
};
pub use summary::{KeySummary, L3Addrs};
pub use types::{MacAddr, VlanTci};

use crate::{Attrs, WireError};

/// A flow key as the kernel encodes it: the payload of a KEY (or MASK, or ENCAP) attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FlowKey<'a>(&'a [u8]);

impl<'a> FlowKey<'a> {
    /// Wraps the payload of a KEY attribute; reading it finds what is wrong with it.
    pub fn new(nest: &'a [u8]) -> Self {
        Self(nest)
    }

    /// The encoded attributes.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The attributes of this level, in order; ends after an error. What is inside a VLAN header is
    /// the key in [`KeyAttr::Encap`].
    pub fn attrs(&self) -> KeyAttrs<'a> {
        KeyAttrs(Attrs::new(self.0))
    }
}

/// Iterator over a key's attributes.
#[derive(Debug, Clone)]
pub struct KeyAttrs<'a>(Attrs<'a>);

impl<'a> Iterator for KeyAttrs<'a> {
    type Item = Result<KeyAttr<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.and_then(|attr| KeyAttr::parse(&attr)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AttrBuilder;

    fn vlan_key() -> Vec<u8> {
        let mut buf = Vec::new();
        let mut b = AttrBuilder::new(&mut buf);
        KeyAttr::RecircId(3).write(&mut b);
        KeyAttr::InPort(2).write(&mut b);
        let eth = EthernetKey { src: MacAddr([2, 0, 0, 0, 0, 1]), dst: MacAddr::BROADCAST };
        KeyAttr::Ethernet(eth).write(&mut b);
        KeyAttr::EtherType(0x8100).write(&mut b);
        KeyAttr::Vlan(VlanTci::new(5, 0)).write(&mut b);
        b.nest(kind::ENCAP, |b| {
            KeyAttr::EtherType(0x0800).write(b);
            let ip = Ipv4Key::from_bytes(&[10, 0, 0, 1, 10, 0, 0, 2, 17, 0, 64, 0]);
            KeyAttr::Ipv4(ip).write(b);
            KeyAttr::Udp(PortsKey { src: 1000, dst: 53 }).write(b);
        });
        b.finish().unwrap();
        buf
    }

    #[test]
    fn summary_looks_inside_vlan_headers() {
        let buf = vlan_key();
        let s = FlowKey::new(&buf).summary().unwrap();
        assert_eq!((s.in_port, s.recirc_id, s.eth_type), (Some(2), 3, 0x0800));
        assert_eq!(s.vlan, Some(VlanTci::new(5, 0)));
        assert_eq!((s.ip_proto, s.tp_src, s.tp_dst), (17, 1000, 53));
        let l3 = L3Addrs::Ipv4 { src: [10, 0, 0, 1].into(), dst: [10, 0, 0, 2].into() };
        assert_eq!(s.l3, l3);
    }

    #[test]
    fn a_length_field_behind_a_vlan_header_is_no_ethernet_type() {
        let mut buf = Vec::new();
        let mut b = AttrBuilder::new(&mut buf);
        KeyAttr::EtherType(0x8100).write(&mut b);
        KeyAttr::Vlan(VlanTci::new(5, 0)).write(&mut b);
        b.nest(kind::ENCAP, |_| {});
        assert_eq!(FlowKey::new(&buf).summary().unwrap().eth_type, 0);
    }

    #[test]
    fn an_attribute_of_a_wrong_length_is_an_error() {
        let mut buf = Vec::new();
        AttrBuilder::new(&mut buf).u16(kind::IN_PORT, 7);
        assert!(matches!(FlowKey::new(&buf).summary(), Err(WireError::Length { .. })));
        assert!(FlowKey::new(&buf).attrs().next().unwrap().is_err());
    }
}
