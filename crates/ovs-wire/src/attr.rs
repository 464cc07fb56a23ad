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
        self.payload.try_into().map_err(|_| WireError::Length {
            what,
            offset: self.offset,
            need: N,
            have: self.payload.len(),
        })
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

    fn fail(&mut self, err: WireError) -> Result<Attr<'a>, WireError> {
        self.pos = self.buf.len();
        Err(err)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<Attr<'a>, WireError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.buf[self.pos..];
        if rest.is_empty() {
            return None;
        }
        let (what, offset, have) = ("attribute", self.pos, rest.len());
        let [l0, l1, k0, k1, ..] = *rest else {
            return Some(self.fail(WireError::Truncated { what, offset, need: HEADER_LEN, have }));
        };
        let len = u16::from_ne_bytes([l0, l1]) as usize;
        if len < HEADER_LEN {
            return Some(self.fail(WireError::Invalid {
                what,
                offset,
                why: "is shorter than its own header",
            }));
        }
        let Some(payload) = rest.get(HEADER_LEN..len) else {
            return Some(self.fail(WireError::Truncated { what, offset, need: len, have }));
        };
        let kind = u16::from_ne_bytes([k0, k1]) & TYPE_MASK;
        self.pos = (offset + align(len)).min(self.buf.len());
        Some(Ok(Attr { kind, payload, offset: offset + HEADER_LEN }))
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
