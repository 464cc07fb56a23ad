//! Reads every message as an acknowledgement, whatever its type.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::nl::{NlAck, NlMsgs};

fuzz_target!(|data: &[u8]| {
    for msg in NlMsgs::new(data).map_while(Result::ok) {
        let _ = NlAck::parse(&msg);
    }
});
