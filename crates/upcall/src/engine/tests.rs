//! The engine on made-up datagrams. Answers go to a kernel that has no such family and refuses them,
//! which is as good as any answer here: what is tested is the reading and the ledger.

mod allocations;
mod latency;
mod later;
mod listen;
mod plan;
mod quotas;

use std::sync::Mutex;
use std::time::Duration;

use ovs_wire::AttrBuilder;
use ovs_wire::key::{KeyAttr, kind};
use ovs_wire::mask::MatchFields;
use ovs_wire::nl::{OvsHeader, write_message};
use ovs_wire::packet::{self, attr, cmd};
use proptest::prelude::*;

use super::*;
use crate::InFlight;
use crate::shared::{Config, FlowLife};
use crate::sources::Carries;
use crate::{Handler, InstallPolicy, LaneBy, Limits, Port, Ports, Upcall};

/// A family id that no kernel gives out so early.
const FAMILY: u16 = 0x3f0;
const DATAPATH: i32 = 7;

/// Packets of this length take the handler long enough for help to be worth it.
const SLOW: usize = 200;

/// Floods, remembers the order, and panics on packets of length 66.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<usize>>,
}

impl Handler for Recorder {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        self.seen.lock().unwrap().push(upcall.packet().len());
        assert_ne!(upcall.packet().len(), 66, "a handler's own mistake");
        if upcall.packet().len() == SLOW {
            std::thread::sleep(std::time::Duration::from_micros(2 * SPREAD_US));
        }
        verdict.flood(upcall.in_port()).install(MatchFields::IN_PORT | MatchFields::ETH_SRC);
    }
}

struct Bench {
    engine: Engine,
    source: Source,
    recorder: Arc<Recorder>,
    ledger: Arc<Ledger>,
}

impl Bench {
    fn new() -> Self {
        Self::limited(Limits::default())
    }

    /// With bounds, and a handler that is asked about every upcall.
    fn limited(limits: Limits) -> Self {
        let recorder = Arc::new(Recorder::default());
        let handler = Box::new(recorder.clone());
        Self { recorder, ..Self::with(handler, InstallPolicy::Wildcard, limits) }
    }

    /// With a handler that is asked about every upcall.
    fn with(handler: Box<dyn Handler>, install: InstallPolicy, limits: Limits) -> Self {
        Self::build(handler, install, limits, false)
    }

    /// Samples have a cookie that begins with 7, 7.
    fn build(
        handler: Box<dyn Handler>,
        install: InstallPolicy,
        limits: Limits,
        answer_from_plan: bool,
    ) -> Self {
        let config = Config {
            dp_ifindex: DATAPATH,
            packet_family: FAMILY,
            flow_family: FAMILY + 1,
            install,
            limits,
            answer_from_plan,
            lane_by: LaneBy::default(),
            sample_userdata: Some(vec![7, 7]),
            life: FlowLife { idle: Duration::MAX, hard: None, sweep_interval: Duration::MAX },
        };
        let in_flight = Arc::new(InFlight::create().unwrap());
        let shared = Shared::new(handler, config, in_flight.clone());
        let ports = [1, 2, 3].map(|number| Port { number, name: format!("p{number}") });
        shared.set_ports(Ports::new(ports.to_vec()));
        let ledger = Arc::new(Ledger::default());
        let entry = shared.sources.add(None, Carries::AnyFlow).unwrap();
        let source = Source::new(entry, limits.install);
        let tx = Arc::new(Socket::open().unwrap());
        let mut engine = Engine::new(shared, ledger.clone(), in_flight.slot().unwrap(), tx);
        // However busy the machine is.
        engine.round_us_max = u64::MAX;
        Self { engine, source, recorder: Arc::default(), ledger }
    }

    fn round(&mut self, datagrams: &[Vec<u8>]) -> Round {
        let mut rest = datagrams.iter();
        self.engine
            .round(&mut self.source, None, |buf| {
                Ok(rest.next().map(|datagram| {
                    let len = datagram.len().min(buf.len());
                    buf[..len].copy_from_slice(&datagram[..len]);
                    Datagram { len, full_len: datagram.len() }
                }))
            })
            .unwrap()
    }

    fn lengths(&self) -> Vec<usize> {
        self.recorder.seen.lock().unwrap().clone()
    }
}

/// Lets pass what an install waits for where there is traffic.
fn pause() {
    std::thread::sleep(Duration::from_micros(InstallLimits::default().silence_us));
}

/// An upcall of a packet of `len` bytes that came in by port 1.
fn upcall(len: usize) -> Vec<u8> {
    message(FAMILY, DATAPATH, len)
}

/// The same from another station: another flow.
fn other_source(len: usize) -> Vec<u8> {
    message_from([2, 0, 0, 0, 0, 2], FAMILY, DATAPATH, len)
}

fn message(family: u16, dp_ifindex: i32, len: usize) -> Vec<u8> {
    message_from([2, 0, 0, 0, 0, 1], family, dp_ifindex, len)
}

fn message_from(source: [u8; 6], family: u16, dp_ifindex: i32, len: usize) -> Vec<u8> {
    let mut key = Vec::new();
    let mut b = AttrBuilder::new(&mut key);
    KeyAttr::InPort(1).write(&mut b);
    b.bytes(kind::ETHERNET, &[source, [0xff; 6]].concat());
    b.finish().unwrap();
    let mut buf = Vec::new();
    let header = OvsHeader { cmd: cmd::MISS, version: packet::VERSION, dp_ifindex };
    write_message(&mut buf, family, 0, 0, header, |b| {
        b.bytes(attr::KEY, &key).bytes(attr::PACKET, &vec![0; len]);
    })
    .unwrap();
    buf
}

#[test]
fn upcalls_reach_the_handler_in_the_order_they_were_read() {
    let mut bench = Bench::new();
    let datagrams: Vec<_> = (70..100).map(upcall).collect();
    let round = bench.round(&datagrams);
    assert_eq!(round, Round { drained: true, received: 30 });
    assert_eq!(bench.lengths(), (70..100).collect::<Vec<_>>());
    let ledger = bench.ledger.snapshot();
    assert_eq!((ledger.executed, ledger.completed, ledger.duplicate_misses), (30, 30, 29));
    assert!(ledger.balances());
}

#[test]
fn the_install_waits_for_a_round_without_its_flow() {
    let mut bench = Bench::new();
    bench.round(&[upcall(60)]);
    bench.round(&[upcall(61)]);
    assert_eq!(bench.ledger.snapshot().flows_put, 0);
    pause();
    bench.round(&[]);
    assert_eq!(bench.ledger.snapshot().flows_put, 1);
    bench.round(&[upcall(62)]);
    assert_eq!(bench.ledger.snapshot().install_stragglers, 1);
}

#[test]
fn upcalls_that_come_alone_are_answered_before_the_look_for_more() {
    let mut bench = Bench::new();
    let from = |station: u8| message_from([2, 0, 0, 0, 1, station], FAMILY, DATAPATH, 60);
    let whole = |received| Round { drained: true, received };
    assert_eq!(bench.round(&[from(1)]), whole(1));
    assert_eq!(bench.round(&[]), whole(0));
    for station in 2..9 {
        let ledger = bench.ledger.snapshot();
        assert_eq!((ledger.flows_put, ledger.executed), (station - 2 + 1, station - 2 + 1));
        let round = bench.round(&[from(station as u8)]);
        assert!(round.is_cut_short(), "{round:?}");
        assert_eq!(bench.ledger.snapshot().executed, station, "before the next look");
        assert_eq!(bench.ledger.snapshot().flows_put, station - 1, "behind the next look");
        assert_eq!(bench.round(&[]), whole(0));
    }
    // Others came with it: the next time they are answered together again.
    assert!(bench.round(&[from(20), from(21)]).is_cut_short());
    assert_eq!(bench.round(&[from(21)]), whole(1));
    assert_eq!(bench.round(&[]), whole(0));
    assert_eq!(bench.round(&[from(22), from(23)]), whole(2));
}

#[test]
fn an_install_waits_while_packets_of_its_flow_may_be_queued() {
    let mut bench = Bench::new();
    bench.round(&vec![upcall(60); ROUND_MAX]);
    bench.round(&vec![other_source(60); ROUND_MAX]);
    pause();
    assert_eq!(bench.ledger.snapshot().flows_put, 0, "the socket was not read empty");
    bench.round(&[]);
    assert_eq!(bench.ledger.snapshot().flows_put, 2);
}

#[test]
fn what_was_learned_since_stops_an_install() {
    let mut bench = Bench::new();
    bench.round(&[upcall(60)]);
    bench.engine.shared.revalidate();
    bench.round(&[]);
    assert_eq!(bench.ledger.snapshot().flows_put, 0);
    bench.round(&[upcall(60)]);
    bench.round(&[]);
    assert_eq!(bench.ledger.snapshot().flows_put, 1);
}

#[test]
fn a_port_that_the_handler_does_not_know_gets_no_flow() {
    let mut bench = Bench::new();
    bench.engine.shared.set_ports(Ports::default());
    bench.round(&[upcall(60)]);
    bench.round(&[]);
    assert_eq!(bench.ledger.snapshot().flows_put, 0);
}

#[test]
fn a_malformed_upcall_is_counted_and_loses_nothing_else() {
    let mut bench = Bench::new();
    let mut cut = upcall(80);
    cut.truncate(30);
    let mut no_packet = upcall(80);
    no_packet.truncate(24);
    no_packet[0] = 24;
    let too_long = vec![0; DATAGRAM_MAX + 1];
    bench.round(&[upcall(70), cut, no_packet, vec![1, 2, 3], too_long, upcall(71)]);
    let ledger = bench.ledger.snapshot();
    assert_eq!(bench.lengths(), [70, 71]);
    assert_eq!((ledger.received, ledger.malformed, ledger.completed), (6, 4, 2));
    assert!(ledger.balances());
}

#[test]
fn messages_that_are_not_for_us_are_foreign() {
    let mut bench = Bench::new();
    let mut forged = upcall(60);
    forged[12..16].copy_from_slice(&1234u32.to_ne_bytes());
    bench.round(&[message(FAMILY + 5, DATAPATH, 60), message(FAMILY, 8, 60), forged]);
    let ledger = bench.ledger.snapshot();
    assert_eq!((ledger.foreign, bench.lengths().len()), (3, 0));
    assert!(ledger.balances());
}

#[test]
fn a_handler_that_panics_costs_its_own_packet() {
    let mut bench = Bench::new();
    bench.round(&[upcall(60), upcall(66), upcall(67)]);
    let ledger = bench.ledger.snapshot();
    assert_eq!(bench.lengths(), [60, 66, 67]);
    assert_eq!((ledger.completed, ledger.shed_handler_panic), (2, 1));
    assert!(ledger.balances());
}

#[test]
fn others_are_called_for_several_flows_and_not_for_one() {
    let mut bench = Bench::new();
    let _has_nothing_to_do = bench.engine.shared().crew.join(Arc::default());
    bench.round(&vec![upcall(SLOW); ROUND_MAX]);
    assert!(!bench.source.spread, "one after the other, whoever handles them");
    let other = |n: usize| if n.is_multiple_of(2) { upcall(SLOW) } else { other_source(SLOW) };
    bench.round(&(0..ROUND_MAX).map(other).collect::<Vec<_>>());
    assert!(bench.source.spread);
}

#[test]
fn a_round_is_bounded() {
    let mut bench = Bench::new();
    let datagrams: Vec<_> = (0..ROUND_MAX + 10).map(|_| upcall(60)).collect();
    let round = bench.round(&datagrams);
    assert_eq!(round, Round { drained: false, received: ROUND_MAX });
}

#[test]
fn a_round_of_a_slow_handler_ends_early() {
    let mut bench = Bench::new();
    bench.engine.round_us_max = 0;
    let datagrams: Vec<_> = (0..ROUND_MAX).map(|_| upcall(60)).collect();
    let round = bench.round(&datagrams);
    assert_eq!(round, Round { drained: false, received: LOOK_EVERY });
}

#[test]
fn nothing_is_installed_while_installs_are_held() {
    let mut bench = Bench::new();
    bench.round(&[upcall(60)]);
    let held = bench.engine.shared.hold_installs();
    for datagrams in [vec![], vec![upcall(60)], vec![]] {
        bench.round(&datagrams);
    }
    assert_eq!(bench.ledger.snapshot().flows_put, 0, "neither what waited nor what came since");
    drop(held);
    bench.round(&[upcall(60)]);
    bench.round(&[]);
    let ledger = bench.ledger.snapshot();
    assert_eq!((ledger.flows_put, ledger.executed), (1, 3));
}

#[test]
fn the_flow_limit_stops_installs_and_counts() {
    let mut bench = Bench::new();
    let full = Limits::default().flows_max;
    bench.engine.shared.flow_room.swept(full, full, Some(Duration::ZERO));
    bench.round(&[upcall(60)]);
    bench.round(&[]);
    let ledger = bench.ledger.snapshot();
    assert_eq!((ledger.flow_limit_hits, ledger.flows_put, ledger.executed), (1, 0, 1));
}

proptest! {
    /// Whatever comes in: nothing panics but the handler, and every message is accounted for.
    #[test]
    fn the_ledger_balances_on_any_bytes(
        datagrams in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                (14usize..100).prop_map(upcall),
                (14usize..100, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(len, at, b)| {
                    let mut datagram = upcall(len);
                    let at = at.index(datagram.len());
                    datagram[at] = b;
                    datagram
                }),
            ],
            0..20,
        ),
    ) {
        let mut bench = Bench::new();
        bench.round(&datagrams);
        bench.round(&[]);
        prop_assert!(bench.ledger.snapshot().balances());
    }
}
