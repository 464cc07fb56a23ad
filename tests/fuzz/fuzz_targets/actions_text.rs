//! Reads text as actions; what it prints can be read, and comes to rest: the second time it is the same. Not always the
//! first time, since attributes of a tunnel are read into the kernel's order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::{Actions, text};

fuzz_target!(|data: &[u8]| {
    let Ok(line) = std::str::from_utf8(data) else { return };
    let Ok(printed) = round(line) else { return };
    let again = round(&printed).expect("what was printed can be read");
    assert_eq!(round(&again).expect("and again"), again);
});

/// What is printed of what is read.
fn round(line: &str) -> Result<String, text::TextError> {
    let mut actions = Vec::new();
    text::parse_actions(line, &mut actions)?;
    Ok(text::format_actions(Actions::new(&actions)).to_string())
}
