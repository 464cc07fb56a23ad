//! `cargo xtask pictures`: the pictures of the documentation, taken of the demo on a real kernel: the first screen
//! of `upcalld top`, and the dashboard. Grafana has no part in the second one: a Prometheus answers the
//! dashboard's own queries, and what it answers is drawn here.

mod dashboard;
mod draw;
mod prometheus;
mod stat;
mod timeseries;
mod units;

use crate::cmd::{self, say};
use crate::kernels::{Kernel, Origin};
use crate::vm::{self, MachineArgs};
use crate::{build, debian, demo};
use anyhow::{Context, Result, ensure};
use dashboard::{Dashboard, Panel};
use draw::Line;
use guest_init::protocol::Frame;
use prometheus::{Programs, Server, Span};
use std::fs;
use std::time::Duration;

/// Where the first screen of `upcalld top` goes.
const TOP: &str = "docs/top.svg";
/// Where the dashboard goes.
const DASHBOARD_DRAWN: &str = "docs/dashboard.svg";
/// The dashboard itself, and the rules that must load.
const DASHBOARD: &str = "config/grafana-dashboard.json";
const ALERTS: &str = "config/prometheus-alerts.yml";

/// The line that the demo prints before all it scraped.
const SCRAPES: &str = "# scrapes\n";
/// How often the demo scrapes.
const SCRAPE_EVERY: Duration = Duration::from_secs(2);
/// Grafana's rule: four times the time between scrapes.
const RATE_INTERVAL: &str = "8s";

/// `cargo xtask pictures`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A kernel line to boot
    #[arg(long, value_name = "VERSION", default_value = "6.12")]
    kernel: String,
    #[command(flatten)]
    origin: Origin,
    #[command(flatten)]
    machine: MachineArgs,
}

pub(crate) fn run(args: &Args) -> Result<i32> {
    let programs = Programs { dir: debian::prometheus(&args.origin)? };
    programs.check_rules(&cmd::workspace().join(ALERTS))?;
    let dashboard = fs::read_to_string(cmd::workspace().join(DASHBOARD))
        .with_context(|| format!("cannot read {DASHBOARD}"))?;
    let dashboard = Dashboard::parse(&dashboard)?;
    let kernels = vm::chosen(&args.kernel, &args.origin)?;
    let kernel = kernels.first().context("no kernel named")?;
    let printed = demo(kernel, &args.machine)?;
    let part = |from: &str, to: &str| {
        between(&printed, from, to).with_context(|| format!("no {from} in\n{printed}"))
    };
    write(TOP, part("<svg", "</svg>\n")?)?;
    let samples = part(SCRAPES, "# EOF\n")?.trim_start_matches(SCRAPES);
    write(DASHBOARD_DRAWN, &answered(&dashboard, &programs, samples, &kernel.name)?)?;
    Ok(0)
}

/// What the demo prints.
fn demo(kernel: &Kernel, machine: &MachineArgs) -> Result<String> {
    let shape = machine.shape(kernel, Duration::from_mins(5))?;
    let words = ["--upcalld", demo::GUEST_DAEMON, "--hosts", "4", "--seconds", "90", "--picture"];
    let mut printed = Vec::new();
    let mut keep = |frame: &Frame| {
        if let Frame::Stdout(bytes) = frame {
            printed.extend_from_slice(bytes);
        }
    };
    let status = demo::show(kernel, shape, words.map(str::to_owned).into(), &mut keep)?;
    let printed = String::from_utf8_lossy(&printed).replace('\r', "");
    ensure!(status == 0, "the demo failed:\n{printed}");
    Ok(printed)
}

fn write(path: &str, picture: &str) -> Result<()> {
    fs::write(cmd::workspace().join(path), picture)
        .with_context(|| format!("cannot write {path}"))?;
    say!("{path} written");
    Ok(())
}

/// The dashboard with the answers that what was scraped gives.
fn answered(
    dashboard: &Dashboard,
    programs: &Programs,
    samples: &str,
    kernel: &str,
) -> Result<String> {
    let span = Span::of(samples).context("nothing was scraped")?;
    let server = Server::start(programs, samples, &build::target_dir()?.join("pictures"))?;
    let mut values = vec![("__rate_interval".to_owned(), RATE_INTERVAL.to_owned())];
    for (name, metric, label) in dashboard.variables()? {
        let all = server.label_values(metric, label, span)?;
        values.push((name.to_owned(), all.join("|")));
    }
    let panels = dashboard.panels.iter();
    let panels = panels.map(|panel| Ok((panel, lines(&server, panel, &values, span)?)));
    let panels = panels.collect::<Result<Vec<_>>>()?;
    let about = format!("drawn by cargo xtask pictures: the demo on Linux {kernel}, emulated");
    draw::svg(&dashboard.title, &about, &panels, span)
}

/// The answers to the queries of a panel.
fn lines(
    server: &Server<'_>,
    panel: &Panel,
    values: &[(String, String)],
    span: Span,
) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for target in &panel.targets {
        let query = target.query(values)?;
        let series = server
            .range(&query, span, SCRAPE_EVERY)
            .with_context(|| format!("panel {:?} cannot be answered: {query}", panel.title))?;
        if series.is_empty() {
            say!("panel {:?}: no data for {query}", panel.title);
        }
        let line =
            |of: &prometheus::Series| Line { name: target.legend(&of.labels), points: of.points() };
        lines.extend(series.iter().map(line));
    }
    Ok(lines)
}

/// The part of what was printed from one mark to another, both included.
fn between<'a>(printed: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let start = printed.find(from)?;
    let len = printed[start..].find(to)? + to.len();
    Some(&printed[start..start + len])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_found_among_other_lines() {
        let found = |printed| between(printed, "<svg", "</svg>\n");
        assert_eq!(found("a\n<svg x>\n</svg>\nb"), Some("<svg x>\n</svg>\n"));
        assert_eq!(found("<svg x>"), None);
    }
}
