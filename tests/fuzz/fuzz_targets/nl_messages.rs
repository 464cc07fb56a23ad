//! Splits a datagram into messages; what they say must lie inside it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::nl::{NlMsgs, OvsHeader};

fuzz_target!(|data: &[u8]| {
    for msg in NlMsgs::new(data).map_while(Result::ok) {
        let _ = OvsHeader::split(msg.payload);
        assert!(msg.payload.len() <= data.len());
    }
});
