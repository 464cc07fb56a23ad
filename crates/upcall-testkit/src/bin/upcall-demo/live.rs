//! The line that shows what is going on.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use upcall_testkit::{Stats, Totals};

/// How often the line is rewritten on a terminal, and how often a line is added elsewhere.
const REWRITE_EVERY: Duration = Duration::from_millis(200);
const ADD_EVERY: Duration = Duration::from_secs(1);

/// Status on standard error: one line that is rewritten on a terminal, else one line a second.
pub(crate) struct Live {
    rewrites: bool,
    last: Option<Instant>,
    width: usize,
}

impl Live {
    pub(crate) fn new() -> Self {
        // A serial console of a guest is a terminal too, but nobody set TERM there.
        let rewrites = io::stderr().is_terminal()
            && std::env::var("TERM").is_ok_and(|term| !term.is_empty() && term != "dumb");
        Self { rewrites, last: None, width: 0 }
    }

    /// A line that stays: the next step.
    pub(crate) fn step(&mut self, text: &str) {
        self.end();
        eprintln!("{text}");
    }

    /// Shows the state of things, if it is time again.
    pub(crate) fn show(&mut self, second: u64, stats: &Stats, totals: &Totals, sent: u64) {
        let every = if self.rewrites { REWRITE_EVERY } else { ADD_EVERY };
        if self.last.is_some_and(|last| last.elapsed() < every) {
            return;
        }
        self.last = Some(Instant::now());
        let line = format!(
            "{second:>4} s  upcalls {}  flows {}  packets {} sent, {} received  lost by the kernel {}  \
             reordered {}  duplicates {}",
            stats.upcalls_received,
            stats.flows_current,
            sent,
            totals.received,
            stats.kernel_lost,
            totals.reordered,
            totals.duplicates,
        );
        if self.rewrites {
            let blank = self.width.saturating_sub(line.len());
            eprint!("\r{line}{:blank$}", "");
            // The line is a courtesy: a terminal that went away must not end the demo.
            let _closed_terminal = io::stderr().flush();
            self.width = line.len();
        } else {
            eprintln!("{line}");
        }
    }

    /// Ends the line that was being rewritten.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.width) > 0 {
            eprintln!();
        }
    }
}
