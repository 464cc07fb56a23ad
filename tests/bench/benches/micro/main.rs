//! What the parts of an upcall's way cost at native speed, and all of it on real netlink sockets, without
//! the kernel's module: time and allocations for each upcall.
//!
//! `cargo xtask bench --micro` runs it and prints a table. Without `--bench` each is run once: a test.

mod engine;
mod kernel;
mod lanes;
mod message;
mod wire;
mod worker;

use std::time::{Duration, Instant};

use allocation_counter::measure;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};

/// Upcalls of a burst: as many as a round reads.
const BURST: u32 = 64;
/// How often something is done before its allocations count.
const WARM_UP: usize = 32;

/// Some of the benchmarks, under one name.
struct Group<'a> {
    name: &'static str,
    group: BenchmarkGroup<'a, WallTime>,
}

impl<'a> Group<'a> {
    fn new(criterion: &'a mut Criterion, name: &'static str) -> Self {
        Self { name, group: criterion.benchmark_group(name) }
    }

    /// Times `work`, which does something for one upcall.
    fn bench<T>(&mut self, name: &str, mut work: impl FnMut() -> T) {
        (0..WARM_UP).for_each(|_| drop(work()));
        self.tell_allocations(name, measure(|| drop(work())).count_total);
        self.group.throughput(Throughput::Elements(1));
        self.group.bench_function(name, |b| b.iter(&mut work));
    }

    /// Takes the time that `work` says it took for `upcalls` upcalls. What it allocates was told.
    fn bench_timed(&mut self, name: &str, upcalls: u32, mut work: impl FnMut() -> Duration) {
        self.group.throughput(Throughput::Elements(u64::from(upcalls)));
        self.group.bench_function(name, |b| {
            b.iter_custom(|iterations| (0..iterations).map(|_| work()).sum());
        });
    }

    /// Tells how often something allocates once its buffers have grown. None of what is measured may.
    fn tell_allocations(&self, name: &str, count: u64) {
        println!("micro {}/{name}: {count} allocations", self.name);
        assert_eq!(count, 0, "{}/{name} allocates", self.name);
    }
}

/// How long `work` took.
fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

criterion_group!(micro, wire::all, lanes::all, engine::all, worker::all);
criterion_main!(micro);
