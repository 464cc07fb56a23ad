//! `cargo xtask test`: every test of the workspace, here and on every kernel.

mod groups;

use crate::build::{self, Kind, REAL_KERNEL_TESTS};
use crate::cmd::{self, say};
use crate::guest::{self, Guest};
use crate::kernels::{self, Kernel, Origin};
use crate::libtest::{Case, Outcome, Parser};
use crate::lines::Lines;
use crate::report::{self, Stage};
use crate::turns::in_turns;
use crate::vm::MachineArgs;
use crate::{bench, fuzz, host, models, setup};
use anyhow::{Context, Result, anyhow};
use groups::Group;
use guest_init::protocol::{Frame, Job};
use std::io::{Read, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Kernels by the names that they were asked for by, or why they cannot be had.
type Wanted = Vec<(String, Result<Kernel>)>;
/// Of a whole guest, which runs all test binaries.
const GUEST_MARGIN: Duration = Duration::from_mins(1);

/// `cargo xtask test`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kernel lines: 5.10,6.1,6.12,7, `all` or `none`
    #[arg(long, value_name = "LIST", default_value = "all")]
    kernel: String,
    /// Fail where a test is skipped or a kernel cannot be had
    #[arg(long)]
    require: bool,
    /// Only tests whose name contains this; leaves out the fuzz targets
    #[arg(long, value_name = "STR")]
    filter: Option<String>,
    /// Only the real-kernel tests
    #[arg(long)]
    only_kernels: bool,
    /// Write a report in the format of `JUnit`
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Time limit of the tests of one kernel
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Seconds for each fuzz target; 0 leaves them out
    #[arg(long, value_name = "N", default_value_t = 3)]
    fuzz_seconds: u64,
    /// Kernels that run at the same time; an emulated machine keeps one CPU busy [default: 2, if there
    /// are as many CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: Option<u32>,
    #[command(flatten)]
    origin: Origin,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Gives the exit status; the last line on stdout is the sum.
pub(crate) fn run(args: &Args) -> Result<i32> {
    let mut stages = Vec::new();
    if !args.only_kernels {
        stages.push(stage("host", || host_tests(args.filter.as_deref())));
        if args.filter.is_none() && args.fuzz_seconds > 0 && fuzz::has_targets() {
            let limit = Duration::from_secs(args.fuzz_seconds);
            stages.push(stage("fuzz", || fuzz::cases(None, limit)));
        }
        if args.filter.is_none() {
            stages.push(stage("loom", models::loom_cases));
        }
    }
    let gate = args.filter.is_none() && !args.only_kernels && gate_kernel_is_wanted(args);
    if args.kernel != "none" || args.origin.kernel_dir.is_some() {
        real_kernels(args, gate, &mut stages);
    }
    if gate {
        stages.push(stage("gate", || bench::gate_cases(&args.origin)));
    }
    if let Some(file) = &args.junit {
        std::fs::write(file, report::junit(&stages))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let (total, skips) = (report::total(&stages), report::unexpected_skips(&stages));
    println!("\n{}", report::table(&stages));
    if args.require && skips > 0 {
        println!("{skips} of the skipped had to run: --require");
    }
    println!("{total}");
    let nothing_ran = match &args.filter {
        Some(filter) => {
            let no_match = total.passed + total.failed + total.skipped == 0;
            if no_match {
                say!("no test has '{filter}' in its name");
            }
            no_match
        }
        None => total.passed + total.failed == 0,
    };
    Ok(i32::from(total.failed > 0 || nothing_ran || (args.require && skips > 0)))
}

/// The gate's figures are of one kernel, and not of one's own.
fn gate_kernel_is_wanted(args: &Args) -> bool {
    let wanted = kernels::parse_lines(&args.kernel).unwrap_or_default();
    args.origin.kernel_dir.is_none() && wanted.iter().any(|line| line.to_string() == bench::KERNEL)
}

/// An error is a failed test of its own: the other stages still run, and the sum still comes.
fn stage(name: &str, cases: impl FnOnce() -> Result<Vec<Case>>) -> Stage {
    say!("{name}: begins");
    let begun = Instant::now();
    let cases = cases().unwrap_or_else(|e| {
        say!("{name}: {e:#}");
        let why = format!("{e:#}").lines().next().unwrap_or_default().to_owned();
        vec![Case { name: "(stage)".to_owned(), outcome: Outcome::Failed(why) }]
    });
    Stage { name: name.to_owned(), cases, took: begun.elapsed() }
}

fn host_tests(filter: Option<&str>) -> Result<Vec<Case>> {
    let mut command = cmd::cargo();
    command.args(["test", "--workspace", "--exclude", REAL_KERNEL_TESTS, "--no-fail-fast"]);
    // Shown output is how a test that passes says that it was skipped.
    command.args(filter).args(["--", "--show-output"]);
    run_tests_here(&mut command, "")
}

/// Runs a libtest program on this machine, shown as it goes.
pub(crate) fn run_tests_here(command: &mut Command, prefix: &str) -> Result<Vec<Case>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", cmd::shown(command)))?;
    let mut stdout = child.stdout.take().context("no stdout")?;
    let (mut parser, mut lines) = (Parser::new(prefix), Lines::default());
    let mut on_line = |line: &str| {
        if parser.line(line) {
            println!("{line}");
        }
    };
    let mut buffer = vec![0; 16 * 1024];
    while let length @ 1.. = stdout.read(&mut buffer)? {
        lines.push(&buffer[..length], &mut on_line);
    }
    lines.flush(&mut on_line);
    let status = child.wait()?;
    Ok(parser.finish(status.code().unwrap_or(-1)))
}

/// With the gate's build beside them: an emulated machine that waits leaves it time.
fn real_kernels(args: &Args, gate: bool, stages: &mut Vec<Stage>) {
    if args.origin.kernel_dir.is_none() && host::can_switch() {
        stages.push(stage("this kernel", || this_kernel(args.filter.as_deref())));
    }
    let mut made = None;
    stages.push(stage("build for guests", || {
        setup::for_guests()?;
        made = Some(make_ready(args)?);
        Ok(Vec::new())
    }));
    let Some((groups, kernels)) = made else { return };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.map_or(cpus.min(2), |jobs| jobs as usize);
    let ahead = gate.then(build::release_ahead).flatten();
    let ends = [kernels.first(), kernels.last()].map(|end| end.map(|(name, _)| name));
    stages.extend(in_turns(jobs, &kernels, |(name, kernel)| match kernel {
        Ok(kernel) => {
            let at_end = ends.contains(&Some(name));
            stage(&kernel.release, || on_kernel(args, kernel, &groups, at_end))
        }
        Err(e) => cannot_be_had(name, args.require, e),
    }));
    if let Some(mut ahead) = ahead {
        // Whether it went well is seen when it is asked for.
        let _ = ahead.wait();
    }
}

/// Builds what runs in guests, and gets their kernels meanwhile.
fn make_ready(args: &Args) -> Result<(Vec<Group>, Wanted)> {
    thread::scope(|scope| {
        let kernels = scope.spawn(|| kernels_of(args));
        let groups = groups::build(&args.origin, args.filter.as_deref(), args.require)?;
        let kernels = kernels.join().map_err(|_| anyhow!("getting kernels panicked"))?;
        Ok((groups, kernels))
    })
}

fn kernels_of(args: &Args) -> Wanted {
    if let Some(dir) = &args.origin.kernel_dir {
        return vec![("own".to_owned(), kernels::own(dir))];
    }
    match kernels::parse_lines(&args.kernel) {
        Ok(lines) => lines
            .into_iter()
            .map(|line| (line.to_string(), kernels::get(line, &args.origin)))
            .collect(),
        Err(e) => vec![(args.kernel.clone(), Err(anyhow::Error::msg(e)))],
    }
}

fn cannot_be_had(name: &str, require: bool, error: &anyhow::Error) -> Stage {
    say!("kernel {name}: {error:#}");
    let reason = format!("{error:#}").lines().next().unwrap_or_default().to_owned();
    let outcome = if require {
        Outcome::Failed(reason)
    } else {
        Outcome::Skipped { reason, by_design: false }
    };
    let cases = vec![Case { name: "(kernel)".to_owned(), outcome }];
    Stage { name: name.to_owned(), cases, took: Duration::ZERO }
}

/// Real-kernel tests in namespaces of this machine.
fn this_kernel(filter: Option<&str>) -> Result<Vec<Case>> {
    let built = build::for_kernels(None)?;
    let daemon = built.iter().find(|b| b.kind == Kind::Program && b.name == "upcalld");
    let daemon = daemon.context("package upcalld builds no program upcalld")?;
    let example = built.iter().find(|b| b.kind == Kind::Example);
    let examples = example.and_then(|example| example.file.parent());
    let examples = examples.context("package upcall builds no example")?;
    let mut cases = Vec::new();
    for test in built.iter().filter(|b| b.kind == Kind::Test) {
        let mut command = Command::new(&test.file);
        command.args(["--test-threads=1", "--show-output"]).args(filter);
        command.env("UPCALLD_BIN", &daemon.file).env("UPCALL_EXAMPLES", examples);
        cases.extend(run_tests_here(&mut command, &format!("{}::", test.name))?);
    }
    Ok(cases)
}

/// One guest after the other for each group of tests; in each, all its binaries, one after the other.
fn on_kernel(args: &Args, kernel: &Kernel, groups: &[Group], at_end: bool) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for group in groups {
        let tests = group.tests(at_end);
        cases.extend(match &group.lacks {
            _ if tests.is_empty() => Vec::new(),
            Some(why) => Group::skipped(&tests, why),
            None => in_a_guest(args, kernel, group, &tests)?,
        });
    }
    Ok(cases)
}

fn in_a_guest(args: &Args, kernel: &Kernel, group: &Group, tests: &[String]) -> Result<Vec<Case>> {
    let env = guest::environment(group.debian.as_ref().map(|_| group.choice));
    let job = |test: &String| {
        let mut command = vec![test.clone(), "--test-threads=1".into(), "--nocapture".into()];
        command.extend(args.filter.clone());
        Job { argv: command, env: env.clone(), limit_s: args.timeout.as_secs() as u32 }
    };
    let jobs: Vec<Job> = tests.iter().map(job).collect();
    let shape = args.machine.shape(kernel, args.timeout + GUEST_MARGIN)?;
    let guest =
        Guest { kernel, shape, files: group.files.clone(), debian: group.debian.clone(), jobs };
    let mut listener = Listener::new(&kernel.name, tests);
    let outcome = guest.run(&mut |frame| listener.frame(frame));
    Ok(listener.finish(outcome.err()))
}

/// Turns a guest's frames into shown lines and finished tests.
struct Listener<'a> {
    kernel: &'a str,
    tests: &'a [String],
    stdout: Lines,
    stderr: Lines,
    running: Option<Parser>,
    cases: Vec<Case>,
}

impl<'a> Listener<'a> {
    fn new(kernel: &'a str, tests: &'a [String]) -> Self {
        let (stdout, stderr) = (Lines::default(), Lines::default());
        Self { kernel, tests, stdout, stderr, running: None, cases: Vec::new() }
    }

    fn frame(&mut self, frame: &Frame) {
        let kernel = self.kernel;
        match frame {
            Frame::Start(index) => {
                let test = self.tests.get(*index as usize).map_or("?", String::as_str);
                let name = test.rsplit('/').next().unwrap_or(test);
                self.running = Some(Parser::new(&format!("{name}::")));
            }
            Frame::Stdout(bytes) => {
                let running = &mut self.running;
                self.stdout.push(bytes, &mut |line| out(kernel, line, running.as_mut()));
            }
            Frame::Stderr(bytes) => {
                let running = &mut self.running;
                self.stderr.push(bytes, &mut |line| err(kernel, line, running.as_mut()));
            }
            Frame::Exit(status) => self.end_of_job(*status),
            _ => {}
        }
    }

    fn end_of_job(&mut self, status: i32) {
        let (kernel, running) = (self.kernel, &mut self.running);
        self.stdout.flush(&mut |line| out(kernel, line, running.as_mut()));
        self.stderr.flush(&mut |line| err(kernel, line, running.as_mut()));
        if let Some(parser) = self.running.take() {
            self.cases.extend(parser.finish(status));
        }
    }

    /// A guest that broke fails the test it was in, and itself.
    fn finish(mut self, error: Option<anyhow::Error>) -> Vec<Case> {
        if let Some(error) = error {
            self.end_of_job(-1);
            say!("{error:#}");
            let why = format!("{error:#}").lines().next().unwrap_or_default().to_owned();
            self.cases.push(Case { name: "(guest)".to_owned(), outcome: Outcome::Failed(why) });
        }
        self.cases
    }
}

fn out(kernel: &str, line: &str, parser: Option<&mut Parser>) {
    // Whoever reads us may have gone; the run goes on.
    let _ = writeln!(std::io::stdout(), "[{kernel}] {line}");
    if let Some(parser) = parser {
        parser.line(line);
    }
}

fn err(kernel: &str, line: &str, parser: Option<&mut Parser>) {
    let _ = writeln!(std::io::stderr(), "[{kernel}] {line}");
    if let Some(parser) = parser {
        parser.error_line(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtest::count;

    const TESTS: &str = "/bin/learning";

    fn listen(frames: &[Frame], error: Option<&str>) -> Vec<Case> {
        let tests = [TESTS.to_owned()];
        let mut listener = Listener::new("6.12", &tests);
        for frame in frames {
            listener.frame(frame);
        }
        listener.finish(error.map(|e| anyhow::anyhow!("{e}")))
    }

    #[test]
    fn frames_become_tests() {
        let text = b"running 1 test\ntest floods ... ok\n\ntest result: ok. 1 passed; 0 failed\n";
        let (a, b) = text.split_at(20);
        let frames = [
            Frame::Start(0),
            Frame::Stdout(a.to_vec()),
            Frame::Stderr(b"noise".to_vec()),
            Frame::Stdout(b.to_vec()),
            Frame::Exit(0),
        ];
        let cases = listen(&frames, None);
        assert_eq!(cases, [Case { name: "learning::floods".into(), outcome: Outcome::Passed }]);
    }

    #[test]
    fn a_guest_that_breaks_fails_the_test_it_was_in() {
        let text = b"running 1 test\ntest floods ... ".to_vec();
        let cases = listen(&[Frame::Start(0), Frame::Stdout(text)], Some("kernel panic"));
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["learning::floods", "(guest)"]);
        assert_eq!(count(&cases).failed, 2);
    }

    #[test]
    fn an_error_of_a_stage_is_a_failure_in_the_sum() {
        let stage = stage("x", || anyhow::bail!("no compiler"));
        assert_eq!(count(&stage.cases).failed, 1);
    }

    #[test]
    fn a_kernel_that_cannot_be_had_is_a_skip_unless_required() {
        let error = anyhow::anyhow!("gone");
        assert_eq!(count(&cannot_be_had("7", false, &error).cases).skipped, 1);
        assert_eq!(count(&cannot_be_had("7", true, &error).cases).failed, 1);
    }
}
