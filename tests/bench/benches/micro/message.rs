//! Upcalls as the kernel writes them.

use ovs_wire::AttrBuilder;
use ovs_wire::key::{EthernetKey, Ipv4Key, KeyAttr, PortsKey};
use ovs_wire::nl::{OvsHeader, write_message};
use ovs_wire::packet::{self, attr, cmd};
use upcall::MacAddr;
use upcall::bench::Ids;

/// No kernel gives out family ids like these.
pub(crate) const IDS: Ids =
    Ids { dp_ifindex: 7, packet_family: 0x3f0, flow_family: 0x3f1, ports: 2 };

/// Bytes of a packet: about the shortest UDP datagram there is.
const PACKET_LEN: usize = 66;
const UDP: u8 = 17;
const ETHERTYPE_IPV4: u16 = 0x0800;

/// A miss of flow `flow` at port 1: a UDP packet over IPv4.
pub(crate) fn miss(flow: u32) -> Vec<u8> {
    let key = key(flow, false);
    let mut message = Vec::new();
    let (dp_ifindex, version) = (IDS.dp_ifindex, packet::VERSION);
    let header = OvsHeader { cmd: cmd::MISS, version, dp_ifindex };
    // The order of `queue_userspace_packet`, `net/openvswitch/datapath.c`.
    write_message(&mut message, IDS.packet_family, 0, 0, header, |b| {
        b.bytes(attr::KEY, &key)
            .u64(attr::HASH, u64::from(flow))
            .bytes(attr::PACKET, &[0; PACKET_LEN]);
    })
    .expect("it fits");
    message
}

/// Its key, in the order and with the zeros of `__ovs_nla_put_key` (`net/openvswitch/flow_netlink.c`); with
/// the tunnel it came by if `tunneled`.
pub(crate) fn key(flow: u32, tunneled: bool) -> Vec<u8> {
    let mut key = Vec::new();
    let mut b = AttrBuilder::new(&mut key);
    let tunnel = tunnel();
    let metadata = [KeyAttr::RecircId(0), KeyAttr::DpHash(0), KeyAttr::Priority(0)];
    let marks = [KeyAttr::InPort(1), KeyAttr::SkbMark(0), KeyAttr::CtState(0), KeyAttr::CtZone(0)];
    let all = metadata.into_iter().chain(tunneled.then_some(KeyAttr::Tunnel(&tunnel)));
    all.chain(marks).chain(rest(flow)).for_each(|attr| attr.write(&mut b));
    b.finish().expect("it fits");
    key
}

fn rest(flow: u32) -> [KeyAttr<'static>; 6] {
    let [high, low @ ..] = flow.to_be_bytes();
    let [a, b, c] = low;
    let station = |last| MacAddr([2, 0, 0, 0, 0, last]);
    let (src, dst) = ([10, 1, high, a].into(), [10, 2, 0, 1].into());
    let ports = PortsKey { src: u16::from_be_bytes([b, c]), dst: 9 };
    [
        KeyAttr::CtMark(0),
        KeyAttr::CtLabels([0; 16]),
        KeyAttr::Ethernet(EthernetKey { src: station(1), dst: station(2) }),
        KeyAttr::EtherType(ETHERTYPE_IPV4),
        KeyAttr::Ipv4(Ipv4Key { src, dst, proto: UDP, tos: 0, ttl: 64, frag: 0 }),
        KeyAttr::Udp(ports),
    ]
}

/// A VXLAN tunnel's attributes.
fn tunnel() -> Vec<u8> {
    use ovs_wire::key::kind::tunnel;
    let mut nest = Vec::new();
    let mut b = AttrBuilder::new(&mut nest);
    b.bytes(tunnel::ID, &[0, 0, 0, 0, 0, 0, 0, 5]);
    b.bytes(tunnel::IPV4_SRC, &[192, 0, 2, 1]).bytes(tunnel::IPV4_DST, &[192, 0, 2, 2]);
    b.u8(tunnel::TTL, 64);
    b.finish().expect("it fits");
    nest
}

/// Of a burst from flow `first` on, each of another flow.
pub(crate) fn burst(first: u32) -> Vec<Vec<u8>> {
    (first..).take(super::BURST as usize).map(miss).collect()
}
