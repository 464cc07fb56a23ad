//! From samples to figures: medians, spreads, ratios within a repetition, and what they had to be.

use super::catalogue::{Bounds, Figure};
use super::figures::FIGURES;
use serde_json::Value;

/// Those who are measured; the first is ours.
pub(crate) const CONTESTANTS: [&str; 3] = ["upcalld", "ovs-vswitchd", "floor"];

/// Middle and ends of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (below, above) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: f64::midpoint(below, above), min, max })
    }
}

/// One figure of all contestants.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) figure: &'static Figure,
    /// In the order of [`CONTESTANTS`]; `None` where one was not measured.
    pub(crate) values: [Option<Spread>; 3],
    /// Ours over the peer's, and over the floor's, within each repetition.
    pub(crate) to_peer: Option<Spread>,
    pub(crate) to_floor: Option<Spread>,
}

impl Row {
    /// Whether the figure is what it must be; `None` where nothing is asked of it.
    pub(crate) fn passes(&self) -> Option<bool> {
        let Bounds { peer, floor, value } = self.figure.bounds;
        let checks = [(peer, self.to_peer), (floor, self.to_floor), (value, self.values[0])];
        let unit = self.figure.unit;
        let asked =
            checks.into_iter().filter_map(|(bound, have)| Some(unit.meets(have?.median, bound?)));
        asked.reduce(|all, one| all && one)
    }
}

/// The rows of which there are samples. A sample is a line of the guest: measure, contestant,
/// repetition, figures.
pub(crate) fn rows(samples: &[Value]) -> Vec<Row> {
    FIGURES.iter().filter_map(|figure| row(figure, samples)).collect()
}

fn row(figure: &'static Figure, samples: &[Value]) -> Option<Row> {
    let series = CONTESTANTS.map(|who| series(figure, who, samples));
    let values = series.each_ref().map(|all| Spread::of(all.iter().map(|(_, v)| *v).collect()));
    values.iter().any(Option::is_some).then(|| Row {
        figure,
        values,
        to_peer: ratios(&series[0], &series[1]),
        to_floor: ratios(&series[0], &series[2]),
    })
}

/// Repetition and value of each sample.
fn series(figure: &Figure, contestant: &str, samples: &[Value]) -> Vec<(u64, f64)> {
    let wanted = |s: &&Value| s["measure"] == figure.measure && s["contestant"] == contestant;
    let read = |s: &Value| Some((s["repetition"].as_u64()?, s["figures"][figure.key].as_f64()?));
    samples.iter().filter(wanted).filter_map(read).collect()
}

fn ratios(ours: &[(u64, f64)], theirs: &[(u64, f64)]) -> Option<Spread> {
    let ratio = |(repetition, value): &(u64, f64)| {
        let (_, other) = theirs.iter().find(|(r, _)| r == repetition)?;
        (*other > 0.0).then(|| value / other)
    };
    Spread::of(ours.iter().filter_map(ratio).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample(contestant: &str, repetition: u64, cpu_ns: f64) -> Value {
        json!({ "measure": "upcall-cpu", "contestant": contestant, "repetition": repetition,
                "figures": { "cpu_ns": cpu_ns } })
    }

    #[test]
    fn ratios_are_taken_within_a_repetition() {
        let samples = [
            sample("upcalld", 0, 40.0),
            sample("ovs-vswitchd", 0, 100.0),
            sample("upcalld", 1, 80.0),
            sample("ovs-vswitchd", 1, 200.0),
        ];
        let rows = rows(&samples);
        assert_eq!(rows.len(), 1, "a figure without samples has no row");
        assert_eq!(rows[0].to_peer, Some(Spread { median: 0.4, min: 0.4, max: 0.4 }));
        assert_eq!(rows[0].to_floor, None);
        assert_eq!(rows[0].passes(), Some(true));
    }

    #[test]
    fn one_bound_that_does_not_hold_fails_the_figure() {
        let samples = [
            sample("upcalld", 0, 40.0),
            sample("ovs-vswitchd", 0, 100.0),
            sample("floor", 0, 10.0),
        ];
        assert_eq!(rows(&samples)[0].passes(), Some(false));
        assert_eq!(rows(&[sample("floor", 0, 1.0)])[0].passes(), None, "nothing of ours");
    }
}
