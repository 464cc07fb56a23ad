//! A worker thread as a dispatcher has it: woken by its runtime, and watched until its answers are there.

use std::sync::Arc;

use criterion::Criterion;
use upcall::InstallPolicy;
use upcall::bench::Running;

use crate::engine::{Forward, limits};
use crate::kernel::{Answers, Kernel};
use crate::message::{IDS, miss};
use crate::{BURST, Group, timed};

pub(crate) fn all(criterion: &mut Criterion) {
    let Some(kernel) = Kernel::new_or_skip("worker thread") else { return };
    let mut group = Group::new(criterion, "worker thread");
    for (name, upcalls) in [("one upcall at a time", 1), ("bursts of 64", BURST)] {
        let socket = Arc::new(kernel.socket().expect("a socket"));
        let sockets = (socket.clone(), kernel.socket().expect("a socket"));
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
}
