//! `cargo xtask bench`: upcalld beside ovs-vswitchd and the floor, on one kernel in one boot.

mod catalogue;
mod figures;
mod gate;
mod html;
mod micro;
mod summary;
mod text;

use crate::cmd::say;
use crate::guest::{self, Guest, Shape};
use crate::kernels::{Kernel, Origin};
use crate::libtest::{Case, Outcome};
use crate::lines::Lines;
use crate::qemu::Accel;
use crate::{build, debian, setup, vm};
use anyhow::{Context, Result, ensure};
use catalogue::Clock;
use gate::Judged;
use guest_init::protocol::{Frame, Job};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

const HELP: &str = "\
upcalld (cross-connect), ovs-vswitchd of Debian (port-pair flows) and the floor (a raw loop without \
order, fairness or checks) answer the same packets on the same kernel, in turn.

Examples:
  cargo xtask bench
      every figure; a table, with what each must be
  cargo xtask bench --only upcall-cpu,flow-cpu --repeat 1
      the two that tell most, in a minute
  cargo xtask bench --json bench.json --html bench.html
      the samples for machines, a page for people
  cargo xtask bench --micro
      the parts of an upcall's way at native speed, without a kernel of their own
  cargo xtask bench --gate
      fails when upcalld needs over 3 % more instructions than tests/bench/baseline.json says; `cargo xtask
      test` does so too
  cargo xtask bench --store
      makes that file anew, after a change that is worth it

Exit status: 0 all figures are as they must be, 1 one is not, or something failed.";

/// The kernel that is measured on unless another is named.
pub(crate) const KERNEL: &str = "6.12";
/// Of a machine that measures.
const TIMEOUT: Duration = Duration::from_mins(30);

/// `cargo xtask bench`
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Kernel line: 6.1, 6.12 or 7
    #[arg(long, value_name = "VERSION", default_value = KERNEL)]
    kernel: String,
    #[command(flatten)]
    origin: Origin,
    /// Only these measures
    #[arg(long, value_name = "MEASURE", value_delimiter = ',', value_parser = catalogue::names())]
    only: Vec<String>,
    /// Only measures by this clock
    #[arg(long, value_enum)]
    clock: Option<Clock>,
    /// How often everybody is measured in turn
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Write samples and figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure the parts of an upcall's way on this machine: time and allocations for each upcall
    #[arg(long, conflicts_with_all = ["only", "clock", "json", "html", "gate", "store"])]
    micro: bool,
    /// Measure upcalld alone, by instructions, and compare with the stored baseline
    #[arg(long, conflicts_with_all = ["only", "clock"])]
    gate: bool,
    /// As --gate, and store the figures as the baseline
    #[arg(long, conflicts_with_all = ["only", "clock", "gate"])]
    store: bool,
    /// Stop a machine after this time
    #[arg(long, value_name = "DURATION", default_value_t = TIMEOUT.into())]
    timeout: humantime::Duration,
}

/// What all machines of a run have in common.
#[derive(Debug, Clone, Copy)]
struct Run<'a> {
    origin: &'a Origin,
    repeat: u32,
    timeout: Duration,
}

impl Args {
    fn run(&self) -> Run<'_> {
        Run { origin: &self.origin, repeat: self.repeat, timeout: self.timeout.into() }
    }
}

pub(crate) fn run(args: &Args) -> Result<i32> {
    if args.micro {
        return micro::run();
    }
    setup::for_guests()?;
    let kernels = vm::chosen(&args.kernel, &args.origin)?;
    let [kernel] = kernels.as_slice() else { anyhow::bail!("name one kernel") };
    if args.gate || args.store {
        return gate(args, kernel);
    }
    let mut heard = Heard::default();
    for clock in Clock::ALL.into_iter().filter(|clock| args.clock.is_none_or(|c| c == *clock)) {
        for (shape, measures) in machines(clock, &args.only, args.timeout.into()) {
            heard.add(args.run(), kernel, shape, &measures, &summary::CONTESTANTS)?;
        }
    }
    let rows = summary::rows(&heard.samples);
    let about = about(&heard, kernel);
    for (what, value) in &about {
        println!("{what}: {value}");
    }
    print!("\n{}", text::table(&rows));
    if let Some(path) = &args.json {
        let all = json!({ "about": about, "samples": heard.samples });
        std::fs::write(path, serde_json::to_string_pretty(&all)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.html {
        std::fs::write(path, html::page(&about, &rows))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(i32::from(rows.iter().any(|row| row.passes() == Some(false))))
}

/// upcalld alone, once: instruction counts repeat.
fn gate(args: &Args, kernel: &Kernel) -> Result<i32> {
    let rows = gate_rows(Run { repeat: 1, ..args.run() }, kernel)?;
    if args.store {
        gate::store(&kernel.name, &rows)?;
    }
    let judged = gate::compare(&kernel.name, &rows)?;
    for figure in &judged {
        println!("{figure}");
    }
    println!("tolerance {:.0} %", gate::TOLERANCE * 100.0);
    Ok(i32::from(!judged.iter().all(Judged::is_well)))
}

fn gate_rows(run: Run<'_>, kernel: &Kernel) -> Result<Vec<summary::Row>> {
    let mut heard = Heard::default();
    let measures = catalogue::gate_measures();
    let shape = shape(Clock::Instructions, run.timeout);
    heard.add(run, kernel, shape, &measures, &summary::CONTESTANTS[..1])?;
    Ok(summary::rows(&heard.samples))
}

/// The gate as tests, one for each figure.
pub(crate) fn gate_cases(origin: &Origin) -> Result<Vec<Case>> {
    setup::for_guests()?;
    let kernel = vm::chosen(KERNEL, origin)?.pop().context("no kernel")?;
    let run = Run { origin, repeat: 1, timeout: TIMEOUT };
    let judged = gate::compare(&kernel.name, &gate_rows(run, &kernel)?)?;
    let case = |figure: &Judged| {
        say!("{figure}");
        let outcome = if figure.is_well() {
            Outcome::Passed
        } else {
            Outcome::Failed(format!("{figure}, tolerance {:.0} %", gate::TOLERANCE * 100.0))
        };
        Case { name: format!("gate::{}", figure.name), outcome }
    };
    Ok(judged.iter().map(case).collect())
}

/// What the guests have said.
#[derive(Debug, Default)]
struct Heard {
    samples: Vec<Value>,
    peer: String,
}

impl Heard {
    /// Boots a machine and measures in it.
    fn add(
        &mut self,
        run: Run<'_>,
        kernel: &Kernel,
        shape: Shape,
        measures: &[&str],
        contestants: &[&str],
    ) -> Result<()> {
        say!("booting {} ({:?}, {} CPUs)", kernel.release, shape.accel, shape.smp);
        let repeat = run.repeat.to_string();
        let (measures, contestants) = (measures.join(","), contestants.join(","));
        let words = [
            "/bin/bench-guest",
            "--measure",
            &measures,
            "--contestant",
            &contestants,
            "--repeat",
            &repeat,
        ];
        let job = Job {
            argv: words.map(str::to_owned).to_vec(),
            env: guest::environment(None),
            limit_s: 0,
        };
        let debian = Some(debian::peer(&kernel.name).archive(run.origin)?);
        let guest = Guest { kernel, shape, files: programs()?, debian, jobs: vec![job] };
        let mut lines = Lines::default();
        let mut said = Vec::new();
        let report = guest.run(&mut |frame| match frame {
            Frame::Stdout(bytes) => lines.push(bytes, &mut |line: &str| {
                say!("{line}");
                said.push(line.to_owned());
            }),
            other => vm::pass_through(other),
        })?;
        let status = report.statuses.first().context("the benchmark did not end")?;
        ensure!(*status == 0, "the benchmark failed in the guest (exit status {status})");
        said.iter().try_for_each(|line| self.hear(line))
    }

    fn hear(&mut self, line: &str) -> Result<()> {
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        match value["about"]["peer"].as_str() {
            Some(peer) => peer.clone_into(&mut self.peer),
            None => self.samples.push(value),
        }
        Ok(())
    }
}

/// The machines for the measures of a clock that `only` names, and what is measured in each.
fn machines(clock: Clock, only: &[String], limit: Duration) -> Vec<(Shape, Vec<&'static str>)> {
    let measures = catalogue::measures(clock, only);
    if clock != Clock::Sizes {
        return if measures.is_empty() {
            Vec::new()
        } else {
            vec![(shape(clock, limit), measures)]
        };
    }
    // The number of CPUs is the end of the measure's name.
    let cpus = |name: &str| name.rsplit('-').next().and_then(|cpus| cpus.parse().ok());
    let machine = |name| Some((Shape { smp: cpus(name)?, ..shape(clock, limit) }, vec![name]));
    measures.into_iter().filter_map(machine).collect()
}

/// Mitigations and the split of page tables are off in both: what they cost is the processor's doing,
/// and under emulation no measure of it.
fn shape(clock: Clock, limit: Duration) -> Shape {
    let (accel, smp) = match clock {
        Clock::Instructions => (Accel::Instructions, 1),
        Clock::Parallel => (Accel::TcgPinned, host_cpus().clamp(2, 4)),
        Clock::Sizes => (Accel::TcgSingle, 1),
    };
    Shape { smp, memory_mb: 1024, accel, limit, append: "mitigations=off nopti".to_owned() }
}

fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// What is measured is built as users get it.
fn programs() -> Result<Vec<(PathBuf, String)>> {
    let small = build::target_dir()?.join("stripped-release");
    let built = build::release_binaries()?;
    built
        .iter()
        .map(|b| Ok((build::stripped(&b.file, &small)?, format!("/bin/{}", b.name))))
        .collect()
}

fn about(heard: &Heard, kernel: &Kernel) -> Vec<(String, String)> {
    [
        ("kernel", kernel.release.as_str()),
        ("ovs-vswitchd", &heard.peer),
        (
            "upcalld",
            concat!(env!("CARGO_PKG_VERSION"), ", release profile, musl and its allocator"),
        ),
        ("instruction clock", "1 CPU, an instruction takes 1 ns, mitigations=off nopti"),
        ("parallel emulation", "a CPU for each of the host's (2 to 4), only ratios mean something"),
        ("figures", "median and half the spread; ratios within a repetition"),
    ]
    .map(|(what, value)| (what.to_owned(), value.to_owned()))
    .to_vec()
}
