//! Tunnel attributes, to text and back.

use std::fmt::{self, Formatter};

use crate::attr::{Attr, Attrs};
use crate::build::AttrBuilder;
use crate::key::kind::tunnel::{
    ID, IPV4_DST, IPV4_SRC, IPV6_DST, IPV6_SRC, TOS, TP_DST, TP_SRC, TTL,
};
use crate::text::cursor::Cursor;
use crate::text::forms::Show;
use crate::text::key_read::{read_generic, read_value};
use crate::text::key_write::{write_flags, write_generic, write_value};
use crate::text::{Comma, How, TextError};

/// The tunnel id is a big-endian u64.
const ID_LEN: usize = 8;

/// Number, name, length and form of the fields with a text form (`enum ovs_tunnel_key_attr`).
const FIELDS: [(u16, &str, usize, Show); 9] = [
    (ID, "tun_id", ID_LEN, Show::Hex),
    (IPV4_SRC, "src", 4, Show::Ip4),
    (IPV4_DST, "dst", 4, Show::Ip4),
    (IPV6_SRC, "ipv6_src", 16, Show::Ip6),
    (IPV6_DST, "ipv6_dst", 16, Show::Ip6),
    (TOS, "tos", 1, Show::Hex),
    (TTL, "ttl", 1, Show::Dec),
    (TP_SRC, "tp_src", 2, Show::Dec),
    (TP_DST, "tp_dst", 2, Show::Dec),
];
/// Bits of `flags(...)`, lowest first, with the attribute that each stands for.
const FLAG_NAMES: &[&str] = &["oam", "df", "csum", "key"];
const FLAG_KINDS: [u16; 3] = [7, 5, 6];
/// The bit that says that there is a tunnel id. It has no attribute of its own.
const FLAG_KEY: u64 = 1 << 3;
const FLAG_ALL: u64 = 0xf;
/// The order in which the kernel writes the attributes (`__ip_tun_to_nlattr`).
const ORDER: [u16; 16] = [0, 1, 2, 12, 13, 16, 3, 4, 5, 6, 9, 10, 7, 8, 11, 15];

/// Writes the attributes of a tunnel, each with its own mask.
pub(super) fn write_tunnel(
    f: &mut Formatter<'_>,
    key: &[u8],
    mask: Option<&[u8]>,
    how: How<'_>,
) -> fmt::Result {
    let mut comma = Comma::new();
    for attr in Attrs::new(key).flatten() {
        if flag(&attr).is_some() {
            continue;
        }
        let bits = mask.map(|mask| Attrs::new(mask).find(attr.kind).ok().flatten());
        let bits = bits.map(|bits| bits.map_or(&[][..], |bits| bits.payload));
        if !how.all && bits.is_some_and(|bits| bits.iter().all(|&byte| byte == 0)) {
            continue;
        }
        comma.put(f)?;
        let field = FIELDS.iter().find(|&&(kind, _, len, _)| {
            let masks = |bits: &[u8]| bits.is_empty() || bits.len() == len;
            let fits = attr.payload.len() == len && bits.is_none_or(masks);
            kind == attr.kind && fits
        });
        if let Some(&(_, name, _, show)) = field {
            write!(f, "{name}=")?;
            write_value(f, show, attr.payload, bits)?;
            continue;
        }
        write_generic(f, attr.kind, attr.payload, bits)?;
    }
    write_tunnel_flags(f, &mut comma, key, mask, how)
}

fn write_tunnel_flags(
    f: &mut Formatter<'_>,
    comma: &mut Comma,
    key: &[u8],
    mask: Option<&[u8]>,
    how: How<'_>,
) -> fmt::Result {
    // Whether there is a tunnel id is matched with the id, of which there must be one in the key.
    let named = FLAG_ALL & !FLAG_KEY | flags(key) & FLAG_KEY;
    let bits = mask.map(|mask| flags(mask) & named);
    if bits == Some(0) && !how.all {
        return Ok(());
    }
    comma.put(f)?;
    f.write_str("flags(")?;
    write_flags(f, FLAG_NAMES, flags(key), bits.filter(|&bits| bits != FLAG_ALL))?;
    f.write_str(")")
}

/// The bit of an attribute that is a flag.
fn flag(attr: &Attr<'_>) -> Option<u64> {
    let bit = FLAG_KINDS.iter().position(|&kind| kind == attr.kind)?;
    attr.payload.is_empty().then_some(1 << bit)
}

fn flags(nest: &[u8]) -> u64 {
    Attrs::new(nest).flatten().fold(0, |flags, attr| {
        flags | flag(&attr).unwrap_or_default() | if attr.kind == ID { FLAG_KEY } else { 0 }
    })
}

/// Attributes that were read: number, value, mask. A flag may be in the mask alone.
type Read = Vec<(u16, Option<Vec<u8>>, Option<Vec<u8>>)>;

/// Reads what is between the parentheses of `tunnel(...)` into the payloads of key and mask.
pub(super) fn read_tunnel(c: &mut Cursor<'_>) -> Result<(Vec<u8>, Vec<u8>), TextError> {
    let mut attrs = Read::new();
    let (mut value, mut bits) = (0, 0);
    while !c.eat(")") {
        read_field(c, &mut attrs, &mut value, &mut bits)?;
        if !c.eat(",") && !c.rest().starts_with(')') {
            return Err(c.error("`,` or `)`"));
        }
    }
    for (bit, &kind) in FLAG_KINDS.iter().enumerate() {
        let part = |flags: u64| (flags >> bit & 1 != 0).then(Vec::new);
        attrs.push((kind, part(value), part(bits)));
    }
    if value & bits & FLAG_KEY != 0 && !attrs.iter().any(|&(kind, ..)| kind == ID) {
        attrs.push((ID, Some(vec![0; ID_LEN]), Some(vec![0; ID_LEN])));
    }
    let rank = |kind| ORDER.iter().position(|&other| other == kind).unwrap_or(ORDER.len());
    attrs.sort_by_key(|&(kind, ..)| rank(kind));
    Ok(encode(&attrs))
}

fn read_field(
    c: &mut Cursor<'_>,
    attrs: &mut Read,
    value: &mut u64,
    bits: &mut u64,
) -> Result<(), TextError> {
    let start = c.clone();
    let name = c.name();
    if name == "flags" {
        c.expect("(")?;
        let (set, mask) = read_flags(c, FLAG_NAMES, FLAG_ALL)?;
        (*value, *bits) = (set, mask.unwrap_or(FLAG_ALL));
        return c.expect(")");
    }
    if let Some(number) = name.strip_prefix("key") {
        let kind = number.parse().map_err(|_| start.error("`keyN(`"))?;
        let (key, mask) = read_generic(c)?;
        attrs.push((kind, Some(key), Some(mask)));
        return Ok(());
    }
    let Some(&(kind, _, len, show)) = FIELDS.iter().find(|&&(_, field, ..)| field == name) else {
        return Err(start.error("a tunnel field"));
    };
    c.expect("=")?;
    let (mut key, mut mask) = (vec![0; len], vec![0; len]);
    read_value(c, show, &mut key, &mut mask)?;
    attrs.push((kind, Some(key), Some(mask)));
    Ok(())
}

/// Encodes key and mask.
fn encode(attrs: &Read) -> (Vec<u8>, Vec<u8>) {
    let (mut key, mut mask) = (Vec::new(), Vec::new());
    for (kind, value, bits) in attrs {
        for (out, part) in [(&mut key, value), (&mut mask, bits)] {
            if let Some(part) = part {
                AttrBuilder::new(out).bytes(*kind, part);
            }
        }
    }
    (key, mask)
}

/// Reads flags: `a|b|0x10`, a number, or `+a-b` or `value/mask` with the mask as the second result.
pub(super) fn read_flags(
    c: &mut Cursor<'_>,
    names: &[&str],
    max: u64,
) -> Result<(u64, Option<u64>), TextError> {
    let (mut value, mut mask) = (0, None);
    loop {
        let start = c.clone();
        let sign = if c.eat("+") { Some(true) } else { c.eat("-").then_some(false) };
        if sign.is_none() && c.rest().starts_with(|c: char| c.is_ascii_digit()) {
            value |= c.number(max)?;
            if mask.is_none() && c.eat("/") {
                return Ok((value, Some(c.number(max)?)));
            }
        } else {
            let name = c.take(|c| c.is_ascii_alphanumeric() || c == '[' || c == ']');
            let bit = names.iter().position(|&known| known == name);
            let bit = 1 << bit.ok_or_else(|| start.error("a flag"))?;
            if sign != Some(false) {
                value |= bit;
            }
            if sign.is_some() {
                mask = Some(mask.unwrap_or(0) | bit);
            }
        }
        if !c.rest().starts_with(['+', '-']) && !c.eat("|") {
            return Ok((value, mask));
        }
    }
}
