//! The `ct` action to text.

use std::fmt::{self, Formatter};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::Attr;
use crate::action::slots;
use crate::text::key_write::IpText;
use crate::text::{CHex, Comma};

// `enum ovs_ct_attr`.
pub(super) const COMMIT: u16 = 1;
pub(super) const ZONE: u16 = 2;
pub(super) const MARK: u16 = 3;
pub(super) const LABELS: u16 = 4;
pub(super) const HELPER: u16 = 5;
pub(super) const NAT: u16 = 6;
pub(super) const FORCE_COMMIT: u16 = 7;
pub(super) const EVENTMASK: u16 = 8;
pub(super) const TIMEOUT: u16 = 9;
// `enum ovs_nat_attr`.
pub(super) const NAT_SRC: u16 = 1;
pub(super) const NAT_DST: u16 = 2;
pub(super) const NAT_IP_MIN: u16 = 3;
pub(super) const NAT_IP_MAX: u16 = 4;
pub(super) const NAT_PROTO_MIN: u16 = 5;
pub(super) const NAT_PROTO_MAX: u16 = 6;
/// Flags behind the ranges, with their names.
pub(super) const NAT_FLAGS: [(u16, &str); 3] = [(7, "persistent"), (8, "hash"), (9, "random")];

/// A `ct` action whose text says all of it.
#[derive(Default)]
pub(super) struct Ct<'a> {
    commit: bool,
    force_commit: bool,
    zone: u16,
    mark: Option<(u32, u32)>,
    labels: Option<(u128, u128)>,
    helper: Option<&'a str>,
    timeout: Option<&'a str>,
    eventmask: Option<u32>,
    nat: Option<Nat>,
}

impl<'a> Ct<'a> {
    /// Reads the attributes; `None` if there is something in them that the text form cannot say.
    pub(super) fn parse(raw: &'a [u8]) -> Option<Self> {
        let [None, commit, zone, mark, labels, helper, nat, force, eventmask, timeout] =
            slots::<10>(raw).ok()??
        else {
            return None;
        };
        Some(Self {
            commit: flag(commit)?,
            force_commit: flag(force)?,
            zone: zone.map_or(Some(0), |attr| attr.u16("").ok())?,
            mark: optional(mark, |attr| {
                let (value, bits) = attr.payload.split_at_checked(4)?;
                Some((ne32(value)?, ne32(bits)?))
            })?,
            labels: optional(labels, |attr| {
                let (value, bits) = attr.payload.split_at_checked(16)?;
                let wide = |bytes: &[u8]| bytes.try_into().ok().map(u128::from_ne_bytes);
                Some((wide(value)?, wide(bits)?))
            })?,
            helper: optional(helper, word)?,
            timeout: optional(timeout, word)?,
            eventmask: optional(eventmask, |attr| attr.u32("").ok())?,
            nat: optional(nat, |attr| Nat::parse(attr.payload))?,
        })
    }
}

fn ne32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn flag(attr: Option<Attr<'_>>) -> Option<bool> {
    match attr {
        None => Some(false),
        Some(attr) => attr.payload.is_empty().then_some(true),
    }
}

/// An attribute that may be absent: `None` if it is there and cannot be read.
#[expect(clippy::option_option, reason = "absent and unreadable are different answers")]
fn optional<'a, T>(
    attr: Option<Attr<'a>>,
    read: impl FnOnce(Attr<'a>) -> Option<T>,
) -> Option<Option<T>> {
    match attr {
        None => Some(None),
        Some(attr) => read(attr).map(Some),
    }
}

/// A NUL-terminated string that has no characters with a meaning in the text.
fn word(attr: Attr<'_>) -> Option<&str> {
    let (&0, bytes) = attr.payload.split_last()? else { return None };
    let plain = |&byte: &u8| is_word(byte as char);
    let text = std::str::from_utf8(bytes).ok()?;
    (!bytes.is_empty() && bytes.iter().all(plain)).then_some(text)
}

/// Characters of helper and timeout names.
pub(super) fn is_word(c: char) -> bool {
    c.is_ascii_graphic() && !matches!(c, ',' | '(' | ')')
}

impl fmt::Display for Ct<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("ct")?;
        let mut body = Body { f, comma: Comma::new() };
        if self.commit {
            body.part(format_args!("commit"))?;
        }
        if self.force_commit {
            body.part(format_args!("force_commit"))?;
        }
        if self.zone != 0 {
            body.part(format_args!("zone={}", self.zone))?;
        }
        if let Some((value, mask)) = self.mark {
            body.part(format_args!("mark={}/{}", CHex(value as u64), CHex(mask as u64)))?;
        }
        match self.labels {
            Some((value, u128::MAX)) => body.part(format_args!("label={}", CHex(value)))?,
            Some((value, mask)) => {
                body.part(format_args!("label={}/{}", CHex(value), CHex(mask)))?;
            }
            None => {}
        }
        if let Some(helper) = self.helper {
            body.part(format_args!("helper={helper}"))?;
        }
        if let Some(eventmask) = self.eventmask {
            body.part(format_args!("eventmask={}", CHex(eventmask as u64)))?;
        }
        if let Some(timeout) = self.timeout {
            body.part(format_args!("timeout={timeout}"))?;
        }
        if let Some(nat) = &self.nat {
            body.part(format_args!("{nat}"))?;
        }
        body.close()
    }
}

/// Parts in parentheses, which are left out if there is none.
struct Body<'f, 'w> {
    f: &'f mut Formatter<'w>,
    comma: Comma,
}

impl Body<'_, '_> {
    fn part(&mut self, part: fmt::Arguments<'_>) -> fmt::Result {
        if self.comma.is_first() {
            self.f.write_str("(")?;
        }
        self.comma.put(self.f)?;
        self.f.write_fmt(part)
    }

    fn close(self) -> fmt::Result {
        if self.comma.is_first() { Ok(()) } else { self.f.write_str(")") }
    }
}

/// Network address translation of a `ct` action.
struct Nat {
    /// `src` or `dst`; without it there is nothing else.
    kind: Option<&'static str>,
    min: Option<Address>,
    max: Option<Address>,
    proto_min: u16,
    proto_max: u16,
    flags: [bool; NAT_FLAGS.len()],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Address {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

impl Nat {
    fn parse(raw: &[u8]) -> Option<Self> {
        let [None, src, dst, min, max, proto_min, proto_max, persistent, hash, random] =
            slots::<10>(raw).ok()??
        else {
            return None;
        };
        let kind = match (flag(src)?, flag(dst)?) {
            (true, false) => Some("src"),
            (false, true) => Some("dst"),
            (false, false) if raw.is_empty() => None,
            _ => return None,
        };
        let port = |attr: Option<Attr<'_>>| attr.map_or(Some(0), |attr| attr.u16("").ok());
        let nat = Self {
            kind,
            min: optional(min, address)?,
            max: optional(max, address)?,
            proto_min: port(proto_min)?,
            proto_max: port(proto_max)?,
            flags: [flag(persistent)?, flag(hash)?, flag(random)?],
        };
        nat.is_sound().then_some(nat)
    }

    /// Whether the ranges have what the text needs: no end without a start, no ports without an
    /// address, ends that differ from their starts.
    fn is_sound(&self) -> bool {
        let family = |a: &Address| matches!(a, Address::V4(_));
        let addresses = match (&self.min, &self.max) {
            (Some(min), Some(max)) => min != max && family(min) == family(max),
            (None, Some(_)) => false,
            (_, None) => true,
        };
        let ports = self.proto_max == 0 || self.proto_min != 0 && self.proto_max != self.proto_min;
        addresses && ports && (self.min.is_some() || self.proto_min == 0)
    }
}

fn address(attr: Attr<'_>) -> Option<Address> {
    match *attr.payload {
        [a, b, c, d] => Some(Address::V4(Ipv4Addr::new(a, b, c, d))),
        _ => attr.array::<16>("").ok().map(|bytes| Address::V6(bytes.into())),
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(kind) = self.kind else { return f.write_str("nat") };
        write!(f, "nat({kind}")?;
        for (separator, address) in [("=", self.min), ("-", self.max)] {
            let brackets = self.proto_min != 0;
            match address {
                Some(Address::V4(ip)) => write!(f, "{separator}{ip}")?,
                Some(Address::V6(ip)) if brackets => write!(f, "{separator}[{}]", IpText(ip))?,
                Some(Address::V6(ip)) => write!(f, "{separator}{}", IpText(ip))?,
                None => {}
            }
        }
        for (separator, port) in [(":", self.proto_min), ("-", self.proto_max)] {
            if port != 0 {
                write!(f, "{separator}{port}")?;
            }
        }
        for ((_, name), set) in NAT_FLAGS.iter().zip(self.flags) {
            if set {
                write!(f, ",{name}")?;
            }
        }
        f.write_str(")")
    }
}
