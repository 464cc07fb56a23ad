//! Reads an upcall and its key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::{FlowKey, packet};

fuzz_target!(|data: &[u8]| {
    let Ok(upcall) = packet::Upcall::parse(data) else { return };
    assert!(upcall.packet.len() <= data.len());
    let _ = FlowKey::new(upcall.key).summary();
});
