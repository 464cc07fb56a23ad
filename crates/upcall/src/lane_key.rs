//! Which packets are one flow for the sake of order.
//!
//! Not the kernel's key: time-to-live and TCP flags differ within a flow. And not the megaflow, which
//! nobody knows before the handler has spoken.

use std::hash::{BuildHasher, Hasher};

use ovs_wire::key::{KeySummary, L3Addrs, MacAddr, kind};
use ovs_wire::{Attrs, packet};

/// Which fields of a packet tell its flow from others. Packets that agree in them are kept in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum LaneBy {
    /// Port, tunnel, VLAN, addresses, protocol and transport ports; fragments by their packet.
    #[default]
    Flow,
    /// Port, tunnel, VLAN and addresses: all that two hosts say to each other.
    Hosts,
    /// The port alone.
    Port,
}

/// Hashes packets to lanes, with a seed of its own: senders cannot choose where they meet.
#[derive(Debug)]
pub(crate) struct LaneKey {
    by: LaneBy,
    seed: foldhash::fast::RandomState,
}

impl LaneKey {
    pub(crate) fn new(by: LaneBy) -> Self {
        Self { by, seed: foldhash::fast::RandomState::default() }
    }

    /// Have all packets of a lane the same flow key, as a rule?
    pub(crate) fn is_one_key(&self, key: &KeySummary) -> bool {
        self.by == LaneBy::Flow && key.ip_frag == 0
    }

    /// The lane's hash for an upcall.
    #[inline]
    pub(crate) fn hash(&self, key: &KeySummary, upcall: &packet::Upcall<'_>) -> u64 {
        let mut h = self.seed.build_hasher();
        h.write_u64(u64::from(key.in_port.unwrap_or(u32::MAX)) << 32 | u64::from(key.recirc_id));
        if self.by == LaneBy::Port {
            return h.finish();
        }
        if key.tunnel {
            tunnel(upcall.key, &mut h);
        }
        let vlan = key.vlan.map_or(0, |tci| tci.0);
        h.write_u64(mac(key.eth_src) << 16 | u64::from(vlan));
        h.write_u64(mac(key.eth_dst) << 16 | u64::from(key.eth_type));
        addresses(&key.l3, &mut h);
        if self.by == LaneBy::Flow {
            h.write_u64(u64::from(key.ip_proto) << 40 | transport(key, upcall.packet));
        }
        h.finish()
    }
}

fn mac(addr: MacAddr) -> u64 {
    addr.0.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn addresses(l3: &L3Addrs, h: &mut impl Hasher) {
    match l3 {
        L3Addrs::None => {}
        L3Addrs::Ipv4 { src, dst } => {
            h.write_u64(u64::from(src.to_bits()) << 32 | u64::from(dst.to_bits()));
        }
        L3Addrs::Ipv6 { src, dst } => {
            h.write_u128(src.to_bits());
            h.write_u128(dst.to_bits());
        }
        L3Addrs::Arp { sip, tip, op: _ } => {
            h.write_u64(u64::from(sip.to_bits()) << 32 | u64::from(tip.to_bits()));
        }
    }
}

/// Transport ports; of a fragment, what its packet's fragments have in common: only the first has ports.
fn transport(key: &KeySummary, packet: &[u8]) -> u64 {
    if key.ip_frag == 0 {
        return u64::from(key.tp_src) << 16 | u64::from(key.tp_dst);
    }
    1 << 32 | u64::from(fragment_id(packet).unwrap_or(0))
}

/// The outer tunnel: id and addresses, as far as the key has them.
fn tunnel(key: &[u8], h: &mut impl Hasher) {
    let nests = Attrs::new(key).flatten().filter(|attr| attr.kind == kind::TUNNEL);
    for attr in nests.flat_map(|nest| Attrs::new(nest.payload)).flatten() {
        if matches!(
            attr.kind,
            kind::tunnel::ID
                | kind::tunnel::IPV4_SRC
                | kind::tunnel::IPV4_DST
                | kind::tunnel::IPV6_SRC
                | kind::tunnel::IPV6_DST
        ) {
            h.write(attr.payload);
        }
    }
}

/// The identification of an IP packet that was fragmented.
fn fragment_id(packet: &[u8]) -> Option<u32> {
    let mut at = 12;
    let mut eth_type = packet.get(at..at + 2)?;
    while matches!(eth_type, [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
        eth_type = packet.get(at..at + 2)?;
    }
    let ip = packet.get(at + 2..)?;
    match eth_type {
        [0x08, 0x00] => Some(u32::from(u16::from_be_bytes(ip.get(4..6)?.try_into().ok()?))),
        [0x86, 0xdd] => ipv6_fragment_id(ip),
        _ => None,
    }
}

/// Walks the extension headers up to the fragment header.
fn ipv6_fragment_id(ip: &[u8]) -> Option<u32> {
    const FRAGMENT: u8 = 44;
    let (mut next, mut at) = (*ip.get(6)?, 40);
    while next != FRAGMENT {
        // Hop-by-hop, routing and destination options: length in units of 8 bytes behind the first.
        if !matches!(next, 0 | 43 | 60) {
            return None;
        }
        next = *ip.get(at)?;
        at += 8 + 8 * usize::from(*ip.get(at + 1)?);
    }
    Some(u32::from_be_bytes(ip.get(at + 4..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_wire::packet::{Upcall, UpcallKind};

    fn upcall(packet: &[u8]) -> Upcall<'_> {
        Upcall {
            kind: UpcallKind::Miss,
            dp_ifindex: 1,
            key: &[],
            packet,
            userdata: None,
            egress_tun_key: None,
            actions: None,
            mru: None,
            len: None,
            hash: None,
        }
    }

    fn udp() -> KeySummary {
        let l3 = L3Addrs::Ipv4 { src: [10, 0, 0, 1].into(), dst: [10, 0, 0, 2].into() };
        KeySummary {
            in_port: Some(1),
            eth_type: 0x800,
            l3,
            ip_proto: 17,
            tp_dst: 53,
            ..KeySummary::default()
        }
    }

    #[test]
    fn packets_of_a_flow_share_a_lane_and_others_do_not() {
        let lanes = LaneKey::new(LaneBy::Flow);
        let hash = |key: &KeySummary| lanes.hash(key, &upcall(&[0; 60]));
        let same = KeySummary { ip_tos: 4, tcp_flags: 2, skb_mark: 9, ct_state: 1, ..udp() };
        assert_eq!(hash(&udp()), hash(&same));
        for other in [
            KeySummary { in_port: Some(2), ..udp() },
            KeySummary { tp_src: 1, ..udp() },
            KeySummary { vlan: Some(ovs_wire::key::VlanTci(0x1001)), ..udp() },
            KeySummary { eth_src: MacAddr([2; 6]), ..udp() },
            KeySummary { l3: L3Addrs::None, ..udp() },
        ] {
            assert_ne!(hash(&udp()), hash(&other), "{other:?}");
        }
    }

    #[test]
    fn a_coarser_key_keeps_more_together() {
        let other_port = KeySummary { tp_src: 1, ..udp() };
        let other_host = KeySummary { l3: L3Addrs::None, ..udp() };
        let together = |by, other: &KeySummary| {
            let lanes = LaneKey::new(by);
            lanes.hash(&udp(), &upcall(&[0; 60])) == lanes.hash(other, &upcall(&[0; 60]))
        };
        assert!(together(LaneBy::Hosts, &other_port) && !together(LaneBy::Hosts, &other_host));
        assert!(together(LaneBy::Port, &other_host));
    }

    #[test]
    fn fragments_of_a_packet_share_a_lane() {
        let lanes = LaneKey::new(LaneBy::Flow);
        let first = KeySummary { ip_frag: 1, ..udp() };
        let later = KeySummary { ip_frag: 2, tp_dst: 0, ..udp() };
        let v4 = |id: u8| {
            let mut packet = vec![0; 60];
            packet[12..14].copy_from_slice(&[8, 0]);
            packet[18..20].copy_from_slice(&[0, id]);
            packet
        };
        let hash = |key, packet: &[u8]| lanes.hash(key, &upcall(packet));
        assert_eq!(hash(&first, &v4(7)), hash(&later, &v4(7)));
        assert_ne!(hash(&first, &v4(7)), hash(&later, &v4(8)));
        assert_eq!(hash(&first, &[]), hash(&later, &[0; 14]), "no header to look at");
    }

    #[test]
    fn the_fragment_id_is_found_behind_tags_and_extension_headers() {
        let mut ip = vec![0; 64];
        ip[6] = 0; // hop-by-hop
        ip[40] = 44; // then the fragment header
        ip[48 + 4..48 + 8].copy_from_slice(&7u32.to_be_bytes());
        let packet = [&[0; 12][..], &[0x81, 0, 0, 5, 0x86, 0xdd], &ip].concat();
        assert_eq!(fragment_id(&packet), Some(7));
        assert_eq!(fragment_id(&packet[..60]), None, "cut short");
        ip[6] = 50;
        assert_eq!(ipv6_fragment_id(&ip), None, "encrypted");
    }
}
