use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::AttrBuilder;
use crate::key::kind::{ENCAP, TUNNEL};

/// Parses, prints and compares.
fn key_stays(text: &str) {
    let (mut key, mut mask) = (Vec::new(), Vec::new());
    parse_key(text, &mut key, &mut mask).unwrap_or_else(|err| panic!("{text}: {err}"));
    let printed = format_key(FlowKey::new(&key), Some(FlowKey::new(&mask))).to_string();
    assert_eq!(printed, text);
}

fn actions_stay(text: &str) {
    let mut actions = Vec::new();
    parse_actions(text, &mut actions).unwrap_or_else(|err| panic!("{text}: {err}"));
    assert_eq!(format_actions(Actions::new(&actions)).to_string(), text);
}

#[test]
fn masked_keys_are_printed_as_the_peer_prints_them() {
    for text in [
        "recirc_id(0),in_port(2),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),ipv4(frag=no)",
        "in_port(2),eth(),eth_type(0x8100),vlan(vid=5,pcp=0),encap(eth_type(0x0800),ipv4(src=10.0.0.0/255.255.255.0,frag=no),udp(src=1))",
        "in_port(1/0xff),eth(src=00:01:02:03:04:05/ff:ff:ff:ff:ff:f0),eth_type(0x1234/0xfff0)",
        "eth(),eth_type(0x0806),arp(sip=10.0.0.1,tip=10.0.0.2,op=1/0xff,sha=02:00:00:00:00:01,tha=00:00:00:00:00:00)",
        "ct_state(+new-est+trk),ct_zone(0x5),ct_mark(0x1/0xff),ct_label(0x1234567890abcdef1234567890abcdef)",
        "ct_label(0/0x1)",
        "ct_tuple4(src=10.0.0.1,proto=6,tp_src=1,tp_dst=2),ct_tuple6(src=::1,src_port=3)",
        "eth(),eth_type(0x86dd),ipv6(src=::1/::255,label=0/0xf0,proto=58,tclass=0x70/0xf0,hlimit=128/0xf0,frag=later),icmpv6(type=135,code=0),nd(target=::3/::250,sll=00:05:06:07:08:09/ff:ff:ff:ff:ff:00)",
        "eth(),eth_type(0x0800),ipv4(proto=6,tos=0x80/0xf0,ttl=128/0xf0,frag=first),tcp(src=80/0xff00,dst=8080/0xff),tcp_flags(syn|ack)",
        "tcp_flags(+syn-ack)",
        "tcp_flags(0)",
        "eth(),eth_type(0x8847),mpls(label=100,tc=3,ttl=64,bos=0,label=7,tc=0,ttl=64,bos=1)",
        "mpls(label=100/0xff000,tc=7/7,ttl=64/0xff,bos=1/1)",
        "vlan(vid=5/0xf0)",
        "vlan(cfi=0)",
        "vlan(pcp=3)",
        "in_port(1),eth(),eth_type(0/0xffff)",
        "skb_priority(0x1234/0xfff0),skb_mark(0),dp_hash(0x1/0xf)",
        "key31(00 01/ff 0f),key33()",
        "key6(00 01/ff)",
        "sctp(src=1,dst=2),icmp(type=8,code=0)",
        "key18(10 00/f0 00)",
    ] {
        key_stays(text);
    }
}

#[test]
fn tunnels_are_printed_with_their_flags() {
    key_stays("tunnel(tun_id=0x5/0xff,src=10.0.0.1/255.255.255.0,ttl=64,flags(-df+csum+key))");
    key_stays("tunnel(tun_id=0x5,dst=10.0.0.2,tos=0x8,tp_dst=4789,flags(df|csum|key))");
    key_stays("tunnel(ipv6_src=::1,key8(00 01/ff 00),flags(-oam))");
    key_stays("tunnel(flags(+key))");
    key_stays("tunnel()");
}

#[test]
fn keys_without_a_mask_are_printed_whole() {
    let mut key = Vec::new();
    let text = "recirc_id(0),ct_state(0x21),ct_zone(0),ct_mark(0),ct_label(0),\
                eth(src=00:00:00:00:00:00,dst=02:00:00:00:00:02),eth_type(0x8100),\
                vlan(vid=0,pcp=0),encap(eth_type(0x0806),tcp_flags(0))";
    parse_key(text, &mut key, &mut Vec::new()).unwrap();
    assert_eq!(format_key(FlowKey::new(&key), None).to_string(), text);
}

#[test]
fn what_the_mask_leaves_out_is_left_out() {
    let (mut key, mut mask) = (Vec::new(), Vec::new());
    parse_key("in_port(2),skb_mark(7),tcp(src=1,dst=2),tcp_flags(syn)", &mut key, &mut Vec::new())
        .unwrap();
    parse_key("in_port(2),skb_mark(0/0),tcp(dst=2),tcp_flags(0/0)", &mut Vec::new(), &mut mask)
        .unwrap();
    let text = format_key(FlowKey::new(&key), Some(FlowKey::new(&mask))).to_string();
    assert_eq!(text, "in_port(2),tcp(dst=2)");
}

#[test]
fn actions_are_printed_as_the_peer_prints_them() {
    for text in [
        "drop",
        "2",
        "1,3,push_vlan(vid=5,pcp=0),2",
        "push_vlan(tpid=0x88a8,vid=5,pcp=1,cfi=0),pop_vlan",
        "userspace(pid=4294967295,userdata(0102))",
        "userspace(pid=6633,userdata(),actions,tunnel_out_port=10)",
        "set(eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02))",
        "set(eth(dst=02:00:00:00:00:01)),set(ipv4(tos=0/0x3,ttl=63))",
        "set(skb_mark(0x1/0xff)),set(tunnel(tun_id=0x5,dst=10.0.0.1,ttl=64,flags(df|key)))",
        "recirc(0x1),hash(l4(0)),hash(sym_l4(7))",
        "ct,ct(commit,zone=1),ct_clear,ct(commit,label=0/0x1)",
        "ct(force_commit,zone=9,mark=0x1/0xff,label=0x1/0xf,helper=ftp,timeout=tp0,nat(src=10.0.0.1-10.0.0.9:80-90,persistent,hash))",
        "ct(nat(dst=[fe80::20]:1000)),ct(nat(src=fe80::1-fe80::2,random)),ct(commit,nat(src)),ct(nat)",
        "sample(sample=50.0%,actions(2)),sample(sample=100.0%,actions(drop))",
        "trunc(100),meter(1),clone(1,clone(2))",
        "check_pkt_len(size=1500,gt(drop),le(2,3))",
        "push_mpls(label=100,tc=3,ttl=64,bos=1,eth_type=0x8847),pop_mpls(eth_type=0x800)",
        "add_mpls(label=100,tc=3,ttl=64,bos=1,eth_type=0x8848)",
        "push_eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),pop_eth,pop_nsh()",
        "dec_ttl(le_1(userspace(pid=1)))",
        "psample(group=12,cookie=0x1020),psample(group=1)",
        "drop(3),1,drop",
        "action99(00 01),action98",
    ] {
        actions_stay(text);
    }
}

#[test]
fn errors_say_what_where_and_what_instead() {
    let key = |text| parse_key(text, &mut Vec::new(), &mut Vec::new()).unwrap_err().to_string();
    assert_eq!(
        key("in_port(2),ipv4(srk=1)"),
        "flow key, column 17: expected one of src, dst, proto, tos, ttl, frag, found `srk=1)`"
    );
    assert_eq!(
        key("eth(src=02:00)"),
        "flow key, column 9: expected an Ethernet address, found `02:00)`"
    );
    assert_eq!(key("in_port(2"), "flow key, column 10: expected `)`, found the end");
    let actions = |text| parse_actions(text, &mut Vec::new()).unwrap_err().to_string();
    assert_eq!(
        actions("1,fly"),
        "actions, column 3: expected an action such as `2` or `push_vlan(`, found `fly`"
    );
    assert_eq!(
        actions("99999999999"),
        "actions, column 1: expected a number up to 4294967295, found `99999999999`"
    );
}

#[test]
fn an_error_leaves_the_buffers_alone() {
    let (mut key, mut mask, mut actions) = (vec![0; 4], vec![0; 8], vec![0; 12]);
    assert!(parse_key("in_port(1),x", &mut key, &mut mask).is_err());
    assert!(parse_actions("1,x", &mut actions).is_err());
    assert_eq!((key.len(), mask.len(), actions.len()), (4, 8, 12));
}

#[test]
#[cfg_attr(miri, ignore = "takes miri too long")]
fn nesting_is_bounded_both_ways() {
    let mut actions = Vec::new();
    for _ in 0..1000 {
        let inner = std::mem::take(&mut actions);
        AttrBuilder::new(&mut actions).bytes(crate::action::kind::CLONE, &inner);
    }
    let text = format_actions(Actions::new(&actions)).to_string();
    assert!(text.starts_with("clone(clone(") && text.contains("action20("));
    let mut again = Vec::new();
    parse_actions(&text, &mut again).unwrap();
    assert_eq!(actions, again);
    assert!(parse_actions(&"clone(".repeat(5000), &mut again).is_err());
    assert!(parse_key(&"encap(".repeat(5000), &mut Vec::new(), &mut Vec::new()).is_err());
}

#[test]
fn what_is_no_attribute_is_shown_as_bytes() {
    assert_eq!(
        format_actions(Actions::new(&[9, 9, 9])).to_string(),
        "<empty>,***3 leftover bytes*** (090909)"
    );
    assert_eq!(format_key(FlowKey::new(&[]), None).to_string(), "<empty>");
    assert_eq!(parse_key("<empty>", &mut Vec::new(), &mut Vec::new()), Ok(()));
}

#[test]
fn a_whole_key_has_what_is_not_matched_too_and_ports_have_names() {
    let text = "skb_priority(0x7),in_port(2),ct_state(0x20),eth(src=02:00:00:00:00:01,\
                dst=02:00:00:00:00:02),eth_type(0x8100),vlan(vid=5,pcp=3),encap(eth_type(0x0800),\
                ipv4(src=10.0.0.1,dst=10.0.0.2,proto=6,tos=0,ttl=64,frag=no),tcp(src=80,dst=90),\
                tcp_flags(syn))";
    let (mut key, mut mask, mut none) = (Vec::new(), Vec::new(), Vec::new());
    parse_key(text, &mut key, &mut none).unwrap();
    let matched = "in_port(2),eth(src=02:00:00:00:00:01),eth_type(0x8100),encap(ipv4(proto=6))";
    parse_key(matched, &mut Vec::new(), &mut mask).unwrap();
    let names = [(1, "veth0".to_owned()), (2, "veth1".to_owned())];
    let whole = format_key(FlowKey::new(&key), Some(FlowKey::new(&mask))).whole().names(&names);
    let wanted = "skb_priority(0x7/0),in_port(veth1),ct_state(0x20/0),eth(src=02:00:00:00:00:01,\
                  dst=02:00:00:00:00:02/00:00:00:00:00:00),eth_type(0x8100),vlan(vid=5/0x0,pcp=3/0x0),\
                  encap(eth_type(0x0800/0x0000),ipv4(src=10.0.0.1/0.0.0.0,dst=10.0.0.2/0.0.0.0,proto=6,\
                  tos=0/0,ttl=64/0),tcp(src=80/0,dst=90/0),tcp_flags(0/0))";
    assert_eq!(whole.to_string(), wanted);
    let mut actions = Vec::new();
    parse_actions("1,clone(2),3", &mut actions).unwrap();
    let actions = format_actions(Actions::new(&actions)).names(&names);
    assert_eq!(actions.to_string(), "veth0,clone(veth1),3");
}

/// Key and mask of the same kinds in the same order.
type Nest = (Vec<u8>, Vec<u8>);

/// A byte of those where forms differ, or any.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![Just(0), Just(0xff), any::<u8>()]
}

/// Attributes of the numbers up to `kinds`, of a length that one of them has, with any mask.
fn attrs(kinds: u16) -> impl Strategy<Value = Nest> {
    let odd = proptest::sample::select(vec![0, 1, 2, 4, 8, 12, 16, 24, 28, 40]);
    let attr = (1..=kinds, odd, any::<bool>()).prop_flat_map(|(kind, odd, fits)| {
        let form = forms::by_kind(kind).filter(|_| fits);
        let len = form.map_or(odd, |form| form.len);
        (Just(kind), vec(byte(), len), vec(byte(), len))
    });
    vec(attr, 0..4).prop_map(|mut attrs| {
        let (mut key, mut mask) = Nest::default();
        attrs.sort_by_key(|attr| attr.0);
        attrs.dedup_by_key(|attr| attr.0);
        for (kind, value, bits) in attrs {
            AttrBuilder::new(&mut key).bytes(kind, &value);
            AttrBuilder::new(&mut mask).bytes(kind, &bits);
        }
        (key, mask)
    })
}

/// Attributes, some of them in a nest.
fn nests() -> impl Strategy<Value = Nest> {
    let nest = |kind: u16, inner: Nest| {
        let (mut key, mut mask) = Nest::default();
        AttrBuilder::new(&mut key).bytes(kind, &inner.0);
        AttrBuilder::new(&mut mask).bytes(kind, &inner.1);
        (key, mask)
    };
    prop_oneof![
        attrs(35),
        attrs(35).prop_map(move |inner| nest(ENCAP, inner)),
        attrs(16).prop_map(move |inner| nest(TUNNEL, inner)),
    ]
}

/// The words of a text, whatever their order.
fn parts(text: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = text.split([',', '(', ')']).collect();
    parts.sort_unstable();
    parts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever the bytes are, what is printed can be read, and is the same when it is printed.
    #[test]
    #[cfg_attr(miri, ignore = "takes miri too long")]
    fn any_bytes_have_a_text_that_stays((key, mask) in nests()) {
        let print = |key: &[u8], mask: &[u8]| {
            format_key(FlowKey::new(key), Some(FlowKey::new(mask))).to_string()
        };
        let text = print(&key, &mask);
        let (mut key, mut mask) = Nest::default();
        parse_key(&text, &mut key, &mut mask)
            .map_err(|err| TestCaseError::fail(format!("{text}: {err}")))?;
        // A key of which nothing is matched has no text; a tunnel is read into the kernel's order.
        if !text.is_empty() {
            let again = print(&key, &mask);
            prop_assert_eq!(parts(&again), parts(&text), "{} {}", again, text);
        }
    }
}
