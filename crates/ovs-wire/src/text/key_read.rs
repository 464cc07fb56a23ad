//! Text to keys and masks.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::AttrBuilder;
use crate::key::{MacAddr, VlanTci, kind};
use crate::mask::KEY_DEPTH_MAX;
use crate::text::cursor::Cursor;
use crate::text::forms::{self, Body, CT_STATE_NAMES, FRAG_NAMES, Field, Form, Show};
use crate::text::tunnel::{read_flags, read_tunnel};
use crate::text::{EMPTY, TextError};

/// Reads a whole text.
pub(super) fn read_text(
    text: &str,
    key: &mut Vec<u8>,
    mask: &mut Vec<u8>,
) -> Result<(), TextError> {
    let mut c = Cursor::new("flow key", text);
    if text.trim() == EMPTY {
        return Ok(());
    }
    read_attrs(&mut c, key, mask, 0)?;
    if c.at_end() { Ok(()) } else { Err(c.error("a key attribute such as `in_port(`")) }
}

/// Reads attributes up to the end or a closing parenthesis.
fn read_attrs(
    c: &mut Cursor<'_>,
    key: &mut Vec<u8>,
    mask: &mut Vec<u8>,
    depth: usize,
) -> Result<(), TextError> {
    c.skip_delimiters();
    while !c.at_end() && !c.rest().starts_with(')') {
        let start = c.clone();
        let attr = read_attr(c, depth)?;
        let mut wrote = Ok(());
        // A mask on an Ethernet type that the key does not have: an IEEE 802.2 frame.
        if !(attr.kind == kind::ETHERTYPE && attr.key == [0, 0] && attr.has_mask && attr.exact) {
            wrote = AttrBuilder::new(key).bytes(attr.kind, &attr.key).finish();
        }
        wrote
            .and_then(|()| AttrBuilder::new(mask).bytes(attr.kind, &attr.mask).finish())
            .map_err(|_| start.error("an attribute of at most 65531 bytes"))?;
        c.skip_delimiters();
    }
    Ok(())
}

/// An attribute that was read.
pub(super) struct ReadAttr {
    pub(super) kind: u16,
    pub(super) key: Vec<u8>,
    pub(super) mask: Vec<u8>,
    /// Whether the mask covers all of the value.
    pub(super) exact: bool,
    /// Whether the text has a mask.
    has_mask: bool,
}

/// Reads one attribute.
pub(super) fn read_attr(c: &mut Cursor<'_>, depth: usize) -> Result<ReadAttr, TextError> {
    let start = c.clone();
    let name = c.name();
    if let Some(number) = name.strip_prefix("key") {
        let kind = number.parse().ok().filter(|&kind: &u16| kind <= crate::attr::TYPE_MASK);
        let kind = kind.ok_or_else(|| start.error("a key attribute such as `key31(`"))?;
        let (key, mask) = read_generic(c)?;
        let exact = mask.iter().all(|&byte| byte == 0xff);
        return Ok(ReadAttr { kind, key, mask, exact, has_mask: false });
    }
    let Some(form) = forms::by_name(name) else {
        return Err(start.error("a key attribute such as `in_port(`"));
    };
    c.expect("(")?;
    let body = c.clone();
    let (key, mask) = read_body(c, form, depth)?;
    let has_mask = body.rest()[..body.rest().len() - c.rest().len()].contains('/');
    let exact = match form.body {
        Body::Encap | Body::Tunnel => !has_mask,
        _ => forms::is_exact(form, &mask),
    };
    Ok(ReadAttr { kind: form.kind, key, mask, exact, has_mask })
}

/// Reads `(00 01/ff 00)`, bytes of value and mask.
pub(super) fn read_generic(c: &mut Cursor<'_>) -> Result<(Vec<u8>, Vec<u8>), TextError> {
    c.expect("(")?;
    let key = c.hex_bytes()?;
    let mask = if c.eat("/") { c.hex_bytes()? } else { vec![0xff; key.len()] };
    c.expect(")")?;
    Ok((key, mask))
}

/// Reads what is between the parentheses, and the closing one.
fn read_body(
    c: &mut Cursor<'_>,
    form: &Form,
    depth: usize,
) -> Result<(Vec<u8>, Vec<u8>), TextError> {
    let (mut key, mut mask) = (vec![0; form.len], vec![0; form.len]);
    let max = if form.len == 2 { u16::MAX as u64 } else { u32::MAX as u64 };
    let number = |value: u64| number_bytes(form, value);
    match form.body {
        Body::Fields(fields) => return read_fields(c, fields, key, mask),
        Body::Vlan => return read_vlan(c),
        Body::Mpls => return read_mpls(c),
        Body::Tunnel => return read_tunnel(c),
        Body::Encap => {
            if depth == KEY_DEPTH_MAX {
                return Err(c.error("at most two VLAN headers"));
            }
            read_attrs(c, &mut key, &mut mask, depth + 1)?;
        }
        Body::DecNe | Body::HexNe | Body::Hex4Be => {
            key = number(c.number(max)?);
            mask = number(if c.eat("/") { c.number(max)? } else { max });
        }
        Body::Wide => {
            key = c.wide_hex()?.to_ne_bytes().into();
            mask = if c.eat("/") { c.wide_hex()?.to_ne_bytes().into() } else { vec![0xff; 16] };
        }
        Body::StateFlags | Body::TcpFlags => {
            let tcp = matches!(form.body, Body::TcpFlags);
            let names = if tcp { forms::TCP_FLAG_NAMES } else { CT_STATE_NAMES };
            let (value, bits) = read_flags(c, names, max)?;
            (key, mask) = (number(value), number(bits.unwrap_or(max)));
        }
    }
    c.expect(")")?;
    Ok((key, mask))
}

/// A number in the width and byte order of its attribute.
fn number_bytes(form: &Form, value: u64) -> Vec<u8> {
    match form.body {
        Body::Hex4Be | Body::TcpFlags => (value as u16).to_be_bytes().into(),
        _ if form.len == 2 => (value as u16).to_ne_bytes().into(),
        _ => (value as u32).to_ne_bytes().into(),
    }
}

fn read_fields(
    c: &mut Cursor<'_>,
    fields: &[Field],
    mut key: Vec<u8>,
    mut mask: Vec<u8>,
) -> Result<(Vec<u8>, Vec<u8>), TextError> {
    while !c.eat(")") {
        let start = c.clone();
        // The peer prints one pair of names for ports and reads another.
        let name = match c.name() {
            "tp_src" if fields.iter().any(|field| field.name == "src_port") => "src_port",
            "tp_dst" if fields.iter().any(|field| field.name == "dst_port") => "dst_port",
            name => name,
        };
        let Some(field) = fields.iter().find(|field| field.name == name) else {
            let names: Vec<_> = fields.iter().map(|field| field.name).collect();
            return Err(start.error(format!("one of {}", names.join(", "))));
        };
        c.expect("=")?;
        let range = field.start..field.end;
        read_value(c, field.show, &mut key[range.clone()], &mut mask[range])?;
        end_of_part(c)?;
    }
    Ok((key, mask))
}

/// A comma, or the closing parenthesis, which stays.
fn end_of_part(c: &mut Cursor<'_>) -> Result<(), TextError> {
    if c.eat(",") || c.rest().starts_with(')') { Ok(()) } else { Err(c.error("`,` or `)`")) }
}

/// Reads `value` or `value/mask`.
pub(super) fn read_value(
    c: &mut Cursor<'_>,
    show: Show,
    key: &mut [u8],
    mask: &mut [u8],
) -> Result<(), TextError> {
    read_scalar(c, show, key)?;
    if show != Show::Frag && c.eat("/") {
        read_scalar(c, show, mask)
    } else {
        put_be(mask, show.full(mask.len()));
        Ok(())
    }
}

fn read_scalar(c: &mut Cursor<'_>, show: Show, out: &mut [u8]) -> Result<(), TextError> {
    let start = c.clone();
    let value = match show {
        Show::Dec | Show::Hex | Show::Label => {
            c.number(show.full(out.len()).min(u64::MAX as u128) as u64)? as u128
        }
        Show::Mac => {
            let text = c.take(|c| c.is_ascii_hexdigit() || c == ':');
            let mac: MacAddr = text.parse().map_err(|_| start.error("an Ethernet address"))?;
            forms::be(&mac.0)
        }
        Show::Ip4 => {
            let text = c.take(|c| c.is_ascii_digit() || c == '.');
            let ip: Ipv4Addr = text.parse().map_err(|_| start.error("an IPv4 address"))?;
            ip.to_bits() as u128
        }
        Show::Ip6 => read_ip6(c)?.to_bits(),
        Show::Frag => {
            let name = c.name();
            let frag = FRAG_NAMES.iter().position(|&known| known == name);
            frag.ok_or_else(|| start.error("`no`, `first` or `later`"))? as u128
        }
    };
    put_be(out, value);
    Ok(())
}

/// Reads an IPv6 address.
pub(super) fn read_ip6(c: &mut Cursor<'_>) -> Result<Ipv6Addr, TextError> {
    let start = c.clone();
    let text = c.take(|c| c.is_ascii_hexdigit() || c == ':' || c == '.');
    text.parse().map_err(|_| start.error("an IPv6 address"))
}

/// Writes the low bytes of `value`, big-endian.
fn put_be(out: &mut [u8], value: u128) {
    let bytes = value.to_be_bytes();
    out.copy_from_slice(&bytes[bytes.len() - out.len()..]);
}

fn read_vlan(c: &mut Cursor<'_>) -> Result<(Vec<u8>, Vec<u8>), TextError> {
    let (mut tci, mut bits) = (VlanTci::PRESENT, VlanTci::PRESENT);
    while !c.eat(")") {
        let start = c.clone();
        let (shift, max) = match c.name() {
            "vid" => (0, 0xfff),
            "pcp" => (13, 7),
            "cfi" => (12, 1),
            _ => return Err(start.error("one of vid, pcp, cfi")),
        };
        c.expect("=")?;
        let value = c.number(max)? as u16;
        let mask = if c.eat("/") { c.number(max)? } else { max } as u16;
        tci = tci & !((max as u16) << shift) | value << shift;
        bits |= mask << shift;
        end_of_part(c)?;
    }
    Ok((tci.to_be_bytes().into(), bits.to_be_bytes().into()))
}

/// Reads label stack entries. A label begins an entry.
fn read_mpls(c: &mut Cursor<'_>) -> Result<(Vec<u8>, Vec<u8>), TextError> {
    let (mut key, mut mask): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
    while !c.eat(")") {
        let start = c.clone();
        let (shift, max) = match c.name() {
            "label" => (12, 0x000f_ffff),
            "tc" => (9, 7),
            "ttl" => (0, 0xff),
            "bos" => (8, 1),
            _ => return Err(start.error("one of label, tc, ttl, bos")),
        };
        if shift == 12 || key.is_empty() {
            key.push(0);
            mask.push(0);
        }
        c.expect("=")?;
        let value = c.number(max)? as u32;
        let bits = if c.eat("/") { c.number(max)? } else { max } as u32;
        if let (Some(key), Some(mask)) = (key.last_mut(), mask.last_mut()) {
            *key |= value << shift;
            *mask |= bits << shift;
        }
        end_of_part(c)?;
    }
    if key.is_empty() {
        return Err(c.error("a label"));
    }
    let bytes = |entries: Vec<u32>| entries.into_iter().flat_map(u32::to_be_bytes).collect();
    Ok((bytes(key), bytes(mask)))
}
