//! Keys and actions that a kernel or a controller could have written, and bytes that none would.

use ovs_wire::key::{
    ArpKey, CtTuple4, CtTuple6, EthernetKey, FlowKey, IcmpKey, Ipv4Key, Ipv6Key, KeyAttr, NdKey,
    PortsKey, kind,
};
use ovs_wire::{Action, Actions, AttrBuilder, MatchFields, VlanTci};
use proptest::collection::vec;
use proptest::prelude::*;

/// Encodes what `write` writes.
pub(crate) fn encode(write: impl FnOnce(&mut AttrBuilder<'_>)) -> Vec<u8> {
    let mut buf = Vec::new();
    let mut b = AttrBuilder::new(&mut buf);
    write(&mut b);
    b.finish().expect("small attributes fit");
    buf
}

fn one(attr: KeyAttr<'_>) -> Vec<u8> {
    encode(|b| attr.write(b))
}

/// A layout of `N` bytes, any bits.
macro_rules! layout {
    ($variant:ident, $ty:ty) => {
        any::<[u8; <$ty>::LEN]>()
            .prop_map(|bytes| one(KeyAttr::$variant(<$ty>::from_bytes(&bytes))))
            .boxed()
    };
}

macro_rules! number {
    ($variant:ident, $ty:ty) => {
        any::<$ty>().prop_map(|value| one(KeyAttr::$variant(value))).boxed()
    };
}

fn ipv6() -> BoxedStrategy<Vec<u8>> {
    any::<[u8; Ipv6Key::LEN]>()
        .prop_map(|bytes| {
            let mut key = Ipv6Key::from_bytes(&bytes);
            key.label &= 0x000f_ffff;
            key.frag %= 3;
            one(KeyAttr::Ipv6(key))
        })
        .boxed()
}

fn ipv4() -> BoxedStrategy<Vec<u8>> {
    any::<[u8; Ipv4Key::LEN]>()
        .prop_map(|bytes| {
            let mut key = Ipv4Key::from_bytes(&bytes);
            key.frag %= 3;
            one(KeyAttr::Ipv4(key))
        })
        .boxed()
}

/// A tunnel in the kernel's order, without the options that are kept as bytes.
fn tunnel() -> BoxedStrategy<Vec<u8>> {
    (any::<(u64, u32, u32, u8, u8)>(), any::<[bool; 3]>(), any::<(u16, u16)>())
        .prop_map(|((id, src, dst, tos, ttl), [df, csum, oam], (tp_src, tp_dst))| {
            encode(|b| {
                b.nest(kind::TUNNEL, |b| {
                    b.u64(0, id).u32(1, src).u32(2, dst).u8(3, tos).u8(4, ttl);
                    df.then(|| b.flag(5));
                    csum.then(|| b.flag(6));
                    b.be16(9, tp_src).be16(10, tp_dst);
                    oam.then(|| b.flag(7));
                });
            })
        })
        .boxed()
}

/// One attribute, encoded.
pub(crate) fn key_attr() -> BoxedStrategy<Vec<u8>> {
    let unknown = (33..0x3fff_u16, vec(any::<u8>(), 0..9))
        .prop_map(|(kind, payload)| one(KeyAttr::Unknown { kind, payload: &payload }));
    prop_oneof![
        prop_oneof![
            number!(Priority, u32),
            number!(InPort, u32),
            number!(SkbMark, u32),
            number!(DpHash, u32),
            number!(RecircId, u32),
            number!(CtState, u32),
            number!(CtZone, u16),
            number!(CtMark, u32),
            number!(CtLabels, [u8; 16]),
            number!(Ipv6ExtHdrs, u16),
        ],
        prop_oneof![
            layout!(Ethernet, EthernetKey),
            layout!(Tcp, PortsKey),
            layout!(Udp, PortsKey),
            layout!(Sctp, PortsKey),
            layout!(Icmp, IcmpKey),
            layout!(Icmpv6, IcmpKey),
            layout!(Arp, ArpKey),
            layout!(Nd, NdKey),
            layout!(CtOrigTuple4, CtTuple4),
            layout!(CtOrigTuple6, CtTuple6),
        ],
        prop_oneof![
            ipv4(),
            ipv6(),
            tunnel(),
            unknown.boxed(),
            any::<u16>().prop_map(|tci| one(KeyAttr::Vlan(VlanTci(tci)))).boxed(),
            any::<u16>().prop_map(|kind| one(KeyAttr::EtherType(kind))).boxed(),
            any::<u16>().prop_map(|flags| one(KeyAttr::TcpFlags(flags))).boxed(),
            vec(any::<[u8; 4]>(), 1..4).prop_map(|l| one(KeyAttr::Mpls(&l.concat()))).boxed(),
            vec(any::<u8>(), 0..9).prop_map(|raw| one(KeyAttr::Nsh(&raw))).boxed(),
        ],
    ]
    .boxed()
}

/// Attributes in any order, some more than once, nested up to twice.
pub(crate) fn key() -> BoxedStrategy<Vec<u8>> {
    let level = || vec(key_attr(), 0..6).prop_map(|attrs| attrs.concat());
    (level(), proptest::option::of((level(), proptest::option::of(level()))))
        .prop_map(|(mut outer, inner)| {
            if let Some((mut middle, inner)) = inner {
                if let Some(inner) = inner {
                    middle.extend(one(KeyAttr::Encap(FlowKey::new(&inner))));
                }
                outer.extend(one(KeyAttr::Encap(FlowKey::new(&middle))));
            }
            outer
        })
        .boxed()
}

/// A key that the kernel could have sent: each attribute once, in its order.
pub(crate) fn kernel_key() -> BoxedStrategy<Vec<u8>> {
    let inner = || {
        let network = prop_oneof![ipv4(), ipv6(), layout!(Arp, ArpKey)];
        let transport =
            prop_oneof![layout!(Tcp, PortsKey), layout!(Udp, PortsKey), layout!(Icmp, IcmpKey)];
        let eth_type = (0x0600..0x8000_u16).prop_map(|kind| one(KeyAttr::EtherType(kind)));
        (eth_type, network, transport).prop_map(|(a, b, c)| [a, b, c].concat())
    };
    let meta = (number!(RecircId, u32), number!(InPort, u32), number!(CtState, u32));
    let tag = proptest::option::of(any::<(u16, bool)>());
    (meta, layout!(Ethernet, EthernetKey), tag, inner())
        .prop_map(|((recirc, port, ct), eth, tag, inner)| {
            let head = [recirc, port, ct, eth].concat();
            let Some((tci, qinq)) = tag else { return [head, inner].concat() };
            let tag = encode(|b| {
                KeyAttr::EtherType(if qinq { 0x88a8 } else { 0x8100 }).write(b);
                KeyAttr::Vlan(VlanTci(tci | VlanTci::PRESENT)).write(b);
                KeyAttr::Encap(FlowKey::new(&inner)).write(b);
            });
            [head, tag].concat()
        })
        .boxed()
}

/// Any set of fields.
pub(crate) fn fields() -> BoxedStrategy<MatchFields> {
    any::<u32>().prop_map(MatchFields::from_bits_truncate).boxed()
}

fn action(action: &Action<'_>) -> Vec<u8> {
    encode(|b| action.write(b))
}

fn simple_action() -> BoxedStrategy<Vec<u8>> {
    let numbers = any::<(u32, u32, u16, u16)>();
    let plain = (0..19_u8, numbers).prop_map(|(which, (a, b, c, d))| {
        let bytes = b.to_ne_bytes();
        action(&match which {
            0 => Action::Output(a),
            1 => Action::PushVlan { tpid: c, tci: VlanTci(d) },
            2 => Action::PopVlan,
            3 => Action::Recirc(a),
            4 => Action::Hash { alg: a % 3, basis: b },
            5 => Action::PushMpls { lse: a, eth_type: c },
            6 => Action::PopMpls { eth_type: c },
            7 => Action::AddMpls { lse: a, eth_type: c, flags: d % 2 },
            8 => Action::Trunc(a),
            9 => Action::PopEth,
            10 => Action::CtClear,
            11 => Action::PopNsh,
            12 => Action::Meter(a),
            13 => Action::Drop(a % 2),
            14 => Action::Psample { group: a, cookie: None },
            15 => Action::Psample { group: a, cookie: Some(&bytes) },
            16 => Action::PushNsh(&bytes),
            17 => Action::Unknown { kind: 26 + c % 1000, payload: &bytes[..d as usize % 5] },
            _ => Action::Ct(&[]),
        })
    });
    let userspace = (any::<(u32, bool)>(), proptest::option::of(vec(any::<u8>(), 0..20))).prop_map(
        |((pid, actions), userdata)| {
            let egress_tun_port = actions.then_some(pid / 2);
            let userdata = userdata.as_deref();
            action(&Action::Userspace { pid, userdata, egress_tun_port, actions })
        },
    );
    let set = key_attr().prop_map(|attr| {
        encode(|b| {
            b.bytes(ovs_wire::action::kind::SET, &attr);
        })
    });
    prop_oneof![4 => plain, 1 => userspace, 1 => set].boxed()
}

/// A list of actions, nested.
pub(crate) fn actions() -> BoxedStrategy<Vec<u8>> {
    let list = |element: BoxedStrategy<Vec<u8>>| vec(element, 0..5).prop_map(|all| all.concat());
    list(simple_action())
        .prop_recursive(4, 40, 4, move |inner| {
            let nest =
                (0..4_u8, any::<u32>(), inner.clone(), inner).prop_map(|(which, n, a, b)| {
                    let (a, b) = (Actions::new(&a), Actions::new(&b));
                    let pkt_len = n as u16;
                    action(&match which {
                        0 => Action::Clone(a),
                        1 => Action::Sample { probability: n, actions: a },
                        2 => Action::DecTtl(a),
                        _ => Action::CheckPktLen { pkt_len, greater: a, less_equal: b },
                    })
                });
            list(prop_oneof![2 => simple_action(), 1 => nest].boxed())
        })
        .boxed()
}
