//! What a port may have taken in, and what becomes of the rest.

use upcall_core::{PortRates, QueueLimits, Rate};

use super::*;
use crate::{PortQuota, PortSheds};

fn rate(text: &str) -> Rate {
    text.parse().expect("a rate")
}

/// An upcall of `port` for a flow's userspace action with this cookie.
fn action(port: u32, userdata: &[u8]) -> Vec<u8> {
    let mut key = Vec::new();
    let mut b = AttrBuilder::new(&mut key);
    KeyAttr::InPort(port).write(&mut b);
    b.finish().unwrap();
    let mut buf = Vec::new();
    let header = OvsHeader { cmd: cmd::ACTION, version: packet::VERSION, dp_ifindex: DATAPATH };
    write_message(&mut buf, FAMILY, 0, 0, header, |b| {
        b.bytes(attr::KEY, &key).bytes(attr::PACKET, &[0; 60]).bytes(attr::USERDATA, userdata);
    })
    .unwrap();
    buf
}

#[test]
fn what_exceeds_a_rate_is_shed_of_its_port_and_class_alone() {
    let port_rates =
        PortRates { miss: Some(rate("1:2")), sample: Some(rate("1:1")), ..PortRates::default() };
    let mut bench = Bench::limited(Limits { port_rates, ..Limits::default() });
    let (sample, other) = (action(1, &[7, 7, 1]), action(1, &[7, 8]));
    let others_sample = action(2, &[7, 7]);
    bench.round(&[upcall(60), upcall(61), upcall(62), upcall(63)]);
    bench.round(&[sample.clone(), sample, others_sample, other.clone(), other]);
    assert_eq!(bench.lengths(), [60, 61, 60, 60, 60, 60], "misses, a sample each, actions");
    let ledger = bench.ledger.snapshot();
    assert_eq!((ledger.shed_rate, ledger.completed), (3, 6));
    assert!(ledger.balances());
    let expected = PortSheds { port: 1, rate: 3, ..PortSheds::default() };
    assert_eq!(bench.engine.shared.sheds.read(), [expected]);
}

#[test]
fn a_port_has_no_more_places_in_the_queue_than_its_quota() {
    let queue = QueueLimits { port_upcalls_max: 2, ..QueueLimits::default() };
    let mut bench = Bench::limited(Limits { queue, ..Limits::default() });
    bench.source.spread = true;
    // Of one flow: what comes when the quota is reached is shed, not handled before what waits.
    let lengths: Vec<_> = (60..65).map(upcall).collect();
    bench.round(&lengths);
    assert_eq!(bench.lengths(), [60, 61]);
    let ledger = bench.ledger.snapshot();
    assert_eq!((ledger.shed_quota, ledger.shed_no_room, ledger.completed), (3, 0, 2));
    assert!(ledger.balances());
    let expected = PortSheds { port: 1, quota: 3, ..PortSheds::default() };
    assert_eq!(bench.engine.shared.sheds.read(), [expected]);
    bench.round(&[upcall(65)]);
    assert_eq!(bench.lengths(), [60, 61, 65], "places come back");
}

#[test]
fn a_port_may_have_a_quota_of_its_own_until_it_leaves_or_the_limits_are_set() {
    let mut bench = Bench::limited(Limits::default());
    bench.source.spread = true;
    let shared = bench.engine.shared.clone();
    let port = |number| Port { number, name: format!("p{number}") };
    shared.set_ports(Ports::new(vec![port(1), port(2)]));
    let rates = PortRates { miss: Some(rate("1:3")), ..PortRates::default() };
    let quota = PortQuota { rates, upcalls_max: 2 };
    assert!(!shared.set_port_quota(3, quota), "there is no such port");
    assert!(shared.set_port_quota(1, quota));
    bench.round(&(60..64).map(upcall).collect::<Vec<_>>());
    let ledger = bench.ledger.snapshot();
    assert_eq!((ledger.shed_rate, ledger.shed_quota, ledger.completed), (1, 1, 2));
    let life = FlowLife { idle: Duration::MAX, hard: None, sweep_interval: Duration::MAX };
    shared.tune(Limits::default(), life);
    bench.round(&(70..74).map(upcall).collect::<Vec<_>>());
    assert_eq!(bench.ledger.snapshot().completed, 6, "as the limits say");
    assert!(shared.set_port_quota(1, quota));
    shared.set_ports(Ports::new(vec![port(2)]));
    bench.round(&(80..84).map(upcall).collect::<Vec<_>>());
    assert_eq!(bench.ledger.snapshot().completed, 10, "another one by its number is another one");
    assert!(bench.ledger.snapshot().balances());
}
