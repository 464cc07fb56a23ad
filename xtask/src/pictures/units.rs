//! Numbers with Grafana's units.

use anyhow::{Result, bail};
use std::time::Duration;

/// Multiples of a unit, and what is written behind a number of them.
type Steps = &'static [(f64, &'static str)];

const NONE: Steps = &[(1.0, "")];
const OPS: Steps = &[(1.0, " ops/s"), (1e3, "K ops/s"), (1e6, "M ops/s")];
const SECONDS: Steps = &[(1e-6, " µs"), (1e-3, " ms"), (1.0, " s")];
const BYTES: Steps =
    &[(1.0, " B"), (1024.0, " KiB"), (1_048_576.0, " MiB"), (1_073_741_824.0, " GiB")];

/// How numbers of one axis are written: all in the same multiple of the unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    /// What a number is divided by.
    pub(super) by: f64,
    suffix: &'static str,
    /// Behind a zero, which is the same in all multiples.
    zero_suffix: &'static str,
}

impl Scale {
    /// The multiple of Grafana's unit `unit` that suits numbers up to `max`.
    pub(super) fn of(unit: &str, max: f64) -> Result<Self> {
        let steps = match unit {
            "none" => NONE,
            "ops" => OPS,
            "s" => SECONDS,
            "bytes" => BYTES,
            _ => bail!("the pictures do not know Grafana's unit {unit:?}: add it to units.rs"),
        };
        let reached = |least: f64| steps.iter().rev().find(|(by, _)| least >= *by);
        let (by, suffix) = *reached(max).unwrap_or(&steps[0]);
        let zero_suffix = reached(1.0).map_or(suffix, |(_, suffix)| suffix);
        Ok(Self { by, suffix, zero_suffix })
    }

    /// A number that has been divided, with no more decimals than it has and two at most.
    pub(super) fn label(&self, scaled: f64) -> String {
        let digits = format!("{scaled:.2}");
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        let suffix = if digits == "0" { self.zero_suffix } else { self.suffix };
        format!("{digits}{suffix}")
    }

    /// A number with so many decimals.
    pub(super) fn text(&self, value: f64, decimals: usize) -> String {
        format!("{:.decimals$}{}", value / self.by, self.suffix)
    }
}

/// The time of day of seconds since 1970, UTC.
pub(super) fn clock(seconds: f64) -> String {
    let of_day = Duration::from_secs_f64(seconds.round()).as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_suits_the_largest_number() {
        let label = |unit: &str, max: f64| {
            let scale = Scale::of(unit, max).unwrap();
            scale.label(max / scale.by)
        };
        assert_eq!(label("none", 200_000.0), "200000");
        assert_eq!(["ops", "s", "bytes"].map(|unit| label(unit, 0.0)), ["0 ops/s", "0 s", "0 B"]);
        assert_eq!([label("ops", 250.0), label("ops", 2500.0)], ["250 ops/s", "2.5K ops/s"]);
        assert_eq!([label("s", 0.0025), label("s", 3.0)], ["2.5 ms", "3 s"]);
        assert_eq!(label("bytes", 10.0 * 1024.0 * 1024.0), "10 MiB");
        assert_eq!(Scale::of("ops", 2500.0).unwrap().label(0.0), "0 ops/s");
        assert!(Scale::of("furlong", 1.0).is_err());
    }

    #[test]
    fn decimals_are_as_many_as_asked_for() {
        let scale = Scale::of("none", 3.0).unwrap();
        assert_eq!([scale.text(2.7, 0), scale.text(2.7, 2)], ["3", "2.70"]);
    }

    #[test]
    fn a_clock_shows_the_time_of_day() {
        assert_eq!(clock(1_700_000_000.4), "22:13:20");
    }
}
