use super::*;
use crate::key::{IcmpKey, MacAddr};

fn round_trip(action: Action<'_>) {
    let mut buf = ActionBuf::new();
    buf.push(&action).unwrap();
    let all: Vec<_> = buf.actions().iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(all, [action]);
}

#[test]
fn every_action_survives() {
    let inner = ActionBuf::default().output(2).clone();
    let list = inner.actions();
    let eth = EthernetKey { src: MacAddr([2, 0, 0, 0, 0, 1]), dst: MacAddr::BROADCAST };
    let icmp = |b| KeyAttr::Icmp(IcmpKey { kind: b, code: 0 });
    for action in [
        Action::Output(7),
        Action::Userspace {
            pid: USERSPACE_PID_PER_CPU,
            userdata: Some(&[1, 2, 3]),
            egress_tun_port: Some(4),
            actions: true,
        },
        Action::Userspace { pid: 1, userdata: None, egress_tun_port: None, actions: false },
        Action::Set(KeyAttr::Ethernet(eth)),
        Action::SetMasked { key: icmp(8), mask: icmp(0xff) },
        Action::PushVlan { tpid: 0x88a8, tci: VlanTci::new(5, 1) },
        Action::PopVlan,
        Action::Sample { probability: 77, actions: list },
        Action::Recirc(1),
        Action::Hash { alg: 1, basis: 9 },
        Action::PushMpls { lse: 0x1_0140, eth_type: 0x8847 },
        Action::PopMpls { eth_type: 0x0800 },
        Action::Ct(&[4, 0, 1, 0]),
        Action::Trunc(100),
        Action::PushEth(eth),
        Action::PopEth,
        Action::CtClear,
        Action::PushNsh(&[1, 2, 3, 4]),
        Action::PopNsh,
        Action::Meter(3),
        Action::Clone(list),
        Action::CheckPktLen { pkt_len: 1500, greater: list, less_equal: Actions::default() },
        Action::AddMpls { lse: 0x1_0140, eth_type: 0x8847, flags: 1 },
        Action::DecTtl(list),
        Action::Drop(4),
        Action::Psample { group: 1, cookie: Some(&[9; 16]) },
        Action::Unknown { kind: 99, payload: &[1] },
    ] {
        round_trip(action);
    }
}

#[test]
fn parts_that_are_not_known_are_kept() {
    let mut bytes = Vec::new();
    AttrBuilder::new(&mut bytes).nest(kind::SAMPLE, |b| {
        b.u32(SAMPLE_PROBABILITY, 1).bytes(SAMPLE_ACTIONS, &[]).u32(9, 9);
    });
    let action = Actions::new(&bytes).iter().next().unwrap().unwrap();
    assert_eq!(action, Action::Unknown { kind: kind::SAMPLE, payload: &bytes[4..] });
    round_trip(action);
}

#[test]
fn a_userspace_action_needs_a_pid() {
    let mut bytes = Vec::new();
    AttrBuilder::new(&mut bytes).nest(kind::USERSPACE, |_| {});
    let err = Actions::new(&bytes).iter().next().unwrap().unwrap_err();
    assert_eq!(err.to_string(), "userspace action's PID is missing");
}

#[test]
fn what_does_not_fit_leaves_the_list_alone() {
    let mut buf = ActionBuf::new();
    buf.output(1).push_vlan(VlanTci(5)).pop_vlan();
    let before = buf.clone();
    let long = vec![0; 70_000];
    assert!(buf.push(&Action::Ct(&long)).is_err());
    let mask = KeyAttr::InPort(1);
    assert!(buf.push(&Action::SetMasked { key: KeyAttr::EtherType(1), mask }).is_err());
    assert_eq!(buf, before);
    buf.clear();
    assert!(buf.is_empty() && buf.as_bytes().is_empty());
}
