//! Counters as a line of JSON.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use upcall::{Info, Stats};

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
    ports: usize,
    upcalls_received: u64,
    completed: u64,
    executed: u64,
    execute_errors: u64,
    dropped: u64,
    shed: u64,
    malformed: u64,
    foreign: u64,
    flows_installed: u64,
    flows_current: u64,
    put_errors: u64,
    put_raced: u64,
    duplicate_misses: u64,
    install_stragglers: u64,
    install_deferrals: u64,
    install_forced: u64,
    install_overflow: u64,
    flow_limit_hits: u64,
    handler_panics: u64,
    kernel_hit: u64,
    kernel_missed: u64,
    kernel_lost: u64,
    lost_full: u64,
    lost_dead: u64,
    lost_no_socket: u64,
    lost_unclassified: u64,
    repairs: u64,
    macs: u64,
    macs_refused: u64,
}

impl<'a> Report<'a> {
    pub(crate) fn new(r#final: bool, info: &'a Info, stats: &Stats, macs: (u64, u64)) -> Self {
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
            ports: stats.ports,
            upcalls_received: ledger.received,
            completed: ledger.completed,
            executed: ledger.executed,
            execute_errors: ledger.execute_errors,
            dropped: ledger.dropped,
            shed: ledger.shed,
            malformed: ledger.malformed,
            foreign: ledger.foreign,
            flows_installed: ledger.flows_installed(),
            flows_current: stats.flows_current,
            put_errors: ledger.put_errors,
            put_raced: ledger.put_raced,
            duplicate_misses: ledger.duplicate_misses,
            install_stragglers: ledger.install_stragglers,
            install_deferrals: ledger.install_deferrals,
            install_forced: ledger.install_forced,
            install_overflow: ledger.install_overflow,
            flow_limit_hits: ledger.flow_limit_hits,
            handler_panics: ledger.shed_handler_panic + stats.handler_panics,
            kernel_hit: stats.kernel.hit,
            kernel_missed: stats.kernel.missed,
            kernel_lost: stats.kernel.lost,
            lost_full: stats.lost.full,
            lost_dead: stats.lost.dead,
            lost_no_socket: stats.lost.no_socket,
            lost_unclassified: stats.lost.unclassified,
            repairs: stats.repairs,
            macs: macs.0,
            macs_refused: macs.1,
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
