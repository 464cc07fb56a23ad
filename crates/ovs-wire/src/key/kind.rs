//! Types of key attributes (`enum ovs_key_attr`, `include/uapi/linux/openvswitch.h`).
//!
//! 29 and 30 exist in user space only and 31 inside the kernel only; they are never sent.

/// Nest: the key behind a VLAN header.
pub const ENCAP: u16 = 1;
/// u32: `skb->priority`.
pub const PRIORITY: u16 = 2;
/// u32: port number.
pub const IN_PORT: u16 = 3;
/// 12 bytes: source, destination.
pub const ETHERNET: u16 = 4;
/// be16: tag control information.
pub const VLAN: u16 = 5;
/// be16.
pub const ETHERTYPE: u16 = 6;
/// 12 bytes.
pub const IPV4: u16 = 7;
/// 40 bytes.
pub const IPV6: u16 = 8;
/// 4 bytes: ports.
pub const TCP: u16 = 9;
/// 4 bytes: ports.
pub const UDP: u16 = 10;
/// 2 bytes: type, code.
pub const ICMP: u16 = 11;
/// 2 bytes: type, code.
pub const ICMPV6: u16 = 12;
/// 24 bytes.
pub const ARP: u16 = 13;
/// 28 bytes.
pub const ND: u16 = 14;
/// u32: `skb->mark`.
pub const SKB_MARK: u16 = 15;
/// Nest of tunnel attributes.
pub const TUNNEL: u16 = 16;
/// 4 bytes: ports.
pub const SCTP: u16 = 17;
/// be16.
pub const TCP_FLAGS: u16 = 18;
/// u32.
pub const DP_HASH: u16 = 19;
/// u32.
pub const RECIRC_ID: u16 = 20;
/// be32 for each label stack entry.
pub const MPLS: u16 = 21;
/// u32: `OVS_CS_F_*`.
pub const CT_STATE: u16 = 22;
/// u16.
pub const CT_ZONE: u16 = 23;
/// u32.
pub const CT_MARK: u16 = 24;
/// 16 bytes.
pub const CT_LABELS: u16 = 25;
/// 16 bytes.
pub const CT_ORIG_TUPLE_IPV4: u16 = 26;
/// 40 bytes.
pub const CT_ORIG_TUPLE_IPV6: u16 = 27;
/// Nest of NSH attributes.
pub const NSH: u16 = 28;
/// u16; kernel 5.18 and later.
pub const IPV6_EXTHDRS: u16 = 32;

/// Types of attributes of a [`TUNNEL`] nest (`enum ovs_tunnel_key_attr`).
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod tunnel {
    pub const ID: u16 = 0;
    pub const IPV4_SRC: u16 = 1;
    pub const IPV4_DST: u16 = 2;
    pub const TOS: u16 = 3;
    pub const TTL: u16 = 4;
    pub const DONT_FRAGMENT: u16 = 5;
    pub const CSUM: u16 = 6;
    pub const OAM: u16 = 7;
    pub const TP_SRC: u16 = 9;
    pub const TP_DST: u16 = 10;
    pub const VXLAN_OPTS: u16 = 11;
    pub const IPV6_SRC: u16 = 12;
    pub const IPV6_DST: u16 = 13;
}
