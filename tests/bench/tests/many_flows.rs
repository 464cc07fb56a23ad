//! As many flows as there are lanes for, and ten times as many: all are answered, and what they cost is what
//! the lanes were allowed. The only test of its process, which is measured.
#![allow(missing_docs, reason = "a test binary")]

use std::sync::Arc;

use ovs_wire::AttrBuilder;
use ovs_wire::key::{EthernetKey, KeyAttr};
use ovs_wire::nl::{OvsHeader, write_message};
use ovs_wire::packet::{self, attr, cmd};
use upcall::bench::{Ids, Reader};
use upcall::{Handler, InstallPolicy, Limits, MacAddr, Socket, Upcall, Verdict};

/// No kernel gives out family ids like these.
const IDS: Ids = Ids { dp_ifindex: 7, packet_family: 0x3f0, flow_family: 0x3f1, ports: 1 };
const MB: u64 = 1_000_000;
/// Upcalls that are read at a time.
const BURST: usize = 64;
/// What a reader takes, whatever the flows: its buffers.
const READER_BYTES: u64 = MB;

/// Drops every packet.
struct Sink;

impl Handler for Sink {
    fn upcall(&self, _: &Upcall<'_>, _: &mut Verdict) {}
}

fn miss(station: MacAddr) -> Vec<u8> {
    let mut key = Vec::new();
    let mut b = AttrBuilder::new(&mut key);
    KeyAttr::InPort(1).write(&mut b);
    KeyAttr::Ethernet(EthernetKey { src: station, dst: MacAddr::BROADCAST }).write(&mut b);
    b.finish().expect("it fits");
    let (version, dp_ifindex) = (packet::VERSION, IDS.dp_ifindex);
    let header = OvsHeader { cmd: cmd::MISS, version, dp_ifindex };
    let mut message = Vec::new();
    write_message(&mut message, IDS.packet_family, 0, 0, header, |b| {
        b.bytes(attr::KEY, &key).bytes(attr::PACKET, &[0; 60]);
    })
    .expect("it fits");
    message
}

/// Upcalls whose flow can be written into them.
struct Burst {
    datagrams: Vec<Vec<u8>>,
    /// Where the number of the flow is.
    at: usize,
}

impl Burst {
    fn new() -> Self {
        const MARK: [u8; 6] = [2, 0, 0xf1, 0x0e, 0xf1, 0x0e];
        let datagram = miss(MacAddr(MARK));
        let at = datagram.windows(MARK.len()).position(|bytes| bytes == MARK);
        Self { datagrams: vec![datagram; BURST], at: at.expect("it is in the key") + 2 }
    }

    /// Flows from `first` on; the first two bytes of a station's address stay.
    fn of(&mut self, first: u32) -> &[Vec<u8>] {
        for (flow, datagram) in (first..).zip(&mut self.datagrams) {
            datagram[self.at..self.at + 4].copy_from_slice(&flow.to_be_bytes());
        }
        &self.datagrams
    }
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.expect("it says how much") * 1024
}

#[test]
fn flows_within_and_beyond_the_limit_are_answered_at_the_price_of_the_lanes() {
    for (lanes, flows, allowed) in
        [(100_000, 100_000, 2 * MB), (1_000_000, 1_000_000, 9 * MB), (100_000, 1_000_000, 2 * MB)]
    {
        let mut burst = Burst::new();
        let before = resident_bytes();
        let limits = Limits { lanes, ..Limits::default() };
        let tx = Arc::new(Socket::open().unwrap());
        let handler = (Sink, InstallPolicy::Wildcard);
        let mut reader = Reader::new((IDS, limits), handler, (None, tx)).unwrap();
        for first in (0..flows).step_by(BURST) {
            reader.read(burst.of(first)).unwrap();
        }
        let resident = resident_bytes().saturating_sub(before);
        println!("{flows} flows in {lanes} lanes: {resident} bytes resident");
        assert!(resident <= allowed + READER_BYTES, "{resident} bytes resident");
        let ledger = reader.ledger();
        let sent = u64::from(flows).next_multiple_of(BURST as u64);
        assert_eq!((ledger.received, ledger.completed, ledger.shed), (sent, sent, 0));
    }
}
