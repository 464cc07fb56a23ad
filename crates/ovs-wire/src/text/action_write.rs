//! Actions to text.

use std::fmt::{self, Formatter};

use crate::action::{Action, Actions, DEPTH_MAX};
use crate::attr::{Attrs, align};
use crate::key::{KeyAttr, LAYOUT_MAX};
use crate::text::key_write::{mpls_parts, write_attr, write_leftover, write_vlan};
use crate::text::{CHex, Comma, HexBytes, How, PortText, ct_write};

/// Tag protocol id that is not printed.
pub(super) const TPID_DEFAULT: u16 = 0x8100;

/// Writes a list; `drop` if it is empty.
pub(super) fn write_actions(
    f: &mut Formatter<'_>,
    actions: Actions<'_>,
    how: How<'_>,
) -> fmt::Result {
    if actions.is_empty() {
        return f.write_str("drop");
    }
    let mut comma = Comma::new();
    let mut read = 0;
    let nest = actions.as_bytes();
    for attr in Attrs::new(nest) {
        let Ok(attr) = attr else { break };
        let first = read == 0;
        read = align(attr.offset + attr.payload.len()).min(nest.len());
        comma.put(f)?;
        match Action::parse(&attr) {
            Ok(Action::Drop(0)) if !first => f.write_str("drop")?,
            Ok(action) if has_text(&action, how) => write_action(f, &action, how)?,
            _ => write_generic(f, attr.kind, attr.payload)?,
        }
    }
    write_leftover(f, nest, read)
}

fn write_generic(f: &mut Formatter<'_>, kind: u16, payload: &[u8]) -> fmt::Result {
    write!(f, "action{kind}")?;
    if payload.is_empty() { Ok(()) } else { write!(f, "({})", HexBytes(payload, " ")) }
}

/// Whether an action has a text form that can say it all.
fn has_text(action: &Action<'_>, how: How<'_>) -> bool {
    let nest = |nests: &[Actions<'_>]| {
        how.depth + 1 < DEPTH_MAX
            && nests.iter().all(|nest| {
                nest.as_bytes().len().is_multiple_of(4)
                    && Attrs::new(nest.as_bytes()).all(|attr| attr.is_ok())
            })
    };
    match action {
        Action::Unknown { .. } | Action::PushNsh(_) => false,
        Action::Hash { alg, .. } => *alg <= 1,
        Action::Ct(raw) => ct_write::Ct::parse(raw).is_some(),
        Action::Clone(actions) | Action::Sample { actions, .. } | Action::DecTtl(actions) => {
            nest(&[*actions])
        }
        Action::CheckPktLen { greater, less_equal, .. } => nest(&[*greater, *less_equal]),
        _ => true,
    }
}

fn write_action(f: &mut Formatter<'_>, action: &Action<'_>, how: How<'_>) -> fmt::Result {
    match *action {
        Action::Output(port) => write!(f, "{}", how.port(port)),
        Action::Userspace { pid, userdata, egress_tun_port, actions } => {
            let tunnel_port = egress_tun_port.map(|port| how.port(port));
            write_userspace(f, pid, userdata, tunnel_port, actions)
        }
        Action::Set(key) => write_set(f, &key, None),
        Action::SetMasked { key, mask } => write_set(f, &key, Some(&mask)),
        Action::PushVlan { tpid, tci } => {
            f.write_str("push_vlan(")?;
            if tpid != TPID_DEFAULT {
                write!(f, "tpid=0x{tpid:04x},")?;
            }
            write_vlan(f, tci.0, None, false)?;
            f.write_str(")")
        }
        Action::PopVlan => f.write_str("pop_vlan"),
        Action::Recirc(id) => write!(f, "recirc({})", CHex(id as u64)),
        Action::Hash { alg, basis } => {
            write!(f, "hash({}({basis}))", if alg == 0 { "l4" } else { "sym_l4" })
        }
        Action::PushMpls { lse, eth_type } => write_mpls(f, "push_mpls", lse, eth_type, 0),
        Action::AddMpls { lse, eth_type, flags } => write_mpls(f, "add_mpls", lse, eth_type, flags),
        Action::PopMpls { eth_type } => write!(f, "pop_mpls(eth_type=0x{eth_type:x})"),
        Action::Ct(raw) => ct_write::Ct::parse(raw).map_or(Ok(()), |ct| write!(f, "{ct}")),
        Action::Trunc(len) => write!(f, "trunc({len})"),
        Action::PushEth(eth) => write!(f, "push_eth(src={},dst={})", eth.src, eth.dst),
        Action::PopEth => f.write_str("pop_eth"),
        Action::CtClear => f.write_str("ct_clear"),
        Action::PopNsh => f.write_str("pop_nsh()"),
        Action::Meter(meter) => write!(f, "meter({meter})"),
        Action::Drop(reason) => write!(f, "drop({reason})"),
        Action::Psample { group, cookie } => {
            write!(f, "psample(group={group}")?;
            if let Some(cookie) = cookie {
                write!(f, ",cookie=0x{}", HexBytes(cookie, ""))?;
            }
            f.write_str(")")
        }
        _ => write_nested(f, action, how.deeper()),
    }
}

/// Actions that contain actions.
fn write_nested(f: &mut Formatter<'_>, action: &Action<'_>, how: How<'_>) -> fmt::Result {
    match *action {
        Action::Sample { probability, actions } => {
            write!(f, "sample(sample={}%,actions(", Percent(probability))?;
            write_actions(f, actions, how)?;
            f.write_str("))")
        }
        Action::Clone(actions) => {
            f.write_str("clone(")?;
            write_actions(f, actions, how)?;
            f.write_str(")")
        }
        Action::CheckPktLen { pkt_len, greater, less_equal } => {
            write!(f, "check_pkt_len(size={pkt_len},gt(")?;
            write_actions(f, greater, how)?;
            f.write_str("),le(")?;
            write_actions(f, less_equal, how)?;
            f.write_str("))")
        }
        Action::DecTtl(actions) => {
            f.write_str("dec_ttl(le_1(")?;
            write_actions(f, actions, how)?;
            f.write_str("))")
        }
        _ => Ok(()),
    }
}

fn write_userspace(
    f: &mut Formatter<'_>,
    pid: u32,
    userdata: Option<&[u8]>,
    tunnel_port: Option<PortText<'_>>,
    actions: bool,
) -> fmt::Result {
    write!(f, "userspace(pid={pid}")?;
    if let Some(userdata) = userdata {
        write!(f, ",userdata({})", HexBytes(userdata, ""))?;
    }
    if actions {
        f.write_str(",actions")?;
    }
    if let Some(port) = tunnel_port {
        write!(f, ",tunnel_out_port={port}")?;
    }
    f.write_str(")")
}

fn write_set(f: &mut Formatter<'_>, key: &KeyAttr<'_>, mask: Option<&KeyAttr<'_>>) -> fmt::Result {
    let (mut key_bytes, mut mask_bytes) = ([0; LAYOUT_MAX], [0; LAYOUT_MAX]);
    let mask = mask.map(|mask| mask.payload(&mut mask_bytes));
    f.write_str("set(")?;
    write_attr(f, key.kind(), key.payload(&mut key_bytes), mask, How::default())?;
    f.write_str(")")
}

fn write_mpls(
    f: &mut Formatter<'_>,
    name: &str,
    lse: u32,
    eth_type: u16,
    flags: u16,
) -> fmt::Result {
    let [label, tc, ttl, bos] = mpls_parts(lse);
    write!(f, "{name}(label={label},tc={tc},ttl={ttl},bos={bos},eth_type=0x{eth_type:x}")?;
    if flags != 0 {
        write!(f, ",tun_flags=0x{flags:x}")?;
    }
    f.write_str(")")
}

/// A probability in percent, with one decimal, or as many as it takes to read it back.
struct Percent(u32);

/// Decimals that tell any two probabilities apart.
const DECIMALS_MAX: usize = 10;

/// The probability that a percentage, 0 to 100, stands for.
#[expect(clippy::cast_sign_loss, reason = "percentages are not negative")]
pub(super) fn probability(percent: f64) -> u32 {
    (percent / 100.0 * u32::MAX as f64 + 0.5).floor() as u32
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.0 as f64 / u32::MAX as f64;
        let reads_back = |decimals: &usize| {
            format!("{percent:.decimals$}").parse().is_ok_and(|text| probability(text) == self.0)
        };
        let decimals = (1..DECIMALS_MAX).find(reads_back).unwrap_or(DECIMALS_MAX);
        write!(f, "{percent:.decimals$}")
    }
}
