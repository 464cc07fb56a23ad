//! `cargo xtask fuzz`: the fuzz targets, with the stable compiler.
//!
//! cargo-fuzz asks for nightly because of the address sanitizer. What is fuzzed has no `unsafe`, so
//! coverage alone serves, and the flags for that are stable ones.

use crate::cmd::{self, say};
use crate::libtest::{Case, Outcome};
use crate::turns::in_turns;
use crate::{build, cache, setup};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// As cargo-fuzz builds, the sanitizer apart.
const RUSTFLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];
const MEMORY_MB: u32 = 2048;
/// An input that takes longer than this is a finding.
const INPUT_SECONDS: u32 = 10;

/// `cargo xtask fuzz`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds for each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Only this target
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<i32> {
    let cases = cases(args.target.as_deref(), Duration::from_secs(args.seconds))?;
    let counts = crate::libtest::count(&cases);
    println!("{counts}");
    Ok(i32::from(counts.failed > 0))
}

fn dir() -> PathBuf {
    cmd::workspace().join("tests/fuzz")
}

pub(crate) fn has_targets() -> bool {
    dir().join("Cargo.toml").exists()
}

/// Runs the targets; each is one test.
pub(crate) fn cases(only: Option<&str>, limit: Duration) -> Result<Vec<Case>> {
    if !has_targets() {
        bail!("{} does not exist: there is nothing to fuzz", dir().display());
    }
    setup::cxx_compiler()?;
    let mut targets = build::executables(build_command(), Some(&host_triple()?))?;
    targets.retain(|target| only.is_none_or(|name| target.name == name));
    if targets.is_empty() {
        bail!("no fuzz target of that name in {}", dir().display());
    }
    let at_once = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let each = in_turns(at_once, &targets, |target| fuzz_one(&target.name, &target.file, limit));
    each.into_iter().collect()
}

fn build_command() -> Command {
    let mut command = cmd::cargo();
    command.current_dir(dir()).args(["build", "--release", "--bins"]);
    // Encoded, since it wins over flags from elsewhere. With a target given, the flags reach only
    // what is fuzzed, not build scripts and macros.
    command.env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    command
}

fn host_triple() -> Result<String> {
    let text = cmd::output(Command::new(build::rustc()).arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_owned())
}

fn fuzz_one(name: &str, program: &Path, limit: Duration) -> Result<Case> {
    let work = dir();
    let (corpus, artifacts) = (work.join("corpus").join(name), work.join("artifacts").join(name));
    cache::make_dir(&corpus)?;
    cache::make_dir(&artifacts)?;
    let mut command = Command::new(program);
    command.arg(&corpus);
    // Inputs kept in the repository, where a target has some.
    let seeds = work.join("seeds").join(name);
    command.args(seeds.is_dir().then_some(seeds));
    command.arg(format!("-max_total_time={}", limit.as_secs().max(1)));
    command.arg(format!("-rss_limit_mb={MEMORY_MB}")).arg(format!("-timeout={INPUT_SECONDS}"));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.args(["-print_final_stats=1", "-verbosity=0"]);
    say!("fuzz {name}: {} s", limit.as_secs());
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let outcome = if output.status.success() {
        println!("fuzz {name}: {} inputs, nothing found", runs.unwrap_or("?").trim());
        Outcome::Passed
    } else {
        println!("{said}");
        Outcome::Failed(format!("{} (the input is in {})", finding(&said), artifacts.display()))
    };
    Ok(Case { name: name.to_owned(), outcome })
}

/// What was wrong, and the input where libFuzzer prints it (a small one), as one line: the file
/// that holds it may be gone when somebody reads of it.
fn finding(said: &str) -> String {
    let line = |is: fn(&str) -> bool| said.lines().find(|line| is(line)).unwrap_or_default().trim();
    let after = |is: fn(&str) -> bool| {
        said.lines().skip_while(|line| !is(line)).nth(1).unwrap_or_default().trim()
    };
    let parts = [
        line(|line| line.contains("ERROR: libFuzzer")),
        after(|line| line.contains("panicked at ")),
        line(|line| line.starts_with("Base64: ")),
    ];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { "found an input".to_owned() } else { parts.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::finding;

    #[test]
    fn a_finding_names_its_cause_and_its_input() {
        let said = "INFO: seed\nthread '<unnamed>' panicked at a.rs:1:1:\nread again: no such word\n\
                    ==7== ERROR: libFuzzer: deadly signal\nBase64: YQ==\n";
        let all = "==7== ERROR: libFuzzer: deadly signal; read again: no such word; Base64: YQ==";
        assert_eq!(finding(said), all);
        assert_eq!(finding(""), "found an input");
    }
}
