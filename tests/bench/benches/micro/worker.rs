//! Worker threads as a dispatcher has them: woken by their runtimes, and watched until their answers are there.

use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use upcall::bench::Running;
use upcall::{Handler, InstallPolicy, Limits, Upcall, Verdict};

use crate::engine::{Forward, limits};
use crate::kernel::{Answers, Kernel};
use crate::message::{IDS, miss};
use crate::{BURST, Group, timed};

/// How long the handler of a hot socket waits.
const WAIT: Duration = Duration::from_micros(50);
/// Upcalls in a hot socket that are measured, and those before and behind them: workers are called for, and have
/// nothing left to do.
const MEASURED: u32 = 3_000;
const AROUND: u32 = 500;

pub(crate) fn all(criterion: &mut Criterion) {
    let Some(kernel) = Kernel::new_or_skip("worker thread") else { return };
    let mut group = Group::new(criterion, "worker thread");
    for (name, upcalls, arrival_times) in [
        ("one upcall at a time", 1, false),
        ("bursts of 64", BURST, false),
        ("bursts of 64, with arrival times", BURST, true),
    ] {
        let socket = Arc::new(kernel.socket().expect("a socket"));
        if arrival_times && let Err(err) = upcall::bench::record_arrivals(&socket) {
            println!("SKIP {name}: {err}");
            continue;
        }
        let sockets = (socket.clone(), vec![kernel.socket().expect("a socket")]);
        let handler = (Forward, InstallPolicy::Never);
        let _running = Running::start((IDS, limits()), handler, sockets).expect("a worker");
        let datagrams: Vec<_> = (0..upcalls).map(miss).collect();
        println!("micro {}/{name}: - allocations", group.name);
        group.bench_timed(name, upcalls, || {
            timed(|| {
                kernel.send(&socket, &datagrams);
                assert_eq!(kernel.wait_for(upcalls), Answers { executes: upcalls, puts: 0 });
            })
        });
    }
    drop(group);
    hot_socket(criterion, &kernel);
}

/// Waits, and sends everything to port 2.
struct Waits;

impl Handler for Waits {
    fn upcall(&self, _: &Upcall<'_>, verdict: &mut Verdict) {
        std::thread::sleep(WAIT);
        verdict.output(2);
    }
}

/// One socket has more than its worker can do, and others have nothing to do.
fn hot_socket(criterion: &mut Criterion, kernel: &Kernel) {
    let mut group = Group::new(criterion, "hot socket, a handler that waits 50 us");
    group.group.sample_size(10);
    let datagrams: Vec<_> = (0..AROUND + MEASURED + AROUND).map(miss).collect();
    for (name, workers) in [("one worker", 1), ("two workers", 2), ("four workers", 4)] {
        let socket = Arc::new(kernel.socket().expect("a socket"));
        let answers = (0..workers).map(|_| kernel.socket().expect("a socket")).collect();
        // So many new flows at once are no flood here.
        let limits = Limits { storm_shield: false, ..limits() };
        let handler = (Waits, InstallPolicy::Never);
        let sockets = (socket.clone(), answers);
        let _running = Running::start((IDS, limits), handler, sockets).expect("workers");
        println!("micro {}/{name}: - allocations", group.name);
        group.bench_timed(name, MEASURED, || {
            kernel.send(&socket, &datagrams);
            let before = kernel.wait_for(AROUND).executes;
            let mut measured = 0;
            let took = timed(|| measured = kernel.wait_for(MEASURED).executes);
            kernel.wait_for(2 * AROUND + MEASURED - before - measured);
            // Answers come in batches.
            took * MEASURED / measured
        });
    }
}
