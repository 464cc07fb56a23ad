//! The screen: lines of text with a few colours. It is made for 80 columns and 24 rows; what is larger
//! shows more workers, ports and flows.

use std::time::Duration;

use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};

use super::rates::Rates;
use crate::report::Quantiles;

/// Stages of an upcall's way, as they are shown.
const STAGES: [(&str, &str); 5] = [
    ("queued_socket", "in socket"),
    ("queued_lane", "in queue"),
    ("decide", "handler"),
    ("execute", "to kernel"),
    ("install", "install"),
];

/// Rows that are always there.
const FIXED_ROWS: usize = 16;

/// All lines, no more than `rows`.
pub(super) fn lines(rates: &Rates<'_>, rows: usize) -> Vec<Line<'static>> {
    let mut lines = vec![title(rates)];
    lines.extend(totals(rates));
    lines.extend(latency(rates));
    let free = rows.saturating_sub(FIXED_ROWS);
    // A third each for workers, ports and flows; what one does not need, the next ones have.
    let workers = rates.now.workers.len().min((free / 3).max(1));
    lines.extend(worker_lines(rates, workers));
    let ports = rates.now.ports.len().min(((free - workers.min(free)) / 2).max(1));
    lines.extend(port_lines(rates, ports));
    lines.extend(flow_lines(rates, rows.saturating_sub(lines.len() + 1)));
    lines.truncate(rows);
    lines
}

fn title(rates: &Rates<'_>) -> Line<'static> {
    let now = rates.now;
    let up = humantime::format_duration(Duration::from_secs(now.uptime().as_secs()));
    let text = format!(
        " upcalld {}  {}  {}  Linux {}  up {up}  {} MiB",
        now.version,
        now.datapath,
        now.mode,
        now.kernel.chars().take(16).collect::<String>(),
        now.resident_kb >> 10,
    );
    Line::from(format!("{text:<80}")).reversed()
}

fn heading(text: &str) -> Line<'static> {
    Line::from(text.to_owned()).style(Style::new().fg(Color::Cyan))
}

/// A label and a rate, in red if there should be none.
fn bad(label: &str, rate: f64) -> Vec<Span<'static>> {
    let text = Span::from(format!("{label} {}  ", short(rate)));
    vec![if rate > 0.0 { text.fg(Color::Red) } else { text }]
}

fn totals(rates: &Rates<'_>) -> Vec<Line<'static>> {
    let (now, per_second) = (rates.now, |name| short(rates.counter(name)));
    let head = format!(
        "upcalls/s  received {}  done {}  dropped {}  as planned {}  installs {}",
        per_second("received"),
        per_second("completed"),
        per_second("dropped"),
        per_second("answered_from_plan"),
        short(rates.installed()),
    );
    let kernel = format!(
        "kernel/s   hit {}  missed {}   flows {} of {}   MACs {}   waiting {}+{}",
        per_second("kernel_hit"),
        per_second("kernel_missed"),
        now.flows,
        now.flow_limit,
        now.macs,
        now.upcalls_waiting,
        now.answers_pending,
    );
    let by_cause = |title: &str, causes: &[(&str, &str)]| {
        let spans = causes.iter().flat_map(|(label, name)| bad(label, rates.counter(name)));
        std::iter::once(Span::from(title.to_owned())).chain(spans).collect::<Line<'_>>()
    };
    vec![
        Line::from(head),
        Line::from(kernel),
        by_cause(
            "lost/s     ",
            &[
                ("full", "lost_full"),
                ("dead", "lost_dead"),
                ("no socket", "lost_no_socket"),
                ("?", "lost_unclassified"),
                ("shield ~", "shield_refused"),
                ("errors", "execute_errors"),
            ],
        ),
        by_cause(
            "shed/s     ",
            &[
                ("room", "shed_no_room"),
                ("rate", "shed_rate"),
                ("quota", "shed_quota"),
                ("late", "shed_handler_timeout"),
                ("panic", "shed_handler_panic"),
                ("unsent", "shed_send_failed"),
            ],
        ),
        by_cause(
            "switch/s   ",
            &[
                ("VLAN", "vlan_refused"),
                ("static", "static_mac_refused"),
                ("MACs", "port_macs_refused"),
                ("broadcast", "flood_broadcast_over"),
                ("multicast", "flood_multicast_over"),
                ("unknown", "flood_unknown_over"),
            ],
        ),
    ]
}

fn latency(rates: &Rates<'_>) -> Vec<Line<'static>> {
    let mut lines =
        vec![heading("LATENCY since the start      p50      p90      p99    p99.9   measured")];
    for (name, label) in STAGES {
        let of = rates.now.latency_ns.get(name).cloned().unwrap_or_default();
        let Quantiles { count, p50, p90, p99, p999 } = of;
        let cells: String = [p50, p90, p99, p999].map(|ns| format!(" {:>8}", time(ns))).concat();
        lines.push(Line::from(format!(
            "  {label:<21}{cells} {:>10}",
            short(crate::counting::float(count))
        )));
    }
    lines
}

fn worker_lines(rates: &Rates<'_>, max: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading(
        "WORKER      RUNS ON   READS CPU  received/s   done/s installs/s  queued  lost/s",
    )];
    let mut busiest: Vec<_> =
        (0..rates.now.workers.len()).map(|at| (at, rates.worker(at))).collect();
    if busiest.len() > max {
        busiest.sort_by(|a, b| b.1[0].total_cmp(&a.1[0]));
    }
    for (at, [received, completed, installed, lost]) in busiest.into_iter().take(max) {
        let worker = &rates.now.workers[at];
        let text = format!(
            "{:<11} {:<9} {:<10} {:>10} {:>8} {:>10} {:>7} ",
            cut(&worker.thread, 11),
            cut(&worker.runs_on, 9),
            cut(if worker.reads.is_empty() { "ports" } else { &worker.reads }, 10),
            short(received),
            short(completed),
            short(installed),
            bytes(worker.queued_bytes),
        );
        lines.push(with_losses(text, 7, lost));
    }
    lines
}

fn port_lines(rates: &Rates<'_>, max: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading(
        "PORT                       upcalls/s   MACs refused  shed/s  over/s  lost/s",
    )];
    for (port, [upcalls, lost, shed, over]) in rates.ports().into_iter().take(max) {
        let upcalls = if port.upcalls.is_some() { short(upcalls) } else { "?".to_owned() };
        let text = format!(
            "{:<25} {:>10} {:>6} {:>7} {:>7} {:>7} ",
            format!("{} {}", port.number, cut(&port.name, 15)),
            upcalls,
            port.macs,
            port.macs_refused,
            short(shed),
            short(over),
        );
        lines.push(with_losses(text, 7, lost));
    }
    lines
}

fn with_losses(text: String, width: usize, lost: f64) -> Line<'static> {
    let lost_text = Span::from(format!("{:>width$}", short(lost)));
    let lost_text = if lost > 0.0 { lost_text.fg(Color::Red) } else { lost_text };
    Line::from(vec![Span::from(text), lost_text])
}

fn flow_lines(rates: &Rates<'_>, max: usize) -> Vec<Line<'static>> {
    let Some(hot) = rates.hot else { return Vec::new() };
    let mut lines = vec![heading("PACKETS/s  FLOW")];
    let seconds = hot.since.unwrap_or(rates.now.uptime().as_secs_f64()).max(0.001);
    for flow in hot.flows.iter().take(max) {
        let rate = crate::counting::float(flow.packets) / seconds;
        // What is the same for all of them says nothing.
        let line = flow.line.strip_prefix("recirc_id(0),").unwrap_or(&flow.line);
        let (key, rest) = line.split_once(", packets:").unwrap_or((line, ""));
        let actions = rest.rsplit_once("actions:").map_or("", |(_, actions)| actions);
        lines.push(Line::from(format!("{:>9}  {key} -> {actions}", short(rate))));
    }
    lines
}

fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

/// Four digits at most, with a unit of thousands.
fn short(value: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.into_iter().find(|(unit, _)| value >= 9.9995 * unit) {
        Some((unit, name)) => format!("{:.0}{name}", value / unit),
        None if value > 0.0 && value < 9.95 => format!("{value:.1}"),
        None => format!("{value:.0}"),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0 => "0".to_owned(),
        1..=0xf_ffff => format!("{}K", count.div_ceil(1 << 10)),
        _ => format!("{}M", count >> 20),
    }
}

fn time(ns: Option<u64>) -> String {
    match ns {
        None => "-".to_owned(),
        Some(ns @ ..=9_999) => format!("{ns} ns"),
        Some(ns @ ..=9_999_999) => format!("{} us", ns / 1_000),
        Some(ns) => format!("{} ms", ns / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(
            [0.0, 0.34, 9.96, 9_999.0, 12_345.0].map(short),
            ["0", "0.3", "10", "9999", "12k"]
        );
        assert_eq!(short(1.2e10), "12G");
        assert_eq!([0, 1, 1 << 20].map(bytes), ["0", "1K", "1M"]);
        assert_eq!(time(Some(9_999)), "9999 ns");
        assert_eq!([None, Some(12_345), Some(12_345_678)].map(time), ["-", "12 us", "12 ms"]);
    }
}
