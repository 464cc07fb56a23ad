//! Reads text as a key; what it prints must read back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::{FlowKey, text};

fuzz_target!(|data: &[u8]| {
    let Ok(line) = std::str::from_utf8(data) else { return };
    let (mut key, mut mask) = (Vec::new(), Vec::new());
    if text::parse_key(line, &mut key, &mut mask).is_err() {
        return;
    }
    let print = |key: &[u8], mask: &[u8]| {
        text::format_key(FlowKey::new(key), Some(FlowKey::new(mask))).to_string()
    };
    let printed = print(&key, &mask);
    // A key of which nothing is matched has no text; text without attributes is the empty key's.
    if printed.is_empty() {
        return;
    }
    let (mut key, mut mask) = (Vec::new(), Vec::new());
    text::parse_key(&printed, &mut key, &mut mask).expect("what was printed can be read");
    assert_eq!(print(&key, &mask), printed);
});
