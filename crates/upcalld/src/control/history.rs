//! Counters over the last hour, for rates.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::counting::float;

/// How often counters are sampled.
pub(crate) const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// Samples of a minute.
const MINUTE: usize = 12;
/// Minutes of an hour.
const HOUR: usize = 60;

/// The past of each counter.
#[derive(Debug, Default)]
pub(crate) struct History(BTreeMap<&'static str, Past>);

/// The past of one counter. As long as less than a minute or an hour has passed, the rest of it counts
/// as nothing: rates are of the whole period, as the peer's are.
#[derive(Debug, Default)]
struct Past {
    total: u64,
    /// What was added in each interval of the last minute, newest last.
    intervals: VecDeque<u64>,
    /// What was added in each of the last minutes.
    minutes: VecDeque<u64>,
    /// Intervals since the last whole minute.
    since_minute: usize,
    this_minute: u64,
}

/// Rates of a counter, per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    pub(crate) interval: f64,
    pub(crate) minute: f64,
    pub(crate) hour: f64,
}

impl History {
    /// Adds a sample of each counter; to be called once in a [`SAMPLE_INTERVAL`].
    pub(crate) fn sample(&mut self, counters: impl Iterator<Item = (&'static str, u64)>) {
        for (name, total) in counters {
            self.0.entry(name).or_default().sample(total);
        }
    }

    /// The rates of a counter.
    pub(crate) fn rates(&self, name: &str) -> Rates {
        self.0.get(name).map_or(Rates { interval: 0.0, minute: 0.0, hour: 0.0 }, Past::rates)
    }
}

impl Past {
    fn sample(&mut self, total: u64) {
        // A counter that began anew, with a datapath that was made anew, counts from 0.
        let added = total.checked_sub(self.total).unwrap_or(total);
        self.total = total;
        push(&mut self.intervals, added, MINUTE);
        self.this_minute += added;
        self.since_minute += 1;
        if self.since_minute == MINUTE {
            push(&mut self.minutes, self.this_minute, HOUR);
            (self.since_minute, self.this_minute) = (0, 0);
        }
    }

    fn rates(&self) -> Rates {
        let last = self.intervals.back().copied().unwrap_or(0);
        let minute: u64 = self.intervals.iter().sum();
        let hour: u64 = self.minutes.iter().sum::<u64>() + self.this_minute;
        Rates {
            interval: float(last) / SAMPLE_INTERVAL.as_secs_f64(),
            minute: float(minute) / 60.0,
            hour: float(hour) / 3600.0,
        }
    }
}

fn push(list: &mut VecDeque<u64>, value: u64, max: usize) {
    if list.len() == max {
        list.pop_front();
    }
    list.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_last_interval_minute_and_hour() {
        let mut history = History::default();
        for total in [50, 60] {
            history.sample([("a", total)].into_iter());
        }
        let rates = history.rates("a");
        assert_eq!((rates.interval, rates.minute), (2.0, 1.0));
        assert!((rates.hour - 60.0 / 3600.0).abs() < 1e-9);
        for _ in 0..MINUTE {
            history.sample([("a", 60)].into_iter());
        }
        let rates = history.rates("a");
        assert_eq!((rates.interval, rates.minute), (0.0, 0.0));
        assert!((rates.hour - 60.0 / 3600.0).abs() < 1e-9, "the hour remembers");
        history.sample([("a", 5)].into_iter());
        assert!((history.rates("a").interval - 1.0).abs() < 1e-9, "a counter that began anew");
        assert!(history.rates("b").interval.abs() < 1e-9);
    }

    #[test]
    fn memory_is_bounded() {
        let mut history = History::default();
        for total in 0..10_000 {
            history.sample([("a", total)].into_iter());
        }
        assert!(history.0["a"].minutes.len() == HOUR && history.0["a"].intervals.len() == MINUTE);
    }
}
