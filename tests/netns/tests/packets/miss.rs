//! What is in the upcall of a packet that no flow matches.

use anyhow::{Context as _, ensure};
use netns_tests::{Bench, TestResult, bench, since, station};
use ovs_wire::key::{ArpKey, EthernetKey, IcmpKey, Ipv4Key, Ipv6Key, KeyAttr, NdKey, PortsKey};
use ovs_wire::packet::{Upcall, UpcallKind, attr};
use ovs_wire::{FlowKey, MacAddr, VlanTci};
use upcall_testkit::raw::{ETHERTYPE_EXPERIMENTAL, TcpFlags};
use upcall_testkit::{Frame, VlanTag};

use crate::{IP1, IP2, IP6_1, IP6_2, at, frame, mode, modes};

/// Headers that the kernel found in the packet: the key without metadata.
fn headers<'k>(key: FlowKey<'k>) -> anyhow::Result<Vec<KeyAttr<'k>>> {
    let all: Vec<KeyAttr<'k>> = key.attrs().collect::<Result<_, _>>()?;
    let from = all.iter().position(|attr| matches!(attr, KeyAttr::Ethernet(_)));
    Ok(all[from.context("no ETHERNET in the key")?..].to_vec())
}

/// Sends a frame that misses and checks all that does not depend on its protocol; `check` gets the
/// headers behind the Ethernet addresses.
fn miss(
    bench: &mut Bench,
    bytes: &[u8],
    check: impl Fn(&[KeyAttr<'_>]) -> TestResult,
) -> TestResult {
    let got = bench.miss(0, bytes)?;
    let upcall = got.upcall();
    ensure!(upcall.kind == UpcallKind::Miss && upcall.dp_ifindex == bench.dp.ifindex);
    ensure!(upcall.packet == bytes, "the packet is whole and unchanged");
    ensure!(upcall.hash.is_some() == since(5, 5), "HASH came with 5.5: {:?}", upcall.hash);
    ensure!((upcall.mru, upcall.len) == (None, None), "neither reassembled nor cut");
    ensure!(upcall.userdata.is_none() && upcall.egress_tun_key.is_none());
    ensure!(upcall.actions.is_none());
    let key = FlowKey::new(upcall.key);
    let summary = key.summary()?;
    ensure!(summary.in_port == Some(1) && summary.recirc_id == 0, "{summary:?}");
    let found = headers(key)?;
    let addresses = EthernetKey { src: MacAddr(station(1)), dst: MacAddr(station(2)) };
    ensure!(found[0] == KeyAttr::Ethernet(addresses), "{found:?}");
    check(&found[1..])?;
    // Attributes are found by their type, not by their place.
    ensure!(got.attributes()[0] == attr::KEY, "the kernel's order: {:?}", got.attributes());
    let reversed = got.reversed();
    ensure!(reversed.attributes()[0] == attr::PACKET);
    ensure!(fields(&reversed.upcall()) == fields(&upcall));
    Ok(())
}

fn fields<'u>(upcall: &Upcall<'u>) -> (&'u [u8], &'u [u8], Option<u64>) {
    (upcall.key, upcall.packet, upcall.hash)
}

fn expect(found: &[KeyAttr<'_>], wanted: &[KeyAttr<'_>]) -> TestResult {
    ensure!(found == wanted, "found {found:#?}, wanted {wanted:#?}");
    Ok(())
}

fn ipv4(proto: u8) -> KeyAttr<'static> {
    KeyAttr::Ipv4(Ipv4Key { src: IP1, dst: IP2, proto, tos: 0, ttl: 64, frag: 0 })
}

fn ipv6(proto: u8) -> KeyAttr<'static> {
    let (src, dst) = (IP6_1, IP6_2);
    KeyAttr::Ipv6(Ipv6Key { src, dst, label: 0, proto, tclass: 0, hlimit: 64, frag: 0 })
}

/// The attributes of an IPv6 packet without extension headers, which later kernels say.
fn behind_ipv6<'a>(wanted: &[KeyAttr<'a>]) -> Vec<KeyAttr<'a>> {
    let mut wanted = wanted.to_vec();
    if since(5, 18) {
        wanted.insert(2, KeyAttr::Ipv6ExtHdrs(0));
    }
    wanted
}

#[test]
fn udp() -> TestResult {
    for mode in modes() {
        bench(1, *mode, async |bench| {
            let bytes = frame().udp(at(IP1, 1000), at(IP2, 53), &[7; 20])?;
            ensure!(bytes.len() == 62);
            let ports = PortsKey { src: 1000, dst: 53 };
            let wanted = [KeyAttr::EtherType(0x0800), ipv4(17), KeyAttr::Udp(ports)];
            miss(bench, &bytes, |found| expect(found, &wanted))
        })?;
    }
    Ok(())
}

#[test]
fn tcp_with_its_flags() -> TestResult {
    bench(1, mode(), async |bench| {
        let syn = TcpFlags { syn: true, ..TcpFlags::default() };
        let ports = PortsKey { src: 1000, dst: 80 };
        let behind = [KeyAttr::Tcp(ports), KeyAttr::TcpFlags(0x002)];
        let bytes = frame().tcp(at(IP1, 1000), at(IP2, 80), (1, syn), &[])?;
        let wanted = [KeyAttr::EtherType(0x0800), ipv4(6), behind[0], behind[1]];
        miss(bench, &bytes, |found| expect(found, &wanted))?;
        let bytes = frame().tcp(at(IP6_1, 1000), at(IP6_2, 80), (1, syn), &[])?;
        let wanted = [KeyAttr::EtherType(0x86dd), ipv6(6), behind[0], behind[1]];
        miss(bench, &bytes, |found| expect(found, &behind_ipv6(&wanted)))
    })
}

#[test]
fn arp() -> TestResult {
    bench(1, mode(), async |bench| {
        let bytes = frame().arp_request(IP1, IP2)?;
        let arp =
            ArpKey { sip: IP1, tip: IP2, op: 1, sha: MacAddr(station(1)), tha: MacAddr::default() };
        let wanted = [KeyAttr::EtherType(0x0806), KeyAttr::Arp(arp)];
        miss(bench, &bytes, |found| expect(found, &wanted))
    })
}

#[test]
fn icmp_and_neighbour_discovery() -> TestResult {
    bench(1, mode(), async |bench| {
        let bytes = frame().echo_request(IP1.into(), IP2.into(), (1, 2), b"ping")?;
        let echo = IcmpKey { kind: 8, code: 0 };
        let wanted = [KeyAttr::EtherType(0x0800), ipv4(1), KeyAttr::Icmp(echo)];
        miss(bench, &bytes, |found| expect(found, &wanted))?;
        let bytes = frame().echo_request(IP6_1.into(), IP6_2.into(), (1, 2), b"ping")?;
        let echo = IcmpKey { kind: 128, code: 0 };
        let wanted = [KeyAttr::EtherType(0x86dd), ipv6(58), KeyAttr::Icmpv6(echo)];
        miss(bench, &bytes, |found| expect(found, &behind_ipv6(&wanted)))?;
        let nd = NdKey { target: IP6_2, sll: MacAddr(station(1)), tll: MacAddr::default() };
        let solicitation = IcmpKey { kind: 135, code: 0 };
        let wanted =
            [KeyAttr::EtherType(0x86dd), ipv6(58), KeyAttr::Icmpv6(solicitation), KeyAttr::Nd(nd)];
        miss(bench, &neighbour_solicitation(), |found| expect(found, &behind_ipv6(&wanted)))
    })
}

/// Who has `IP6_2`? Its checksum is wrong, which the datapath does not look at.
pub(crate) fn neighbour_solicitation() -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 32, 58, 64];
    packet.extend(IP6_1.octets());
    packet.extend(IP6_2.octets());
    packet.extend([135, 0, 0, 0, 0, 0, 0, 0]);
    packet.extend(IP6_2.octets());
    packet.extend([1, 1]);
    packet.extend(station(1));
    frame().raw(0x86dd, &packet)
}

#[test]
fn a_tag_is_inside_the_packet_and_around_the_key() -> TestResult {
    bench(1, mode(), async |bench| {
        let tagged = frame().vlan(VlanTag::new(100).priority(3));
        let bytes = tagged.udp(at(IP1, 1000), at(IP2, 53), &[7; 20])?;
        ensure!(bytes.len() == 66, "62 bytes and a tag");
        let got = bench.miss(0, &bytes)?;
        ensure!(got.upcall().packet == bytes, "the tag is in the packet");
        let key = FlowKey::new(got.upcall().key);
        let found = headers(key)?;
        let [_, KeyAttr::EtherType(0x8100), KeyAttr::Vlan(tci), KeyAttr::Encap(inner)] = found[..]
        else {
            anyhow::bail!("not a tagged packet's key: {found:?}");
        };
        ensure!(tci == VlanTci::new(100, 3), "{tci:?}");
        let inner: Vec<_> = inner.attrs().collect::<Result<_, _>>()?;
        let ports = PortsKey { src: 1000, dst: 53 };
        expect(&inner, &[KeyAttr::EtherType(0x0800), ipv4(17), KeyAttr::Udp(ports)])
    })
}

#[test]
fn two_tags_nest_twice() -> TestResult {
    bench(1, mode(), async |bench| {
        let tagged = frame().vlan(VlanTag::service(7)).vlan(VlanTag::new(8));
        let bytes = tagged.raw(ETHERTYPE_EXPERIMENTAL, &[0; 46]);
        let got = bench.miss(0, &bytes)?;
        ensure!(got.upcall().packet == bytes);
        let found = headers(FlowKey::new(got.upcall().key))?;
        let [_, KeyAttr::EtherType(0x88a8), KeyAttr::Vlan(outer), KeyAttr::Encap(inner)] =
            found[..]
        else {
            anyhow::bail!("not a tagged packet's key: {found:?}");
        };
        let inner: Vec<_> = inner.attrs().collect::<Result<_, _>>()?;
        let [KeyAttr::EtherType(0x8100), KeyAttr::Vlan(tag), KeyAttr::Encap(rest)] = inner[..]
        else {
            anyhow::bail!("not a second tag: {inner:?}");
        };
        ensure!((outer.vid(), tag.vid()) == (7, 8));
        let rest: Vec<_> = rest.attrs().collect::<Result<_, _>>()?;
        expect(&rest, &[KeyAttr::EtherType(ETHERTYPE_EXPERIMENTAL)])
    })
}

#[test]
fn an_802_2_frame_has_no_ethernet_type_in_its_key() -> TestResult {
    bench(1, mode(), async |bench| {
        // A length instead of a type: LLC, as spanning tree uses it.
        let bytes = Frame::new(station(1), station(2)).raw(46, &[0x42; 46]);
        miss(bench, &bytes, |found| expect(found, &[]))
    })
}
