//! The identity of a masked key, fed to a hasher.

use std::hash::Hasher;

use crate::key::{FlowKey, LAYOUT_MAX, kind};
use crate::mask::spans::{self, Layout};
use crate::mask::{MatchFields, is_tag_protocol, tag_bits};
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
        let fields = fields.with_required();
        let mut level = Some(self.as_bytes());
        while let Some(nest) = level.take() {
            for attr in Attrs::new(nest) {
                let attr = attr?;
                if attr.kind == kind::ENCAP {
                    level = Some(attr.payload);
                } else {
                    hash_attr(&attr, fields, h)?;
                }
            }
            // Ends the level, so that no attribute can be taken for one of another level.
            h.write_u16(kind::ENCAP);
        }
        Ok(())
    }
}

#[inline]
fn hash_attr<H: Hasher>(attr: &Attr<'_>, fields: MatchFields, h: &mut H) -> Result<(), WireError> {
    let Some(layout) = spans::layout(attr.kind) else {
        return hash_variable(attr, fields, h);
    };
    layout.check(attr)?;
    if attr.kind == kind::ETHERTYPE && is_tag_protocol(attr.payload) {
        h.write_u16(attr.kind);
        h.write(attr.payload);
    } else if layout.is_limited() {
        let mut bytes = [0; LAYOUT_MAX];
        bytes[..layout.len].copy_from_slice(attr.payload);
        layout.limit(&mut bytes);
        hash_spans(attr.kind, layout, &bytes, fields, h);
    } else {
        hash_spans(attr.kind, layout, attr.payload, fields, h);
    }
    Ok(())
}

/// Feeds the selected fields, neighbours at once.
#[inline]
fn hash_spans<H: Hasher>(kind: u16, layout: &Layout, bytes: &[u8], fields: MatchFields, h: &mut H) {
    let mut run = 0..0;
    let mut any = false;
    for &(field, start, end) in layout.spans {
        if !fields.intersects(field) {
            continue;
        }
        if start == run.end && any {
            run.end = end;
            continue;
        }
        if any {
            h.write(&bytes[run]);
        } else {
            h.write_u16(kind);
        }
        (run, any) = (start..end, true);
    }
    if any {
        h.write(&bytes[run]);
    }
}

fn hash_variable<H: Hasher>(
    attr: &Attr<'_>,
    fields: MatchFields,
    h: &mut H,
) -> Result<(), WireError> {
    let field = match attr.kind {
        kind::VLAN => {
            h.write_u16(attr.kind);
            h.write_u16(attr.be16("VLAN")? & tag_bits(fields).0);
            return Ok(());
        }
        kind::TUNNEL => MatchFields::TUNNEL,
        kind::NSH => MatchFields::NSH,
        kind => spans::opaque(kind).unwrap_or(MatchFields::OTHER),
    };
    if fields.contains(field) {
        h.write_u16(attr.kind);
        h.write_usize(attr.payload.len());
        h.write(attr.payload);
    }
    Ok(())
}
