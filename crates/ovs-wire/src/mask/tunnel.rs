//! Masks of attributes that are nests: tunnels and NSH.

use crate::key::kind;
use crate::key::kind::tunnel::{
    CSUM, DONT_FRAGMENT, ID, IPV4_DST, IPV4_SRC, IPV6_DST, IPV6_SRC, OAM, TOS, TP_DST, TP_SRC, TTL,
    VXLAN_OPTS,
};
use crate::mask::write_ones;
use crate::{AttrBuilder, Attrs, WireError};

/// Every field of a tunnel header with its length. The kernel leaves zero fields out of a key, so
/// that a mask of nothing but what the key has would not match that they are zero.
const HEADER: [(u16, usize); 8] = [
    (ID, 8),
    (TOS, 1),
    (TTL, 1),
    (DONT_FRAGMENT, 0),
    (CSUM, 0),
    (OAM, 0),
    (TP_SRC, 2),
    (TP_DST, 2),
];
const ADDRESSES_V4: [(u16, usize); 2] = [(IPV4_SRC, 4), (IPV4_DST, 4)];
const ADDRESSES_V6: [(u16, usize); 2] = [(IPV6_SRC, 16), (IPV6_DST, 16)];

/// The mask of all fields of a tunnel header, and of the options in `key`.
pub(super) fn write_tunnel(key: &[u8], b: &mut AttrBuilder<'_>) -> Result<(), WireError> {
    let mut failed = Ok(());
    b.nest(kind::TUNNEL, |b| failed = write_fields(key, b));
    failed
}

fn write_fields(key: &[u8], b: &mut AttrBuilder<'_>) -> Result<(), WireError> {
    let mut ipv6 = false;
    for attr in Attrs::new(key) {
        ipv6 |= matches!(attr?.kind, IPV6_SRC | IPV6_DST);
    }
    let addresses = if ipv6 { ADDRESSES_V6 } else { ADDRESSES_V4 };
    for &(kind, len) in HEADER.iter().chain(&addresses) {
        write_ones(kind, len, b);
    }
    for attr in Attrs::new(key) {
        let attr = attr?;
        match attr.kind {
            kind if kind <= OAM || (TP_SRC..=TP_DST).contains(&kind) => {}
            IPV6_SRC | IPV6_DST => {}
            VXLAN_OPTS => write_mirror(VXLAN_OPTS, attr.payload, b)?,
            kind => write_ones(kind, attr.payload.len(), b),
        }
    }
    Ok(())
}

/// A nest with the attributes of `key`, each with all bits set.
pub(super) fn write_mirror(
    nest: u16,
    key: &[u8],
    b: &mut AttrBuilder<'_>,
) -> Result<(), WireError> {
    let mut failed = Ok(());
    b.nest(nest, |b| {
        for attr in Attrs::new(key) {
            match attr {
                Ok(attr) => write_ones(attr.kind, attr.payload.len(), b),
                Err(err) => failed = Err(err),
            }
        }
    });
    failed
}
