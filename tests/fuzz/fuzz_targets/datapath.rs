//! Reads a datapath.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::datapath;

fuzz_target!(|data: &[u8]| {
    let _ = datapath::Datapath::parse(data);
});
