//! Text to the `ct` action.

use std::net::Ipv4Addr;

use crate::AttrBuilder;
use crate::text::TextError;
use crate::text::ct_write as ct;
use crate::text::cursor::Cursor;
use crate::text::key_read::read_ip6;

/// The order in which the kernel writes the attributes (`ovs_ct_action_to_attr`).
const ORDER: [u16; 9] = [
    ct::COMMIT,
    ct::FORCE_COMMIT,
    ct::ZONE,
    ct::MARK,
    ct::LABELS,
    ct::HELPER,
    ct::EVENTMASK,
    ct::TIMEOUT,
    ct::NAT,
];

/// Reads what follows `ct`.
pub(super) fn read_ct(c: &mut Cursor<'_>) -> Result<Vec<u8>, TextError> {
    let mut attrs: Vec<(u16, Vec<u8>)> = Vec::new();
    if c.eat("(") {
        loop {
            c.skip_delimiters();
            if c.eat(")") {
                break;
            }
            attrs.push(read_part(c)?);
            if !c.at_boundary() {
                return Err(c.error("`,` or `)`"));
            }
        }
    }
    attrs.sort_by_key(|&(kind, _)| ORDER.iter().position(|&other| other == kind));
    let mut raw = Vec::new();
    let mut b = AttrBuilder::new(&mut raw);
    for (kind, payload) in &attrs {
        b.bytes(*kind, payload);
    }
    b.finish().map_err(|_| c.error("attributes of at most 65531 bytes"))?;
    Ok(raw)
}

fn read_part(c: &mut Cursor<'_>) -> Result<(u16, Vec<u8>), TextError> {
    let start = c.clone();
    let max = u32::MAX as u64;
    Ok(match c.name() {
        "commit" => (ct::COMMIT, Vec::new()),
        "force_commit" => (ct::FORCE_COMMIT, Vec::new()),
        "nat" => (ct::NAT, read_nat(c)?),
        "zone" => {
            c.expect("=")?;
            (ct::ZONE, (c.number(u16::MAX as u64)? as u16).to_ne_bytes().into())
        }
        "eventmask" => {
            c.expect("=")?;
            (ct::EVENTMASK, (c.number(max)? as u32).to_ne_bytes().into())
        }
        "mark" => {
            c.expect("=")?;
            let value = c.number(max)? as u32;
            let mask = if c.eat("/") { c.number(max)? as u32 } else { u32::MAX };
            (ct::MARK, [value.to_ne_bytes(), mask.to_ne_bytes()].concat())
        }
        "label" => {
            c.expect("=")?;
            let value = c.wide_hex()?;
            let mask = if c.eat("/") { c.wide_hex()? } else { u128::MAX };
            (ct::LABELS, [value.to_ne_bytes(), mask.to_ne_bytes()].concat())
        }
        "helper" => (ct::HELPER, read_word(c)?),
        "timeout" => (ct::TIMEOUT, read_word(c)?),
        _ => return Err(start.error("a part of a ct action such as `commit` or `zone=`")),
    })
}

/// Reads `=WORD` as a NUL-terminated string.
fn read_word(c: &mut Cursor<'_>) -> Result<Vec<u8>, TextError> {
    c.expect("=")?;
    match c.take(ct::is_word) {
        "" => Err(c.error("a name")),
        word => Ok([word.as_bytes(), &[0]].concat()),
    }
}

fn read_nat(c: &mut Cursor<'_>) -> Result<Vec<u8>, TextError> {
    let mut raw = Vec::new();
    if !c.eat("(") {
        return Ok(raw);
    }
    let start = c.clone();
    let kind = match c.name() {
        "src" => ct::NAT_SRC,
        "dst" => ct::NAT_DST,
        _ => return Err(start.error("`src` or `dst`")),
    };
    let mut b = AttrBuilder::new(&mut raw);
    b.flag(kind);
    if c.eat("=") {
        read_range(c, &mut b)?;
    }
    while c.eat(",") {
        let start = c.clone();
        let name = c.name();
        let flag = ct::NAT_FLAGS.iter().find(|&&(_, known)| known == name);
        let &(kind, _) = flag.ok_or_else(|| start.error("`persistent`, `hash` or `random`"))?;
        b.flag(kind);
    }
    c.expect(")")?;
    Ok(raw)
}

/// Reads `ADDRESS[-ADDRESS][:PORT[-PORT]]`.
fn read_range(c: &mut Cursor<'_>, b: &mut AttrBuilder<'_>) -> Result<(), TextError> {
    let min = read_address(c)?;
    b.bytes(ct::NAT_IP_MIN, &min);
    if c.eat("-") {
        let start = c.clone();
        let max = read_address(c)?;
        if max.len() != min.len() {
            return Err(start.error("an address of the same family"));
        }
        b.bytes(ct::NAT_IP_MAX, &max);
    }
    if c.eat(":") {
        b.u16(ct::NAT_PROTO_MIN, c.number(u16::MAX as u64)? as u16);
        if c.eat("-") {
            b.u16(ct::NAT_PROTO_MAX, c.number(u16::MAX as u64)? as u16);
        }
    }
    Ok(())
}

fn read_address(c: &mut Cursor<'_>) -> Result<Vec<u8>, TextError> {
    let start = c.clone();
    if c.eat("[") {
        let ip = read_ip6(c)?;
        c.expect("]")?;
        return Ok(ip.octets().into());
    }
    let text = c.take(|c| c.is_ascii_digit() || c == '.');
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Ok(ip.octets().into());
    }
    *c = start;
    Ok(read_ip6(c)?.octets().into())
}
