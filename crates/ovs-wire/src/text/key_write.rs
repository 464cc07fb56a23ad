//! Keys to text.

use std::fmt::{self, Formatter};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::attr::{Attr, Attrs, align};
use crate::key::{MacAddr, VlanTci, kind};
use crate::mask::KEY_DEPTH_MAX;
use crate::text::forms::{self, Body, CT_STATE_NAMES, FRAG_NAMES, Field, Form, Show, be, ne};
use crate::text::{CHex, Comma, HexBytes, How, tunnel};

/// Writes the attributes of `key`, under `mask` if there is one.
pub(super) fn write_key(
    f: &mut Formatter<'_>,
    key: &[u8],
    mask: Option<&[u8]>,
    how: How<'_>,
) -> fmt::Result {
    let mut comma = Comma::new();
    let mut read = 0;
    let mut eth_type = false;
    for attr in Attrs::new(key) {
        let Ok(attr) = attr else { break };
        read = align(attr.offset + attr.payload.len()).min(key.len());
        eth_type |= attr.kind == kind::ETHERTYPE;
        // An attribute that the mask does not have is not matched.
        let zeros = vec![0; if mask.is_some() { attr.payload.len() } else { 0 }];
        let nest = matches!(attr.kind, kind::ENCAP | kind::TUNNEL);
        let absent = if nest { &[][..] } else { &zeros };
        let bits = mask.map(|mask| find(mask, attr.kind).unwrap_or(absent));
        if !how.all && bits.is_some_and(|bits| is_hidden(attr.kind, bits)) {
            continue;
        }
        comma.put(f)?;
        write_attr(f, attr.kind, attr.payload, bits, how)?;
    }
    write_leftover(f, key, read)?;
    if let Some(bits) = mask.and_then(|mask| find(mask, kind::ETHERTYPE)).filter(|_| !eth_type)
        && let [high, low] = *bits
    {
        comma.put(f)?;
        write!(f, "eth_type(0/0x{high:02x}{low:02x})")?;
    }
    Ok(())
}

/// Whether the mask makes an attribute not worth writing. Nests are always written, and so is an
/// Ethernet header: its absence would mean a packet without one.
fn is_hidden(kind: u16, mask: &[u8]) -> bool {
    let wildcard = !mask.is_empty() && mask.iter().all(|&byte| byte == 0);
    wildcard && !matches!(kind, kind::ENCAP | kind::TUNNEL | kind::ETHERNET)
}

fn find(mask: &[u8], kind: u16) -> Option<&[u8]> {
    Attrs::new(mask).find(kind).ok().flatten().map(|attr: Attr<'_>| attr.payload)
}

/// Writes what is no attribute any more, as the peer does.
pub(super) fn write_leftover(f: &mut Formatter<'_>, nest: &[u8], read: usize) -> fmt::Result {
    let left = &nest[read..];
    if left.is_empty() {
        return Ok(());
    }
    let empty = if read == 0 { "<empty>" } else { "" };
    write!(f, "{empty},***{} leftover bytes*** ({})", left.len(), HexBytes(left, ""))
}

/// Writes one attribute; `mask` is none where everything is written.
pub(super) fn write_attr(
    f: &mut Formatter<'_>,
    kind: u16,
    key: &[u8],
    mask: Option<&[u8]>,
    how: How<'_>,
) -> fmt::Result {
    let Some(form) = forms::by_kind(kind).filter(|form| has_text(form, key, mask, how)) else {
        return write_generic(f, kind, key, mask);
    };
    write!(f, "{}(", form.name)?;
    write_body(f, form, key, mask, how)?;
    f.write_str(")")
}

/// Writes `keyN(00 01/ff 00)`, bytes of value and mask.
pub(super) fn write_generic(
    f: &mut Formatter<'_>,
    kind: u16,
    key: &[u8],
    mask: Option<&[u8]>,
) -> fmt::Result {
    write!(f, "key{kind}({}", HexBytes(key, " "))?;
    let whole = |mask: &[u8]| mask.len() == key.len() && mask.iter().all(|&byte| byte == 0xff);
    if let Some(mask) = mask.filter(|mask| !whole(mask)) {
        write!(f, "/{}", HexBytes(mask, " "))?;
    }
    f.write_str(")")
}

/// Whether the text form can say it all.
fn has_text(form: &Form, key: &[u8], mask: Option<&[u8]>, how: How<'_>) -> bool {
    if form.len != 0 && (key.len() != form.len || mask.is_some_and(|mask| mask.len() != form.len)) {
        return false;
    }
    match form.body {
        Body::Fields(fields) => fields.iter().all(|field| {
            let range = field.start..field.end;
            field.show.has_text(&key[range.clone()], mask.map(|mask| &mask[range]))
        }),
        Body::StateFlags => mask.is_none_or(|mask| {
            mask.iter().all(|&byte| byte == 0xff) || ne(mask) >> CT_STATE_NAMES.len() == 0
        }),
        // A mask is written with the names of its bits.
        Body::TcpFlags => mask.is_none_or(|mask| forms::is_exact(form, mask) || be(mask) < 0xfff),
        // The text of a mask implies the bit that says that there is a tag.
        Body::Vlan => how.all || mask.is_none_or(|mask| mask[0] & 0x10 != 0),
        Body::Mpls => {
            let whole = !key.is_empty() && key.len().is_multiple_of(4);
            whole && mask.is_none_or(|mask| mask.len() == key.len())
        }
        Body::Encap => how.depth < KEY_DEPTH_MAX && is_whole(key) && mask.is_none_or(is_whole),
        Body::Tunnel => is_whole(key) && mask.is_none_or(is_whole),
        _ => true,
    }
}

/// Whether a nest has no bytes that are no attribute.
fn is_whole(nest: &[u8]) -> bool {
    nest.len().is_multiple_of(4) && Attrs::new(nest).all(|attr| attr.is_ok())
}

fn write_body(
    f: &mut Formatter<'_>,
    form: &Form,
    key: &[u8],
    mask: Option<&[u8]>,
    how: How<'_>,
) -> fmt::Result {
    let partial = mask.filter(|mask| !forms::is_exact(form, mask));
    match form.body {
        Body::Fields(fields) => write_fields(f, fields, key, mask, how),
        Body::DecNe if partial.is_none() => write!(f, "{}", how.port(ne(key) as u32)),
        Body::DecNe => {
            write!(f, "{}", ne(key))?;
            partial.map_or(Ok(()), |mask| write!(f, "/{}", CHex(ne(mask))))
        }
        Body::HexNe => {
            write!(f, "{}", CHex(ne(key)))?;
            partial.map_or(Ok(()), |mask| write!(f, "/{}", CHex(ne(mask))))
        }
        Body::Hex4Be => {
            write!(f, "0x{}", HexBytes(key, ""))?;
            partial.map_or(Ok(()), |mask| write!(f, "/0x{}", HexBytes(mask, "")))
        }
        Body::Wide => {
            write_wide(f, key)?;
            partial.map_or(Ok(()), |mask| f.write_str("/").and_then(|()| write_wide(f, mask)))
        }
        // Without a mask the peer prints connection states as a number.
        Body::StateFlags if mask.is_none() => write!(f, "{}", CHex(ne(key))),
        Body::StateFlags if how.all => {
            write!(f, "{}", CHex(ne(key)))?;
            partial.map_or(Ok(()), |mask| write!(f, "/{}", CHex(ne(mask))))
        }
        Body::StateFlags => write_flags(f, CT_STATE_NAMES, ne(key), partial.map(ne)),
        Body::TcpFlags => {
            let bits = partial.map(|mask| (be(mask) & 0xfff) as u64);
            write_flags(f, forms::TCP_FLAG_NAMES, be(key) as u64, bits)
        }
        Body::Vlan => write_vlan(f, be(key) as u16, mask.map(|mask| be(mask) as u16), how.all),
        Body::Mpls => write_mpls(f, key, partial),
        Body::Encap => write_key(f, key, mask, how.deeper()),
        Body::Tunnel => tunnel::write_tunnel(f, key, mask, how),
    }
}

fn write_fields(
    f: &mut Formatter<'_>,
    fields: &[Field],
    key: &[u8],
    mask: Option<&[u8]>,
    how: How<'_>,
) -> fmt::Result {
    let mut comma = Comma::new();
    for field in fields {
        let range = field.start..field.end;
        let bits = mask.map(|mask| &mask[range.clone()]);
        // A kind of fragment that is not matched has no form.
        let hides = !how.all || field.show == Show::Frag;
        if hides && bits.is_some_and(|bits| bits.iter().all(|&byte| byte == 0)) {
            continue;
        }
        comma.put(f)?;
        write!(f, "{}=", field.name)?;
        write_value(f, field.show, &key[range], bits)?;
    }
    Ok(())
}

/// Writes a value, and its mask unless it covers all.
pub(super) fn write_value(
    f: &mut Formatter<'_>,
    show: Show,
    key: &[u8],
    mask: Option<&[u8]>,
) -> fmt::Result {
    let full = show.full(key.len());
    let partial = mask.filter(|mask| be(mask) & full != full);
    write_scalar(f, show, key)?;
    match (partial, show) {
        (None, _) => Ok(()),
        (Some(mask), Show::Dec) => write!(f, "/{}", CHex(be(mask) as u64)),
        (Some(mask), _) => f.write_str("/").and_then(|()| write_scalar(f, show, mask)),
    }
}

fn write_scalar(f: &mut Formatter<'_>, show: Show, bytes: &[u8]) -> fmt::Result {
    let value = be(bytes);
    match show {
        Show::Dec => write!(f, "{value}"),
        Show::Hex | Show::Label => write!(f, "{}", CHex(value as u64)),
        Show::Mac => write!(f, "{}", MacAddr(bytes.try_into().unwrap_or_default())),
        Show::Ip4 => write!(f, "{}", Ipv4Addr::from(value as u32)),
        Show::Ip6 => write!(f, "{}", IpText(value.into())),
        Show::Frag => f.write_str(FRAG_NAMES.get(value as usize).unwrap_or(&"no")),
    }
}

/// An IPv6 address as `inet_ntop` prints it: with a dotted tail for `::a.b.c.d` too.
pub(super) struct IpText(pub(super) Ipv6Addr);

impl fmt::Display for IpText {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let value = self.0.to_bits();
        if value >> 32 == 0 && value >> 16 != 0 {
            write!(f, "::{}", Ipv4Addr::from(value as u32))
        } else {
            write!(f, "{}", self.0)
        }
    }
}

fn write_wide(f: &mut Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    write!(f, "{}", CHex(u128::from_ne_bytes(bytes.try_into().unwrap_or_default())))
}

/// Writes flags: those that are set, or `+name-name` under a mask.
pub(super) fn write_flags(
    f: &mut Formatter<'_>,
    names: &[&str],
    value: u64,
    mask: Option<u64>,
) -> fmt::Result {
    if mask == Some(0) {
        return f.write_str("0/0");
    }
    if value == 0 && mask.is_none() {
        return f.write_str("0");
    }
    let mut separator = "";
    for (bit, name) in names.iter().enumerate() {
        let set = value >> bit & 1 != 0;
        match mask {
            Some(mask) if mask >> bit & 1 != 0 => {
                write!(f, "{}{name}", if set { '+' } else { '-' })?;
            }
            None if set => write!(f, "{}{name}", std::mem::replace(&mut separator, "|"))?,
            _ => {}
        }
    }
    let unnamed = value >> names.len() << names.len();
    if mask.is_none() && unnamed != 0 {
        write!(f, "{separator}{unnamed:#x}")?;
    }
    Ok(())
}

/// Writes a VLAN tag; without a mask, or if `all` are asked for, both fields.
pub(super) fn write_vlan(
    f: &mut Formatter<'_>,
    tci: u16,
    mask: Option<u16>,
    all: bool,
) -> fmt::Result {
    let mut comma = Comma::new();
    let (tci, bits) = (VlanTci(tci), VlanTci(mask.unwrap_or(u16::MAX)));
    if all || tci.vid() != 0 || bits.vid() != 0 {
        comma.put(f)?;
        write!(f, "vid={}", tci.vid())?;
        if bits.vid() != VlanTci::VID_MASK {
            write!(f, "/0x{:x}", bits.vid())?;
        }
    }
    if all || tci.pcp() != 0 || bits.pcp() != 0 {
        comma.put(f)?;
        write!(f, "pcp={}", tci.pcp())?;
        if bits.pcp() != 7 {
            write!(f, "/0x{:x}", bits.pcp())?;
        }
    }
    if !tci.present() {
        comma.put(f)?;
        f.write_str("cfi=0")?;
    }
    Ok(())
}

/// Label, traffic class, time to live and bottom of stack of an MPLS label stack entry.
pub(super) fn mpls_parts(lse: u32) -> [u32; 4] {
    [lse >> 12, lse >> 9 & 7, lse & 0xff, lse >> 8 & 1]
}

fn write_mpls(f: &mut Formatter<'_>, key: &[u8], mask: Option<&[u8]>) -> fmt::Result {
    let mut comma = Comma::new();
    for (i, lse) in key.chunks(4).enumerate() {
        comma.put(f)?;
        let [label, tc, ttl, bos] = mpls_parts(be(lse) as u32);
        let Some(mask) = mask else {
            write!(f, "label={label},tc={tc},ttl={ttl},bos={bos}")?;
            continue;
        };
        let [label_mask, tc_mask, ttl_mask, bos_mask] =
            mpls_parts(be(&mask[4 * i..4 * i + 4]) as u32);
        write!(f, "label={label}/0x{label_mask:x},tc={tc}/{tc_mask:x}")?;
        write!(f, ",ttl={ttl}/0x{ttl_mask:x},bos={bos}/{bos_mask:x}")?;
    }
    Ok(())
}
