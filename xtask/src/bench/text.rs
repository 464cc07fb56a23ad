//! The table for a terminal.

use super::catalogue::Unit;
use super::summary::{CONTESTANTS, Row, Spread};
use std::fmt::Write as _;

/// All rows, with a heading and a sum.
pub(crate) fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.figure.title.len()).max().unwrap_or_default();
    let [ours, peer, floor] = CONTESTANTS;
    let mut out = format!(
        "{:width$}  {:8} {ours:>16} {peer:>16} {floor:>16}  {:>22}  {:>22}  result\n",
        "figure", "unit", "to ovs (must)", "to floor (must)"
    );
    for row in rows {
        let unit = row.figure.unit;
        let [a, b, c] = row.values.map(|value| value.map_or("-".to_owned(), |v| cell(unit, v)));
        let bounds = row.figure.bounds;
        let to_peer = ratio(unit, row.to_peer, bounds.peer);
        let to_floor = ratio(unit, row.to_floor, bounds.floor);
        let _ = writeln!(
            out,
            "{:width$}  {:8} {a:>16} {b:>16} {c:>16}  {to_peer:>22}  {to_floor:>22}  {}",
            row.figure.title,
            unit.name(),
            verdict(row)
        );
    }
    let failed = rows.iter().filter(|row| row.passes() == Some(false)).count();
    let passed = rows.iter().filter(|row| row.passes() == Some(true)).count();
    let _ = writeln!(out, "{passed} figures as they must be, {failed} not");
    out
}

/// Median, and how far the ends are from it.
pub(crate) fn cell(unit: Unit, value: Spread) -> String {
    let percent = match value.median {
        0.0 => 0.0,
        median => (value.max - value.min) / 2.0 / median * 100.0,
    };
    format!("{} ±{percent:.1}%", unit.show(value.median))
}

/// A ratio with its ends, and its bound in brackets.
pub(crate) fn ratio(unit: Unit, value: Option<Spread>, bound: Option<f64>) -> String {
    let Some(value) = value else { return "-".to_owned() };
    let mut text = format!("{:.3}", value.median);
    if value.max - value.min > 0.002 {
        let _ = write!(text, " {:.2}..{:.2}", value.min, value.max);
    }
    if let Some(bound) = bound {
        let _ = write!(text, " ({}{bound})", unit.sign());
    }
    text
}

/// `ok`, `FAILS`, or nothing.
pub(crate) fn verdict(row: &Row) -> String {
    let bound = row.figure.bounds.value;
    let must = bound.map_or(String::new(), |bound| format!(" ({}{bound})", row.figure.unit.sign()));
    match row.passes() {
        Some(true) => format!("ok{must}"),
        Some(false) => format!("FAILS{must}"),
        None => String::new(),
    }
}
