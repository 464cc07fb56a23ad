//! Reads a key every way there is. The first four bytes choose the fields of the mask.
#![no_main]

use std::hash::DefaultHasher;

use libfuzzer_sys::fuzz_target;
use ovs_wire::{AttrBuilder, FlowKey, MatchFields, text};

fuzz_target!(|data: &[u8]| {
    let Some((fields, bytes)) = data.split_first_chunk::<4>() else { return };
    let fields = MatchFields::from_bits_truncate(u32::from_ne_bytes(*fields));
    let key = FlowKey::new(bytes);
    let _ = key.summary();
    let _ = key.hash_masked(fields, &mut DefaultHasher::new());
    let _ = text::format_key(key, None).to_string();
    let mut mask = Vec::new();
    if key.write_mask(fields, &mut AttrBuilder::new(&mut mask)).is_ok() {
        let _ = text::format_key(key, Some(FlowKey::new(&mask))).to_string();
    }
    let mut copy = Vec::new();
    let mut b = AttrBuilder::new(&mut copy);
    for attr in key.attrs().map_while(Result::ok) {
        attr.write(&mut b);
    }
    let again: Vec<_> = FlowKey::new(&copy).attrs().map_while(Result::ok).collect();
    let first: Vec<_> = key.attrs().map_while(Result::ok).collect();
    assert_eq!(first, again);
});
