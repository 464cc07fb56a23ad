//! The text form of each key attribute, as tables that formatting and parsing share.

use crate::key::kind;

/// How a number inside a fixed layout is written. They are all big-endian.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// Decimal; its mask in hexadecimal.
    Dec,
    /// Hexadecimal.
    Hex,
    /// Hexadecimal, of 20 bits.
    Label,
    /// Ethernet address.
    Mac,
    /// IPv4 address.
    Ip4,
    /// IPv6 address.
    Ip6,
    /// `no`, `first` or `later`; matched whole or not at all.
    Frag,
}

/// A field of a fixed layout.
pub(super) struct Field {
    /// What it is called.
    pub(super) name: &'static str,
    /// First byte.
    pub(super) start: usize,
    /// The byte behind it.
    pub(super) end: usize,
    pub(super) show: Show,
}

/// What is between the parentheses.
#[derive(Clone, Copy)]
pub(super) enum Body {
    /// `name=value` for each field.
    Fields(&'static [Field]),
    /// One number in host order, decimal.
    DecNe,
    /// One number in host order, hexadecimal.
    HexNe,
    /// One big-endian u16 as four hexadecimal digits.
    Hex4Be,
    /// A host-order number of 128 bits.
    Wide,
    /// Flags in a host-order u32.
    StateFlags,
    /// Flags in a big-endian u16.
    TcpFlags,
    Vlan,
    Mpls,
    Encap,
    Tunnel,
}

/// An attribute's text.
pub(super) struct Form {
    pub(super) kind: u16,
    pub(super) name: &'static str,
    /// Bytes of the payload; 0 where it varies.
    pub(super) len: usize,
    pub(super) body: Body,
}

/// Bits of `OVS_CS_F_*`, lowest first.
pub(super) const CT_STATE_NAMES: &[&str] =
    &["new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat"];
/// Bits of TCP flags, lowest first.
pub(super) const TCP_FLAG_NAMES: &[&str] =
    &["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"];
/// Words for `enum ovs_frag_type`.
pub(super) const FRAG_NAMES: [&str; 3] = ["no", "first", "later"];

macro_rules! fields {
    ($($name:literal $start:literal..$end:literal $show:ident),*) => {
        Body::Fields(&[$(Field { name: $name, start: $start, end: $end, show: Show::$show }),*])
    };
}

const PORTS: Body = fields!("src" 0..2 Dec, "dst" 2..4 Dec);
const ICMP: Body = fields!("type" 0..1 Dec, "code" 1..2 Dec);

macro_rules! forms {
    ($($kind:ident $name:literal [$len:literal] $body:expr;)*) => {
        const FORMS: &[Form] = &[
            $(Form { kind: kind::$kind, name: $name, len: $len, body: $body }),*
        ];
    };
}

forms! {
    ENCAP "encap"[0] Body::Encap;
    PRIORITY "skb_priority"[4] Body::HexNe;
    SKB_MARK "skb_mark"[4] Body::HexNe;
    DP_HASH "dp_hash"[4] Body::HexNe;
    RECIRC_ID "recirc_id"[4] Body::HexNe;
    IN_PORT "in_port"[4] Body::DecNe;
    CT_STATE "ct_state"[4] Body::StateFlags;
    CT_ZONE "ct_zone"[2] Body::HexNe;
    CT_MARK "ct_mark"[4] Body::HexNe;
    CT_LABELS "ct_label"[16] Body::Wide;
    CT_ORIG_TUPLE_IPV4 "ct_tuple4"[16] fields!(
        "src" 0..4 Ip4, "dst" 4..8 Ip4, "proto" 12..13 Dec, "tp_src" 8..10 Dec,
        "tp_dst" 10..12 Dec
    );
    CT_ORIG_TUPLE_IPV6 "ct_tuple6"[40] fields!(
        "src" 0..16 Ip6, "dst" 16..32 Ip6, "proto" 36..37 Dec, "src_port" 32..34 Dec,
        "dst_port" 34..36 Dec
    );
    TUNNEL "tunnel"[0] Body::Tunnel;
    ETHERNET "eth"[12] fields!("src" 0..6 Mac, "dst" 6..12 Mac);
    VLAN "vlan"[2] Body::Vlan;
    ETHERTYPE "eth_type"[2] Body::Hex4Be;
    IPV4 "ipv4"[12] fields!(
        "src" 0..4 Ip4, "dst" 4..8 Ip4, "proto" 8..9 Dec, "tos" 9..10 Hex, "ttl" 10..11 Dec,
        "frag" 11..12 Frag
    );
    IPV6 "ipv6"[40] fields!(
        "src" 0..16 Ip6, "dst" 16..32 Ip6, "label" 32..36 Label, "proto" 36..37 Dec,
        "tclass" 37..38 Hex, "hlimit" 38..39 Dec, "frag" 39..40 Frag
    );
    TCP "tcp"[4] PORTS;
    UDP "udp"[4] PORTS;
    SCTP "sctp"[4] PORTS;
    TCP_FLAGS "tcp_flags"[2] Body::TcpFlags;
    ICMP "icmp"[2] ICMP;
    ICMPV6 "icmpv6"[2] ICMP;
    ARP "arp"[24] fields!(
        "sip" 0..4 Ip4, "tip" 4..8 Ip4, "op" 8..10 Dec, "sha" 10..16 Mac, "tha" 16..22 Mac
    );
    ND "nd"[28] fields!("target" 0..16 Ip6, "sll" 16..22 Mac, "tll" 22..28 Mac);
    MPLS "mpls"[0] Body::Mpls;
}

pub(super) fn by_kind(kind: u16) -> Option<&'static Form> {
    FORMS.iter().find(|form| form.kind == kind)
}

pub(super) fn by_name(name: &str) -> Option<&'static Form> {
    FORMS.iter().find(|form| form.name == name)
}

impl Show {
    /// Bits that a mask of the whole field has, for a field of `len` bytes.
    pub(super) fn full(self, len: usize) -> u128 {
        match self {
            Self::Label => 0x000f_ffff,
            _ => u128::MAX >> (128 - 8 * len),
        }
    }

    /// Whether the text of a field can be read again. The kernel accepts no others, but bytes that
    /// someone wrote as such may hold them.
    pub(super) fn has_text(self, key: &[u8], mask: Option<&[u8]>) -> bool {
        match self {
            Self::Frag => {
                let bits = mask.map_or(0xff, |mask| mask[0]);
                bits == 0 || bits == 0xff && (key[0] as usize) < FRAG_NAMES.len()
            }
            Self::Label => {
                let full = self.full(key.len());
                let whole = |mask: &[u8]| be(mask) & full == full;
                be(key) <= full && mask.is_none_or(|mask| whole(mask) || be(mask) < full)
            }
            _ => true,
        }
    }
}

/// A big-endian number.
pub(super) fn be(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |value, &byte| value << 8 | byte as u128)
}

/// A number in host order.
pub(super) fn ne(bytes: &[u8]) -> u64 {
    match *bytes {
        [a, b] => u16::from_ne_bytes([a, b]) as u64,
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]) as u64,
        _ => 0,
    }
}

/// Whether `mask` covers all of an attribute, so that it need not be written. As in the peer, a flow
/// label is 20 bits and padding does not count.
pub(super) fn is_exact(form: &Form, mask: &[u8]) -> bool {
    match form.body {
        Body::Fields(fields) => fields.iter().all(|field| {
            let bits = be(&mask[field.start..field.end]);
            let full = field.show.full(field.end - field.start);
            bits & full == full
        }),
        Body::TcpFlags => be(mask) & 0xfff == 0xfff,
        Body::Encap | Body::Tunnel => false,
        _ => mask.iter().all(|&byte| byte == 0xff),
    }
}
