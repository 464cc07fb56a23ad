//! `upcalld trace`: follows upcalls that match a filter.
//!
//! Workers show each answer to the traces there are; while there is none, they look at a flag once a
//! round. A trace keeps what matches in a queue with a limit, from which its client reads; one that
//! nobody reads any more ends.

pub(crate) mod client;
mod filter;
mod seen;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use clap::Parser;
use serde_json::{Value, json};
use upcall::{Dispatcher, Observer, Rate, TokenBucket, Upcall};

use filter::{Filter, Sight};
use seen::Seen;

/// Traces at once: each costs every upcall a comparison.
const TRACES_MAX: usize = 4;
/// Upcalls that may wait for a client.
const WAITING_MAX: usize = 512;
/// Most bytes of a packet that are kept.
const SNAP_MAX: usize = 65_535;
/// How long a trace may go unread.
const UNREAD_MAX: Duration = Duration::from_secs(10);
/// Upcalls a second that a trace shows if nothing else is said.
const RATE: &str = "1000:512";

/// Options of `trace/start`, which are those of `upcalld trace` too.
#[derive(Debug, Parser, Clone)]
pub(crate) struct Options {
    /// Show one of so many that match
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) every: u64,
    /// Show at most so many a second, and at once; what is left out is counted
    #[arg(long, value_name = "RATE[:BURST]", default_value = RATE)]
    pub(crate) rate: Rate,
    /// Bytes of each packet to keep, up to 65535 [default: none; with --pcapng 2048]
    #[arg(long, value_name = "BYTES")]
    pub(crate) snap: Option<usize>,
    /// What must hold, each NAME=VALUE or NAME!=VALUE; see below
    #[arg(value_name = "FILTER")]
    pub(crate) filter: Vec<String>,
}

/// What a trace takes in, on the threads of the workers.
struct Trace {
    filter: Filter,
    every: u64,
    rate: TokenBucket,
    snap: usize,
    since: Instant,
    /// The socket of each CPU, to tell CPUs.
    table: ArcSwap<Vec<u32>>,
    matched: AtomicU64,
    /// Of these, not shown: over the rate, or the client is behind.
    left_out: AtomicU64,
    queue: SyncSender<Seen>,
}

impl Trace {
    fn see(&self, upcall: &Upcall<'_>, answer: &upcall::Answer<'_>) {
        let table = self.table.load();
        let cpu = table.iter().position(|port_id| *port_id == upcall.socket_port_id());
        let sight = Sight { key: upcall.key(), kind: upcall.kind(), cpu };
        if !self.filter.matches(&sight) {
            return;
        }
        let number = self.matched.fetch_add(1, Ordering::Relaxed);
        if !number.is_multiple_of(self.every) {
            return;
        }
        let now_ns = self.since.elapsed().as_nanos() as u64;
        let shown = self.rate.take(now_ns)
            && self.queue.try_send(Seen::new(upcall, answer, cpu, self.snap)).is_ok();
        if !shown {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// All traces, as workers see them.
struct All(Vec<Arc<Trace>>);

impl Observer for All {
    fn answered(&self, upcall: &Upcall<'_>, answer: &upcall::Answer<'_>) {
        for trace in &self.0 {
            trace.see(upcall, answer);
        }
    }
}

/// A trace and its client.
struct Session {
    id: u64,
    trace: Arc<Trace>,
    queue: Receiver<Seen>,
    read_at: Instant,
}

/// The traces there are.
#[derive(Default)]
pub(crate) struct Traces {
    sessions: RefCell<Vec<Session>>,
    last_id: std::cell::Cell<u64>,
}

impl Traces {
    /// Begins a trace; gives its number.
    ///
    /// # Errors
    ///
    /// What is wrong with the words, or that there are enough traces.
    pub(crate) async fn start(
        &self,
        dispatcher: &Dispatcher,
        words: &[String],
    ) -> Result<u64, String> {
        let words = std::iter::once("trace/start").chain(words.iter().map(String::as_str));
        let options = Options::try_parse_from(words).map_err(|err| err.to_string())?;
        let filter = Filter::read(options.filter.iter().map(String::as_str), &dispatcher.ports())?;
        let table = Arc::new(dispatcher.assignment().await.table);
        self.expire(dispatcher);
        if self.sessions.borrow().len() >= TRACES_MAX {
            return Err(format!("there are {TRACES_MAX} traces already: the most there may be"));
        }
        let (sender, queue) = sync_channel(WAITING_MAX);
        let trace = Trace {
            filter,
            every: options.every,
            rate: TokenBucket::new(options.rate),
            snap: options.snap.unwrap_or(0).min(SNAP_MAX),
            since: Instant::now(),
            table: ArcSwap::new(table),
            matched: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            queue: sender,
        };
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        let session = Session { id, trace: Arc::new(trace), queue, read_at: Instant::now() };
        self.sessions.borrow_mut().push(session);
        self.publish(dispatcher);
        Ok(id)
    }

    /// What a trace has seen since it was last asked.
    ///
    /// # Errors
    ///
    /// When there is none of that number.
    pub(crate) async fn read(&self, dispatcher: &Dispatcher, id: &str) -> Result<Batch, String> {
        let table = Arc::new(dispatcher.assignment().await.table);
        let mut sessions = self.sessions.borrow_mut();
        let session = sessions.iter_mut().find(|session| session.id.to_string() == id);
        let session = session.ok_or_else(|| unknown(id))?;
        session.read_at = Instant::now();
        session.trace.table.store(table);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (matched, left_out) = (count(&session.trace.matched), count(&session.trace.left_out));
        let seen = session.queue.try_iter().take(WAITING_MAX).collect();
        Ok(Batch { seen, matched, left_out })
    }

    /// Ends a trace.
    ///
    /// # Errors
    ///
    /// When there is none of that number.
    pub(crate) fn stop(&self, dispatcher: &Dispatcher, id: &str) -> Result<(), String> {
        let before = self.sessions.borrow().len();
        self.sessions.borrow_mut().retain(|session| session.id.to_string() != id);
        self.publish(dispatcher);
        if self.sessions.borrow().len() == before { Err(unknown(id)) } else { Ok(()) }
    }

    /// Ends those that nobody reads.
    pub(crate) fn expire(&self, dispatcher: &Dispatcher) {
        let before = self.sessions.borrow().len();
        self.sessions.borrow_mut().retain(|session| session.read_at.elapsed() < UNREAD_MAX);
        if self.sessions.borrow().len() < before {
            tracing::info!("a trace that nobody read any more has ended");
            self.publish(dispatcher);
        }
    }

    fn publish(&self, dispatcher: &Dispatcher) {
        let all: Vec<_> = self.sessions.borrow().iter().map(|s| s.trace.clone()).collect();
        dispatcher.observe((!all.is_empty()).then(|| Arc::new(All(all)) as Arc<dyn Observer>));
    }
}

fn unknown(id: &str) -> String {
    format!("there is no trace '{id}'; one that is not read for 10 s ends")
}

/// What a trace has seen.
pub(crate) struct Batch {
    seen: Vec<Seen>,
    matched: u64,
    left_out: u64,
}

impl Batch {
    pub(crate) fn text(&self, dispatcher: &Dispatcher) -> String {
        let ports = dispatcher.ports();
        self.seen.iter().map(|seen| seen.line(&ports) + "\n").collect()
    }

    pub(crate) fn json(&self, dispatcher: &Dispatcher) -> Value {
        let ports = dispatcher.ports();
        let seen: Vec<Value> = self.seen.iter().map(|seen| seen.json(&ports)).collect();
        json!({ "matched": self.matched, "left_out": self.left_out, "upcalls": seen })
    }
}
