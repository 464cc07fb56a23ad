//! Properties of keys, masks, actions and their text that hold for every input.

mod strategies;

use std::hash::{DefaultHasher, Hasher};

use ovs_wire::key::{KeyAttr, kind};
use ovs_wire::nl::{NlAck, NlMsgs};
use ovs_wire::{
    Action, Actions, AttrBuilder, Attrs, FlowKey, MatchFields, WireError, datapath, family, flow,
    packet, text, vport,
};
use proptest::collection::vec;
use proptest::prelude::*;
use strategies::{actions, encode, fields, kernel_key, key};

fn key_text(key: &[u8], mask: Option<&[u8]>) -> String {
    text::format_key(FlowKey::new(key), mask.map(FlowKey::new)).to_string()
}

fn read_key(line: &str) -> (Vec<u8>, Vec<u8>) {
    let (mut key, mut mask) = (Vec::new(), Vec::new());
    text::parse_key(line, &mut key, &mut mask).unwrap_or_else(|err| panic!("{line}: {err}"));
    (key, mask)
}

fn mask_of(key: &[u8], fields: MatchFields) -> Result<Vec<u8>, WireError> {
    let mut mask = Vec::new();
    FlowKey::new(key).write_mask(fields, &mut AttrBuilder::new(&mut mask))?;
    Ok(mask)
}

fn hash(key: &[u8], fields: MatchFields) -> Result<u64, WireError> {
    let mut hasher = DefaultHasher::new();
    FlowKey::new(key).hash_masked(fields, &mut hasher)?;
    Ok(hasher.finish())
}

/// What a mask leaves of a key: the plain way, attribute by attribute.
fn masked(key: &[u8], mask: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut out = Vec::new();
    for attr in Attrs::new(key).map(|attr| attr.expect("encoded by us")) {
        let Some(bits) = Attrs::new(mask).find(attr.kind).expect("encoded by us") else { continue };
        if attr.kind == kind::ENCAP {
            out.push((attr.kind, Vec::new()));
            out.extend(masked(attr.payload, bits.payload));
        } else {
            let and = attr.payload.iter().zip(bits.payload).map(|(a, b)| a & b).collect();
            out.push((attr.kind, and));
        }
    }
    out
}

/// Copies a key attribute by attribute, through their types.
fn rewrite_key(key: &[u8]) -> Vec<u8> {
    encode(|b| FlowKey::new(key).attrs().for_each(|attr| attr.expect("encoded by us").write(b)))
}

/// Copies actions through their types, nested lists too.
fn rewrite_actions(nest: &[u8]) -> Vec<u8> {
    encode(|b| {
        for action in Actions::new(nest) {
            match action.expect("encoded by us") {
                Action::Clone(inner) => {
                    Action::Clone(Actions::new(&rewrite_actions(inner.as_bytes()))).write(b);
                }
                action => action.write(b),
            }
        }
    })
}

proptest! {
    #[test]
    fn keys_survive_their_types(key in key()) {
        prop_assert_eq!(rewrite_key(&key), key);
    }

    #[test]
    fn actions_survive_their_types(list in actions()) {
        prop_assert_eq!(rewrite_actions(&list), list);
    }

    #[test]
    fn keys_survive_their_text(key in key()) {
        let line = key_text(&key, None);
        let (again, mask) = read_key(&line);
        prop_assert_eq!(&again, &key, "{}", line);
        // Whatever was written is matched whole.
        prop_assert_eq!(masked(&again, &mask).is_empty(), key.is_empty());
    }

    #[test]
    fn actions_survive_their_text(list in actions()) {
        let line = text::format_actions(Actions::new(&list)).to_string();
        let mut again = Vec::new();
        text::parse_actions(&line, &mut again).unwrap_or_else(|err| panic!("{line}: {err}"));
        let back = text::format_actions(Actions::new(&again)).to_string();
        prop_assert_eq!(&back, &line);
        prop_assert_eq!(again, list, "{}", line);
    }

    #[test]
    fn masked_keys_survive_their_text(key in kernel_key(), fields in fields()) {
        let mask = mask_of(&key, fields).unwrap();
        let line = key_text(&key, Some(&mask));
        let (again, bits) = read_key(&line);
        prop_assert_eq!(&key_text(&again, Some(&bits)), &line);
        let seen = |all: Vec<(u16, Vec<u8>)>| -> Vec<_> {
            all.into_iter().filter(|(_, v)| v.iter().any(|&byte| byte != 0)).collect()
        };
        prop_assert_eq!(seen(masked(&again, &bits)), seen(masked(&key, &mask)), "{}", line);
    }

    #[test]
    fn masks_survive_their_types(key in kernel_key(), fields in fields()) {
        let mask = mask_of(&key, fields).unwrap();
        prop_assert_eq!(rewrite_key(&mask), mask);
    }

    #[test]
    fn masks_ask_for_what_the_key_has(key in kernel_key(), fields in fields()) {
        let mask = mask_of(&key, fields).unwrap();
        for attr in FlowKey::new(&mask).attrs() {
            let attr = attr.unwrap();
            let in_key = Attrs::new(&key).find(attr.kind()).unwrap().is_some();
            prop_assert!(in_key || matches!(attr, KeyAttr::InPort(_) | KeyAttr::EtherType(_)));
        }
        prop_assert!(Attrs::new(&mask).find(kind::RECIRC_ID).unwrap().is_some());
    }

    #[test]
    fn keys_that_are_equal_under_a_mask_have_one_hash(
        a in kernel_key(),
        fields in fields(),
        noise in vec(any::<u8>(), 300),
    ) {
        prop_assume!(fields != MatchFields::EXACT);
        let mask = mask_of(&a, fields).unwrap();
        let b = scramble(&a, &mask, &mut noise.iter());
        prop_assert_eq!(masked(&a, &mask), masked(&b, &mask));
        prop_assert_eq!(hash(&a, fields), hash(&b, fields));
    }

    #[test]
    fn keys_that_differ_under_a_mask_have_two_hashes(
        a in kernel_key(),
        b in kernel_key(),
        fields in fields(),
    ) {
        let same = mask_of(&a, fields) == mask_of(&b, fields)
            && masked(&a, &mask_of(&a, fields).unwrap()) == masked(&b, &mask_of(&b, fields).unwrap());
        prop_assert_eq!(hash(&a, fields) == hash(&b, fields), same);
    }

    #[test]
    fn no_bytes_panic_a_parser(bytes in vec(any::<u8>(), 0..300), fields in fields()) {
        read_everything(&bytes, fields);
    }

    #[test]
    fn no_damaged_key_panics_a_parser(
        mut key in key(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        fields in fields(),
    ) {
        if !key.is_empty() {
            let at = at.index(key.len());
            key[at] = byte;
        }
        read_everything(&key, fields);
    }

    #[test]
    fn no_text_panics_a_parser(line in "[a-z0-9_(),=/ .:+|%{}-]{0,80}|\\PC{0,40}") {
        let _ = text::parse_key(&line, &mut Vec::new(), &mut Vec::new());
        let _ = text::parse_actions(&line, &mut Vec::new());
    }
}

/// Changes the bits that the mask leaves out, but none that say what the key is made of.
fn scramble<'n>(key: &[u8], mask: &[u8], noise: &mut impl Iterator<Item = &'n u8>) -> Vec<u8> {
    encode(|b| {
        for attr in Attrs::new(key).map(|attr| attr.expect("encoded by us")) {
            let bits = Attrs::new(mask).find(attr.kind).expect("encoded by us");
            let bits = bits.map_or(vec![0; attr.payload.len()], |bits| bits.payload.to_vec());
            if attr.kind == kind::ENCAP {
                b.bytes(kind::ENCAP, &scramble(attr.payload, &bits, noise));
                continue;
            }
            let mut out: Vec<u8> = attr.payload.to_vec();
            for (byte, bits) in out.iter_mut().zip(bits) {
                *byte ^= noise.next().copied().unwrap_or(0) & !bits;
            }
            // An Ethernet type must not turn into a tag protocol, nor a label grow beyond 20 bits.
            let keep = matches!(attr.kind, kind::ETHERTYPE | kind::IPV6);
            b.bytes(attr.kind, if keep { attr.payload } else { &out });
        }
    })
}

fn read_everything(bytes: &[u8], fields: MatchFields) {
    let key = FlowKey::new(bytes);
    let _ = key.summary();
    let _ = key.attrs().count();
    let _ = hash(bytes, fields);
    let _ = mask_of(bytes, fields);
    let _ = key_text(bytes, None);
    let _ = key_text(bytes, Some(bytes));
    let _ = Actions::new(bytes).iter().count();
    let _ = text::format_actions(Actions::new(bytes)).to_string();
    for msg in NlMsgs::new(bytes).flatten() {
        let _ = NlAck::parse(&msg);
    }
    let _ = packet::Upcall::parse(bytes);
    let _ = flow::Flow::parse(bytes);
    let _ = datapath::Datapath::parse(bytes);
    let _ = vport::Vport::parse(bytes);
    let _ = family::Family::parse(bytes);
}
