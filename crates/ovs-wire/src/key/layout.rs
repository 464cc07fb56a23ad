//! The fixed layouts of key attributes (`struct ovs_key_*`, `include/uapi/linux/openvswitch.h`).
//!
//! All fields of more than one byte are big-endian on the wire and native here.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::key::MacAddr;

/// A field of a fixed layout.
pub(crate) trait Field: Copy {
    /// Bytes on the wire.
    const LEN: usize;
    /// Reads from a slice of `LEN` bytes.
    fn get(bytes: &[u8]) -> Self;
    /// Writes to a slice of `LEN` bytes.
    fn put(self, bytes: &mut [u8]);
}

macro_rules! field {
    ($($ty:ty [$len:literal]: |$bytes:ident| $get:expr, |$value:ident| $put:expr;)*) => {$(
        impl Field for $ty {
            const LEN: usize = $len;
            fn get(bytes: &[u8]) -> Self {
                let mut $bytes = [0; $len];
                $bytes.copy_from_slice(bytes);
                $get
            }
            fn put(self, bytes: &mut [u8]) {
                let $value = self;
                bytes.copy_from_slice(&$put);
            }
        }
    )*};
}

field! {
    u8[1]: |b| b[0], |v| [v];
    u16[2]: |b| u16::from_be_bytes(b), |v| v.to_be_bytes();
    u32[4]: |b| u32::from_be_bytes(b), |v| v.to_be_bytes();
    Ipv4Addr[4]: |b| Ipv4Addr::from(b), |v| v.octets();
    Ipv6Addr[16]: |b| Ipv6Addr::from(b), |v| v.octets();
    MacAddr[6]: |b| MacAddr(b), |v| v.0;
}

/// Longest fixed layout, in bytes.
pub(crate) const LAYOUT_MAX: usize = 40;

macro_rules! layout {
    ($(
        $(#[$doc:meta])*
        $name:ident[$len:literal] { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }
    )*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

        impl $name {
            /// Bytes of the attribute's payload, with trailing padding.
            pub const LEN: usize = $len;

            /// Reads the payload; padding is skipped.
            pub fn from_bytes(bytes: &[u8; $len]) -> Self {
                let mut at = 0;
                $(
                    let $field = <$ty as Field>::get(&bytes[at..at + <$ty as Field>::LEN]);
                    at += <$ty as Field>::LEN;
                )*
                debug_assert!(at <= $len && $len <= LAYOUT_MAX);
                Self { $($field,)* }
            }

            /// Writes the payload; padding is zero.
            pub fn to_bytes(self) -> [u8; $len] {
                let mut bytes = [0; $len];
                let mut at = 0;
                $(
                    self.$field.put(&mut bytes[at..at + <$ty as Field>::LEN]);
                    at += <$ty as Field>::LEN;
                )*
                debug_assert!(at <= $len && $len <= LAYOUT_MAX);
                bytes
            }
        }
    )*};
}

layout! {
    /// `struct ovs_key_ethernet`: source before destination, unlike a frame.
    EthernetKey[12] {
        /// Source address.
        src: MacAddr,
        /// Destination address.
        dst: MacAddr,
    }
    /// `struct ovs_key_ipv4`.
    Ipv4Key[12] {
        /// Source address.
        src: Ipv4Addr,
        /// Destination address.
        dst: Ipv4Addr,
        /// IP protocol.
        proto: u8,
        /// Type of service: DSCP and ECN.
        tos: u8,
        /// Time to live.
        ttl: u8,
        /// `enum ovs_frag_type`: 0 whole, 1 first fragment, 2 later fragment.
        frag: u8,
    }
    /// `struct ovs_key_ipv6`.
    Ipv6Key[40] {
        /// Source address.
        src: Ipv6Addr,
        /// Destination address.
        dst: Ipv6Addr,
        /// Flow label in the low 20 bits. The kernel refuses others, in keys and masks.
        label: u32,
        /// Protocol of the transport header, behind all extension headers.
        proto: u8,
        /// Traffic class: DSCP and ECN.
        tclass: u8,
        /// Hop limit.
        hlimit: u8,
        /// `enum ovs_frag_type`: 0 whole, 1 first fragment, 2 later fragment.
        frag: u8,
    }
    /// `struct ovs_key_tcp`, `struct ovs_key_udp` and `struct ovs_key_sctp`.
    PortsKey[4] {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    }
    /// `struct ovs_key_icmp` and `struct ovs_key_icmpv6`.
    IcmpKey[2] {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
    }
    /// `struct ovs_key_arp`: 22 bytes of fields, 2 of padding. RARP uses it too.
    ArpKey[24] {
        /// Sender protocol address.
        sip: Ipv4Addr,
        /// Target protocol address.
        tip: Ipv4Addr,
        /// Opcode; the kernel's keys have 0 for opcodes above 255.
        op: u16,
        /// Sender hardware address.
        sha: MacAddr,
        /// Target hardware address.
        tha: MacAddr,
    }
    /// `struct ovs_key_nd`: neighbour discovery, for `ICMPv6` types 135 and 136 with code 0.
    NdKey[28] {
        /// Target address.
        target: Ipv6Addr,
        /// Source link-layer address option.
        sll: MacAddr,
        /// Target link-layer address option.
        tll: MacAddr,
    }
    /// `struct ovs_key_ct_tuple_ipv4`: 13 bytes of fields, 3 of padding.
    CtTuple4[16] {
        /// Source address of the connection's first packet.
        src: Ipv4Addr,
        /// Destination address of the connection's first packet.
        dst: Ipv4Addr,
        /// Source port, or ICMP type.
        tp_src: u16,
        /// Destination port, or ICMP code.
        tp_dst: u16,
        /// IP protocol.
        proto: u8,
    }
    /// `struct ovs_key_ct_tuple_ipv6`: 37 bytes of fields, 3 of padding.
    CtTuple6[40] {
        /// Source address of the connection's first packet.
        src: Ipv6Addr,
        /// Destination address of the connection's first packet.
        dst: Ipv6Addr,
        /// Source port, or ICMP type.
        tp_src: u16,
        /// Destination port, or ICMP code.
        tp_dst: u16,
        /// IP protocol.
        proto: u8,
    }
}
