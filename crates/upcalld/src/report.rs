//! Counters as a line of JSON.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::handler::Policy;
use serde::{Deserialize, Serialize};
use upcall::features::cpu::list_text;
use upcall::{HistogramSnapshot, Info, PortSheds, Stats};

/// One line. Counts are since the start.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    /// Is it the last line?
    r#final: bool,
    datapath: &'a str,
    kernel: &'a str,
    dispatch_mode: String,
    /// Why that mode.
    reason: &'a str,
    sockets: usize,
    cpus_sharing: usize,
    workers: usize,
    placement: String,
    /// CPUs that each worker may run on, as lists.
    worker_cpus: Vec<String>,
    ports: usize,
    upcalls_received: u64,
    completed: u64,
    executed: u64,
    execute_errors: u64,
    dropped: u64,
    shed: u64,
    shed_no_room: u64,
    shed_quota: u64,
    shed_rate: u64,
    /// The ports of which most was shed.
    shed_ports: Vec<ShedPort>,
    malformed: u64,
    foreign: u64,
    flows_installed: u64,
    flows_current: u64,
    put_errors: u64,
    put_raced: u64,
    duplicate_misses: u64,
    answered_from_plan: u64,
    install_stragglers: u64,
    install_deferrals: u64,
    install_forced: u64,
    install_overflow: u64,
    flow_limit_hits: u64,
    lane_hops: u64,
    lane_queued: u64,
    lane_queued_peak: u64,
    fence_timeouts: u64,
    fences_without_room: u64,
    handler_panics: u64,
    /// An estimate.
    shield_refused: u64,
    arrival_times: bool,
    funnels: u64,
    funnelled: bool,
    sockets_shielded: usize,
    ports_shielded: usize,
    kernel_hit: u64,
    kernel_missed: u64,
    kernel_lost: u64,
    lost_full: u64,
    lost_dead: u64,
    lost_no_socket: u64,
    lost_unclassified: u64,
    repairs: u64,
    ports_vanished: u64,
    crash_lost: u64,
    macs: u64,
    /// What the handler counts.
    #[serde(flatten)]
    handler: BTreeMap<&'static str, u64>,
    handler_stalls: u64,
    handler_pending: usize,
    /// By stage of an upcall's way; of a part of the upcalls.
    latency_ns: BTreeMap<&'static str, Quantiles>,
}

/// Ports that a line names as shed at most.
const SHED_PORTS_MAX: usize = 16;

/// What was shed of one port, by reason.
#[derive(Debug, Serialize)]
struct ShedPort {
    /// `null` for packets without a port.
    port: Option<u32>,
    no_room: u64,
    quota: u64,
    rate: u64,
}

impl From<&PortSheds> for ShedPort {
    fn from(sheds: &PortSheds) -> Self {
        let PortSheds { port, no_room, quota, rate } = *sheds;
        Self { port: (port != u32::MAX).then_some(port), no_room, quota, rate }
    }
}

/// Nanoseconds that so many of a hundred do not exceed; `null` if nothing was measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    /// Measured.
    pub(crate) count: u64,
    pub(crate) p50: Option<u64>,
    pub(crate) p90: Option<u64>,
    pub(crate) p99: Option<u64>,
    pub(crate) p999: Option<u64>,
}

impl From<&HistogramSnapshot> for Quantiles {
    fn from(all: &HistogramSnapshot) -> Self {
        let [p50, p90, p99, p999] = [500, 900, 990, 999].map(|per_mille| all.quantile(per_mille));
        Self { count: all.count(), p50, p90, p99, p999 }
    }
}

impl<'a> Report<'a> {
    pub(crate) fn new(r#final: bool, info: &'a Info, stats: &Stats, policy: &dyn Policy) -> Self {
        let ledger = &stats.ledger;
        Self {
            r#final,
            datapath: &info.datapath,
            kernel: &info.kernel,
            dispatch_mode: info.mode.to_string(),
            reason: &info.reason,
            sockets: stats.sockets,
            cpus_sharing: stats.cpus_sharing,
            workers: info.workers,
            placement: info.placement.to_string(),
            worker_cpus: info.worker_cpus.iter().map(|cpus| list_text(cpus)).collect(),
            ports: stats.ports,
            upcalls_received: ledger.received,
            completed: ledger.completed,
            executed: ledger.executed,
            execute_errors: ledger.execute_errors,
            dropped: ledger.dropped,
            shed: ledger.shed,
            shed_no_room: ledger.shed_no_room,
            shed_quota: ledger.shed_quota,
            shed_rate: ledger.shed_rate,
            shed_ports: stats.sheds.iter().take(SHED_PORTS_MAX).map(ShedPort::from).collect(),
            malformed: ledger.malformed,
            foreign: ledger.foreign,
            flows_installed: ledger.flows_installed(),
            flows_current: stats.flows_current,
            put_errors: ledger.put_errors,
            put_raced: ledger.put_raced,
            duplicate_misses: ledger.duplicate_misses,
            answered_from_plan: ledger.answered_from_plan,
            install_stragglers: ledger.install_stragglers,
            install_deferrals: ledger.install_deferrals,
            install_forced: ledger.install_forced,
            install_overflow: ledger.install_overflow,
            flow_limit_hits: ledger.flow_limit_hits,
            lane_hops: ledger.hops,
            lane_queued: ledger.queued,
            lane_queued_peak: stats.lanes.upcalls_peak,
            fence_timeouts: stats.lanes.fence_timeouts,
            fences_without_room: ledger.fences_without_room,
            handler_panics: ledger.shed_handler_panic + stats.handler_panics,
            shield_refused: stats.shield_refused(),
            arrival_times: stats.arrival_times,
            funnels: stats.funnels,
            funnelled: stats.funnelled,
            sockets_shielded: stats.sockets_shielded,
            ports_shielded: stats.ports_shielded,
            kernel_hit: stats.kernel.hit,
            kernel_missed: stats.kernel.missed,
            kernel_lost: stats.kernel.lost,
            lost_full: stats.lost.full,
            lost_dead: stats.lost.dead,
            lost_no_socket: stats.lost.no_socket,
            lost_unclassified: stats.lost.unclassified,
            repairs: stats.repairs,
            ports_vanished: stats.ports_vanished,
            crash_lost: stats.crash_lost,
            macs: policy.macs(),
            handler: policy.readings().into_iter().map(|r| (r.name, r.value)).collect(),
            handler_stalls: stats.handler_stalls,
            handler_pending: stats.handler_pending,
            latency_ns: stats.latency.stages().map(|(stage, all)| (stage, all.into())).collect(),
        }
    }

    fn line(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings can be written as JSON") + "\n"
    }
}

/// Prints reports on a thread of its own: a reader that stalls must not stall the daemon, and that
/// nobody reads any more must not stop the switch.
pub(crate) struct Printer {
    lines: SyncSender<String>,
    thread: JoinHandle<()>,
    /// Lines that were dropped because the reader was behind.
    dropped: AtomicU64,
}

impl Printer {
    /// Starts the thread.
    pub(crate) fn start() -> Self {
        let (lines, queue) = std::sync::mpsc::sync_channel(LINES_MAX);
        let thread = std::thread::spawn(move || {
            for line in queue {
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(String::as_bytes(&line)).and_then(|()| out.flush());
            }
        });
        Self { lines, thread, dropped: AtomicU64::new(0) }
    }

    /// Prints a report, or drops it if the reader is behind: the next one says more.
    pub(crate) fn print(&self, report: &Report<'_>) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(report.line()) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Prints a report that no other follows, waiting for room within bounds.
    pub(crate) fn print_last(&self, report: &Report<'_>) {
        let (mut line, deadline) = (report.line(), Instant::now() + LAST_LINE_LIMIT);
        while let Err(TrySendError::Full(back)) = self.lines.try_send(line) {
            if Instant::now() > deadline {
                return;
            }
            line = back;
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits, within bounds, until all is out.
    pub(crate) fn finish(self) {
        let (deadline, dropped) = (Instant::now() + LAST_LINE_LIMIT, self.dropped.into_inner());
        if dropped > 0 {
            tracing::warn!(dropped, "lines of counters were dropped: their reader was behind");
        }
        drop(self.lines);
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Lines that may wait for the reader.
const LINES_MAX: usize = 16;
/// How long the end waits for the reader.
const LAST_LINE_LIMIT: Duration = Duration::from_secs(2);
