//! The identity of a masked key, fed to a hasher.

use std::hash::Hasher;

use crate::key::{FlowKey, LAYOUT_MAX, kind};
use crate::mask::spans::{self, Layout};
use crate::mask::{BEHIND_A_TAG, MatchFields, is_tag_protocol, tag_bits};
use crate::{Attr, Attrs, WireError};

impl FlowKey<'_> {
    /// Feeds what a flow of this key and the mask of `fields` would match into `h`, without
    /// allocation: keys with the same attributes in the same order, which are equal under that mask,
    /// feed the same bytes. (The order is that of the kernel that wrote them; all do it alike.)
    ///
    /// For [`MatchFields::EXACT`] that is the whole key as it is.
    pub fn hash_masked<H: Hasher>(&self, fields: MatchFields, h: &mut H) -> Result<(), WireError> {
        if fields.contains(MatchFields::EXACT) {
            h.write(self.as_bytes());
            return Ok(());
        }
        // Gathered first: one long write costs a hasher a fraction of many short ones.
        let mut gather = Gather { bytes: [0; GATHER_LEN], len: 0, sink: &mut |part| h.write(part) };
        feed(self.as_bytes(), fields.with_required(), &mut gather)?;
        gather.flush();
        Ok(())
    }
}

/// Bytes that are gathered for one write. The key of a UDP packet over IPv6 under all fields but one
/// has 190.
const GATHER_LEN: usize = 256;

/// Gathers bytes for a hasher.
struct Gather<'s> {
    bytes: [u8; GATHER_LEN],
    len: usize,
    sink: &'s mut dyn FnMut(&[u8]),
}

impl Gather<'_> {
    #[inline]
    fn put(&mut self, part: &[u8]) {
        if self.bytes.len() - self.len < part.len() {
            self.flush();
        }
        match self.bytes.get_mut(self.len..self.len + part.len()) {
            Some(room) => {
                room.copy_from_slice(part);
                self.len += part.len();
            }
            None => (self.sink)(part),
        }
    }

    /// The same for a length that the compiler knows, which makes it a few moves.
    #[inline]
    fn put_array<const N: usize>(&mut self, part: [u8; N]) {
        if let Some(room) = self.bytes[self.len..].first_chunk_mut::<N>() {
            *room = part;
            self.len += N;
        } else {
            self.put(&part);
        }
    }

    #[inline]
    fn put_kind(&mut self, kind: u16) {
        self.put_array(kind.to_ne_bytes());
    }

    /// A payload of one of the usual lengths.
    #[inline]
    fn put_payload(&mut self, part: &[u8]) {
        if let Ok(part) = <[u8; 4]>::try_from(part) {
            self.put_array(part);
        } else if let Ok(part) = <[u8; 12]>::try_from(part) {
            self.put_array(part);
        } else {
            self.put(part);
        }
    }

    fn flush(&mut self) {
        (self.sink)(&self.bytes[..self.len]);
        self.len = 0;
    }
}

fn feed(key: &[u8], mut fields: MatchFields, out: &mut Gather<'_>) -> Result<(), WireError> {
    let mut level = Some(key);
    while let Some(nest) = level.take() {
        for attr in Attrs::new(nest) {
            let attr = attr?;
            if attr.kind == kind::ENCAP {
                level = Some(attr.payload);
            } else if fields.intersects(spans::fields_of(attr.kind)) {
                feed_attr(&attr, fields, out)?;
            }
        }
        fields |= BEHIND_A_TAG;
        // Ends the level, so that no attribute can be taken for one of another level.
        out.put_kind(kind::ENCAP);
    }
    Ok(())
}

#[inline]
fn feed_attr(attr: &Attr<'_>, fields: MatchFields, out: &mut Gather<'_>) -> Result<(), WireError> {
    let Some(layout) = spans::layout(attr.kind) else {
        return feed_variable(attr, fields, out);
    };
    layout.check(attr)?;
    let tag_protocol = attr.kind == kind::ETHERTYPE && is_tag_protocol(attr.payload);
    if fields.contains(layout.all) && !layout.is_limited() || tag_protocol {
        out.put_kind(attr.kind);
        out.put_payload(&attr.payload[..layout.used]);
    } else if fields.intersects(layout.all) {
        feed_part(attr, layout, fields, out);
    }
    Ok(())
}

/// Feeds a payload of which a part is matched: the bytes under the mask, zero elsewhere.
fn feed_part(attr: &Attr<'_>, layout: &Layout, fields: MatchFields, out: &mut Gather<'_>) {
    let mut bytes = [0; LAYOUT_MAX];
    for &(field, start, end) in layout.spans {
        if fields.intersects(field) {
            bytes[start..end].copy_from_slice(&attr.payload[start..end]);
        }
    }
    layout.limit(&mut bytes);
    out.put_kind(attr.kind);
    out.put_payload(&bytes[..layout.used]);
}

fn feed_variable(
    attr: &Attr<'_>,
    fields: MatchFields,
    out: &mut Gather<'_>,
) -> Result<(), WireError> {
    out.put_kind(attr.kind);
    if attr.kind == kind::VLAN {
        let tci = attr.be16("VLAN")? & tag_bits(fields).0;
        out.put_array(tci.to_ne_bytes());
    } else {
        out.put(&attr.payload.len().to_ne_bytes());
        out.put(attr.payload);
    }
    Ok(())
}
