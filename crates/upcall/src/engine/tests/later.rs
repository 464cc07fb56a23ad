//! The engine with a handler that answers later.

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use super::*;
use crate::deferred::Stage;

/// Lengths from which on packets are answered later, never, and with a panic.
const LATER: usize = 100;
const NEVER: usize = 200;
const PANIC: usize = 300;

/// Answers later when the test says so.
struct Oracle {
    seen: Mutex<Vec<usize>>,
    says: Semaphore,
}

impl Handler for Arc<Oracle> {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        let len = upcall.packet().len();
        self.seen.lock().unwrap().push(len);
        if len < LATER {
            verdict.output(2);
        } else {
            let oracle = self.clone();
            verdict.later(|verdict| oracle.answer(len, verdict));
        }
    }
}

impl Oracle {
    async fn answer(self: Arc<Self>, len: usize, mut verdict: Verdict) -> Verdict {
        assert!(len < PANIC, "a handler's own mistake");
        if len >= NEVER {
            std::future::pending::<()>().await;
        }
        self.says.acquire().await.unwrap().forget();
        // What it says, it may say later still.
        verdict.later(async |mut verdict: Verdict| {
            verdict.output(2).install(MatchFields::IN_PORT);
            verdict
        });
        verdict
    }
}

struct Late {
    bench: Bench,
    oracle: Arc<Oracle>,
    /// Dropped last: futures run on it.
    _runtime: Runtime,
}

impl Late {
    fn new(limits: Limits) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let entered = runtime.enter();
        let oracle = Arc::new(Oracle { seen: Mutex::default(), says: Semaphore::new(0) });
        let bench = Bench::with(Box::new(oracle.clone()), InstallPolicy::Wildcard, limits);
        drop(entered);
        Self { bench, oracle, _runtime: runtime }
    }

    fn seen(&self) -> Vec<usize> {
        self.oracle.seen.lock().unwrap().clone()
    }

    /// Helps until no more than this number of answers are waited for, and nothing else is.
    fn help_until(&mut self, pending: usize) {
        let shared = self.bench.engine.shared().clone();
        for _ in 0..5_000 {
            while self.bench.engine.help() {}
            if shared.deferred.pending() == pending && !shared.lanes.any_queued() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{} are pending", shared.deferred.pending());
    }

    fn ledger(&self) -> upcall_core::LedgerSnapshot {
        self.bench.ledger.snapshot()
    }
}

#[test]
fn a_flow_waits_for_its_answer_and_others_do_not() {
    let mut late = Late::new(Limits::default());
    late.bench.round(&[upcall(100), upcall(60), other_source(61), upcall(62)]);
    assert_eq!(late.seen(), [100, 61]);
    assert_eq!((late.ledger().completed, late.ledger().in_flight()), (1, 3));
    assert!(!late.bench.engine.help(), "there is nothing that could be done");
    late.oracle.says.add_permits(1);
    late.help_until(0);
    assert_eq!(late.seen(), [100, 61, 60, 62]);
    assert_eq!((late.ledger().executed, late.ledger().deferred), (4, 1));
    assert!(late.ledger().balances());
    late.bench.round(&[upcall(63)]);
    assert_eq!(late.seen().last(), Some(&63), "the lane is as any other");
}

#[test]
fn upcalls_that_waited_may_be_answered_later_too() {
    let mut late = Late::new(Limits::default());
    let datagrams: Vec<_> = [100, 60, 101, 61, 102, 62].into_iter().map(upcall).collect();
    late.bench.round(&datagrams);
    for (answers, expected) in
        [&[100][..], &[100, 60, 101], &[100, 60, 101, 61, 102]].iter().enumerate()
    {
        late.help_until(1);
        assert_eq!(late.seen(), *expected, "after {answers} answers");
        late.oracle.says.add_permits(1);
        let shared = late.bench.engine.shared().clone();
        while !shared.lanes.any_queued() {
            std::thread::yield_now();
        }
    }
    late.help_until(0);
    assert_eq!(late.seen(), [100, 60, 101, 61, 102, 62]);
    assert_eq!((late.ledger().executed, late.ledger().deferred), (6, 3));
    assert!(late.ledger().balances());
}

#[test]
fn an_answer_that_does_not_come_costs_its_own_packet() {
    let limits = Limits { handler_timeout: Duration::from_millis(20), ..Limits::default() };
    let mut late = Late::new(limits);
    late.bench.round(&[upcall(200), upcall(60)]);
    late.help_until(0);
    assert_eq!(late.seen(), [200, 60]);
    assert_eq!((late.ledger().shed_handler_timeout, late.ledger().completed), (1, 1));
    assert!(late.ledger().balances());
}

#[test]
fn a_future_that_panics_costs_its_own_packet() {
    let mut late = Late::new(Limits::default());
    late.bench.round(&[upcall(300), upcall(60)]);
    late.help_until(0);
    assert_eq!(late.seen(), [300, 60]);
    assert_eq!((late.ledger().shed_handler_panic, late.ledger().completed), (1, 1));
    assert!(late.ledger().balances());
}

#[test]
fn no_more_answers_are_waited_for_than_may() {
    let mut late = Late::new(Limits { pending_max: 1, ..Limits::default() });
    late.bench.round(&[upcall(100), other_source(101), other_source(60)]);
    assert_eq!(late.seen(), [100, 101, 60]);
    assert_eq!((late.ledger().shed_pending_full, late.ledger().completed), (1, 1));
    late.oracle.says.add_permits(1);
    late.help_until(0);
    assert_eq!(late.ledger().completed, 2);
    assert!(late.ledger().balances());
}

#[test]
fn answers_take_room_among_what_waits() {
    let queue = upcall_core::QueueLimits { upcalls_max: 1, ..Default::default() };
    let mut late = Late::new(Limits { queue, ..Limits::default() });
    late.bench.round(&[upcall(100), upcall(60), other_source(101)]);
    assert_eq!((late.seen(), late.ledger().shed_no_room), (vec![100, 101], 2));
    late.oracle.says.add_permits(2);
    late.help_until(0);
    assert!(late.ledger().balances());
}

#[test]
fn at_the_end_what_is_not_answered_is_shed() {
    let mut late = Late::new(Limits::default());
    late.bench.round(&[upcall(200), upcall(60), other_source(201)]);
    late.bench.engine.shared().deferred.advance(Stage::Closing);
    let third = message_from([2, 0, 0, 0, 0, 3], FAMILY, DATAPATH, 100);
    late.bench.round(&[third]);
    assert_eq!((late.ledger().shed_stopped, late.ledger().in_flight()), (1, 3));
    late.bench.engine.shared().deferred.advance(Stage::Closed);
    late.help_until(0);
    late.bench.round(&[upcall(61)]);
    assert_eq!(late.seen(), [200, 201, 100], "nothing else is asked");
    assert_eq!((late.ledger().shed_stopped, late.ledger().received), (5, 5));
    assert!(late.ledger().balances());
}

#[test]
fn an_answer_from_before_the_ports_changed_installs_nothing() {
    let mut late = Late::new(Limits::default());
    late.oracle.says.add_permits(1);
    late.bench.round(&[upcall(100)]);
    late.bench.engine.shared().revalidate();
    late.help_until(0);
    late.bench.engine.help();
    assert_eq!((late.ledger().executed, late.ledger().flows_put), (1, 0));
    late.oracle.says.add_permits(1);
    late.bench.round(&[other_source(101)]);
    late.help_until(0);
    pause();
    late.bench.round(&[]);
    late.bench.engine.help();
    assert_eq!((late.ledger().executed, late.ledger().flows_put), (2, 1));
}

#[test]
fn an_install_waits_while_the_handler_has_a_packet_of_its_flow() {
    let mut late = Late::new(Limits::default());
    let shared = late.bench.engine.shared().clone();
    let answer = |late: &mut Late| {
        late.oracle.says.add_permits(1);
        while !shared.lanes.any_queued() {
            std::thread::yield_now();
        }
        assert!(late.bench.engine.help());
    };
    late.bench.round(&[upcall(100)]);
    answer(&mut late);
    late.bench.round(&[upcall(101)]);
    (0..10).for_each(|_| assert!(!late.bench.engine.help()));
    assert_eq!((late.seen(), late.ledger().flows_put), (vec![100, 101], 0));
    answer(&mut late);
    pause();
    late.bench.engine.help();
    assert_eq!((late.ledger().executed, late.ledger().flows_put), (2, 1));
}
