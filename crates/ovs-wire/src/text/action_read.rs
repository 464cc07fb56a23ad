//! Text to actions.

use crate::action::{Action, Actions, DEPTH_MAX, kind};
use crate::attr::TYPE_MASK;
use crate::key::{EthernetKey, VlanTci};
use crate::text::action_write::{TPID_DEFAULT, probability};
use crate::text::cursor::Cursor;
use crate::text::key_read::read_attr;
use crate::text::{TextError, ct_read};
use crate::{AttrBuilder, MacAddr};

/// What an error says where an action should be.
const ACTION: &str = "an action such as `2` or `push_vlan(`";

/// Reads a whole text.
pub(super) fn read_text(text: &str, out: &mut Vec<u8>) -> Result<(), TextError> {
    let mut c = Cursor::new("actions", text);
    read_list(&mut c, out, 0)?;
    if c.at_end() { Ok(()) } else { Err(c.error(ACTION)) }
}

/// Reads actions up to the end or a closing parenthesis.
fn read_list(c: &mut Cursor<'_>, out: &mut Vec<u8>, depth: usize) -> Result<(), TextError> {
    if depth == DEPTH_MAX {
        return Err(c.error(format!("at most {DEPTH_MAX} levels of actions")));
    }
    let start = c.clone();
    c.skip_delimiters();
    if c.eat("drop") {
        c.skip_delimiters();
        if c.at_end() || c.rest().starts_with(')') {
            return Ok(());
        }
        *c = start;
        c.skip_delimiters();
    }
    while !c.at_end() && !c.rest().starts_with(')') {
        read_action(c, out, depth)?;
        if !c.at_boundary() {
            return Err(c.error("`,` or the end of the actions"));
        }
        c.skip_delimiters();
    }
    Ok(())
}

/// Reads a nested list behind its `open` up to its closing parenthesis.
fn read_nest(c: &mut Cursor<'_>, open: &str, depth: usize) -> Result<Vec<u8>, TextError> {
    let mut nest = Vec::new();
    c.expect(open)?;
    read_list(c, &mut nest, depth + 1)?;
    c.expect(")")?;
    Ok(nest)
}

fn put(c: &Cursor<'_>, out: &mut Vec<u8>, action: &Action<'_>) -> Result<(), TextError> {
    let mut b = AttrBuilder::new(out);
    action.write(&mut b);
    b.finish().map_err(|err| c.error(format!("actions that fit their attribute ({err})")))
}

fn read_action(c: &mut Cursor<'_>, out: &mut Vec<u8>, depth: usize) -> Result<(), TextError> {
    let start = c.clone();
    if c.rest().starts_with(|c: char| c.is_ascii_digit()) {
        let action = Action::Output(number32(c)?);
        return put(&start, out, &action);
    }
    let name = c.name();
    let action = match name {
        "pop_vlan" => Action::PopVlan,
        "pop_eth" => Action::PopEth,
        "ct_clear" => Action::CtClear,
        "pop_nsh" => c.expect("()").map(|()| Action::PopNsh)?,
        "recirc" => Action::Recirc(argument(c)?),
        "trunc" => Action::Trunc(argument(c)?),
        "meter" => Action::Meter(argument(c)?),
        "drop" if c.rest().starts_with('(') => Action::Drop(argument(c)?),
        "drop" => Action::Drop(0),
        "hash" => read_hash(c)?,
        "push_vlan" => read_push_vlan(c)?,
        "push_mpls" | "add_mpls" | "pop_mpls" => read_mpls(c, name)?,
        "push_eth" => read_push_eth(c)?,
        "userspace" => return read_userspace(c, out),
        "psample" => return read_psample(c, out),
        "set" => return read_set(c, out),
        "ct" => {
            let raw = ct_read::read_ct(c)?;
            return put(&start, out, &Action::Ct(&raw));
        }
        "sample" | "clone" | "check_pkt_len" | "dec_ttl" => {
            return read_nested(c, out, name, depth);
        }
        _ => return read_generic(&start, c, out, name),
    };
    put(&start, out, &action)
}

/// Reads `actionN(00 01)`.
fn read_generic(
    start: &Cursor<'_>,
    c: &mut Cursor<'_>,
    out: &mut Vec<u8>,
    name: &str,
) -> Result<(), TextError> {
    let number = name.strip_prefix("action").and_then(|number| number.parse().ok());
    let Some(kind) = number.filter(|&kind: &u16| kind <= TYPE_MASK) else {
        return Err(start.error(ACTION));
    };
    let mut payload = Vec::new();
    if c.eat("(") {
        payload = c.hex_bytes()?;
        c.expect(")")?;
    }
    put(start, out, &Action::Unknown { kind, payload: &payload })
}

fn number32(c: &mut Cursor<'_>) -> Result<u32, TextError> {
    c.number(u32::MAX as u64).map(|value| value as u32)
}

fn number16(c: &mut Cursor<'_>) -> Result<u16, TextError> {
    c.number(u16::MAX as u64).map(|value| value as u16)
}

/// Reads `(NUMBER)`.
fn argument(c: &mut Cursor<'_>) -> Result<u32, TextError> {
    c.expect("(")?;
    let value = number32(c)?;
    c.expect(")")?;
    Ok(value)
}

fn read_hash(c: &mut Cursor<'_>) -> Result<Action<'static>, TextError> {
    c.expect("(")?;
    let start = c.clone();
    let alg = match c.name() {
        "l4" => 0,
        "sym_l4" => 1,
        _ => return Err(start.error("`l4(` or `sym_l4(`")),
    };
    let basis = argument(c)?;
    c.expect(")")?;
    Ok(Action::Hash { alg, basis })
}

/// Reads `(name=number,...)`: each name with its largest value, which it also returns the slot of.
fn read_numbers<const N: usize>(
    c: &mut Cursor<'_>,
    names: [(&str, u64); N],
) -> Result<[Option<u64>; N], TextError> {
    let mut values = [None; N];
    c.expect("(")?;
    while !c.eat(")") {
        let start = c.clone();
        let name = c.name();
        let Some(slot) = names.iter().position(|&(known, _)| known == name) else {
            return Err(start.error(format!("one of {}", names.map(|(name, _)| name).join(", "))));
        };
        c.expect("=")?;
        values[slot] = Some(c.number(names[slot].1)?);
        if !c.eat(",") && !c.rest().starts_with(')') {
            return Err(c.error("`,` or `)`"));
        }
    }
    Ok(values)
}

fn read_push_vlan(c: &mut Cursor<'_>) -> Result<Action<'static>, TextError> {
    let names = [("tpid", 0xffff), ("vid", 0xfff), ("pcp", 7), ("cfi", 1)];
    let [tpid, vid, pcp, cfi] = read_numbers(c, names)?;
    let mut tci = VlanTci::new(vid.unwrap_or(0) as u16, pcp.unwrap_or(0) as u8);
    if cfi == Some(0) {
        tci.0 &= !VlanTci::PRESENT;
    }
    Ok(Action::PushVlan { tpid: tpid.map_or(TPID_DEFAULT, |tpid| tpid as u16), tci })
}

fn read_mpls(c: &mut Cursor<'_>, name: &str) -> Result<Action<'static>, TextError> {
    let names = [
        ("label", 0x000f_ffff),
        ("tc", 7),
        ("ttl", 0xff),
        ("bos", 1),
        ("eth_type", 0xffff),
        ("tun_flags", 0xffff),
    ];
    let start = c.clone();
    let [label, tc, ttl, bos, eth_type, flags] =
        read_numbers(c, names)?.map(|value| value.map(|value| value as u32));
    let part = |value: Option<u32>, shift: u32| value.unwrap_or(0) << shift;
    let lse = part(label, 12) | part(tc, 9) | part(bos, 8) | part(ttl, 0);
    let eth_type = eth_type.ok_or_else(|| start.error("an eth_type"))? as u16;
    Ok(match name {
        "push_mpls" => Action::PushMpls { lse, eth_type },
        "add_mpls" => Action::AddMpls { lse, eth_type, flags: flags.unwrap_or(0) as u16 },
        _ => Action::PopMpls { eth_type },
    })
}

fn read_push_eth(c: &mut Cursor<'_>) -> Result<Action<'static>, TextError> {
    c.expect("(src=")?;
    let src = read_mac(c)?;
    c.expect(",dst=")?;
    let dst = read_mac(c)?;
    c.expect(")")?;
    Ok(Action::PushEth(EthernetKey { src, dst }))
}

fn read_mac(c: &mut Cursor<'_>) -> Result<MacAddr, TextError> {
    let start = c.clone();
    let text = c.take(|c| c.is_ascii_hexdigit() || c == ':');
    text.parse().map_err(|_| start.error("an Ethernet address"))
}

fn read_userspace(c: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<(), TextError> {
    let start = c.clone();
    c.expect("(pid=")?;
    let pid = number32(c)?;
    let mut userdata = None;
    if c.eat(",userdata(") {
        userdata = Some(c.hex_bytes()?);
        c.expect(")")?;
    }
    let actions = c.eat(",actions");
    let egress_tun_port = if c.eat(",tunnel_out_port=") { Some(number32(c)?) } else { None };
    c.expect(")")?;
    let userdata = userdata.as_deref();
    put(&start, out, &Action::Userspace { pid, userdata, egress_tun_port, actions })
}

fn read_psample(c: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<(), TextError> {
    let start = c.clone();
    c.expect("(group=")?;
    let group = number32(c)?;
    let cookie = if c.eat(",cookie=0x") { Some(c.hex_bytes()?) } else { None };
    c.expect(")")?;
    put(&start, out, &Action::Psample { group, cookie: cookie.as_deref() })
}

/// Reads `set(FIELD)`: a masked set if the mask does not cover the whole field.
fn read_set(c: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<(), TextError> {
    let start = c.clone();
    c.expect("(")?;
    let attr = read_attr(c, 0)?;
    c.expect(")")?;
    let mut b = AttrBuilder::new(out);
    if attr.exact {
        b.nest(kind::SET, |b| {
            b.bytes(attr.kind, &attr.key);
        });
    } else {
        b.nest(kind::SET_MASKED, |b| {
            b.bytes(attr.kind, &[attr.key, attr.mask].concat());
        });
    }
    b.finish().map_err(|_| start.error("a field of at most 65531 bytes"))
}

/// Reads an action that contains actions.
fn read_nested(
    c: &mut Cursor<'_>,
    out: &mut Vec<u8>,
    name: &str,
    depth: usize,
) -> Result<(), TextError> {
    let start = c.clone();
    match name {
        "clone" => {
            let actions = read_nest(c, "(", depth)?;
            put(&start, out, &Action::Clone(Actions::new(&actions)))
        }
        "dec_ttl" => {
            let actions = read_nest(c, "(le_1(", depth)?;
            c.expect(")")?;
            put(&start, out, &Action::DecTtl(Actions::new(&actions)))
        }
        "sample" => {
            c.expect("(sample=")?;
            let probability = read_percent(c)?;
            let actions = read_nest(c, "%,actions(", depth)?;
            c.expect(")")?;
            put(&start, out, &Action::Sample { probability, actions: Actions::new(&actions) })
        }
        _ => {
            c.expect("(size=")?;
            let pkt_len = number16(c)?;
            let greater = read_nest(c, ",gt(", depth)?;
            let less_equal = read_nest(c, ",le(", depth)?;
            c.expect(")")?;
            let (greater, less_equal) = (Actions::new(&greater), Actions::new(&less_equal));
            put(&start, out, &Action::CheckPktLen { pkt_len, greater, less_equal })
        }
    }
}

fn read_percent(c: &mut Cursor<'_>) -> Result<u32, TextError> {
    let start = c.clone();
    let text = c.take(|c| c.is_ascii_digit() || c == '.');
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(probability(percent)),
        _ => Err(start.error("a percentage from 0 to 100")),
    }
}
