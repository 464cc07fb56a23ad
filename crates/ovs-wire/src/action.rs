//! Actions: what the kernel does with a packet.
//!
//! An action list is the payload of an ACTIONS attribute; an empty list drops the packet. Lists nest
//! (clone, sample, ...), and nothing here recurses into a nested list by itself: whoever does bounds
//! the depth by [`DEPTH_MAX`].

mod buf;
pub mod kind;

pub use buf::ActionBuf;

use crate::attr::NESTED;
use crate::key::{EthernetKey, FlowKey, KeyAttr, LAYOUT_MAX, VlanTci, kind as key};
use crate::{Attr, AttrBuilder, Attrs, WireError};

/// Deepest nesting of action lists that the kernel takes; deeper is EOVERFLOW
/// (`OVS_COPY_ACTIONS_MAX_DEPTH`, `net/openvswitch/flow_netlink.c`).
pub const DEPTH_MAX: usize = 16;

/// `PID` of a userspace action under per-CPU dispatch, where the kernel ignores it but refuses 0.
pub const USERSPACE_PID_PER_CPU: u32 = u32::MAX;

/// One action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action<'a> {
    /// Sends the packet out of a port.
    Output(u32),
    /// Sends the packet to user space.
    Userspace {
        /// Netlink port id of the receiving socket; not 0. See [`USERSPACE_PID_PER_CPU`].
        pid: u32,
        /// Comes back in the upcall, byte for byte.
        userdata: Option<&'a [u8]>,
        /// Output port whose tunnel headers the upcall shall carry (`EGRESS_TUN_KEY`).
        egress_tun_port: Option<u32>,
        /// Whether the upcall shall carry the flow's actions.
        actions: bool,
    },
    /// Overwrites a header or metadata field.
    Set(KeyAttr<'a>),
    /// Overwrites the bits of a field that the mask selects. Both have the same attribute type and
    /// length; tunnels, NSH and nests do not occur (NSH interleaves values and masks, and is kept as
    /// [`Action::Unknown`]).
    SetMasked {
        /// New value.
        key: KeyAttr<'a>,
        /// Bits to take from it.
        mask: KeyAttr<'a>,
    },
    /// Pushes a VLAN tag.
    PushVlan {
        /// Tag protocol id: 0x8100 or 0x88a8.
        tpid: u16,
        /// Tag; [`VlanTci::PRESENT`] must be set.
        tci: VlanTci,
    },
    /// Removes the outermost VLAN tag.
    PopVlan,
    /// Executes actions on a part of the packets.
    Sample {
        /// Probability, as a part of `u32::MAX`.
        probability: u32,
        /// Executed on a copy of the packet.
        actions: Actions<'a>,
    },
    /// Looks the packet up again with this recirculation id.
    Recirc(u32),
    /// Computes `DP_HASH`.
    Hash {
        /// `enum ovs_hash_alg`: 0 L4, 1 symmetric L4 (kernel 6.5 and later).
        alg: u32,
        /// Seed.
        basis: u32,
    },
    /// Pushes an MPLS label stack entry.
    PushMpls {
        /// Label stack entry.
        lse: u32,
        /// Ethernet type of the result: 0x8847 or 0x8848.
        eth_type: u16,
    },
    /// Removes the outermost MPLS label stack entry.
    PopMpls {
        /// Ethernet type of the result.
        eth_type: u16,
    },
    /// Connection tracking; the attributes (`enum ovs_ct_attr`), encoded.
    Ct(&'a [u8]),
    /// Cuts the copy that the next output or userspace action sends to this many bytes, 14 or more.
    Trunc(u32),
    /// Pushes an Ethernet header.
    PushEth(EthernetKey),
    /// Removes the Ethernet header.
    PopEth,
    /// Forgets the connection-tracking state.
    CtClear,
    /// Pushes a network service header; its attributes (`enum ovs_nsh_key_attr`), encoded.
    PushNsh(&'a [u8]),
    /// Removes the network service header.
    PopNsh,
    /// Applies a meter, which may drop the packet.
    Meter(u32),
    /// Executes actions on a copy of the packet.
    Clone(Actions<'a>),
    /// Chooses between two action lists by the packet's length.
    CheckPktLen {
        /// Length in bytes, with the Ethernet header.
        pkt_len: u16,
        /// Executed on longer packets.
        greater: Actions<'a>,
        /// Executed on the others.
        less_equal: Actions<'a>,
    },
    /// Pushes an MPLS label stack entry at layer 2 or 3.
    AddMpls {
        /// Label stack entry.
        lse: u32,
        /// Ethernet type of the result: 0x8847 or 0x8848.
        eth_type: u16,
        /// 1: behind the Ethernet header (`OVS_MPLS_L3_TUNNEL_FLAG_MASK`).
        flags: u16,
    },
    /// Decrements the TTL; executes actions when it expires.
    DecTtl(Actions<'a>),
    /// Drops the packet with a reason for the drop monitor; must be last. 0 is no error.
    Drop(u32),
    /// Hands a copy of the packet to the psample module.
    Psample {
        /// psample group.
        group: u32,
        /// Comes with the sample; 16 bytes at most.
        cookie: Option<&'a [u8]>,
    },
    /// An action that this crate does not know, or that has parts it does not know.
    Unknown {
        /// Type of the action.
        kind: u16,
        /// Value.
        payload: &'a [u8],
    },
}

/// An action list as the kernel encodes it: the payload of an ACTIONS attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Actions<'a>(&'a [u8]);

impl<'a> Actions<'a> {
    /// Wraps the payload of an ACTIONS attribute; iterating finds what is wrong with it.
    pub fn new(nest: &'a [u8]) -> Self {
        Self(nest)
    }

    /// The encoded actions.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Whether the list is empty: the packet is dropped.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The actions in order; ends after an error. Nested lists are not entered.
    pub fn iter(&self) -> ActionIter<'a> {
        ActionIter(Attrs::new(self.0))
    }
}

impl<'a> IntoIterator for Actions<'a> {
    type Item = Result<Action<'a>, WireError>;
    type IntoIter = ActionIter<'a>;

    fn into_iter(self) -> ActionIter<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &Actions<'a> {
    type Item = Result<Action<'a>, WireError>;
    type IntoIter = ActionIter<'a>;

    fn into_iter(self) -> ActionIter<'a> {
        self.iter()
    }
}

/// Iterator over the actions of a list.
#[derive(Debug, Clone)]
pub struct ActionIter<'a>(Attrs<'a>);

impl<'a> Iterator for ActionIter<'a> {
    type Item = Result<Action<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.and_then(|attr| Action::parse(&attr)))
    }
}

impl<'a> Action<'a> {
    /// Reads one action.
    pub fn parse(attr: &Attr<'a>) -> Result<Self, WireError> {
        let known = match attr.kind {
            kind::OUTPUT => Self::Output(attr.u32("output")?),
            kind::RECIRC => Self::Recirc(attr.u32("recirc")?),
            kind::TRUNC => Self::Trunc(attr.u32("trunc")?),
            kind::METER => Self::Meter(attr.u32("meter")?),
            kind::DROP => Self::Drop(attr.u32("drop")?),
            kind::POP_MPLS => Self::PopMpls { eth_type: attr.be16("pop_mpls")? },
            kind::POP_VLAN => empty(attr, Self::PopVlan)?,
            kind::POP_ETH => empty(attr, Self::PopEth)?,
            kind::POP_NSH => empty(attr, Self::PopNsh)?,
            kind::CT_CLEAR => empty(attr, Self::CtClear)?,
            kind::CT => Self::Ct(attr.payload),
            kind::PUSH_NSH => Self::PushNsh(attr.payload),
            kind::CLONE => Self::Clone(Actions::new(attr.payload)),
            kind::PUSH_ETH => Self::PushEth(EthernetKey::from_bytes(&attr.array("push_eth")?)),
            kind::PUSH_VLAN => push_vlan(attr)?,
            kind::HASH => hash(attr)?,
            kind::PUSH_MPLS => push_mpls(attr)?,
            kind::ADD_MPLS => add_mpls(attr)?,
            _ => return Ok(Self::parse_nest(attr)?.unwrap_or(Self::unknown(attr))),
        };
        Ok(known)
    }

    /// Actions that are nests of attributes: `None` if there is more in them than the type can hold.
    fn parse_nest(attr: &Attr<'a>) -> Result<Option<Self>, WireError> {
        match attr.kind {
            kind::USERSPACE => userspace(attr),
            kind::SET => set(attr),
            kind::SET_MASKED => set_masked(attr),
            kind::SAMPLE => sample(attr),
            kind::CHECK_PKT_LEN => check_pkt_len(attr),
            kind::DEC_TTL => dec_ttl(attr),
            kind::PSAMPLE => psample(attr),
            _ => Ok(None),
        }
    }

    fn unknown(attr: &Attr<'a>) -> Self {
        Self::Unknown { kind: attr.kind, payload: attr.payload }
    }

    /// Appends the action.
    pub fn write(&self, b: &mut AttrBuilder<'_>) {
        let _ = match *self {
            Self::Output(port) => b.u32(kind::OUTPUT, port),
            Self::Recirc(id) => b.u32(kind::RECIRC, id),
            Self::Trunc(len) => b.u32(kind::TRUNC, len),
            Self::Meter(meter) => b.u32(kind::METER, meter),
            Self::Drop(reason) => b.u32(kind::DROP, reason),
            Self::PopMpls { eth_type } => b.be16(kind::POP_MPLS, eth_type),
            Self::PopVlan => b.flag(kind::POP_VLAN),
            Self::PopEth => b.flag(kind::POP_ETH),
            Self::PopNsh => b.flag(kind::POP_NSH),
            Self::CtClear => b.flag(kind::CT_CLEAR),
            Self::Ct(raw) => b.bytes(kind::CT, raw),
            Self::PushNsh(raw) => b.bytes(kind::PUSH_NSH, raw),
            Self::Clone(actions) => b.bytes(kind::CLONE, actions.0),
            Self::PushEth(eth) => b.bytes(kind::PUSH_ETH, &eth.to_bytes()),
            Self::Set(key) => b.nest(kind::SET, |b| key.write(b)),
            Self::SetMasked { key, mask } => {
                b.nest(kind::SET_MASKED, |b| write_masked(&key, &mask, b))
            }
            Self::PushVlan { tpid, tci } => {
                b.bytes(kind::PUSH_VLAN, &words([tpid.to_be_bytes(), tci.0.to_be_bytes()]))
            }
            Self::Hash { alg, basis } => {
                b.bytes(kind::HASH, &pair([alg.to_ne_bytes(), basis.to_ne_bytes()]))
            }
            Self::PushMpls { lse, eth_type } => {
                b.bytes(kind::PUSH_MPLS, &mpls_bytes(lse, eth_type, 0))
            }
            Self::AddMpls { lse, eth_type, flags } => {
                b.bytes(kind::ADD_MPLS, &mpls_bytes(lse, eth_type, flags))
            }
            Self::Unknown { kind, payload } => b.bytes(kind, payload),
            _ => return self.write_nest(b),
        };
    }

    /// The actions that are nests of attributes with a table of their own.
    fn write_nest(&self, b: &mut AttrBuilder<'_>) {
        match *self {
            Self::Userspace { pid, userdata, egress_tun_port, actions } => {
                b.nest(kind::USERSPACE, |b| {
                    b.u32(USERSPACE_PID, pid);
                    userdata.map(|data| b.bytes(USERSPACE_USERDATA, data));
                    egress_tun_port.map(|port| b.u32(USERSPACE_EGRESS_TUN_PORT, port));
                    actions.then(|| b.flag(USERSPACE_ACTIONS));
                });
            }
            Self::Sample { probability, actions } => {
                b.nest(kind::SAMPLE, |b| {
                    b.u32(SAMPLE_PROBABILITY, probability).bytes(SAMPLE_ACTIONS, actions.0);
                });
            }
            Self::CheckPktLen { pkt_len, greater, less_equal } => {
                b.nest(kind::CHECK_PKT_LEN, |b| {
                    b.u16(CPL_PKT_LEN, pkt_len)
                        .bytes(CPL_IF_GREATER, greater.0)
                        .bytes(CPL_IF_LESS_EQUAL, less_equal.0);
                });
            }
            Self::DecTtl(actions) => {
                b.nest(kind::DEC_TTL, |b| {
                    b.bytes(DEC_TTL_ACTION, actions.0);
                });
            }
            Self::Psample { group, cookie } => {
                // The only action the kernel reads with `nla_parse_nested`, which wants the flag
                // (`validate_psample`, net/openvswitch/flow_netlink.c).
                b.nest(kind::PSAMPLE | NESTED, |b| {
                    b.u32(PSAMPLE_GROUP, group);
                    cookie.map(|cookie| b.bytes(PSAMPLE_COOKIE, cookie));
                });
            }
            _ => unreachable!("written by `write`"),
        }
    }
}

const USERSPACE_PID: u16 = 1;
const USERSPACE_USERDATA: u16 = 2;
const USERSPACE_EGRESS_TUN_PORT: u16 = 3;
const USERSPACE_ACTIONS: u16 = 4;
const SAMPLE_PROBABILITY: u16 = 1;
const SAMPLE_ACTIONS: u16 = 2;
const CPL_PKT_LEN: u16 = 1;
const CPL_IF_GREATER: u16 = 2;
const CPL_IF_LESS_EQUAL: u16 = 3;
const DEC_TTL_ACTION: u16 = 1;
const PSAMPLE_GROUP: u16 = 1;
const PSAMPLE_COOKIE: u16 = 2;

/// The attributes of a nest by type, 0 to N-1; `None` if there is another type or one occurs twice.
pub(crate) fn slots<const N: usize>(
    nest: &[u8],
) -> Result<Option<[Option<Attr<'_>>; N]>, WireError> {
    let mut out = [None; N];
    for attr in Attrs::new(nest) {
        let attr = attr?;
        match out.get_mut(attr.kind as usize) {
            Some(slot @ None) => *slot = Some(attr),
            _ => return Ok(None),
        }
    }
    Ok(Some(out))
}

fn required<'a>(attr: Option<Attr<'a>>, what: &'static str) -> Result<Attr<'a>, WireError> {
    attr.ok_or(WireError::Missing { what })
}

fn empty<'a>(attr: &Attr<'a>, action: Action<'a>) -> Result<Action<'a>, WireError> {
    attr.array::<0>("an action without a value").map(|[]| action)
}

fn words([a, b]: [[u8; 2]; 2]) -> [u8; 4] {
    [a[0], a[1], b[0], b[1]]
}

fn pair([a, b]: [[u8; 4]; 2]) -> [u8; 8] {
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

fn mpls_bytes(lse: u32, eth_type: u16, flags: u16) -> [u8; 8] {
    pair([lse.to_be_bytes(), words([eth_type.to_be_bytes(), flags.to_ne_bytes()])])
}

fn push_vlan<'a>(attr: &Attr<'a>) -> Result<Action<'a>, WireError> {
    let [t0, t1, c0, c1] = attr.array("push_vlan")?;
    let tci = VlanTci(u16::from_be_bytes([c0, c1]));
    Ok(Action::PushVlan { tpid: u16::from_be_bytes([t0, t1]), tci })
}

fn hash<'a>(attr: &Attr<'a>) -> Result<Action<'a>, WireError> {
    let [a0, a1, a2, a3, b0, b1, b2, b3] = attr.array("hash")?;
    let alg = u32::from_ne_bytes([a0, a1, a2, a3]);
    Ok(Action::Hash { alg, basis: u32::from_ne_bytes([b0, b1, b2, b3]) })
}

fn push_mpls<'a>(attr: &Attr<'a>) -> Result<Action<'a>, WireError> {
    let [l0, l1, l2, l3, e0, e1, _, _] = attr.array("push_mpls")?;
    let lse = u32::from_be_bytes([l0, l1, l2, l3]);
    Ok(Action::PushMpls { lse, eth_type: u16::from_be_bytes([e0, e1]) })
}

fn add_mpls<'a>(attr: &Attr<'a>) -> Result<Action<'a>, WireError> {
    let [l0, l1, l2, l3, e0, e1, f0, f1] = attr.array("add_mpls")?;
    Ok(Action::AddMpls {
        lse: u32::from_be_bytes([l0, l1, l2, l3]),
        eth_type: u16::from_be_bytes([e0, e1]),
        flags: u16::from_ne_bytes([f0, f1]),
    })
}

fn userspace<'a>(attr: &Attr<'a>) -> Result<Option<Action<'a>>, WireError> {
    let Some([None, pid, userdata, port, actions]) = slots::<5>(attr.payload)? else {
        return Ok(None);
    };
    if actions.is_some_and(|flag| !flag.payload.is_empty()) {
        return Ok(None);
    }
    Ok(Some(Action::Userspace {
        pid: required(pid, "userspace action's PID")?.u32("userspace action's PID")?,
        userdata: userdata.map(|attr| attr.payload),
        egress_tun_port: port.map(|attr| attr.u32("EGRESS_TUN_PORT")).transpose()?,
        actions: actions.is_some(),
    }))
}

fn set<'a>(attr: &Attr<'a>) -> Result<Option<Action<'a>>, WireError> {
    let mut attrs = FlowKey::new(attr.payload).attrs();
    let first = attrs.next().ok_or(WireError::Missing { what: "set action's field" })??;
    Ok(attrs.next().is_none().then_some(Action::Set(first)))
}

fn set_masked<'a>(attr: &Attr<'a>) -> Result<Option<Action<'a>>, WireError> {
    let mut attrs = attr.nested();
    let field = attrs.next().ok_or(WireError::Missing { what: "set action's field" })??;
    let (value, mask) = field.payload.split_at(field.payload.len() / 2);
    let odd = value.len() != mask.len() || value.len() > LAYOUT_MAX || attrs.next().is_some();
    if odd || matches!(field.kind, key::ENCAP | key::TUNNEL | key::NSH) {
        return Ok(None);
    }
    let half = |payload| KeyAttr::parse(&Attr { payload, ..field });
    Ok(Some(Action::SetMasked { key: half(value)?, mask: half(mask)? }))
}

/// Value and mask of a masked set, back to back as the payload of one attribute.
fn write_masked(key: &KeyAttr<'_>, mask: &KeyAttr<'_>, b: &mut AttrBuilder<'_>) {
    let (mut key_scratch, mut mask_scratch) = ([0; LAYOUT_MAX], [0; LAYOUT_MAX]);
    let value = key.payload(&mut key_scratch);
    let bits = mask.payload(&mut mask_scratch);
    let len = value.len();
    if key.kind() != mask.kind() || len != bits.len() || len > LAYOUT_MAX {
        let why = "has a mask of another type or length than its value";
        return b.fail(WireError::Invalid { what: "masked set action", offset: 0, why });
    }
    let mut both = [0; 2 * LAYOUT_MAX];
    both[..len].copy_from_slice(value);
    both[len..2 * len].copy_from_slice(bits);
    b.bytes(key.kind(), &both[..2 * len]);
}

fn sample<'a>(attr: &Attr<'a>) -> Result<Option<Action<'a>>, WireError> {
    let Some([None, probability, actions]) = slots::<3>(attr.payload)? else { return Ok(None) };
    let probability = required(probability, "sample action's PROBABILITY")?;
    Ok(Some(Action::Sample {
        probability: probability.u32("sample action's PROBABILITY")?,
        actions: Actions::new(required(actions, "sample action's ACTIONS")?.payload),
    }))
}

fn check_pkt_len<'a>(attr: &Attr<'a>) -> Result<Option<Action<'a>>, WireError> {
    let Some([None, len, greater, less_equal]) = slots::<4>(attr.payload)? else {
        return Ok(None);
    };
    let what = "check_pkt_len action's actions";
    Ok(Some(Action::CheckPktLen {
        pkt_len: required(len, "check_pkt_len action's PKT_LEN")?.u16("PKT_LEN")?,
        greater: Actions::new(required(greater, what)?.payload),
        less_equal: Actions::new(required(less_equal, what)?.payload),
    }))
}

fn dec_ttl<'a>(attr: &Attr<'a>) -> Result<Option<Action<'a>>, WireError> {
    let Some([None, actions]) = slots::<2>(attr.payload)? else { return Ok(None) };
    let actions = required(actions, "dec_ttl action's ACTION")?;
    Ok(Some(Action::DecTtl(Actions::new(actions.payload))))
}

fn psample<'a>(attr: &Attr<'a>) -> Result<Option<Action<'a>>, WireError> {
    let Some([None, group, cookie]) = slots::<3>(attr.payload)? else { return Ok(None) };
    let group = required(group, "psample action's GROUP")?.u32("psample action's GROUP")?;
    Ok(Some(Action::Psample { group, cookie: cookie.map(|attr| attr.payload) }))
}

#[cfg(test)]
mod tests;
