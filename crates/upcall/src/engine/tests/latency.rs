//! Where the time of an upcall went.

use std::time::Duration;

use upcall_core::HistogramSnapshot;

use super::*;

const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_NS: u64 = 20_000_000;

/// Takes its time.
struct Sleeper;

impl Handler for Sleeper {
    fn upcall(&self, _: &Upcall<'_>, verdict: &mut Verdict) {
        std::thread::sleep(PAUSE);
        verdict.output(2).install(MatchFields::IN_PORT);
    }
}

fn only(all: &HistogramSnapshot) -> u64 {
    assert_eq!(all.count(), 1);
    all.quantile(1_000).unwrap()
}

#[test]
fn each_stage_is_measured_from_where_it_begins_to_where_it_ends() {
    let mut bench = Bench::with(Box::new(Sleeper), InstallPolicy::Wildcard, Limits::default());
    bench.source.told_of(bench.engine.shared.now_us());
    std::thread::sleep(PAUSE);
    bench.round(&[upcall(60)]);
    let first = bench.ledger.latency.snapshot();
    assert!(only(&first.queued_socket) >= PAUSE_NS, "{first:?}");
    assert!(only(&first.decide) >= PAUSE_NS, "{first:?}");
    // Nothing is between verdict and batch; how long the host stops us there, nobody knows.
    assert_eq!((first.execute.count(), first.install.count()), (1, 0));
    bench.round(&[]);
    let second = bench.ledger.latency.snapshot();
    assert!(only(&second.install) >= PAUSE_NS, "{second:?}");
    assert_eq!(only(&second.queued_socket), only(&first.queued_socket), "nothing was read");
}

#[test]
fn what_a_round_left_in_its_socket_waited_there_for_the_next() {
    let mut bench = Bench::new();
    bench.round(&vec![upcall(60); ROUND_MAX]);
    std::thread::sleep(PAUSE);
    bench.round(&[upcall(60)]);
    bench.round(&[upcall(60)]);
    let latency = bench.ledger.latency.snapshot();
    assert!(only(&latency.queued_socket) >= PAUSE_NS, "{latency:?}");
}

#[test]
fn what_waits_in_the_queue_waits_until_it_is_taken() {
    let mut bench = Bench::new();
    bench.source.spread = true;
    let mut rest = [upcall(60)].into_iter();
    bench.engine.begin();
    let read = bench.engine.read(&mut bench.source, ROUND_MAX, None, |buf| {
        let Some(datagram) = rest.next() else { return Ok(None) };
        buf[..datagram.len()].copy_from_slice(&datagram);
        Ok(Some(Datagram { len: datagram.len(), full_len: datagram.len() }))
    });
    assert_eq!(read.unwrap().received, 1);
    std::thread::sleep(PAUSE);
    assert!(bench.engine.help());
    let latency = bench.ledger.latency.snapshot();
    assert!(only(&latency.queued_lane) >= PAUSE_NS, "{latency:?}");
}

#[test]
fn one_upcall_of_many_is_measured() {
    let mut bench = Bench::new();
    let rounds = u64::from(TIMED_EVERY);
    let round = vec![upcall(60); ROUND_MAX];
    (0..rounds).for_each(|_| assert_eq!(bench.round(&round).received, ROUND_MAX));
    let decide = bench.ledger.latency.snapshot().decide.count();
    // After a pause of the host's, the first one is measured too.
    let expected = ROUND_MAX as u64;
    assert!((expected..expected + rounds).contains(&decide), "{decide}, not {expected}");
}
