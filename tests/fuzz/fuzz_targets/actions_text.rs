//! Reads text as actions; what it prints must read back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::{Actions, text};

fuzz_target!(|data: &[u8]| {
    let Ok(line) = std::str::from_utf8(data) else { return };
    let mut actions = Vec::new();
    if text::parse_actions(line, &mut actions).is_err() {
        return;
    }
    let printed = text::format_actions(Actions::new(&actions)).to_string();
    let mut again = Vec::new();
    text::parse_actions(&printed, &mut again).expect("what was printed can be read");
    assert_eq!(text::format_actions(Actions::new(&again)).to_string(), printed);
});
