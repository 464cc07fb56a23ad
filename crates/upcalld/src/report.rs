//! Counters as a line of JSON.

use std::io::Write;

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
            duplicate_misses: ledger.duplicate_misses,
            install_stragglers: ledger.install_stragglers,
            install_deferrals: ledger.install_deferrals,
            install_forced: ledger.install_forced,
            install_overflow: ledger.install_overflow,
            flow_limit_hits: ledger.flow_limit_hits,
            handler_panics: ledger.shed_handler_panic,
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

    /// Prints it. That nobody reads it any more must not stop the switch.
    pub(crate) fn print(&self) {
        let mut out = std::io::stdout().lock();
        let line = serde_json::to_string(self).expect("numbers and strings can be written as JSON");
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}
