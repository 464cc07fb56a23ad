//! A Prometheus of our own on the loopback address, with samples that were scraped elsewhere. Its tool loads
//! them, and asks the questions.

use crate::cache;
use crate::cmd;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to be ready.
const READY_WITHIN: Duration = Duration::from_mins(1);
const ASK_EVERY: Duration = Duration::from_millis(200);

/// The two programs.
pub(super) struct Programs {
    /// Where they are.
    pub(super) dir: PathBuf,
}

impl Programs {
    fn command(&self, name: &str) -> Command {
        Command::new(self.dir.join(name))
    }

    /// Fails where Prometheus would not load these rules.
    pub(super) fn check_rules(&self, file: &Path) -> Result<()> {
        let checked = cmd::output(self.command("promtool").args(["check", "rules"]).arg(file));
        checked.map(drop).context("Prometheus does not load our alert rules")
    }
}

/// A running server; it ends with the value.
pub(super) struct Server<'a> {
    programs: &'a Programs,
    process: Child,
    url: String,
}

/// When, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    pub(super) from: f64,
    pub(super) to: f64,
}

impl Span {
    /// From the first to the last sample of `OpenMetrics` text with times.
    pub(super) fn of(samples: &str) -> Option<Self> {
        let time = |line: &str| line.rsplit_once(' ')?.1.parse().ok();
        let mut times = samples.lines().filter(|line| !line.starts_with('#')).map(time);
        let from = times.next()??;
        Some(Self { from, to: times.next_back()?? })
    }
}

/// A series of the answer to a range query, as `promtool` prints it.
#[derive(Debug, Deserialize)]
pub(super) struct Series {
    #[serde(rename = "metric")]
    pub(super) labels: BTreeMap<String, String>,
    values: Vec<(f64, String)>,
}

impl Series {
    /// Times and values, where there are any.
    pub(super) fn points(&self) -> Vec<(f64, f64)> {
        let number = |(at, value): &(f64, String)| Some((*at, value.parse().ok()?));
        let points = self.values.iter().filter_map(number);
        points.filter(|(_, value): &(f64, f64)| value.is_finite()).collect()
    }
}

impl<'a> Server<'a> {
    /// Starts a server with these samples, and all it writes below `dir`.
    pub(super) fn start(programs: &'a Programs, samples: &str, dir: &Path) -> Result<Self> {
        let [text, data] = ["samples", "data"].map(|name| dir.join(name));
        let [config, log] = ["prometheus.yml", "log"].map(|name| dir.join(name));
        let _ = fs::remove_dir_all(dir);
        cache::make_dir(dir)?;
        fs::write(&text, samples)?;
        fs::write(&config, "{}\n")?;
        let mut load = programs.command("promtool");
        load.args(["tsdb", "create-blocks-from", "openmetrics"]).arg(&text).arg(&data);
        cmd::output(&mut load).context("what was scraped are no metrics")?;
        let address = free_address()?;
        let mut command = programs.command("prometheus");
        command.arg("--config.file").arg(&config).arg("--storage.tsdb.path").arg(&data);
        command.arg("--web.listen-address").arg(&address).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(File::create(&log)?);
        let process = command.spawn().context("cannot start prometheus")?;
        let mut server = Self { programs, process, url: format!("http://{address}") };
        server.wait_ready(&log)?;
        Ok(server)
    }

    fn wait_ready(&mut self, log: &Path) -> Result<()> {
        let begun = Instant::now();
        let said = || fs::read_to_string(log).unwrap_or_default();
        loop {
            let mut ask = self.programs.command("promtool");
            if cmd::output(ask.args(["check", "ready", "--url", &self.url])).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("prometheus ended ({status}):\n{}", said());
            }
            if begun.elapsed() > READY_WITHIN {
                bail!("prometheus is not ready after {READY_WITHIN:?}:\n{}", said());
            }
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// The values of a label of a metric.
    pub(super) fn label_values(
        &self,
        metric: &str,
        label: &str,
        span: Span,
    ) -> Result<Vec<String>> {
        let mut ask = self.query("labels", span);
        ask.args(["--match", metric, &self.url, label]);
        Ok(serde_json::from_str(&cmd::output(&mut ask)?)?)
    }

    /// The answer to a range query.
    pub(super) fn range(&self, query: &str, span: Span, step: Duration) -> Result<Vec<Series>> {
        let mut ask = self.query("range", span);
        ask.arg(format!("--step={}s", step.as_secs())).args([&self.url, query]);
        Ok(serde_json::from_str(&cmd::output(&mut ask)?)?)
    }

    fn query(&self, kind: &str, span: Span) -> Command {
        let mut ask = self.programs.command("promtool");
        ask.args(["query", kind, "--format=json"]);
        ask.arg(format!("--start={}", span.from)).arg(format!("--end={}", span.to));
        ask
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // It has nothing to save.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address that nobody listens at: Prometheus does not tell which one it was given.
fn free_address() -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free TCP port")?;
    Ok(listener.local_addr()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_from_the_first_sample_to_the_last() {
        let text = "# scrapes\na 1 10.500\na{b=\"c d\"} 2 11.500\n# EOF\n";
        assert_eq!(Span::of(text), Some(Span { from: 10.5, to: 11.5 }));
        assert_eq!(Span::of("# EOF\n"), None);
    }

    #[test]
    fn points_are_numbers() {
        let text = r#"{"metric": {"a": "b"}, "values": [[1.5, "2"], [2.5, "NaN"]]}"#;
        let series: Series = serde_json::from_str(text).unwrap();
        assert_eq!(series.points(), [(1.5, 2.0)]);
        assert_eq!(series.labels["a"], "b");
    }
}
