//! A handler that takes every way there is to answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use upcall::{Handler, MatchFields, Upcall, Verdict};

use crate::order::{Kind, Seen, stamp};

/// How long the handler has a slow packet in its hands.
const SLOW: Duration = Duration::from_micros(500);
/// How long it takes to answer later.
const LATER: Duration = Duration::from_millis(3);

/// Sends what is quiet to the second host and drops the rest.
#[derive(Default)]
pub(crate) struct Soaked {
    pub(crate) seen: [Seen; Kind::QUIET.len()],
    pub(crate) floods: AtomicU64,
}

impl Soaked {
    pub(crate) fn seen(&self, kind: Kind) -> &Seen {
        &self.seen[kind as usize]
    }
}

/// Only the second host is ever sent something.
fn forward(verdict: &mut Verdict) {
    let to = verdict.ports().by_configured_name("p1").map(|port| port.number);
    if let Some(port) = to {
        verdict.output(port);
    }
}

impl Handler for Soaked {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        let Some((kind, stamp)) = stamp(upcall.packet()) else { return };
        match kind {
            Kind::Flood => {
                self.floods.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Kind::Slow => std::thread::sleep(SLOW),
            Kind::Hop | Kind::Burst | Kind::Later => {}
        }
        self.seen(kind).see(&stamp);
        forward(verdict);
        match kind {
            Kind::Burst => {
                verdict.install(MatchFields::IN_PORT | MatchFields::FIVE_TUPLE);
            }
            Kind::Later => verdict.later(async |mut verdict: Verdict| {
                tokio::time::sleep(LATER).await;
                forward(&mut verdict);
                verdict
            }),
            _ => {}
        }
    }
}
