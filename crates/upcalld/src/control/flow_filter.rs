//! Which flows a dump shows: terms of the peer's `filter=`, which must all hold.
//!
//! As there, a term compares what the flow matches: a flow passes whose packets may have that value.

use std::net::IpAddr;
use std::str::FromStr;

use upcall::{KeySummary, L3Addrs, MacAddr, Ports, VlanTci};

/// What a filter may say.
const GRAMMAR: &str = "terms with commas between them, of \
    ip, ipv6, arp, icmp, icmp6, tcp, tcp6, udp, udp6, sctp, sctp6, \
    in_port=NAME|NUMBER, dl_src=MAC[/MASK], dl_dst=MAC[/MASK], dl_type=0x0800, dl_vlan=ID (0xffff: none), \
    nw_src=ADDR[/LEN], nw_dst=ADDR[/LEN], ipv6_src=ADDR[/LEN], ipv6_dst=ADDR[/LEN], nw_proto=N, \
    tp_src=N, tp_dst=N";
/// The VLAN of packets that have none, in the peer's words.
const NO_VLAN: u16 = 0xffff;

/// Terms that must all hold.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Filter(Vec<Term>);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Term {
    Port(u32),
    Mac(End, MacAddr, MacAddr),
    EthType(u16),
    Vlan(u16),
    Ip(End, IpAddr, u32),
    Proto(u8),
    L4(End, u16),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Source,
    Destination,
}

impl Filter {
    /// Reads `tcp,nw_dst=10.0.0.0/8`.
    ///
    /// # Errors
    ///
    /// Which term is wrong, and what there is.
    pub(super) fn read(text: &str, ports: &Ports) -> Result<Self, String> {
        let mut terms = Vec::new();
        for term in text.split([',', ' ']).filter(|term| !term.is_empty()) {
            match term.split_once('=') {
                Some((name, value)) => terms.push(field(name, value, ports)?),
                None => terms.extend(protocol(term)?),
            }
        }
        Ok(Self(terms))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn matches(&self, key: &KeySummary, mask: &KeySummary) -> bool {
        self.0.iter().all(|term| term.holds(key, mask))
    }
}

fn protocol(word: &str) -> Result<Vec<Term>, String> {
    let (eth_type, proto) = match word {
        "ip" => (0x0800, None),
        "ipv6" => (0x86dd, None),
        "arp" => (0x0806, None),
        "icmp" => (0x0800, Some(1)),
        "icmp6" => (0x86dd, Some(58)),
        "tcp" => (0x0800, Some(6)),
        "tcp6" => (0x86dd, Some(6)),
        "udp" => (0x0800, Some(17)),
        "udp6" => (0x86dd, Some(17)),
        "sctp" => (0x0800, Some(132)),
        "sctp6" => (0x86dd, Some(132)),
        _ => return Err(format!("'{word}' is no term of a filter; there are {GRAMMAR}")),
    };
    Ok([Term::EthType(eth_type)].into_iter().chain(proto.map(Term::Proto)).collect())
}

fn field(name: &str, value: &str, ports: &Ports) -> Result<Term, String> {
    let (source, destination) = (End::Source, End::Destination);
    Ok(match name {
        "in_port" => {
            let port = ports.by_configured_name(value).map(|port| port.number);
            let number = port.or_else(|| value.parse().ok());
            Term::Port(number.ok_or_else(|| format!("there is no port '{value}'"))?)
        }
        "dl_src" | "eth_src" => mac(source, value)?,
        "dl_dst" | "eth_dst" => mac(destination, value)?,
        "dl_type" | "eth_type" => Term::EthType(number(value)?),
        "dl_vlan" | "vlan_vid" => Term::Vlan(number(value)?),
        "nw_src" | "ip_src" | "arp_spa" | "ipv6_src" => ip(source, value)?,
        "nw_dst" | "ip_dst" | "arp_tpa" | "ipv6_dst" => ip(destination, value)?,
        "nw_proto" | "ip_proto" => Term::Proto(number(value)?),
        "tp_src" | "tcp_src" | "udp_src" | "sctp_src" => Term::L4(source, number(value)?),
        "tp_dst" | "tcp_dst" | "udp_dst" | "sctp_dst" => Term::L4(destination, number(value)?),
        _ => return Err(format!("there is no field '{name}'; there are {GRAMMAR}")),
    })
}

/// A number, also in hexadecimal.
fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let read = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let number = read.ok().and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| wrong(text))
}

fn wrong(text: &str) -> String {
    format!("'{text}' is no such value; a filter has {GRAMMAR}")
}

fn read<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| wrong(text))
}

fn mac(end: End, text: &str) -> Result<Term, String> {
    let (address, mask) = text.split_once('/').map_or((text, None), |(a, mask)| (a, Some(mask)));
    let mask = mask.map_or(Ok(MacAddr::BROADCAST), read)?;
    Ok(Term::Mac(end, read(address)?, mask))
}

fn ip(end: End, text: &str) -> Result<Term, String> {
    let (address, len) = text.split_once('/').map_or((text, None), |(a, len)| (a, Some(len)));
    let address: IpAddr = read(address)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let len = len.map_or(Ok(most), number)?;
    if len > most { Err(wrong(text)) } else { Ok(Term::Ip(end, address, len)) }
}

impl End {
    fn of<T>(self, source: T, destination: T) -> T {
        match self {
            Self::Source => source,
            Self::Destination => destination,
        }
    }
}

impl Term {
    fn holds(self, key: &KeySummary, mask: &KeySummary) -> bool {
        match self {
            Self::Port(port) => {
                (key.in_port.unwrap_or(u32::MAX) ^ port) & mask.in_port.unwrap_or(0) == 0
            }
            Self::Mac(end, address, bits) => {
                let (is, matched) =
                    (end.of(key.eth_src, key.eth_dst), end.of(mask.eth_src, mask.eth_dst));
                let differs =
                    |at: usize| (is.0[at] ^ address.0[at]) & matched.0[at] & bits.0[at] != 0;
                !(0..6).any(differs)
            }
            Self::EthType(eth_type) => (key.eth_type ^ eth_type) & mask.eth_type == 0,
            Self::Vlan(NO_VLAN) => key.vlan.is_none(),
            Self::Vlan(id) => key
                .vlan
                .is_some_and(|tci| (tci.vid() ^ id) & mask.vlan.map_or(0, VlanTci::vid) == 0),
            // Packets of any type match: they may have any such value.
            Self::Ip(..) | Self::Proto(_) | Self::L4(..) if mask.eth_type == 0 => true,
            Self::Ip(end, address, len) => {
                let (is, matched) = (addresses(&key.l3), addresses(&mask.l3));
                let matched = matched.map(|(source, destination)| end.of(source, destination));
                is.is_some_and(|(source, destination)| {
                    may_be(end.of(source, destination), matched, address, len)
                })
            }
            Self::Proto(proto) => is_ip(key) && (key.ip_proto ^ proto) & mask.ip_proto == 0,
            Self::L4(end, port) => {
                let (is, matched) =
                    (end.of(key.tp_src, key.tp_dst), end.of(mask.tp_src, mask.tp_dst));
                let any_proto = is_ip(key) && mask.ip_proto == 0;
                any_proto || has_ports(key) && (is ^ port) & matched == 0
            }
        }
    }
}

fn is_ip(key: &KeySummary) -> bool {
    matches!(key.l3, L3Addrs::Ipv4 { .. } | L3Addrs::Ipv6 { .. })
}

fn has_ports(key: &KeySummary) -> bool {
    is_ip(key) && matches!(key.ip_proto, 6 | 17 | 132)
}

fn addresses(l3: &L3Addrs) -> Option<(IpAddr, IpAddr)> {
    match *l3 {
        L3Addrs::None => None,
        L3Addrs::Ipv4 { src, dst } => Some((src.into(), dst.into())),
        L3Addrs::Ipv6 { src, dst } => Some((src.into(), dst.into())),
        L3Addrs::Arp { sip, tip, .. } => Some((sip.into(), tip.into())),
    }
}

/// May an address be in this network, which is `is` in the bits of `matched`?
fn may_be(is: IpAddr, matched: Option<IpAddr>, network: IpAddr, len: u32) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (address.to_bits().into(), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let ((is, width), (network, of)) = (bits(is), bits(network));
    let matched = matched.map_or(0, |matched| bits(matched).0);
    width == of && ((is ^ network) & matched).checked_shr(width - len).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use upcall::{FlowKey, Port, text};

    fn passes(filter: &str, flow: &str) -> bool {
        let ports = Ports::new(vec![Port { number: 3, name: "veth0".to_owned() }]);
        let filter = Filter::read(filter, &ports).unwrap();
        let (mut key, mut mask) = (Vec::new(), Vec::new());
        text::parse_key(flow, &mut key, &mut mask).unwrap();
        let summary = |bytes: &[u8]| FlowKey::new(bytes).summary().unwrap();
        filter.matches(&summary(&key), &summary(&mask))
    }

    #[test]
    fn a_flow_passes_if_its_packets_may_have_the_value() {
        let flow = "in_port(3),eth(src=02:00:00:00:00:01),eth_type(0x0800),\
                    ipv4(src=10.0.0.0/255.255.255.0,proto=6),tcp(dst=80)";
        for yes in [
            "",
            "in_port=veth0",
            "in_port=3,ip",
            "tcp tp_dst=80",
            "dl_src=02:00:00:00:00:01",
            "dl_src=02:00:00:00:00:ff/ff:ff:ff:ff:ff:00",
            "dl_dst=02:00:00:00:00:07",
            "dl_vlan=0xffff",
            "nw_src=10.0.0.77",
            "nw_src=10.0.0.0/8",
            "nw_src=0.0.0.0/0",
            "nw_dst=1.2.3.4",
            "dl_type=0x800,nw_proto=6",
            "tp_src=5",
        ] {
            assert!(passes(yes, flow), "{yes}");
        }
        for no in [
            "in_port=4",
            "arp",
            "udp",
            "tcp6",
            "tp_dst=81",
            "dl_src=02:00:00:00:00:02",
            "dl_vlan=5",
            "nw_src=10.0.1.77",
            "ipv6_dst=::1",
        ] {
            assert!(!passes(no, flow), "{no}");
        }
        let tagged = "in_port(3),eth(),eth_type(0x8100),vlan(vid=5,pcp=0),encap(eth_type(0x0806),arp(tip=10.0.0.9))";
        assert!(passes("dl_vlan=5,arp,nw_dst=10.0.0.9", tagged) && !passes("dl_vlan=6", tagged));
        assert!(!passes("nw_proto=1", tagged), "an opcode is no protocol");
        let any = "in_port(3),eth(src=02:00:00:00:00:01)";
        assert!(
            passes("tcp,nw_dst=10.0.0.9,tp_dst=80,in_port=3", any) && !passes("in_port=4", any)
        );
        let any_ip = "in_port(3),eth(),eth_type(0x0800),ipv4(frag=no)";
        assert!(passes("udp,tp_dst=53", any_ip) && !passes("udp6,tp_dst=53", any_ip));
    }

    #[test]
    fn a_wrong_term_is_told_with_what_there_is() {
        for (text, why) in [
            ("ipx", "'ipx' is no term of a filter; there are terms"),
            ("nw_sorc=1.2.3.4", "no field 'nw_sorc'; there are"),
            ("in_port=veth9", "no port 'veth9'"),
            ("nw_src=10.0.0.0/33", "'10.0.0.0/33' is no such value"),
            ("tp_dst=70000", "'70000' is no such value"),
            ("dl_src=1:2", "'1:2'"),
        ] {
            let err = Filter::read(text, &Ports::default()).unwrap_err();
            assert!(err.contains(why), "{text}: {err}");
        }
    }
}
