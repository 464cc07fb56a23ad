//! Namespaces, links, frames and pings on the running kernel. Needs root, not Open vSwitch.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy takes for product code")]

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::{
    Error, Frame, Hosts, HostsConfig, NetNs, PingPlan, RawSocket, Veth, VlanTag, ping, skip,
    skip_unless_root,
};

const SOON: Duration = Duration::from_secs(5);
const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// Two namespaces with one veth pair between them: `a0` in the first, `b0` in the second, both up.
fn wire(ipv6: bool) -> (NetNs, NetNs) {
    let (a, b) = (NetNs::new("a").unwrap(), NetNs::new("b").unwrap());
    if !ipv6 {
        a.disable_ipv6().unwrap();
        b.disable_ipv6().unwrap();
    }
    a.links(async |links| {
        links.add_veth(&Veth::new("a0", "b0").peer_in(&b).mac(A).peer_mac(B).mtu(1400)).await?;
        links.up("a0").await
    })
    .unwrap();
    b.links(async |links| links.up("b0").await).unwrap();
    a.links(async |links| links.wait_operational(&["a0"]).await).unwrap();
    (a, b)
}

fn address(ns: &NetNs, link: &str, address: &str, prefix_len: u8) {
    let address: IpAddr = address.parse().unwrap();
    ns.links(async |links| links.add_address(link, address, prefix_len).await).unwrap();
}

#[test]
fn the_caller_stays_where_it_is() {
    if skip_unless_root("the_caller_stays_where_it_is") {
        return;
    }
    let before = NetNs::current().unwrap().id().unwrap();
    let ns = NetNs::new("elsewhere").unwrap();
    let inside = ns.run(|| NetNs::current().unwrap().id().unwrap()).unwrap();
    assert_eq!(inside, ns.id().unwrap());
    assert_ne!(inside, before);
    assert_eq!(NetNs::current().unwrap().id().unwrap(), before);
    let spawned = ns.spawn(|| NetNs::current().unwrap().id().unwrap()).unwrap();
    assert_eq!(spawned.join().unwrap(), inside);
}

#[test]
fn a_new_namespace_has_lo_up_and_nothing_else() {
    if skip_unless_root("a_new_namespace_has_lo_up_and_nothing_else") {
        return;
    }
    let ns = NetNs::new("bare").unwrap();
    let links = ns.links(async |links| links.list().await).unwrap();
    let lo = links.iter().find(|link| link.name == "lo").expect("lo");
    assert!(lo.up && !lo.operational, "the loopback device reports no operational state");
    // Fallback tunnel devices (sit0, tunl0) appear where their modules are loaded; they are down.
    assert!(links.iter().all(|link| link.name == "lo" || !link.up), "{links:?}");
}

#[test]
fn a_closure_may_block_on_a_runtime_within_a_runtime() {
    if skip_unless_root("a_closure_may_block_on_a_runtime_within_a_runtime") {
        return;
    }
    let ns = NetNs::new("rt").unwrap();
    let links = ns.block_on(async || ns.links(async |links| links.list().await)).unwrap();
    assert!(!links.unwrap().is_empty());
}

#[test]
fn links_are_made_changed_moved_and_deleted() {
    if skip_unless_root("links_are_made_changed_moved_and_deleted") {
        return;
    }
    let (a, b) = wire(false);
    let far = b.links(async |links| links.get("b0").await).unwrap();
    assert_eq!((far.mac, far.mtu, far.up, far.kind.as_deref()), (B, 1400, true, Some("veth")));
    a.links(async |links| {
        links.down("a0").await?;
        links.set_mac("a0", [2, 0, 0, 0, 0, 0xcc]).await?;
        links.set_mtu("a0", 1280).await?;
        links.rename("a0", "a1").await?;
        let link = links.get("a1").await?;
        assert_eq!((link.mac[5], link.mtu, link.up), (0xcc, 1280, false));
        links.move_to("a1", &b).await
    })
    .unwrap();
    let gone = a.links(async |links| links.get("a1").await).unwrap_err();
    assert!(matches!(gone, Error::NoSuchLink { .. }), "{gone}");
    b.links(async |links| {
        links.delete("a1").await?;
        assert!(links.get("b0").await.is_err(), "the other end of the pair goes with it");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_refusal_says_what_was_refused() {
    if skip_unless_root("a_refusal_says_what_was_refused") {
        return;
    }
    let (a, _b) = wire(false);
    let error =
        a.links(async |links| links.add_veth(&Veth::new("a0", "x")).await).unwrap_err().to_string();
    assert!(error.starts_with("cannot add the veth pair a0 and x: File exists"), "{error}");
    let error = a.links(async |links| links.add_veth(&Veth::new("name-too-long-16", "x")).await);
    assert!(matches!(error, Err(Error::Invalid(_))));
    assert!(matches!(RawSocket::open(&a, "nope"), Err(Error::NoSuchLink { .. })));
}

#[test]
fn ping_is_answered_across_a_wire_and_not_into_the_void() {
    if skip_unless_root("ping_is_answered_across_a_wire_and_not_into_the_void") {
        return;
    }
    let (a, b) = wire(false);
    address(&a, "a0", "10.0.0.1", 24);
    address(&b, "b0", "10.0.0.2", 24);
    let report = ping::ping(&a, Ipv4Addr::new(10, 0, 0, 2), &PingPlan::default()).unwrap();
    assert_eq!((report.sent, report.answered, report.duplicates), (4, 4, 0), "{report:?}");
    assert!(report.rtt_min() <= report.rtt_avg() && report.rtt_avg() <= report.rtt_max());

    let plan = PingPlan { count: 2, timeout: Duration::from_millis(50), ..PingPlan::default() };
    let report = ping::ping(&a, Ipv4Addr::new(10, 0, 0, 9), &plan).unwrap();
    assert_eq!((report.sent, report.answered), (2, 0));
    assert_eq!(report.unanswered_after_first(), 1);
}

#[test]
fn ipv6_addresses_are_usable_at_once() {
    if skip_unless_root("ipv6_addresses_are_usable_at_once") {
        return;
    }
    let (a, b) = wire(true);
    address(&a, "a0", "fd00::1", 64);
    address(&b, "b0", "fd00::2", 64);
    let receiver = b.udp_socket("[fd00::2]:7000".parse().unwrap()).unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let sender = a.udp_socket("[fd00::1]:0".parse().unwrap()).unwrap();
    sender.send_to(b"six", "[fd00::2]:7000").unwrap();
    let mut buffer = [0; 16];
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 3);
}

#[test]
fn frames_arrive_with_their_tags_and_only_from_the_other_side() {
    if skip_unless_root("frames_arrive_with_their_tags_and_only_from_the_other_side") {
        return;
    }
    let (a, b) = wire(false);
    let mut near = RawSocket::open(&a, "a0").unwrap();
    let mut far = RawSocket::open(&b, "b0").unwrap();
    assert_eq!((near.mac(), far.mac()), (A, B));
    let plain = Frame::new(A, B);
    let frames = [
        plain.raw(ETHERTYPE_EXPERIMENTAL, &[1; 50]),
        plain.clone().vlan(VlanTag::new(100).priority(3)).raw(ETHERTYPE_EXPERIMENTAL, &[2; 50]),
        plain.clone().vlan(VlanTag::new(0)).raw(ETHERTYPE_EXPERIMENTAL, &[3; 50]),
        plain
            .clone()
            .vlan(VlanTag::service(5))
            .vlan(VlanTag::new(6))
            .raw(ETHERTYPE_EXPERIMENTAL, &[4; 50]),
        plain
            .udp("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), &[5; 1300])
            .unwrap(),
    ];
    for sent in &frames {
        near.send(sent).unwrap();
        let got = far.receive(SOON).unwrap().expect("a frame");
        assert_eq!(&got, sent);
    }
    // The host's own frames leave through a0: they do not come back to it.
    assert_eq!(near.receive(Duration::from_millis(1)).unwrap(), None);
    let error = far.receive_matching("any more", Duration::from_millis(1), |_| true).unwrap_err();
    assert_eq!(error.to_string(), "waited 1ms for any more, in vain");
}

#[test]
fn a_vlan_device_hears_only_its_vlan() {
    if skip_unless_root("a_vlan_device_hears_only_its_vlan") {
        return;
    }
    let (a, b) = wire(false);
    for (ns, link, ip) in [(&a, "a0", "10.0.7.1"), (&b, "b0", "10.0.7.2")] {
        match ns.links(async |links| links.add_vlan("v7", link, 7).await) {
            Err(Error::System { cause, .. }) if cause.kind() == ErrorKind::Unsupported => {
                skip("a_vlan_device_hears_only_its_vlan", "this kernel has no 8021q");
                return;
            }
            made => made.unwrap(),
        }
        ns.links(async |links| links.up("v7").await).unwrap();
        address(ns, "v7", ip, 24);
    }
    let mut tap = RawSocket::open(&b, "b0").unwrap();
    let report = ping::ping(&a, Ipv4Addr::new(10, 0, 7, 2), &PingPlan::default()).unwrap();
    assert_eq!(report.answered, 4);
    let tag = VlanTag::new(7).tci.to_be_bytes();
    let tagged = |frame: &[u8]| frame[12..16] == [0x81, 0, tag[0], tag[1]];
    tap.receive_matching("a frame tagged 7", SOON, tagged).unwrap();
}

#[test]
fn hosts_are_wired_to_the_ports_and_quiet() {
    if skip_unless_root("hosts_are_wired_to_the_ports_and_quiet") {
        return;
    }
    let hosts = Hosts::new(3).unwrap();
    assert_eq!(hosts.ports().collect::<Vec<_>>(), ["p0", "p1", "p2"]);
    assert_eq!(hosts.pairs().count(), 6);
    for host in hosts.iter() {
        let mut port = RawSocket::open(&hosts.switch, &host.port).unwrap();
        let link = RawSocket::open(&host.ns, "eth0").unwrap();
        assert_eq!(link.mac(), host.mac);
        let frame = Frame::broadcast(host.mac).arp_request(host.ip4, host.ip4).unwrap();
        link.send(&frame).unwrap();
        assert_eq!(port.receive(SOON).unwrap().as_deref(), Some(&frame[..]));
        assert_eq!(port.receive(Duration::from_millis(20)).unwrap(), None, "host is not quiet");
    }
    assert!(matches!(Hosts::new(0), Err(Error::Invalid(_))));
}

#[test]
fn hosts_may_have_ipv6() {
    if skip_unless_root("hosts_may_have_ipv6") {
        return;
    }
    let hosts = Hosts::with(&HostsConfig { ipv6: true, ..HostsConfig::new(1) }).unwrap();
    let address = (hosts[0].ip6, 7000).into();
    hosts[0].ns.udp_socket(address).unwrap();
}
