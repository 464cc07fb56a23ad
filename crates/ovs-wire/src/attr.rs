//! Netlink attributes (`struct nlattr`), read in place.

use crate::WireError;

/// Bytes of an attribute's header: u16 length, u16 type.
pub const HEADER_LEN: usize = 4;
/// The type's bits; the two above them are `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
pub const TYPE_MASK: u16 = 0x3fff;
/// `NLA_F_NESTED`: the value is attributes.
pub const NESTED: u16 = 0x8000;

/// Rounds up to the netlink alignment of 4 bytes.
pub const fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Type, without flag bits.
    pub kind: u16,
    /// The value's bytes, without padding.
    pub payload: &'a [u8],
    /// Where the payload starts in the buffer that was iterated.
    pub offset: usize,
}

impl<'a> Attr<'a> {
    /// The payload as an array of exactly `N` bytes.
    #[inline]
    pub fn array<const N: usize>(&self, what: &'static str) -> Result<[u8; N], WireError> {
        match self.payload.try_into() {
            Ok(array) => Ok(array),
            Err(_) => Err(self.wrong_length(what, N)),
        }
    }

    // Out of the way of what is read for every packet, like the errors below.
    #[cold]
    #[inline(never)]
    fn wrong_length(&self, what: &'static str, need: usize) -> WireError {
        WireError::Length { what, offset: self.offset, need, have: self.payload.len() }
    }

    /// The payload as a byte.
    #[inline]
    pub fn u8(&self, what: &'static str) -> Result<u8, WireError> {
        self.array::<1>(what).map(|[b]| b)
    }

    /// The payload as a host-endian u16.
    #[inline]
    pub fn u16(&self, what: &'static str) -> Result<u16, WireError> {
        self.array(what).map(u16::from_ne_bytes)
    }

    /// The payload as a big-endian u16.
    #[inline]
    pub fn be16(&self, what: &'static str) -> Result<u16, WireError> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// The payload as a host-endian u32.
    #[inline]
    pub fn u32(&self, what: &'static str) -> Result<u32, WireError> {
        self.array(what).map(u32::from_ne_bytes)
    }

    /// The payload as a big-endian u32.
    #[inline]
    pub fn be32(&self, what: &'static str) -> Result<u32, WireError> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// The payload as a host-endian u64.
    #[inline]
    pub fn u64(&self, what: &'static str) -> Result<u64, WireError> {
        self.array(what).map(u64::from_ne_bytes)
    }

    /// The payload as nested attributes.
    #[inline]
    pub fn nested(&self) -> Attrs<'a> {
        Attrs::new(self.payload)
    }

    /// The payload as a string up to its NUL (kernel strings end with one; it may be absent).
    pub fn str(&self, what: &'static str) -> Result<&'a str, WireError> {
        let end = self.payload.iter().position(|&b| b == 0).unwrap_or(self.payload.len());
        std::str::from_utf8(&self.payload[..end]).map_err(|_| WireError::Invalid {
            what,
            offset: self.offset,
            why: "is not UTF-8",
        })
    }
}

/// Iterator over the attributes of a buffer, in order.
///
/// After an error it ends. A last attribute may lack its padding: upcalls on datapaths with the
/// `UNALIGNED` feature do (`queue_userspace_packet`, `net/openvswitch/datapath.c`).
#[derive(Debug, Clone)]
pub struct Attrs<'a> {
    buf: &'a [u8],
    pos: usize,
}

impl<'a> Attrs<'a> {
    /// Iterates `buf`, which holds attributes and nothing else.
    #[inline]
    pub fn new(buf: &'a [u8]) -> Self {
        Self { buf, pos: 0 }
    }

    /// Iterates `buf` from the attribute at `pos` on.
    #[inline]
    pub(crate) fn starting_at(buf: &'a [u8], pos: usize) -> Self {
        Self { buf, pos }
    }

    /// The first attribute of type `kind`; a malformed attribute before it is an error.
    pub fn find(self, kind: u16) -> Result<Option<Attr<'a>>, WireError> {
        for attr in self {
            let attr = attr?;
            if attr.kind == kind {
                return Ok(Some(attr));
            }
        }
        Ok(None)
    }

    /// Fails if an attribute of one of these types is shorter than its struct (type, bytes, name).
    /// Generated readers fill a short struct up with zeros, and a counter would read as 0.
    pub(crate) fn check_structs(
        self,
        structs: &[(u16, usize, &'static str)],
    ) -> Result<(), WireError> {
        for attr in self {
            let attr = attr?;
            let (offset, have) = (attr.offset, attr.payload.len());
            let short = structs.iter().find(|(kind, need, _)| *kind == attr.kind && have < *need);
            if let Some(&(_, need, what)) = short {
                return Err(WireError::Length { what, offset, need, have });
            }
        }
        Ok(())
    }

    /// Type and payload of the next attribute; `None` at the end, and where the rest is none, which
    /// [`Attrs::check`] tells. For loops that are run for every packet: what is wrong is looked for once,
    /// behind them.
    #[inline]
    pub(crate) fn step(&mut self) -> Option<(u16, &'a [u8])> {
        let rest = self.buf.get(self.pos..)?;
        let &[l0, l1, k0, k1] = rest.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let payload = rest.get(HEADER_LEN..len)?;
        // Behind a last attribute without its padding, the first `get` finds nothing.
        self.pos += align(len);
        Some((u16::from_ne_bytes([k0, k1]) & TYPE_MASK, payload))
    }

    /// Where a payload that [`Attrs::step`] gave last starts.
    #[inline]
    pub(crate) fn offset(&self, payload: &[u8]) -> usize {
        self.pos - align(payload.len())
    }

    /// After the last [`Attrs::step`]: was it the end? Ends the iteration if not.
    #[inline]
    pub(crate) fn check(&mut self) -> Result<(), WireError> {
        if self.pos >= self.buf.len() { Ok(()) } else { Err(self.fail()) }
    }

    /// What is wrong with the attribute at `pos`; nothing follows it.
    #[cold]
    #[inline(never)]
    fn fail(&mut self) -> WireError {
        let rest = &self.buf[self.pos..];
        let (what, offset, have) = ("attribute", self.pos, rest.len());
        let len = rest.first_chunk().map_or(0, |len| usize::from(u16::from_ne_bytes(*len)));
        self.pos = self.buf.len();
        match (have, len) {
            (..HEADER_LEN, _) => WireError::Truncated { what, offset, need: HEADER_LEN, have },
            (_, ..HEADER_LEN) => {
                WireError::Invalid { what, offset, why: "is shorter than its own header" }
            }
            (_, need) => WireError::Truncated { what, offset, need, have },
        }
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<Attr<'a>, WireError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self.step() {
            Some((kind, payload)) => Some(Ok(Attr { kind, payload, offset: self.offset(payload) })),
            None => self.check().err().map(Err),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = ((payload.len() + HEADER_LEN) as u16).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(payload);
        out
    }

    #[test]
    fn reads_attributes_in_order_and_strips_flags() {
        let mut buf = attr(1 | 0x8000, &[1, 2, 3]);
        buf.push(0);
        buf.extend(attr(2, &7u32.to_ne_bytes()));
        let all: Vec<_> = Attrs::new(&buf).collect::<Result<_, _>>().unwrap();
        assert_eq!(all[0], Attr { kind: 1, payload: &[1, 2, 3], offset: 4 });
        assert_eq!(all[1].u32("x"), Ok(7));
    }

    #[test]
    fn last_attribute_may_lack_its_padding() {
        let buf = attr(1, &[9]);
        assert_eq!(Attrs::new(&buf).count(), 1);
        assert!(Attrs::new(&buf).next().unwrap().is_ok());
    }

    #[test]
    fn says_where_an_attribute_is_cut() {
        let mut buf = attr(1, &[0; 4]);
        buf.extend([20, 0, 2, 0, 1]);
        let err = Attrs::new(&buf).last().unwrap().unwrap_err();
        assert_eq!(err, WireError::Truncated { what: "attribute", offset: 8, need: 20, have: 5 });
    }

    #[test]
    fn a_zero_length_ends_the_iteration() {
        let buf = [0u8; 64];
        let all: Vec<_> = Attrs::new(&buf).collect();
        assert_eq!(all.len(), 1);
        assert!(matches!(all[0], Err(WireError::Invalid { offset: 0, .. })));
    }

    #[test]
    fn wrong_length_names_the_attribute() {
        let buf = attr(3, &[1, 2]);
        let err = Attrs::new(&buf).next().unwrap().unwrap().u32("IN_PORT").unwrap_err();
        assert_eq!(err.to_string(), "IN_PORT at byte 4 has 2 bytes, expected 4");
    }
}
