//! Reads text as a key; what it prints can be read, and comes to rest: the second time it is the same. Not always the
//! first time, since attributes of a tunnel are read into the kernel's order, and of two alike the first mask counts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::{FlowKey, text};

fuzz_target!(|data: &[u8]| {
    let Ok(line) = std::str::from_utf8(data) else { return };
    let Ok(printed) = round(line) else { return };
    // A key of which nothing is matched has no text; text without attributes is the empty key's.
    if printed.is_empty() {
        return;
    }
    let again = round(&printed).expect("what was printed can be read");
    if !again.is_empty() {
        assert_eq!(round(&again).expect("and again"), again);
    }
});

/// What is printed of what is read.
fn round(line: &str) -> Result<String, text::TextError> {
    let (mut key, mut mask) = (Vec::new(), Vec::new());
    text::parse_key(line, &mut key, &mut mask)?;
    Ok(text::format_key(FlowKey::new(&key), Some(FlowKey::new(&mask))).to_string())
}
