use ovs_wire::AttrBuilder;

use super::*;

const OP: &str = "ask";

/// A reply under each command that a kernel answers with: to GET, SET and dumps kernels up to 4.19 say
/// NEW (1), kernels from 5.4 on repeat the request's command, DEL (2), GET (3) or SET (4).
fn replies(fill: impl Fn(&mut AttrBuilder<'_>)) -> Vec<Vec<u8>> {
    let reply = |cmd| {
        let mut buf = Vec::new();
        OvsHeader { cmd, version: 1, dp_ifindex: 7 }.write(&mut buf, &fill).unwrap();
        buf
    };
    (1..=4).map(reply).collect()
}

fn assert_all_are<T: PartialEq + std::fmt::Debug>(
    replies: &[Vec<u8>],
    parse: impl Fn(&[u8]) -> Result<(u8, T), WireError>,
    check: impl Fn(&T),
) {
    let all = parse_all(OP, replies, &parse).unwrap();
    assert_eq!(all.len(), replies.len());
    for (reply, of_a_dump) in replies.iter().zip(&all) {
        let alone = parse_one(OP, std::slice::from_ref(reply), &parse).unwrap();
        assert_eq!(&alone, of_a_dump);
        check(&alone);
    }
}

#[test]
fn a_reply_is_read_by_what_it_holds_whatever_its_command() {
    let features = UserFeatures::UNALIGNED | UserFeatures::VPORT_PIDS;
    let datapaths = replies(|b| {
        b.str(datapath::attr::NAME, "dp0");
        b.u32(datapath::attr::USER_FEATURES, features.bits());
    });
    assert_all_are(&datapaths, Datapath::parse, |dp| {
        assert_eq!((dp.name.as_str(), dp.ifindex, dp.features), ("dp0", 7, features));
    });
    let ports = replies(|b| {
        b.u32(vport::attr::PORT_NO, 3).u32(vport::attr::TYPE, 1).str(vport::attr::NAME, "p0");
        b.u32s(vport::attr::UPCALL_PID, &[42]);
    });
    assert_all_are(&ports, Vport::parse, |port| {
        assert_eq!((port.port_no, port.name.as_str(), &port.upcall_pids[..]), (3, "p0", &[42][..]));
    });
    for reply in replies(|b| _ = b.bytes(flow::attr::KEY, &[1, 2, 3, 4])) {
        assert_eq!(Flow::parse(first(OP, &[reply]).unwrap()).unwrap().1.key, [1, 2, 3, 4]);
    }
}

#[test]
fn an_answer_without_a_reply_or_with_half_of_one_says_what_was_asked() {
    let none = parse_one(OP, &[], Datapath::parse).unwrap_err();
    let half = parse_one(OP, &[vec![1, 1, 0]], Datapath::parse).unwrap_err();
    let unnamed = parse_one(OP, &replies(|_| {}), Datapath::parse).unwrap_err();
    for err in [none, half, unnamed] {
        assert!(matches!(&err, ControlError::BadReply { op, .. } if op == OP), "{err:?}");
    }
}
