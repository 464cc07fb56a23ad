//! Traffic across a plain wire: nothing lost, nothing doubled, nothing overtaken, and the generators'
//! own counts agree with the kernel's. Needs root, not Open vSwitch.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy takes for product code")]

use std::net::SocketAddr;
use std::time::Duration;

use upcall_testkit::traffic::{Order, Plan, RawFlows, Receiver, UdpFlows, udp_counters};
use upcall_testkit::{Frame, NetNs, RawSocket, Veth, VlanTag, skip_unless_root};

const SOON: Duration = Duration::from_secs(10);
const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

fn wire() -> (NetNs, NetNs) {
    let (a, b) = (NetNs::new("a").unwrap(), NetNs::new("b").unwrap());
    a.disable_ipv6().unwrap();
    b.disable_ipv6().unwrap();
    let veth = Veth::new("a0", "b0").peer_in(&b).mac(A).peer_mac(B);
    a.links(async |links| links.add_veth(&veth).await).unwrap();
    for (ns, link, address) in [(&a, "a0", "10.0.0.1"), (&b, "b0", "10.0.0.2")] {
        ns.links(async |links| {
            links.up(link).await?;
            links.add_address(link, address.parse().unwrap(), 24).await
        })
        .unwrap();
    }
    (a, b)
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn udp_flows_arrive_whole_and_in_order() {
    if skip_unless_root("udp_flows_arrive_whole_and_in_order") {
        return;
    }
    let (a, b) = wire();
    let to = addr("10.0.0.2:7000");
    let receiver = Receiver::udp(&b, to).unwrap();
    let mut plan = Plan { order: Order::RoundRobin, ..Plan::new(20, 50).flows_from(100) };
    let mut outlet = UdpFlows::open(&a, to, 100, 20).unwrap();
    assert_eq!(plan.send(&mut outlet).unwrap().packets, 1000);
    plan.first_seq = 50;
    plan.send(&mut outlet).unwrap();
    receiver.wait_received(2000, SOON).unwrap();
    (100..120).for_each(|flow| receiver.expect(flow, 100));
    let sum = receiver.stop().unwrap().totals();
    assert_eq!((sum.flows, sum.received, sum.lost), (20, 2000, 0));
    assert_eq!((sum.duplicates, sum.reordered, sum.foreign), (0, 0, 0));
    let counters = udp_counters(&b).unwrap();
    assert_eq!((counters.received, counters.buffer_full), (2000, 0));
    assert!(plan.flows_from(0).send(&mut outlet).is_err(), "no sockets for these flows");
}

#[test]
fn frames_of_many_stations_arrive_tagged_and_reach_the_udp_stack_untagged() {
    if skip_unless_root("frames_of_many_stations") {
        return;
    }
    let (a, b) = wire();
    let (from, to) = (addr("10.0.0.1:5000"), addr("10.0.0.2:7000"));
    let everything = Receiver::raw(&b, "b0").unwrap();
    let stack = Receiver::udp(&b, to).unwrap();
    let socket = RawSocket::sender(&a, "a0").unwrap();
    let build = |flow: u32, payload: &[u8]| {
        let frame = Frame::new([2, 0, 0, 1, 0, flow as u8], B);
        // Odd flows are of a VLAN that nobody in the far namespace is a member of.
        let frame = if flow % 2 == 1 { frame.vlan(VlanTag::new(9)) } else { frame };
        frame.udp(from, to, payload)
    };
    let mut outlet = RawFlows::new(&socket, build);
    Plan::new(10, 8).send(&mut outlet).unwrap();
    everything.wait_received(80, SOON).unwrap();
    stack.wait_received(40, SOON).unwrap();
    let sum = everything.stop().unwrap().totals();
    assert_eq!((sum.flows, sum.received, sum.lost, sum.reordered), (10, 80, 0, 0));
    let tally = stack.stop().unwrap();
    assert_eq!(tally.totals().received, 40);
    assert!(tally.flows().all(|(flow, tally)| flow % 2 == 0 && tally.lost() == 0));
    assert_eq!(udp_counters(&b).unwrap().errors, 0, "checksums are right");
}

#[test]
fn a_receiver_that_sees_too_little_says_what_it_saw() {
    if skip_unless_root("a_receiver_that_sees_too_little_says_what_it_saw") {
        return;
    }
    let ns = NetNs::new("lone").unwrap();
    let receiver = Receiver::udp(&ns, addr("127.0.0.1:7000")).unwrap();
    ns.udp_socket(addr("127.0.0.1:0")).unwrap().send_to(b"hello", "127.0.0.1:7000").unwrap();
    let error = receiver.wait_received(1, Duration::from_millis(30)).unwrap_err().to_string();
    assert!(error.starts_with("waited 30ms for 1 packets (there are Totals"), "{error}");
    assert_eq!(receiver.stop().unwrap().totals().foreign, 1);
}
