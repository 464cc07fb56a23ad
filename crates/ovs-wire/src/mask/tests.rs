use std::hash::{DefaultHasher, Hasher};

use super::*;
use crate::key::{EthernetKey, IcmpKey, Ipv4Key, Ipv6Key, MacAddr, NdKey, PortsKey};

type Attrs<'a> = Vec<KeyAttr<'a>>;

const ETH: EthernetKey =
    EthernetKey { src: MacAddr([2, 0, 0, 0, 0, 1]), dst: MacAddr([2, 0, 0, 0, 0, 2]) };

fn encode(attrs: &[KeyAttr<'_>]) -> Vec<u8> {
    let mut buf = Vec::new();
    let mut b = AttrBuilder::new(&mut buf);
    for attr in attrs {
        attr.write(&mut b);
    }
    b.finish().unwrap();
    buf
}

fn udp_packet(port: u16) -> [KeyAttr<'static>; 3] {
    let ip = Ipv4Key::from_bytes(&[10, 0, 0, 1, 10, 0, 0, 2, 17, 0, 64, 0]);
    [KeyAttr::EtherType(0x0800), KeyAttr::Ipv4(ip), KeyAttr::Udp(PortsKey { src: port, dst: 53 })]
}

fn udp_key(port: u16) -> Vec<u8> {
    let mut attrs = vec![KeyAttr::RecircId(0), KeyAttr::InPort(2), KeyAttr::Ethernet(ETH)];
    attrs.extend(udp_packet(port));
    encode(&attrs)
}

fn mask(key: &[u8], fields: MatchFields) -> Vec<u8> {
    let mut buf = Vec::new();
    FlowKey::new(key).write_mask(fields, &mut AttrBuilder::new(&mut buf)).unwrap();
    buf
}

fn read(buf: &[u8]) -> Attrs<'_> {
    FlowKey::new(buf).attrs().collect::<Result<_, _>>().unwrap()
}

fn hash(key: &[u8], fields: MatchFields) -> u64 {
    let mut h = DefaultHasher::new();
    FlowKey::new(key).hash_masked(fields, &mut h).unwrap();
    h.finish()
}

#[test]
fn a_learning_switch_matches_port_and_addresses() {
    let fields = MatchFields::IN_PORT | MatchFields::ETH_SRC | MatchFields::ETH_DST;
    let eth = EthernetKey { src: MacAddr::BROADCAST, dst: MacAddr::BROADCAST };
    assert_eq!(
        read(&mask(&udp_key(1), fields)),
        [KeyAttr::RecircId(u32::MAX), KeyAttr::InPort(u32::MAX), KeyAttr::Ethernet(eth)]
    );
}

#[test]
fn ports_bring_protocol_fragment_and_type() {
    let none = EthernetKey { src: MacAddr::default(), dst: MacAddr::default() };
    let ip = Ipv4Key::from_bytes(&[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0xff]);
    assert_eq!(
        read(&mask(&udp_key(1), MatchFields::TP_DST)),
        [
            KeyAttr::RecircId(u32::MAX),
            KeyAttr::Ethernet(none),
            KeyAttr::EtherType(0xffff),
            KeyAttr::Ipv4(ip),
            KeyAttr::Udp(PortsKey { src: 0, dst: 0xffff }),
        ]
    );
}

#[test]
fn the_nest_of_a_tag_is_never_masked_with_zeros_alone() {
    let vlan_key = |eth_type: &[KeyAttr<'_>]| {
        let inner = encode(eth_type);
        let encap = KeyAttr::Encap(FlowKey::new(&inner));
        encode(&[KeyAttr::EtherType(0x8100), KeyAttr::Vlan(VlanTci::new(5, 0)), encap])
    };
    let (udp, llc) = (vlan_key(&udp_packet(1)), vlan_key(&[]));
    for key in [&udp, &llc] {
        let bits = mask(key, MatchFields::IN_PORT);
        let inner = encode(&[KeyAttr::EtherType(0xffff)]);
        assert!(read(&bits).contains(&KeyAttr::Encap(FlowKey::new(&inner))), "{bits:02x?}");
    }
    assert_ne!(hash(&udp, MatchFields::IN_PORT), hash(&llc, MatchFields::IN_PORT));
}

#[test]
fn a_tagged_key_keeps_its_nesting_and_its_tag() {
    let inner = encode(&udp_packet(1));
    let key = encode(&[
        KeyAttr::Ethernet(ETH),
        KeyAttr::EtherType(0x8100),
        KeyAttr::Vlan(VlanTci::new(5, 0)),
        KeyAttr::Encap(FlowKey::new(&inner)),
    ]);
    let masked = mask(&key, MatchFields::VLAN_VID | MatchFields::ETH_TYPE);
    let attrs = read(&masked);
    assert_eq!(attrs[1..3], [KeyAttr::EtherType(0xffff), KeyAttr::Vlan(VlanTci(0x1fff))]);
    let KeyAttr::Encap(inner) = attrs[3] else { panic!("{attrs:?}") };
    assert_eq!(read(inner.as_bytes()), [KeyAttr::EtherType(0xffff)]);
    let bare = mask(&key, MatchFields::ETH_SRC);
    assert_eq!(read(&bare)[2], KeyAttr::Vlan(VlanTci(VlanTci::PRESENT)));
}

#[test]
fn a_tag_that_was_cut_off_is_left_to_the_kernel() {
    let key = encode(&[
        KeyAttr::Ethernet(ETH),
        KeyAttr::EtherType(0x8100),
        KeyAttr::Vlan(VlanTci(0)),
        KeyAttr::Encap(FlowKey::new(&[])),
    ]);
    let masked = mask(&key, MatchFields::ALL);
    let kinds: Vec<_> = read(&masked).iter().map(KeyAttr::kind).collect();
    assert_eq!(kinds, [kind::ETHERNET, kind::IN_PORT]);
}

#[test]
fn what_is_absent_is_matched_as_absent() {
    let key = encode(&[KeyAttr::RecircId(0), KeyAttr::Ethernet(ETH)]);
    let masked = mask(&key, MatchFields::IN_PORT | MatchFields::ETH_TYPE);
    let attrs = read(&masked);
    assert_eq!(attrs[2..], [KeyAttr::InPort(u32::MAX), KeyAttr::EtherType(0xffff)]);
}

#[test]
fn masks_have_only_bits_that_the_kernel_takes() {
    let nd = NdKey { target: 1.into(), sll: MacAddr::default(), tll: MacAddr::default() };
    let mut ip = Ipv6Key::from_bytes(&[0; 40]);
    (ip.label, ip.proto) = (7, 58);
    let key = encode(&[
        KeyAttr::CtState(0x21),
        KeyAttr::Ethernet(ETH),
        KeyAttr::EtherType(0x86dd),
        KeyAttr::Ipv6(ip),
        KeyAttr::Icmpv6(IcmpKey { kind: 135, code: 0 }),
        KeyAttr::Nd(nd),
    ]);
    let masked = mask(&key, MatchFields::ND | MatchFields::IPV6_LABEL | MatchFields::CT);
    let attrs = read(&masked);
    assert_eq!(attrs[0], KeyAttr::CtState(0xff));
    let KeyAttr::Ipv6(ip) = attrs[3] else { panic!("{attrs:?}") };
    assert_eq!((ip.label, ip.proto, ip.frag, ip.hlimit), (0x000f_ffff, 0xff, 0xff, 0));
    assert_eq!(attrs[4], KeyAttr::Icmpv6(IcmpKey { kind: 0xff, code: 0xff }));
    assert_eq!(attrs[5].kind(), kind::ND);
}

#[test]
fn a_tunnel_mask_covers_what_the_kernel_leaves_out_when_zero() {
    let mut tunnel = Vec::new();
    AttrBuilder::new(&mut tunnel).u64(0, 1).u32(2, 7).u8(4, 64).nest(11, |b| {
        b.u32(1, 5);
    });
    let key = encode(&[KeyAttr::Tunnel(&tunnel), KeyAttr::Ethernet(ETH)]);
    let masked = mask(&key, MatchFields::TUNNEL);
    let KeyAttr::Tunnel(bits) = read(&masked)[0] else { panic!() };
    let kinds: Vec<_> = crate::Attrs::new(bits).map(|attr| attr.unwrap().kind).collect();
    assert_eq!(kinds, [0, 3, 4, 5, 6, 7, 9, 10, 1, 2, 11]);
}

#[test]
fn nests_that_are_too_deep_are_refused() {
    let mut key = Vec::new();
    for _ in 0..=KEY_DEPTH_MAX {
        key = encode(&[
            KeyAttr::EtherType(0x8100),
            KeyAttr::Vlan(VlanTci::new(1, 0)),
            KeyAttr::Encap(FlowKey::new(&key)),
        ]);
    }
    let mut buf = Vec::new();
    let err = FlowKey::new(&key)
        .write_mask(MatchFields::ETH_TYPE, &mut AttrBuilder::new(&mut buf))
        .unwrap_err();
    assert!(matches!(err, WireError::Invalid { what: "ENCAP", .. }));
}

#[test]
fn the_hash_sees_what_the_mask_sees() {
    let (a, b) = (udp_key(1000), udp_key(1001));
    let l2 = MatchFields::IN_PORT | MatchFields::ETH_SRC;
    assert_eq!(hash(&a, l2), hash(&b, l2));
    assert_eq!(hash(&a, MatchFields::TP_DST), hash(&b, MatchFields::TP_DST));
    assert_ne!(hash(&a, MatchFields::FIVE_TUPLE), hash(&b, MatchFields::FIVE_TUPLE));
    assert_ne!(hash(&a, MatchFields::EXACT), hash(&b, MatchFields::EXACT));
}
