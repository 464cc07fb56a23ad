//! Metrics: what a scraper gets, by real HTTP clients and parsers, and that the dashboard and the alert
//! rules that we ship name nothing else.
#![allow(missing_docs, reason = "a test binary")]
#![allow(clippy::float_cmp, clippy::cast_precision_loss, reason = "counts are whole and small")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, Lab, TestResult, since, skip_ok};
use prometheus_parse::{Scrape, Value};
use promql_parser::label::METRIC_NAME;
use promql_parser::parser::Expr;
use upcall_testkit::{Hosts, PingPlan, ping};

const ALERTS: &str = include_str!("../../../config/prometheus-alerts.yml");
const DASHBOARD: &str = include_str!("../../../config/grafana-dashboard.json");

/// A switch with traffic, and its metrics at `at`.
fn lab(at: &str) -> Result<Lab> {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder.option("--metrics", at))?;
    let report = ping::ping(&lab.hosts[0].ns, lab.hosts[1].ip4, &PingPlan::default())?;
    ensure!(report.answered == report.sent, "{report:?}");
    Ok(lab)
}

/// Status, head and body of an answer.
fn get(socket: &Path, request: &str) -> Result<(u16, String, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no head: {text}"))?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, head.to_lowercase(), body.to_owned()))
}

fn get_path(socket: &Path, path: &str) -> Result<(u16, String, String)> {
    get(socket, &format!("GET {path} HTTP/1.1\r\nHost: upcalld\r\n\r\n"))
}

/// The samples of our datapath: name to value, those of ports left out.
fn samples(text: &str) -> Result<BTreeMap<String, f64>> {
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))?;
    let mut samples = BTreeMap::new();
    for sample in scrape.samples {
        ensure!(sample.labels.get("datapath") == Some(DATAPATH), "{sample:?}");
        let (Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value)) = sample.value
        else {
            anyhow::bail!("{sample:?}");
        };
        samples.insert(sample.metric, value);
    }
    Ok(samples)
}

#[test]
fn a_scraper_gets_every_counter_as_it_is() -> TestResult {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("metrics");
    let lab = lab(&socket.display().to_string())?;
    let (status, head, text) = get_path(&socket, "/metrics")?;
    ensure!(
        status == 200 && head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    ensure!(text.ends_with("# EOF\n"), "{text}");
    well_formed(&text)?;
    let first = samples(&text)?;
    let of = |name: &str| first.get(name).copied().with_context(|| format!("no {name}: {text}"));
    ensure!((of("upcalld_up")?, of("upcalld_ports")?, of("upcalld_macs")?) == (1.0, 3.0, 2.0));
    let done = of("upcalld_completed_total")? + of("upcalld_upcalls_in_flight")?;
    ensure!(of("upcalld_received_total")? > 0.0 && of("upcalld_received_total")? == done, "{text}");
    ensure!(of("upcalld_kernel_lost_total")? == 0.0 && of("upcalld_flow_limit")? == 200_000.0);
    ensure!(text.contains("dispatch_mode=\"per-"), "{text}");
    ensure!(text.contains("upcalld_port_upcalls_total{") == since(6, 2), "{text}");
    for line in text.lines().filter(|line| line.starts_with("upcalld_port_upcalls_total{")) {
        ensure!(["\"dp0\"", "\"p0\"", "\"p1\""].iter().any(|port| line.contains(port)), "{line}");
    }
    // A counter never falls, and the last line of the daemon is not behind.
    let second = samples(&get_path(&socket, "/metrics")?.2)?;
    for (name, value) in first.iter().filter(|(name, _)| name.ends_with("_total")) {
        ensure!(second.get(name).is_some_and(|now| now >= value), "{name}: {value} {second:?}");
    }
    let received = second["upcalld_received_total"];
    let last = lab.finish_after_races()?;
    ensure!(last.upcalls_received as f64 >= received, "{last:?}");
    ensure!(!socket.exists(), "the socket is left behind");
    Ok(())
}

/// What `OpenMetrics` asks beyond the older format: each family once, with type and help before its
/// samples, and a counter's samples end in `_total`.
fn well_formed(text: &str) -> TestResult {
    let (mut family, mut kind, mut seen) = (String::new(), String::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').with_context(|| line.to_owned())?;
            ensure!(help.ends_with(['.', '?']) && seen.insert(name.to_owned()), "{line}");
            name.clone_into(&mut family);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').with_context(|| line.to_owned())?;
            ensure!(name == family, "{line}");
            of.clone_into(&mut kind);
        } else if line != "# EOF" {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let suffix = match kind.as_str() {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            ensure!(name == format!("{family}{suffix}"), "{line} in {family} ({kind})");
        }
    }
    ensure!(seen.len() > 50, "{} families", seen.len());
    Ok(())
}

#[test]
fn health_and_other_paths_are_told_apart() -> TestResult {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("metrics");
    let lab = lab(&socket.display().to_string())?;
    for (path, wanted) in
        [("/", 200), ("/healthz", 200), ("/readyz", 200), ("/metrics?x=y", 200), ("/passwd", 404)]
    {
        let (status, head, body) = get_path(&socket, path)?;
        ensure!(status == wanted && !body.is_empty(), "{path}: {head}\n{body}");
    }
    let posted = get(&socket, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")?;
    ensure!(posted.0 == 405, "{posted:?}");
    let headed = get(&socket, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
    ensure!(headed.0 == 200 && headed.2.is_empty(), "{headed:?}");
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn hostile_clients_do_not_keep_a_scraper_out() -> TestResult {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("metrics");
    let lab = lab(&socket.display().to_string())?;
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for bytes in [b"\0\xff nonsense\r\n\r\n".as_slice(), long.as_bytes()] {
        let mut stream = UnixStream::connect(&socket)?;
        // It may close before all of it is taken, and resets then.
        let _closed = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        ensure!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    }
    // More than are served at once, with half a request each: they are dropped in seconds.
    let mut slow = Vec::new();
    for _ in 0..40 {
        let mut stream = UnixStream::connect(&socket)?;
        stream.write_all(b"GET /metrics HT")?;
        slow.push(stream);
    }
    let asked = Instant::now();
    ensure!(get_path(&socket, "/metrics")?.0 == 200);
    ensure!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    let report = ping::ping(&lab.hosts[0].ns, lab.hosts[1].ip4, &PingPlan::default())?;
    ensure!(report.answered == report.sent, "{report:?}");
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn curl_scrapes_it_over_loopback() -> TestResult {
    if std::env::var_os("UPCALL_TEST_DEBIAN").is_none() {
        skip_ok("curl_scrapes_it_over_loopback", "no curl here (UPCALL_TEST_DEBIAN is not set)");
        return Ok(());
    }
    let hosts = Hosts::new(2)?;
    let up = |links: &str| {
        let mut command = Command::new("ip");
        command.args(["link", "set", links, "up"]);
        hosts.switch.run(|| command.status())
    };
    ensure!(up("lo")??.success());
    let lab = Lab::start(hosts, |builder| builder.option("--metrics", "9477"))?;
    let curl = |path: &str| -> Result<String> {
        let url = format!("http://127.0.0.1:9477{path}");
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", &url]).stdin(Stdio::null());
        let output = lab.hosts.switch.run(|| command.output())?.context("cannot run curl")?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    ensure!(curl("/healthz")? == "ok\n" && curl("/readyz")? == "serving\n");
    ensure!(samples(&curl("/metrics")?)?["upcalld_up"] == 1.0);
    lab.finish()?;
    Ok(())
}

/// The metrics that a query names.
fn named(query: &str) -> Result<BTreeSet<String>> {
    // Grafana fills these in.
    let query = query.replace("$__rate_interval", "5m").replace("$datapath", ".*");
    let parsed =
        promql_parser::parser::parse(&query).map_err(|err| anyhow::anyhow!("{query}: {err}"))?;
    let mut names = BTreeSet::new();
    collect(&parsed, &mut names);
    ensure!(!names.is_empty(), "{query} names no metric");
    Ok(names)
}

fn collect(expr: &Expr, names: &mut BTreeSet<String>) {
    let mut selector = |selector: &promql_parser::parser::VectorSelector| {
        names.extend(selector.name.clone());
        let matchers = &selector.matchers.matchers;
        names.extend(matchers.iter().filter(|m| m.name == METRIC_NAME).map(|m| m.value.clone()));
    };
    match expr {
        Expr::VectorSelector(vector) => selector(vector),
        Expr::MatrixSelector(matrix) => selector(&matrix.vs),
        Expr::Aggregate(aggregate) => collect(&aggregate.expr, names),
        Expr::Paren(paren) => collect(&paren.expr, names),
        Expr::Unary(unary) => collect(&unary.expr, names),
        Expr::Binary(binary) => {
            collect(&binary.lhs, names);
            collect(&binary.rhs, names);
        }
        Expr::Call(call) => call.args.args.iter().for_each(|arg| collect(arg, names)),
        _ => {}
    }
}

#[test]
fn dashboard_and_alerts_name_what_is_exported() -> TestResult {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("metrics");
    let lab = lab(&socket.display().to_string())?;
    let exported: BTreeSet<_> = samples(&get_path(&socket, "/metrics")?.2)?.into_keys().collect();
    lab.finish_after_races()?;
    let alerts: serde_json::Value = serde_norway::from_str(ALERTS)?;
    let rules = alerts["groups"][0]["rules"].as_array().context("no rules")?;
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    ensure!(rules.len() >= 8 && panels.len() >= 10, "{} {}", rules.len(), panels.len());
    for rule in rules {
        let whole =
            ["summary", "description"].iter().all(|key| rule["annotations"][key].is_string());
        ensure!(rule["alert"].is_string() && whole, "{rule}");
    }
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    for query in rules.iter().chain(targets).map(|of| of["expr"].as_str()) {
        let query = query.context("no expr")?;
        for name in named(query)? {
            // Kernels before 6.2 do not count by port.
            let counted = since(6, 2) || !name.starts_with("upcalld_port_");
            ensure!(exported.contains(&name) || !counted, "{name} is not exported: {query}");
        }
    }
    Ok(())
}
