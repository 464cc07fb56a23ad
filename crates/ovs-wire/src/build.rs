//! Writing attributes into a caller's buffer, with the length checks that netlink's 16-bit attribute
//! length needs.

use crate::WireError;
use crate::attr::HEADER_LEN;

/// Longest payload of one attribute in bytes: the length field counts the header too.
pub const PAYLOAD_MAX: usize = u16::MAX as usize - HEADER_LEN;

/// Appends attributes to a buffer.
///
/// The first value that does not fit is remembered and returned by [`AttrBuilder::finish`]; what
/// follows it is ignored, so that a chain of writes needs one check. Nested attributes are written
/// without `NLA_F_NESTED`, which the kernel's Open vSwitch asks for in one place alone (PSAMPLE); there it
/// is part of `kind`.
#[derive(Debug)]
pub struct AttrBuilder<'b> {
    buf: &'b mut Vec<u8>,
    failed: Option<WireError>,
}

impl<'b> AttrBuilder<'b> {
    /// Appends to `buf`, whose length must be a multiple of 4 (messages always are).
    pub fn new(buf: &'b mut Vec<u8>) -> Self {
        debug_assert_eq!(buf.len() % 4, 0, "attributes start aligned");
        Self { buf, failed: None }
    }

    /// An attribute with `payload` as its value.
    pub fn bytes(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        if self.failed.is_some() {
            return self;
        }
        if payload.len() > PAYLOAD_MAX {
            self.failed = Some(WireError::TooLong { kind, len: payload.len() });
            return self;
        }
        let header = header(payload.len() + HEADER_LEN, kind);
        self.buf.extend_from_slice(&header);
        // Most of an answer's are so long: a short key, a single action, a flow's id. A copy of a length that is
        // known is a few instructions, any other is a call.
        if let Ok(value) = <&[u8; 8]>::try_from(payload) {
            self.buf.extend_from_slice(value);
        } else if let Ok(value) = <&[u8; 16]>::try_from(payload) {
            self.buf.extend_from_slice(value);
        } else {
            self.buf.extend_from_slice(payload);
            self.pad();
        }
        self
    }

    /// An attribute without a value.
    pub fn flag(&mut self, kind: u16) -> &mut Self {
        self.bytes(kind, &[])
    }

    /// A byte.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// A host-endian u16.
    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A big-endian u16.
    pub fn be16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A host-endian u32.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        let ([h0, h1, h2, h3], [v0, v1, v2, v3]) = (header(8, kind), value.to_ne_bytes());
        self.encoded([h0, h1, h2, h3, v0, v1, v2, v3])
    }

    /// A big-endian u32.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A host-endian u64.
    pub fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        let mut attr = [0; 12];
        attr[..HEADER_LEN].copy_from_slice(&header(12, kind));
        attr[HEADER_LEN..].copy_from_slice(&value.to_ne_bytes());
        self.encoded(attr)
    }

    /// An array of host-endian u32.
    pub fn u32s(&mut self, kind: u16, values: &[u32]) -> &mut Self {
        self.nest(kind, |b| b.buf.extend(values.iter().flat_map(|v| v.to_ne_bytes())))
    }

    /// A NUL-terminated string.
    pub fn str(&mut self, kind: u16, value: &str) -> &mut Self {
        self.nest(kind, |b| {
            b.buf.extend(value.as_bytes());
            b.buf.push(0);
        })
    }

    /// An attribute whose value is what `fill` writes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut AttrBuilder<'_>)) -> &mut Self {
        if self.failed.is_some() {
            return self;
        }
        let start = self.buf.len();
        self.buf.extend_from_slice(&[0; HEADER_LEN]);
        fill(self);
        let len = self.buf.len() - start;
        if len > u16::MAX as usize {
            self.failed.get_or_insert(WireError::TooLong { kind, len: len - HEADER_LEN });
            return self;
        }
        self.buf[start..start + HEADER_LEN].copy_from_slice(&header(len, kind));
        self.pad();
        self
    }

    /// Attributes that are encoded already, such as a key to be echoed. `encoded` is copied as it is
    /// and padded to the alignment.
    pub fn raw(&mut self, encoded: &[u8]) -> &mut Self {
        if self.failed.is_none() {
            self.buf.extend_from_slice(encoded);
            self.pad();
        }
        self
    }

    /// Remembers `err` unless an earlier one is remembered.
    pub fn fail(&mut self, err: WireError) {
        self.failed.get_or_insert(err);
    }

    /// The first thing that did not fit, if any.
    pub fn finish(&mut self) -> Result<(), WireError> {
        self.failed.map_or(Ok(()), Err)
    }

    /// A whole attribute of a length that is known, in one piece.
    #[inline]
    fn encoded<const N: usize>(&mut self, attr: [u8; N]) -> &mut Self {
        if self.failed.is_none() {
            self.buf.extend_from_slice(&attr);
        }
        self
    }

    #[inline]
    fn pad(&mut self) {
        let missing = self.buf.len().wrapping_neg() % 4;
        if missing > 0 {
            self.buf.extend_from_slice(&[0; 3][..missing]);
        }
    }
}

/// An attribute's header; `len` counts it and fits.
#[inline]
fn header(len: usize, kind: u16) -> [u8; HEADER_LEN] {
    let ([l0, l1], [k0, k1]) = ((len as u16).to_ne_bytes(), kind.to_ne_bytes());
    [l0, l1, k0, k1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Attrs;

    #[test]
    fn writes_what_attrs_reads() {
        let mut buf = Vec::new();
        let mut b = AttrBuilder::new(&mut buf);
        b.str(1, "dp0").u32(2, 7).nest(3, |b| {
            b.be16(1, 0x0800).u32s(2, &[1, 2]);
        });
        b.finish().unwrap();
        let all: Vec<_> = Attrs::new(&buf).collect::<Result<_, _>>().unwrap();
        assert_eq!(all[0].str("name"), Ok("dp0"));
        assert_eq!(all[1].u32("x"), Ok(7));
        let inner: Vec<_> = all[2].nested().collect::<Result<_, _>>().unwrap();
        assert_eq!(inner[0].be16("x"), Ok(0x0800));
        assert_eq!(inner[1].payload.len(), 8);
    }

    #[test]
    fn refuses_what_a_16_bit_length_cannot_say() {
        let mut buf = Vec::new();
        let mut b = AttrBuilder::new(&mut buf);
        b.bytes(5, &vec![0; PAYLOAD_MAX]);
        assert_eq!(b.finish(), Ok(()));
        b.bytes(6, &vec![0; PAYLOAD_MAX + 1]).u32(7, 1);
        assert_eq!(b.finish(), Err(WireError::TooLong { kind: 6, len: PAYLOAD_MAX + 1 }));
    }

    #[test]
    fn refuses_a_nest_that_grew_too_long() {
        let mut buf = Vec::new();
        let mut b = AttrBuilder::new(&mut buf);
        b.nest(9, |b| {
            b.bytes(1, &vec![0; 40_000]).bytes(2, &vec![0; 40_000]);
        });
        assert!(matches!(b.finish(), Err(WireError::TooLong { kind: 9, .. })));
    }
}
