//! Reads a family.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::family;

fuzz_target!(|data: &[u8]| {
    let _ = family::Family::parse(data);
});
