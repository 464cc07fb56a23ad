//! Reads a port.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::vport;

fuzz_target!(|data: &[u8]| {
    let _ = vport::Vport::parse(data);
});
