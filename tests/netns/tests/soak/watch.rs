//! What must hold all the time.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{TestResult, tell};
use upcall::Stats;

use crate::handler::Soaked;
use crate::order::{Ear, Kind};

/// What workers may have in their hands beside the queue: a round each, and what they took to help.
const IN_HANDS_MAX: u64 = 64 * (64 + 8);
/// Counters of several threads are read one after the other; what is counted meanwhile.
const SKEW: u64 = 5_000;
/// Hopping packets out of order that tell nothing in a short run.
const HOP_FIRST_MAX: u64 = 3;
/// Resident memory may grow by this from the third round on: buffers that are used for the first time.
const GROWTH_KIB_MAX: u64 = 6 << 10;

/// Looks at everything, and remembers what it was.
pub(crate) struct Watch<'a> {
    begun: Instant,
    duration: Duration,
    handler: &'a Soaked,
    ear: &'a Ear,
    /// When was looked last, what was missed then, and what received.
    before: (Instant, u64, u64),
    rests: u32,
    /// Resident memory after the second round, and the most since.
    memory_kib: Option<(u64, u64)>,
}

fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kib.context("/proc/self/status tells VmRSS")
}

impl<'a> Watch<'a> {
    pub(crate) fn new(duration: Duration, handler: &'a Soaked, ear: &'a Ear) -> Self {
        let begun = Instant::now();
        Self { begun, duration, handler, ear, before: (begun, 0, 0), rests: 0, memory_kib: None }
    }

    /// Once a second, under load.
    pub(crate) fn look(&mut self, stats: &Stats) -> TestResult {
        let ledger = &stats.ledger;
        let done = ledger.completed + ledger.shed + ledger.malformed + ledger.foreign;
        ensure!(done <= ledger.received + SKEW, "more was answered than received: {stats:?}");
        let held = stats.lanes.upcalls + IN_HANDS_MAX + SKEW;
        ensure!(ledger.in_flight() <= held, "lost track of {}: {stats:?}", ledger.in_flight());
        ensure!(ledger.malformed + ledger.foreign == 0, "{stats:?}");
        let memory_kib = resident_kib()?;
        if let Some((_, most)) = &mut self.memory_kib {
            *most = memory_kib.max(*most);
        }
        self.tell(stats, memory_kib);
        Ok(())
    }

    fn tell(&mut self, stats: &Stats, memory_kib: u64) {
        let (ledger, lanes) = (&stats.ledger, &stats.lanes);
        let (at, missed, received) = self.before;
        let per_s = |count: u64| count as f64 / at.elapsed().as_secs_f64();
        let (missed, received) =
            (per_s(stats.kernel.missed - missed), per_s(ledger.received - received));
        self.before = (Instant::now(), stats.kernel.missed, ledger.received);
        tell(&format!(
            "soak {:>4} of {} s: {missed:>6.0} missed/s, {received:>6.0} received/s, {} in flight, {} wait, \
             {} installed, lost {}, shed {}, shields {}, reordered {}, {:.1} MiB",
            self.begun.elapsed().as_secs(),
            self.duration.as_secs(),
            ledger.in_flight(),
            lanes.upcalls,
            stats.flows_current,
            stats.kernel.lost,
            ledger.shed,
            stats.sockets_shielded,
            self.reordered(),
            memory_kib as f64 / 1024.0,
        ));
    }

    fn reordered(&self) -> u64 {
        Kind::QUIET.iter().map(|kind| self.handler.seen(*kind).reordered()).sum()
    }

    /// At a rest, when the conservation law held exactly.
    pub(crate) fn rested(&mut self, stats: &Stats) -> TestResult {
        self.rests += 1;
        ensure!(stats.ledger.in_flight() == 0 && stats.lanes.upcalls == 0, "{stats:?}");
        ensure!(stats.lanes.lanes == 0 && stats.handler_pending == 0, "{stats:?}");
        let memory_kib = resident_kib()?;
        if self.rests == 2 {
            self.memory_kib = Some((memory_kib, memory_kib));
        }
        Ok(())
    }

    pub(crate) fn sum(&self, sent: &[u64; 5], stats: &Stats) -> String {
        let of = |kind: Kind| {
            let (handler, ear) = (self.handler.seen(kind), &self.ear.seen[kind as usize]);
            let sent = sent[kind as usize];
            let (asked, heard) = (handler.packets(), ear.packets());
            format!(
                "{kind:?} {sent} sent, {asked} asked about, {} of them out of order, {heard} arrived, {} out of \
                 order",
                handler.reordered(),
                ear.reordered()
            )
        };
        let kinds = Kind::QUIET.map(of).join("; ");
        let (first, most) = self.memory_kib.unwrap_or_default();
        format!(
            "figures: soaked for {} s, {} rests: {kinds}; flood {} sent, {} asked about; {} received, {} lost, {} \
             shed, {} stragglers; resident {first} KiB, at most {most}",
            self.begun.elapsed().as_secs(),
            self.rests,
            sent[Kind::Flood as usize],
            self.handler.floods.load(Ordering::Relaxed),
            stats.ledger.received,
            stats.kernel.lost,
            stats.ledger.shed,
            stats.ledger.install_stragglers,
        )
    }

    /// At the end.
    pub(crate) fn judge(&self, sent: &[u64; 5], stats: &Stats) -> TestResult {
        for kind in Kind::QUIET {
            let (sent, heard) = (sent[kind as usize], &self.ear.seen[kind as usize]);
            ensure!(sent > 0 && heard.packets() == sent, "{kind:?}: {sent} sent, {heard:?}");
            // Fences that are given up, or have no room, are counted (contract O2). While flows hop all upcalls
            // go by one socket, so each flow hops once in a while.
            let unfenced = stats.lanes.fence_timeouts + stats.ledger.fences_without_room;
            let allowed = match kind {
                // The kernel itself may queue a later packet first, when its thread for soft interrupts
                // steps in.
                Kind::Hop => HOP_FIRST_MAX.max(sent / 100) + unfenced,
                _ => unfenced.min(sent / 1_000),
            };
            let asked = self.handler.seen(kind).reordered();
            ensure!(asked <= allowed, "{kind:?}: {asked} out of order: {stats:?}");
            let late = allowed + stats.ledger.install_stragglers;
            ensure!(heard.reordered() <= late, "{kind:?}: {} out of order", heard.reordered());
        }
        let (first, most) = self.memory_kib.context("too short to tell of memory")?;
        ensure!(most <= first + GROWTH_KIB_MAX, "memory grew from {first} to {most} KiB");
        Ok(())
    }
}
