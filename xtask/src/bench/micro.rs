//! `cargo xtask bench --micro`: the parts of an upcall's way at native speed, as a table.

use crate::build;
use crate::cmd::{self, say};
use crate::lines::Lines;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Of each benchmark: enough for a median, and all of them in two minutes.
const TIMES: [&str; 5] = ["--noplot", "--warm-up-time", "1", "--measurement-time", "3"];

/// One line of the table.
#[derive(Debug)]
struct Row {
    /// Group and name.
    id: String,
    /// Nanoseconds for an upcall: the median, and the ends of what it is with 95 % confidence.
    ns: [f64; 3],
    /// For each upcall, on the thread that handles it; `None` where that is another thread.
    allocations: Option<u64>,
}

pub(crate) fn run() -> Result<i32> {
    let results = build::target_dir()?.join("criterion");
    let mut rows = Vec::new();
    for (id, allocations) in measure(&results)? {
        let ns = read(&results.join(&id).join("new")).with_context(|| format!("of {id}"))?;
        rows.push(Row { id, ns, allocations });
    }
    ensure!(!rows.is_empty(), "the benchmarks said nothing");
    for (what, value) in about()? {
        println!("{what}: {value}");
    }
    print!("\n{}", table(&rows));
    Ok(0)
}

/// Runs them, shown as they go; gives what they say of themselves.
fn measure(results: &Path) -> Result<Vec<(String, Option<u64>)>> {
    let mut command = cmd::cargo();
    command.args(["bench", "--package", "bench", "--bench", "micro", "--"]);
    command.args(TIMES).env("CRITERION_HOME", results);
    say!("`{}`", cmd::shown(&command));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().context("no stdout")?;
    let (mut lines, mut said) = (Lines::default(), Vec::new());
    let mut on_line = |line: &str| {
        say!("{line}");
        said.extend(told(line));
    };
    let mut buffer = vec![0; 16 * 1024];
    while let length @ 1.. = stdout.read(&mut buffer)? {
        lines.push(&buffer[..length], &mut on_line);
    }
    lines.flush(&mut on_line);
    let status = child.wait()?;
    ensure!(status.success(), "the benchmarks failed ({status})");
    Ok(said)
}

/// `micro GROUP/NAME: N allocations`, which each of them says before it begins.
fn told(line: &str) -> Option<(String, Option<u64>)> {
    let (id, count) =
        line.strip_prefix("micro ")?.strip_suffix(" allocations")?.split_once(": ")?;
    Some((id.to_owned(), count.parse().ok()))
}

/// What criterion has left in this directory, for each upcall.
fn read(dir: &Path) -> Result<[f64; 3]> {
    let json = |name: &str| -> Result<Value> {
        let path = dir.join(name);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let upcalls = json("benchmark.json")?["throughput"]["Elements"].as_f64();
    let median = &json("estimates.json")?["median"];
    let ends = &median["confidence_interval"];
    let all = [&median["point_estimate"], &ends["lower_bound"], &ends["upper_bound"]];
    let [value, low, high] = all.map(Value::as_f64);
    let (upcalls, value) = upcalls.zip(value).context("criterion has another form of results")?;
    let (low, high) = low.zip(high).context("criterion has another form of results")?;
    Ok([value, low, high].map(|ns| ns / upcalls))
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.id.len()).max().unwrap_or_default();
    let mut out =
        format!("{:width$}  {:>13}  {:>17}  {:>11}\n", "", "ns per upcall", "95 %", "allocations");
    for Row { id, ns: [median, low, high], allocations } in rows {
        let made = allocations.map_or("-".to_owned(), |count| count.to_string());
        let ends = format!("{low:.1} .. {high:.1}");
        let _ = writeln!(out, "{id:width$}  {median:>13.1}  {ends:>17}  {made:>11}");
    }
    out
}

/// Where that was.
fn about() -> Result<[(&'static str, String); 4]> {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let rustc = cmd::output(Command::new(build::rustc()).arg("--version"))?;
    let model = model.map_or("unknown", |(_, name)| name);
    Ok([
        ("processor", format!("{model}, {cpus} CPUs")),
        ("kernel", kernel.trim().to_owned()),
        ("built", format!("{}, release profile, the C library's allocator", rustc.trim())),
        ("figures", "medians; bursts of 64 where nothing else is said".to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_benchmark_says_is_understood() {
        let said = told("micro engine, from memory/none installed: 0 allocations");
        assert_eq!(said, Some(("engine, from memory/none installed".to_owned(), Some(0))));
        assert_eq!(told("micro worker/a: - allocations"), Some(("worker/a".to_owned(), None)));
        assert_eq!(told("wire/a  time: [1 ns 2 ns 3 ns]"), None);
    }

    #[test]
    fn times_are_for_an_upcall() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("benchmark.json", r#"{"throughput":{"Elements":64}}"#);
        let median = r#"{"point_estimate":128.0,
            "confidence_interval":{"lower_bound":64.0,"upper_bound":192.0}}"#;
        write("estimates.json", &format!(r#"{{"median":{median}}}"#));
        let row = Row { id: "a/b".to_owned(), ns: read(dir.path()).unwrap(), allocations: Some(0) };
        let line = "a/b            2.0         1.0 .. 3.0            0";
        assert_eq!(table(&[row]).lines().nth(1), Some(line));
        write("estimates.json", "{}");
        assert!(read(dir.path()).is_err());
    }
}
