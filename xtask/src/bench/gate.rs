//! The gate: instruction-clock figures beside those that are stored in the repository.

use super::summary::Row;
use crate::cmd;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::PathBuf;

/// How much worse a figure may be than the stored one: what repeats of one program differ by, and what
/// another release of the compiler may cost.
pub(crate) const TOLERANCE: f64 = 0.03;

fn path() -> PathBuf {
    cmd::workspace().join("tests/bench/baseline.json")
}

fn name(row: &Row) -> String {
    format!("{}.{}", row.figure.measure, row.figure.key)
}

/// Writes the figures of this run, for this kernel.
pub(crate) fn store(kernel: &str, rows: &[Row]) -> Result<()> {
    let mut all = read().unwrap_or_else(|_| json!({}));
    let figures: Map<String, Value> = rows
        .iter()
        .filter(|row| row.figure.gate)
        .filter_map(|row| Some((name(row), row.values[0]?.median.round().into())))
        .collect();
    all[kernel] = figures.into();
    fs::write(path(), serde_json::to_string_pretty(&all)? + "\n")?;
    Ok(())
}

fn read() -> Result<Value> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// A figure beside the stored one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judged {
    pub(crate) name: String,
    before: f64,
    now: f64,
}

impl Judged {
    fn change(&self) -> f64 {
        self.now / self.before - 1.0
    }

    pub(crate) fn is_well(&self) -> bool {
        self.change() <= TOLERANCE
    }
}

impl std::fmt::Display for Judged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, before, now } = self;
        let (percent, verdict) =
            (100.0 * self.change(), if self.is_well() { "ok" } else { "WORSE" });
        write!(f, "{name:32} {before:>10.0} -> {now:>10.0} {percent:+.1} %  {verdict}")
    }
}

/// Compares the figures of a run with those that are stored for its kernel.
pub(crate) fn compare(kernel: &str, rows: &[Row]) -> Result<Vec<Judged>> {
    let stored = read()?;
    let stored = stored[kernel].as_object().with_context(|| {
        format!("the baseline has no kernel {kernel}: make one with `cargo xtask bench --store`")
    })?;
    judge(stored, rows.iter().filter_map(|row| Some((name(row), row.values[0]?.median))))
}

fn judge(
    stored: &Map<String, Value>,
    measured: impl Iterator<Item = (String, f64)>,
) -> Result<Vec<Judged>> {
    let measured: Vec<(String, f64)> = measured.collect();
    let judged = |(name, before): (&String, &Value)| {
        let before = before.as_f64().with_context(|| format!("{name} of the baseline"))?;
        let now = measured.iter().find(|(n, _)| n == name).map(|(_, now)| *now);
        let now = now.with_context(|| format!("{name} is in the baseline and was not measured"))?;
        Ok(Judged { name: name.clone(), before, now })
    };
    stored.iter().map(judged).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_worse_by_more_than_the_tolerance_fails() {
        let stored = json!({ "a": 1000, "b": 1000 });
        let stored = stored.as_object().unwrap();
        let run = |a: f64, b: f64| {
            let judged = judge(stored, [("a".into(), a), ("b".into(), b)].into_iter()).unwrap();
            judged.iter().map(Judged::is_well).collect::<Vec<_>>()
        };
        assert_eq!(run(1029.0, 500.0), [true, true]);
        assert_eq!(run(1031.0, 500.0), [false, true]);
        let missing = judge(stored, [("a".to_owned(), 1.0)].into_iter());
        assert!(missing.is_err(), "a figure that is gone is no pass");
    }
}
