//! Two snapshots become rates.

use serde::Serialize;

use super::snapshot::{Hot, Snapshot};
use crate::counting::float;

/// A snapshot, and what was added since the one before, per second.
pub(super) struct Rates<'a> {
    pub(super) now: &'a Snapshot,
    before: &'a Snapshot,
    seconds: f64,
    /// The last look at the flow table.
    pub(super) hot: Option<&'a Hot>,
}

/// Rates for machines.
#[derive(Debug, Serialize)]
pub(super) struct Told<'a> {
    seconds: f64,
    per_second: std::collections::BTreeMap<&'a str, f64>,
    hot: Option<&'a Hot>,
    snapshot: &'a Snapshot,
}

impl<'a> Rates<'a> {
    pub(super) fn new(before: &'a Snapshot, now: &'a Snapshot, hot: Option<&'a Hot>) -> Self {
        Self {
            now,
            before,
            seconds: now.uptime().saturating_sub(before.uptime()).as_secs_f64().max(0.001),
            hot,
        }
    }

    /// A count that began anew counts from 0.
    pub(super) fn of(&self, before: u64, now: u64) -> f64 {
        float(now.checked_sub(before).unwrap_or(now)) / self.seconds
    }

    pub(super) fn counter(&self, name: &str) -> f64 {
        let of = |snapshot: &Snapshot| snapshot.counters.get(name).copied().unwrap_or(0);
        self.of(of(self.before), of(self.now))
    }

    pub(super) fn installed(&self) -> f64 {
        self.of(self.before.flows_installed, self.now.flows_installed)
    }

    /// Of a worker: received, completed, installed, lost.
    pub(super) fn worker(&self, at: usize) -> [f64; 4] {
        let now = &self.now.workers[at];
        let same = self.before.workers.get(at).filter(|before| before.thread == now.thread);
        let before = same.cloned().unwrap_or_default();
        [
            self.of(before.received, now.received),
            self.of(before.completed, now.completed),
            self.of(before.flows_installed, now.flows_installed),
            self.of(before.lost, now.lost),
        ]
    }

    /// The ports with what each had: upcalls, lost, shed, floods over the rate; the busiest first.
    pub(super) fn ports(&self) -> Vec<(&'a super::snapshot::Port, [f64; 4])> {
        let rates = |now: &'a super::snapshot::Port| {
            let same = |port: &&super::snapshot::Port| {
                (port.number, &port.name) == (now.number, &now.name)
            };
            let before = self.before.ports.iter().find(same).cloned().unwrap_or_default();
            let of = |b: Option<u64>, n: Option<u64>| self.of(b.unwrap_or(0), n.unwrap_or(0));
            let rates = [
                of(before.upcalls, now.upcalls),
                of(before.lost, now.lost),
                self.of(before.shed, now.shed),
                self.of(before.flood_over, now.flood_over),
            ];
            (now, rates)
        };
        let mut ports: Vec<_> = self.now.ports.iter().map(rates).collect();
        let busy = |rates: &[f64; 4]| rates.iter().sum::<f64>();
        ports.sort_by(|a, b| busy(&b.1).total_cmp(&busy(&a.1)));
        ports
    }

    pub(super) fn told(&self) -> Told<'a> {
        let names = self.now.counters.keys().map(String::as_str);
        Told {
            seconds: self.seconds,
            per_second: names.map(|name| (name, self.counter(name))).collect(),
            hot: self.hot,
            snapshot: self.now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_told_by_the_second() {
        let of = |seconds: u64, received| Snapshot {
            uptime_us: seconds * 1_000_000,
            counters: [("received".to_owned(), received)].into(),
            ..Snapshot::default()
        };
        let (before, now, anew) = (of(1, 10), of(3, 30), of(5, 8));
        assert!((Rates::new(&before, &now, None).counter("received") - 10.0).abs() < 1e-9);
        let anew = Rates::new(&now, &anew, None);
        assert!((anew.counter("received") - 4.0).abs() < 1e-9, "a counter that began anew");
        assert!(anew.counter("nothing").abs() < 1e-9);
        assert!(serde_json::to_string(&anew.told()).unwrap().contains("\"received\":4.0"));
    }
}
