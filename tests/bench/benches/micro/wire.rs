//! Messages: an upcall's bytes to fields, answers to bytes.

use std::hash::{BuildHasher, Hasher};
use std::hint::black_box;

use criterion::Criterion;
use foldhash::quality::RandomState;
use ovs_wire::AttrBuilder;
use ovs_wire::flow::FlowPut;
use ovs_wire::key::FlowKey;
use ovs_wire::mask::MatchFields;
use ovs_wire::nl::NlMsgs;
use ovs_wire::packet::{Execute, Upcall};

use crate::Group;
use crate::message::{IDS, key, miss};

/// Output to port 2.
const ACTIONS: [u8; 8] = {
    let ([k0, k1], [p0, p1, p2, p3]) = (1u16.to_ne_bytes(), 2u32.to_ne_bytes());
    let [l0, l1] = 8u16.to_ne_bytes();
    [l0, l1, k0, k1, p0, p1, p2, p3]
};

fn parse(datagram: &[u8]) -> Upcall<'_> {
    let message = NlMsgs::new(datagram).next().and_then(Result::ok).expect("a message");
    Upcall::parse(message.payload).expect("an upcall")
}

fn put<'a>(key: &'a [u8], mask: Option<&'a [u8]>) -> FlowPut<'a> {
    FlowPut {
        dp_ifindex: IDS.dp_ifindex,
        key,
        mask,
        actions: &ACTIONS,
        probe: false,
        ufid: Some(&[7; 16]),
    }
}

pub(crate) fn all(criterion: &mut Criterion) {
    reading(criterion);
    writing(criterion);
}

fn reading(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "wire");
    let (datagram, tunneled) = (miss(1), key(1, true));
    let upcall = parse(&datagram);
    group.bench("upcall to fields", || parse(black_box(&datagram)));
    group.bench("key to summary", || FlowKey::new(black_box(upcall.key)).summary());
    group.bench("key of a tunnel to summary", || FlowKey::new(black_box(&tunneled)).summary());
    let hasher = RandomState::default();
    let masked = |fields| {
        let mut hasher = hasher.build_hasher();
        FlowKey::new(black_box(upcall.key)).hash_masked(fields, &mut hasher).expect("a key");
        hasher.finish()
    };
    group.bench("flow's hash, exact", || masked(MatchFields::EXACT));
    group.bench("flow's hash, addresses", || masked(MatchFields::IN_PORT | MatchFields::ETH_SRC));
}

fn writing(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "wire");
    let datagram = miss(1);
    let upcall = parse(&datagram);
    let mut out = Vec::new();
    let summary = FlowKey::new(upcall.key).summary().expect("a key");
    group.bench("EXECUTE", || {
        out.clear();
        let mut short = [0; 8];
        let key = summary.execute_key(upcall.key, &mut short);
        let execute = Execute { key, ..Execute::reply(black_box(&upcall), &ACTIONS, 1) };
        execute.write(&mut out, IDS.packet_family, 2)
    });
    group.bench("FLOW_PUT, exact", || {
        out.clear();
        black_box(put(upcall.key, None)).write(&mut out, IDS.flow_family, 0, 3)
    });
    let mut mask = Vec::new();
    group.bench("FLOW_PUT, mask of addresses", || {
        out.clear();
        mask.clear();
        let fields = black_box(MatchFields::IN_PORT | MatchFields::ETH_SRC);
        let mut b = AttrBuilder::new(&mut mask);
        FlowKey::new(upcall.key).write_mask(fields, &mut b).expect("a key");
        put(upcall.key, Some(&mask)).write(&mut out, IDS.flow_family, 0, 3)
    });
}
