//! The head of most keys, read at fixed places.
//!
//! The kernel writes a packet's metadata and Ethernet header in one order, all of it whether set or not
//! (`__ovs_nla_put_key`, `ovs_ct_put_key`; `net/openvswitch`). So the key of a packet that came in by a
//! port, without a tunnel or a tracked connection, begins with the same ten attribute headers. To
//! compare these costs a tenth of what it costs to iterate them. Any other key is iterated.

use crate::attr::HEADER_LEN;
use crate::key::{EthernetKey, KeySummary, kind};

/// Bytes of the head, and words of 4 bytes.
pub(super) const LEN: usize = 100;
const WORDS: usize = LEN / 4;

/// The word that each attribute begins with, its type and the length of its value.
const LAYOUT: [(usize, u16, u16); 10] = [
    (0, kind::RECIRC_ID, 4),
    (2, kind::DP_HASH, 4),
    (4, kind::PRIORITY, 4),
    (6, kind::IN_PORT, 4),
    (8, kind::SKB_MARK, 4),
    (10, kind::CT_STATE, 4),
    (12, kind::CT_ZONE, 2),
    (14, kind::CT_MARK, 4),
    (16, kind::CT_LABELS, 16),
    (21, kind::ETHERNET, 12),
];

/// An attribute's header as one word in memory.
const fn header(kind: u16, len: u16) -> u32 {
    let ([l0, l1], [k0, k1]) = ((len + HEADER_LEN as u16).to_ne_bytes(), kind.to_ne_bytes());
    u32::from_ne_bytes([l0, l1, k0, k1])
}

impl KeySummary {
    /// Reads the head of `key`, if it is the usual one; gives the bytes read: all of it, or none.
    #[inline]
    pub(super) fn take_head(&mut self, key: &[u8]) -> usize {
        let Some(words) = key.as_chunks::<4>().0.first_chunk::<WORDS>() else { return 0 };
        let word = |at: usize| u32::from_ne_bytes(words[at]);
        // All ten at once: to stop at the first that differs costs more than to compare the rest.
        let differ = |all, (at, kind, len): &(_, _, _)| all | (word(*at) ^ header(*kind, *len));
        if LAYOUT.iter().fold(0, differ) != 0 {
            return 0;
        }
        self.recirc_id = word(1);
        self.skb_priority = word(5);
        self.in_port = Some(word(7));
        self.skb_mark = word(9);
        self.ct_state = word(11);
        let zone = u16::from_ne_bytes([words[13][0], words[13][1]]);
        let labels = word(17) | word(18) | word(19) | word(20);
        self.metadata = word(3) | u32::from(zone) | word(15) | labels != 0;
        if let Some(ethernet) = words.as_flattened().last_chunk() {
            let EthernetKey { src, dst } = EthernetKey::from_bytes(ethernet);
            (self.eth_src, self.eth_dst) = (src, dst);
        }
        LEN
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::AttrBuilder;
    use crate::key::FlowKey;

    /// A key with this head, and what is behind it.
    fn key(values: &[[u8; 16]; 10], rest: &[u8]) -> Vec<u8> {
        let mut key = Vec::new();
        let mut b = AttrBuilder::new(&mut key);
        for ((_, kind, len), value) in LAYOUT.iter().zip(values) {
            b.bytes(*kind, &value[..usize::from(*len)]);
        }
        key.extend_from_slice(rest);
        key
    }

    /// The same attributes in another order, which are iterated.
    fn turned(key: &[u8]) -> Vec<u8> {
        let (recirc_id, rest) = key.split_at(8);
        let (others, behind) = rest.split_at(LEN - 8);
        [others, recirc_id, behind].concat()
    }

    #[test]
    fn the_layout_is_what_a_builder_writes() {
        let key = key(&[[0; 16]; 10], &[]);
        assert_eq!(key.len(), LEN);
        assert_eq!(KeySummary::default().take_head(&key), LEN);
        assert_eq!(KeySummary::default().take_head(&turned(&key)), 0);
        assert_eq!(KeySummary::default().take_head(&key[..LEN - 1]), 0);
    }

    proptest! {
        #[test]
        fn a_head_says_what_its_attributes_say(
            values: [[u8; 16]; 10],
            zeros: [bool; 10],
            rest in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut values = values;
            values.iter_mut().zip(zeros).filter(|(_, zero)| *zero).for_each(|(v, _)| *v = [0; 16]);
            let key = key(&values, &rest);
            prop_assert_eq!(KeySummary::default().take_head(&key), LEN);
            prop_assert_eq!(FlowKey::new(&key).summary(), FlowKey::new(&turned(&key)).summary());
        }
    }
}
