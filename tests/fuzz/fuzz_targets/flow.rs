//! Reads a flow.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::flow;

fuzz_target!(|data: &[u8]| {
    let _ = flow::Flow::parse(data);
});
