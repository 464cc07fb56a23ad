//! Building Ethernet frames of any kind.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpHeaders, IpNumber, Ipv4Header,
    Ipv6FlowLabel, Ipv6Header, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice,
};

use crate::error::{Error, Result};
use crate::links::Mac;

/// IEEE's ethertype for local experiments: a frame no stack answers.
pub const ETHERTYPE_EXPERIMENTAL: u16 = 0x88b5;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_ARP: u16 = 0x0806;
const BROADCAST: Mac = [0xff; 6];
/// Hop limit of every packet built here.
const TTL: u8 = 64;
const TCP_WINDOW: u16 = 65_535;

/// A VLAN tag as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// Ethertype of the tag: 0x8100, or 0x88a8 of a service tag.
    pub tpid: u16,
    /// Priority (3 bits), drop eligible (1 bit), VLAN id (12 bits).
    pub tci: u16,
}

impl VlanTag {
    /// Ethertype of an ordinary tag.
    pub const TPID_8021Q: u16 = 0x8100;
    /// Ethertype of a service tag.
    pub const TPID_8021AD: u16 = 0x88a8;

    /// An ordinary tag of priority 0. `id` is 0 to 4095; higher bits are cut off.
    pub fn new(id: u16) -> Self {
        Self { tpid: Self::TPID_8021Q, tci: id & 0x0fff }
    }

    /// A service tag of priority 0. `id` is 0 to 4095; higher bits are cut off.
    pub fn service(id: u16) -> Self {
        Self { tpid: Self::TPID_8021AD, tci: id & 0x0fff }
    }

    /// With a priority of 0 to 7; higher bits are cut off.
    #[must_use]
    pub fn priority(self, priority: u8) -> Self {
        let tci = (self.tci & 0x1fff) | (u16::from(priority & 7) << 13);
        Self { tci, ..self }
    }

    /// The VLAN id.
    pub fn id(self) -> u16 {
        self.tci & 0x0fff
    }
}

/// Which flags a TCP segment of [`Frame::tcp`] has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags {
    /// Opens a connection.
    pub syn: bool,
    /// Acknowledges; the number is 1.
    pub ack: bool,
    /// Ends a connection.
    pub fin: bool,
    /// Breaks a connection off.
    pub rst: bool,
}

/// The Ethernet header of a frame; its methods add the rest and give the bytes.
///
/// ```
/// use upcall_testkit::{Frame, VlanTag};
/// let frame = Frame::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).vlan(VlanTag::new(100));
/// let bytes = frame.udp("10.0.0.1:5000".parse()?, "10.0.0.2:6000".parse()?, b"hello")?;
/// assert_eq!(bytes.len(), 14 + 4 + 20 + 8 + 5);
/// assert_eq!(&bytes[12..16], [0x81, 0x00, 0, 100]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    source: Mac,
    destination: Mac,
    tags: Vec<VlanTag>,
}

impl Frame {
    /// An untagged frame.
    pub fn new(source: Mac, destination: Mac) -> Self {
        Self { source, destination, tags: Vec::new() }
    }

    /// An untagged frame to everybody.
    pub fn broadcast(source: Mac) -> Self {
        Self::new(source, BROADCAST)
    }

    /// Adds a tag behind those it has: the first one added is the outermost.
    #[must_use]
    pub fn vlan(mut self, tag: VlanTag) -> Self {
        self.tags.push(tag);
        self
    }

    /// With this ethertype and these bytes behind it, whatever they are.
    pub fn raw(&self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(14 + 4 * self.tags.len() + payload.len());
        bytes.extend_from_slice(&self.destination);
        bytes.extend_from_slice(&self.source);
        for tag in &self.tags {
            bytes.extend_from_slice(&tag.tpid.to_be_bytes());
            bytes.extend_from_slice(&tag.tci.to_be_bytes());
        }
        bytes.extend_from_slice(&ethertype.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// A UDP datagram, checksums right.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the addresses are not of one family or the payload is too long.
    pub fn udp(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
        let packet = ip(from.ip(), to.ip())?.udp(from.port(), to.port());
        let mut bytes = Vec::with_capacity(packet.size(payload.len()));
        packet.write_to_vec(&mut bytes, payload).map_err(unbuildable)?;
        Ok(self.raw(ethertype(to.ip()), &bytes))
    }

    /// A TCP segment, checksums right.
    ///
    /// # Errors
    /// As [`Frame::udp`].
    pub fn tcp(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        (sequence, flags): (u32, TcpFlags),
        payload: &[u8],
    ) -> Result<Vec<u8>> {
        let mut segment = ip(from.ip(), to.ip())?.tcp(from.port(), to.port(), sequence, TCP_WINDOW);
        if flags.syn {
            segment = segment.syn();
        }
        if flags.ack {
            segment = segment.ack(1);
        }
        if flags.fin {
            segment = segment.fin();
        }
        if flags.rst {
            segment = segment.rst();
        }
        let mut bytes = Vec::with_capacity(segment.size(payload.len()));
        segment.write_to_vec(&mut bytes, payload).map_err(unbuildable)?;
        Ok(self.raw(ethertype(to.ip()), &bytes))
    }

    /// An ICMP (over IPv6: `ICMPv6`) echo request.
    ///
    /// # Errors
    /// As [`Frame::udp`].
    pub fn echo_request(
        &self,
        from: IpAddr,
        to: IpAddr,
        (id, seq): (u16, u16),
        payload: &[u8],
    ) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let step = ip(from, to)?;
        if to.is_ipv4() {
            step.icmpv4_echo_request(id, seq).write_to_vec(&mut bytes, payload)
        } else {
            step.icmpv6_echo_request(id, seq).write_to_vec(&mut bytes, payload)
        }
        .map_err(unbuildable)?;
        Ok(self.raw(ethertype(to), &bytes))
    }

    /// An ARP request: who has `target`? Tell `sender` at the frame's source address.
    pub fn arp_request(&self, sender: Ipv4Addr, target: Ipv4Addr) -> Result<Vec<u8>> {
        self.arp(ArpOperation::REQUEST, sender, (target, Mac::default()))
    }

    /// An ARP reply: `sender` is at the frame's source address.
    pub fn arp_reply(&self, sender: Ipv4Addr, target: Ipv4Addr) -> Result<Vec<u8>> {
        self.arp(ArpOperation::REPLY, sender, (target, self.destination))
    }

    fn arp(
        &self,
        operation: ArpOperation,
        sender: Ipv4Addr,
        (target, target_mac): (Ipv4Addr, Mac),
    ) -> Result<Vec<u8>> {
        let packet = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            operation,
            &self.source,
            &sender.octets(),
            &target_mac,
            &target.octets(),
        )
        .map_err(unbuildable)?;
        Ok(self.raw(ETHERTYPE_ARP, &packet.to_bytes()))
    }
}

fn ip(from: IpAddr, to: IpAddr) -> Result<PacketBuilderStep<IpHeaders>> {
    let headers = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // The protocol and the lengths are set when the packet is written.
            let header = Ipv4Header::new(0, TTL, IpNumber::UDP, from.octets(), to.octets())
                .map_err(unbuildable)?;
            IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: IpNumber::UDP,
                hop_limit: TTL,
                source: from.octets(),
                destination: to.octets(),
            };
            IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
        }
        (from, to) => {
            return Err(Error::Invalid(format!("{from} and {to} are not of one family")));
        }
    };
    Ok(PacketBuilder::ip(headers))
}

fn ethertype(address: IpAddr) -> u16 {
    if address.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 }
}

fn unbuildable(error: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("no such packet: {error}"))
}

/// The payload of the UDP datagram in a frame (below any VLAN tags); `None` for all else.
pub(crate) fn udp_payload(frame: &[u8]) -> Option<&[u8]> {
    match SlicedPacket::from_ethernet(frame).ok()?.transport? {
        TransportSlice::Udp(udp) => Some(udp.payload()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn two_tags_stand_in_the_order_they_were_added() {
        let frame = Frame::new(A, B).vlan(VlanTag::service(7)).vlan(VlanTag::new(9).priority(5));
        let bytes = frame.raw(ETHERTYPE_EXPERIMENTAL, &[0xaa]);
        assert_eq!(bytes[..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        assert_eq!(bytes[12..], [0x88, 0xa8, 0, 7, 0x81, 0, 0xa0, 9, 0x88, 0xb5, 0xaa]);
    }

    #[test]
    fn udp_over_both_families_reads_back() {
        for (from, to) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            let bytes =
                Frame::new(A, B).vlan(VlanTag::new(1)).udp(addr(from), addr(to), b"x").unwrap();
            assert_eq!(udp_payload(&bytes), Some(&b"x"[..]));
        }
    }

    #[test]
    fn tcp_flags_and_icmp_read_back() {
        let flags = TcpFlags { syn: true, ..TcpFlags::default() };
        let (from, to) = (addr("10.0.0.1:1"), addr("10.0.0.2:2"));
        let bytes = Frame::new(A, B).tcp(from, to, (7, flags), b"").unwrap();
        let Some(TransportSlice::Tcp(tcp)) = SlicedPacket::from_ethernet(&bytes).unwrap().transport
        else {
            panic!("not TCP: {bytes:02x?}");
        };
        assert!(tcp.syn() && !tcp.ack() && !tcp.fin() && !tcp.rst());
        let bytes = Frame::new(A, B).echo_request(from.ip(), to.ip(), (1, 2), b"abc").unwrap();
        assert_eq!(bytes[34..36], [8, 0], "type and code of an echo request");
    }

    #[test]
    fn mixed_families_are_refused() {
        let error = Frame::new(A, B).udp(addr("10.0.0.1:1"), addr("[fd00::2]:2"), b"").unwrap_err();
        assert_eq!(error.to_string(), "10.0.0.1 and fd00::2 are not of one family");
    }

    #[test]
    fn arp_request_is_28_bytes_and_asks() {
        let bytes = Frame::broadcast(A)
            .arp_request(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2))
            .unwrap();
        assert_eq!(bytes.len(), 14 + 28);
        assert_eq!(bytes[20..22], [0, 1]);
    }
}
