//! One page that needs nothing else: the table, and a picture for each figure.

use super::summary::{CONTESTANTS, Row};
use super::text;
use std::fmt::Write as _;

const STYLE: &str = "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:62em;color:#222}\
    table{border-collapse:collapse;width:100%}td,th{padding:.3em .6em;border-bottom:1px solid #ddd;\
    text-align:right}td:first-child,th:first-child{text-align:left}.bad{color:#b00;font-weight:600}\
    .good{color:#070}figure{margin:1.5em 0}figcaption{font-weight:600}svg text{font-size:12px}";
const COLOURS: [&str; 3] = ["#2a6fbb", "#c9772b", "#999999"];
/// Measures of a picture in pixels.
const LEFT: f64 = 110.0;
const WIDTH: f64 = 640.0;
const BAR: f64 = 18.0;
const STEP: f64 = 26.0;

/// The whole page. `about` is text for its head: what was measured, and where.
pub(crate) fn page(about: &[(String, String)], rows: &[Row]) -> String {
    let mut out = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>upcalld benchmark</title>\
         <style>{STYLE}</style><h1>upcalld beside ovs-vswitchd and the floor</h1><ul>"
    );
    for (what, value) in about {
        let _ = write!(out, "<li>{}: {}", escaped(what), escaped(value));
    }
    let _ = write!(out, "</ul><table><tr><th>figure<th>unit");
    for who in CONTESTANTS {
        let _ = write!(out, "<th>{who}");
    }
    out += "<th>to ovs (must)<th>to floor (must)<th>result";
    for row in rows {
        table_row(&mut out, row);
    }
    out += "</table>";
    for row in rows {
        picture(&mut out, row);
    }
    out + "</html>\n"
}

fn table_row(out: &mut String, row: &Row) {
    let unit = row.figure.unit;
    let _ = write!(out, "<tr><td>{}<td>{}", escaped(row.figure.title), unit.name());
    for value in row.values {
        *out += &value.map_or("<td>-".to_owned(), |v| format!("<td>{}", text::cell(unit, v)));
    }
    let class = match row.passes() {
        Some(true) => "good",
        Some(false) => "bad",
        None => "",
    };
    let (peer, floor) = (row.figure.bounds.peer, row.figure.bounds.floor);
    let _ = write!(
        out,
        "<td>{}<td>{}<td class=\"{class}\">{}",
        text::ratio(unit, row.to_peer, peer),
        text::ratio(unit, row.to_floor, floor),
        text::verdict(row)
    );
}

/// A bar for each contestant, its spread as a line.
fn picture(out: &mut String, row: &Row) {
    let most =
        row.values.iter().flatten().map(|v| v.max).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let x = |value: f64| LEFT + value / most * (WIDTH - LEFT - 90.0);
    let _ = write!(
        out,
        "<figure><figcaption>{} ({})</figcaption><svg width={WIDTH} height={} role=img>",
        escaped(row.figure.title),
        row.figure.unit.name(),
        STEP * 3.0
    );
    for (index, y) in [0.0, STEP, 2.0 * STEP].into_iter().enumerate() {
        let Some(value) = row.values[index] else { continue };
        let colour = COLOURS[index];
        let (end, middle) = (x(value.median), y + BAR / 2.0);
        let _ = write!(
            out,
            "<text x=0 y={:.0}>{}</text>\
             <rect x={LEFT} y={y} width={:.1} height={BAR} fill=\"{colour}\"/>\
             <line x1={:.1} x2={:.1} y1={middle} y2={middle} stroke=\"#000\"/>\
             <text x={:.1} y={:.0}>{}</text>",
            y + 14.0,
            CONTESTANTS[index],
            end - LEFT,
            x(value.min),
            x(value.max),
            x(value.max) + 6.0,
            y + 14.0,
            row.figure.unit.show(value.median)
        );
    }
    *out += "</svg></figure>";
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
