//! Types of actions (`enum ovs_action_attr`, `include/uapi/linux/openvswitch.h`).

/// u32: port number.
pub const OUTPUT: u16 = 1;
/// Nest: `PID`, `USERDATA`, `EGRESS_TUN_PORT`, `ACTIONS`.
pub const USERSPACE: u16 = 2;
/// Nest of one key attribute.
pub const SET: u16 = 3;
/// be16 tag protocol id, be16 tag control information.
pub const PUSH_VLAN: u16 = 4;
/// Empty.
pub const POP_VLAN: u16 = 5;
/// Nest: `PROBABILITY`, `ACTIONS`.
pub const SAMPLE: u16 = 6;
/// u32: recirculation id.
pub const RECIRC: u16 = 7;
/// u32 algorithm, u32 basis.
pub const HASH: u16 = 8;
/// be32 label stack entry, be16 Ethernet type, 2 bytes of padding.
pub const PUSH_MPLS: u16 = 9;
/// be16: Ethernet type.
pub const POP_MPLS: u16 = 10;
/// Nest of one key attribute whose value is followed by its mask.
pub const SET_MASKED: u16 = 11;
/// Nest: `enum ovs_ct_attr`.
pub const CT: u16 = 12;
/// u32: bytes, 14 or more.
pub const TRUNC: u16 = 13;
/// 12 bytes: source, destination.
pub const PUSH_ETH: u16 = 14;
/// Empty.
pub const POP_ETH: u16 = 15;
/// Empty.
pub const CT_CLEAR: u16 = 16;
/// Nest of NSH key attributes.
pub const PUSH_NSH: u16 = 17;
/// Empty.
pub const POP_NSH: u16 = 18;
/// u32: meter number.
pub const METER: u16 = 19;
/// Nest of actions.
pub const CLONE: u16 = 20;
/// Nest: `PKT_LEN`, `ACTIONS_IF_GREATER`, `ACTIONS_IF_LESS_EQUAL`.
pub const CHECK_PKT_LEN: u16 = 21;
/// be32 label stack entry, be16 Ethernet type, u16 flags.
pub const ADD_MPLS: u16 = 22;
/// Nest: ACTION, a nest of actions.
pub const DEC_TTL: u16 = 23;
/// u32: reason; kernel 6.6 and later.
pub const DROP: u16 = 24;
/// Nest: GROUP, COOKIE; kernel 6.11 and later.
pub const PSAMPLE: u16 = 25;
