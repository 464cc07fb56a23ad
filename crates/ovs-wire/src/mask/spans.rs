//! Which bytes of an attribute belong to which field.

use crate::key::{LAYOUT_MAX, kind};
use crate::mask::MatchFields;
use crate::{Attr, WireError};

/// The fields of an attribute of fixed length.
pub(super) struct Layout {
    what: &'static str,
    /// Bytes of the payload.
    pub(super) len: usize,
    /// Fields in order, with their first byte and the byte behind them. Bytes that are in none are
    /// padding.
    pub(super) spans: &'static [(MatchFields, usize, usize)],
    /// Bytes up to the end of the last field: the payload without padding.
    pub(super) used: usize,
    /// The fields that select all of it.
    pub(super) all: MatchFields,
    /// Bits that a mask may have where they are not all: `(first byte, bits)`.
    limit: Option<(usize, [u8; 4])>,
}

impl Layout {
    /// Checks the payload's length.
    #[inline]
    pub(super) fn check(&self, attr: &Attr<'_>) -> Result<(), WireError> {
        if attr.payload.len() == self.len {
            return Ok(());
        }
        Err(WireError::Length {
            what: self.what,
            offset: attr.offset,
            need: self.len,
            have: attr.payload.len(),
        })
    }

    /// Sets the bits of the selected fields in `bits`, which is zero.
    pub(super) fn fill(&self, fields: MatchFields, bits: &mut [u8; LAYOUT_MAX]) {
        for &(field, start, end) in self.spans {
            if fields.intersects(field) {
                bits[start..end].fill(0xff);
            }
        }
        self.limit(bits);
    }

    /// Clears what no mask may have. VLAN tags keep the bit that says that there is one.
    #[inline]
    pub(super) fn limit(&self, bytes: &mut [u8; LAYOUT_MAX]) {
        if let Some((start, bits)) = self.limit {
            for (byte, bits) in bytes[start..].iter_mut().zip(bits) {
                *byte &= bits;
            }
        }
    }

    /// Whether [`Layout::limit`] does something.
    #[inline]
    pub(super) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }
}

/// The field of an attribute of variable length that is matched whole.
pub(super) const fn opaque(kind: u16) -> Option<MatchFields> {
    match kind {
        kind::MPLS => Some(MatchFields::MPLS),
        kind::TUNNEL => Some(MatchFields::TUNNEL),
        kind::NSH => Some(MatchFields::NSH),
        kind::ENCAP | kind::VLAN => None,
        _ => Some(MatchFields::OTHER),
    }
}

/// Types below this one have their fields in a table.
const TABLE_LEN: usize = kind::IPV6_EXTHDRS as usize + 1;

/// The fields that an attribute has a part in. VLAN tags and tag protocols count for the
/// recirculation id, which is always matched, as they are.
static FIELDS: [MatchFields; TABLE_LEN] = {
    let mut table = [MatchFields::OTHER; TABLE_LEN];
    let mut kind = 0;
    while kind < TABLE_LEN {
        table[kind] = match kind as u16 {
            kind::VLAN => MatchFields::RECIRC_ID,
            kind::ETHERTYPE => MatchFields::RECIRC_ID.union(MatchFields::ETH_TYPE),
            kind => match layout(kind) {
                Some(layout) => layout.all,
                None => match opaque(kind) {
                    Some(field) => field,
                    None => MatchFields::empty(),
                },
            },
        };
        kind += 1;
    }
    table
};

/// The fields that may make an attribute worth reading.
#[inline]
pub(super) fn fields_of(kind: u16) -> MatchFields {
    FIELDS.get(kind as usize).copied().unwrap_or(MatchFields::OTHER)
}

macro_rules! layouts {
    ($($kind:ident[$len:literal] {$($field:ident[$start:literal..$end:literal]),*} $($limit:expr)?;)*) => {
        /// The layout of an attribute of fixed length.
        #[inline]
        pub(super) const fn layout(kind: u16) -> Option<&'static Layout> {
            match kind {
                $(kind::$kind => {
                    const LAYOUT: &Layout = &Layout {
                        what: stringify!($kind),
                        len: $len,
                        spans: &[$((MatchFields::$field, $start, $end)),*],
                        used: layouts!(@max $($end)*),
                        all: MatchFields::empty()$(.union(MatchFields::$field))*,
                        limit: layouts!(@limit $($limit)?),
                    };
                    Some(LAYOUT)
                })*
                _ => None,
            }
        }
    };
    (@max $($end:literal)*) => {{
        let mut used = 0;
        $(used = if $end > used { $end } else { used };)*
        used
    }};
    (@limit) => { None };
    (@limit $limit:expr) => { Some($limit) };
}

layouts! {
    PRIORITY[4] { SKB_PRIORITY[0..4] };
    IN_PORT[4] { IN_PORT[0..4] };
    ETHERNET[12] { ETH_SRC[0..6], ETH_DST[6..12] };
    ETHERTYPE[2] { ETH_TYPE[0..2] };
    IPV4[12] {
        IP_SRC[0..4], IP_DST[4..8], IP_PROTO[8..9], IP_TOS[9..10], IP_TTL[10..11], IP_FRAG[11..12]
    };
    // The kernel refuses a mask of more than the 20 bits of a flow label.
    IPV6[40] {
        IP_SRC[0..16], IP_DST[16..32], IPV6_LABEL[32..36], IP_PROTO[36..37], IP_TOS[37..38],
        IP_TTL[38..39], IP_FRAG[39..40]
    } (32, [0, 0x0f, 0xff, 0xff]);
    TCP[4] { TP_SRC[0..2], TP_DST[2..4] };
    UDP[4] { TP_SRC[0..2], TP_DST[2..4] };
    SCTP[4] { TP_SRC[0..2], TP_DST[2..4] };
    ICMP[2] { TP_SRC[0..1], TP_DST[1..2] };
    // Neighbour discovery is told by type and code.
    ICMPV6[2] { ICMPV6_TYPE[0..1], ICMPV6_CODE[1..2] };
    ARP[24] { ARP[0..22] };
    ND[28] { ND[0..28] };
    SKB_MARK[4] { SKB_MARK[0..4] };
    TCP_FLAGS[2] { TCP_FLAGS[0..2] };
    DP_HASH[4] { DP_HASH[0..4] };
    RECIRC_ID[4] { RECIRC_ID[0..4] };
    // The kernel refuses a mask of states that it does not know: `CT_SUPPORTED_MASK` is 0xff.
    CT_STATE[4] { CT[0..4] } (0, 0xff_u32.to_ne_bytes());
    CT_ZONE[2] { CT[0..2] };
    CT_MARK[4] { CT[0..4] };
    CT_LABELS[16] { CT[0..16] };
    CT_ORIG_TUPLE_IPV4[16] { CT[0..13] };
    CT_ORIG_TUPLE_IPV6[40] { CT[0..37] };
    IPV6_EXTHDRS[2] { IPV6_EXTHDRS[0..2] };
}

impl MatchFields {
    const ICMPV6_TYPE: Self = Self::TP_SRC.union(Self::ND);
    const ICMPV6_CODE: Self = Self::TP_DST.union(Self::ND);
}
