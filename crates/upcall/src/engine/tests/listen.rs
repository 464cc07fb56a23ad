//! The engine with a listener in the place of a handler.

use std::time::Duration;

use allocation_counter::measure;
use futures::FutureExt as _;

use super::*;
use crate::listen::Exchange;

const IDLE: Duration = Duration::from_mins(1);

fn bench(limits: Limits) -> (Bench, crate::Listener) {
    let (exchange, listener) = Exchange::new(&limits, IDLE);
    (Bench::with(Box::new(exchange), InstallPolicy::Never, limits), listener)
}

fn upcalls_of(flows: std::ops::Range<u16>) -> Vec<Vec<u8>> {
    let station = |[a, b]: [u8; 2]| message_from([2, 0, 0, 0, a, b], FAMILY, DATAPATH, 60);
    flows.map(|flow| station(flow.to_be_bytes())).collect()
}

#[test]
fn a_flow_that_is_followed_takes_little_memory() {
    const FLOWS: u16 = 1024;
    let limits = Limits { accept_max: usize::from(FLOWS), ..Limits::default() };
    let (mut bench, mut listener) = bench(limits);
    bench.round(&upcalls_of(0..1));
    let datagrams = upcalls_of(1..FLOWS);
    let made = measure(|| datagrams.chunks(ROUND_MAX).for_each(|round| _ = bench.round(round)));
    let each = made.bytes_current / i64::from(FLOWS);
    assert!((1..3 << 10).contains(&each), "{each} bytes for a flow: {made:?}");
    let accepted = (0..FLOWS).filter(|_| listener.accept().now_or_never().is_some()).count();
    assert_eq!(accepted, usize::from(FLOWS));
}

#[test]
fn flows_beyond_the_limits_are_shed() {
    let (mut of_accepted, _listener) = bench(Limits { accepted_max: 3, ..Limits::default() });
    let (mut of_waiting, _other) = bench(Limits { accept_max: 3, ..Limits::default() });
    for bench in [&mut of_accepted, &mut of_waiting] {
        bench.round(&upcalls_of(0..5));
        let ledger = bench.ledger.snapshot();
        assert_eq!((ledger.received, ledger.shed_listener_full), (5, 2));
        assert!(ledger.balances(), "{ledger:?}");
    }
}
