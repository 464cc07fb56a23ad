//! Which upcalls a trace follows: words that must all hold.

use std::net::IpAddr;
use std::str::FromStr;

use upcall::{KeySummary, L3Addrs, MacAddr, Ports, UpcallKind, VlanTci};

/// What a filter may say, for help and errors.
pub(super) const GRAMMAR: &str = "\
  port=NAME|NUMBER    the port it came in by
  cpu=N               the CPU that the kernel handled it on (per-CPU dispatch)
  kind=miss|action    why it came up
  mac=MAC src=MAC dst=MAC
  vlan=ID             the outermost tag; 0 is none
  eth=0x0806          the Ethernet type behind the tags
  ip=ADDR[/LEN]       source or destination, of ARP too
  proto=arp|ip|ipv6|tcp|udp|sctp|icmp|icmp6|NUMBER
  l4=N                source or destination port";

/// Words that must all hold.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Filter(Vec<(bool, Term)>);

#[derive(Debug, PartialEq)]
enum Term {
    Port(u32),
    Cpu(usize),
    Kind(UpcallKind),
    Mac(MacAddr),
    Source(MacAddr),
    Destination(MacAddr),
    Vlan(u16),
    EthType(u16),
    Ip(IpAddr, u32),
    Proto(u8),
    L4(u16),
}

/// What a filter looks at.
pub(super) struct Sight<'a> {
    pub(super) key: &'a KeySummary,
    pub(super) kind: UpcallKind,
    pub(super) cpu: Option<usize>,
}

impl Filter {
    /// Reads words `NAME=VALUE` and `NAME!=VALUE`.
    ///
    /// # Errors
    ///
    /// Which word is wrong, and what there is.
    pub(crate) fn read<'w>(
        words: impl Iterator<Item = &'w str>,
        ports: &Ports,
    ) -> Result<Self, String> {
        words
            .flat_map(str::split_whitespace)
            .map(|word| term(word, ports))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn matches(&self, sight: &Sight<'_>) -> bool {
        self.0.iter().all(|(wanted, term)| term.holds(sight) == *wanted)
    }
}

fn term(word: &str, ports: &Ports) -> Result<(bool, Term), String> {
    let (name, value) = word
        .split_once('=')
        .ok_or_else(|| format!("'{word}' is no filter: write NAME=VALUE, of\n{GRAMMAR}"))?;
    let (name, wanted) = name.strip_suffix('!').map_or((name, true), |name| (name, false));
    let term = match name {
        "port" => Term::Port(port(value, ports)?),
        "cpu" => Term::Cpu(number(word, value)?),
        "kind" => Term::Kind(match value {
            "miss" => UpcallKind::Miss,
            "action" => UpcallKind::Action,
            _ => return Err(format!("'{word}': it is miss or action")),
        }),
        "mac" => Term::Mac(number(word, value)?),
        "src" => Term::Source(number(word, value)?),
        "dst" => Term::Destination(number(word, value)?),
        "vlan" => Term::Vlan(number(word, value)?),
        "eth" => Term::EthType(hex_or_number(word, value)?),
        "ip" => ip(word, value)?,
        "proto" => proto(word, value)?,
        "l4" => Term::L4(number(word, value)?),
        _ => return Err(format!("there is no filter '{name}'; there are\n{GRAMMAR}")),
    };
    Ok((wanted, term))
}

fn port(value: &str, ports: &Ports) -> Result<u32, String> {
    let named = ports.by_configured_name(value).map(|port| port.number);
    named.or_else(|| value.parse().ok()).ok_or_else(|| format!("there is no port '{value}'"))
}

fn number<T: FromStr>(word: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("'{word}': '{value}' is no such value; there are\n{GRAMMAR}"))
}

fn hex_or_number(word: &str, value: &str) -> Result<u16, String> {
    match value.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).map_err(|err| format!("'{word}': {err}")),
        None => number(word, value),
    }
}

fn ip(word: &str, value: &str) -> Result<Term, String> {
    let (address, len) = value.split_once('/').map_or((value, None), |(a, len)| (a, Some(len)));
    let address: IpAddr = number(word, address)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let len = len.map_or(Ok(most), |len| number(word, len))?;
    if len > most { Err(format!("'{word}': at most /{most}")) } else { Ok(Term::Ip(address, len)) }
}

fn proto(word: &str, value: &str) -> Result<Term, String> {
    Ok(match value {
        "arp" => Term::EthType(0x0806),
        "ip" => Term::EthType(0x0800),
        "ipv6" => Term::EthType(0x86dd),
        "icmp" => Term::Proto(1),
        "tcp" => Term::Proto(6),
        "udp" => Term::Proto(17),
        "icmp6" => Term::Proto(58),
        "sctp" => Term::Proto(132),
        _ => Term::Proto(number(word, value)?),
    })
}

impl Term {
    fn holds(&self, sight: &Sight<'_>) -> bool {
        let key = sight.key;
        match self {
            Self::Port(port) => key.in_port == Some(*port),
            Self::Cpu(cpu) => sight.cpu == Some(*cpu),
            Self::Kind(kind) => sight.kind == *kind,
            Self::Mac(mac) => key.eth_src == *mac || key.eth_dst == *mac,
            Self::Source(mac) => key.eth_src == *mac,
            Self::Destination(mac) => key.eth_dst == *mac,
            Self::Vlan(id) => key.vlan.map_or(0, VlanTci::vid) == *id,
            Self::EthType(eth_type) => key.eth_type == *eth_type,
            Self::Ip(address, len) => {
                addresses(&key.l3).into_iter().flatten().any(|a| within(a, *address, *len))
            }
            Self::Proto(proto) => is_ip(key) && key.ip_proto == *proto,
            Self::L4(port) => has_ports(key) && (key.tp_src == *port || key.tp_dst == *port),
        }
    }
}

fn is_ip(key: &KeySummary) -> bool {
    matches!(key.l3, L3Addrs::Ipv4 { .. } | L3Addrs::Ipv6 { .. })
}

fn has_ports(key: &KeySummary) -> bool {
    is_ip(key) && matches!(key.ip_proto, 6 | 17 | 132)
}

fn addresses(l3: &L3Addrs) -> [Option<IpAddr>; 2] {
    match *l3 {
        L3Addrs::None => [None; 2],
        L3Addrs::Ipv4 { src, dst } => [Some(src.into()), Some(dst.into())],
        L3Addrs::Ipv6 { src, dst } => [Some(src.into()), Some(dst.into())],
        L3Addrs::Arp { sip, tip, .. } => [Some(sip.into()), Some(tip.into())],
    }
}

fn within(address: IpAddr, network: IpAddr, len: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            (a.to_bits() ^ n.to_bits()).checked_shr(32 - len).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => {
            (a.to_bits() ^ n.to_bits()).checked_shr(128 - len).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use upcall::Port;

    fn holds(text: &str, key: &KeySummary) -> bool {
        let ports = Ports::new(vec![Port { number: 3, name: "veth0".to_owned() }]);
        let filter = Filter::read([text].into_iter(), &ports).unwrap();
        filter.matches(&Sight { key, kind: UpcallKind::Miss, cpu: Some(1) })
    }

    #[test]
    fn all_words_must_hold() {
        let key = KeySummary {
            in_port: Some(3),
            eth_src: MacAddr([2, 0, 0, 0, 0, 1]),
            eth_type: 0x0800,
            l3: L3Addrs::Ipv4 { src: [10, 0, 0, 1].into(), dst: [10, 0, 1, 2].into() },
            ip_proto: 17,
            tp_dst: 53,
            ..KeySummary::default()
        };
        for yes in [
            "",
            "port=veth0",
            "port=3 cpu=1",
            "kind=miss mac=2:0:0:0:0:1",
            "src=02:00:00:00:00:01",
            "dst!=02:00:00:00:00:01",
            "vlan=0",
            "eth=0x800",
            "ip=10.0.1.0/24",
            "ip=10.0.0.1",
            "ip=0.0.0.0/0",
            "proto=udp l4=53",
            "proto!=arp",
            "ip!=fd00::/8",
        ] {
            assert!(holds(yes, &key), "{yes}");
        }
        for no in [
            "port=4",
            "cpu=0",
            "kind=action",
            "vlan=10",
            "ip=10.0.2.0/24",
            "l4=54",
            "port=3 proto=tcp",
        ] {
            assert!(!holds(no, &key), "{no}");
        }
        let arp = KeySummary { eth_type: 0x0806, ip_proto: 1, ..KeySummary::default() };
        assert!(holds("proto=arp", &arp) && !holds("proto=icmp", &arp), "an opcode is no protocol");
    }

    #[test]
    fn a_wrong_word_is_told_with_what_there_is() {
        let err = |text: &str| Filter::read([text].into_iter(), &Ports::default()).unwrap_err();
        assert!(err("veth0").contains("NAME=VALUE") && err("veth0").contains("proto=arp"));
        assert!(err("prot=5").contains("no filter 'prot'"));
        assert!(err("port=veth9").contains("no port 'veth9'"));
        assert!(err("ip=10.0.0.0/33").contains("/32"));
        assert!(err("mac=1:2").contains("'1:2'") && err("cpu=x").contains("cpu=x"));
    }
}
