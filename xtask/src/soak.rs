//! `cargo xtask soak`: everything at once on a real kernel with real races, for a long time.

use crate::build::Kind;
use crate::cmd::say;
use crate::guest::{self, Guest};
use crate::kernels::Origin;
use crate::vm::{self, MachineArgs};
use crate::{build, setup};
use anyhow::{Context, Result};
use guest_init::protocol::Job;
use std::time::Duration;

/// The test that soaks; short in `cargo xtask test`.
const TEST: &str = "soak";
/// Tells the test how long, in seconds.
const DURATION_VAR: &str = "UPCALL_SOAK_S";
/// For the boot, and for an emulated machine that lags behind.
const MARGIN: Duration = Duration::from_mins(5);

/// `cargo xtask soak`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kernel line
    #[arg(long, value_name = "VERSION", default_value = "6.12")]
    kernel: String,
    /// How long, from a second
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    duration: Duration,
    #[command(flatten)]
    origin: Origin,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Gives the exit status of the test.
pub(crate) fn run(args: &Args) -> Result<i32> {
    setup::for_guests()?;
    let kernels = vm::chosen(&args.kernel, &args.origin)?;
    let kernel = kernels.first().context("no kernel named")?;
    say!("building the test");
    let built = build::for_kernels(Some(build::MUSL))?;
    let test = built.iter().find(|built| built.kind == Kind::Test && built.name == TEST);
    let test = test.with_context(|| format!("{} has no test {TEST}", build::REAL_KERNEL_TESTS))?;
    let file = build::stripped(&test.file, &build::target_dir()?.join("stripped"))?;
    let path = format!("/bin/{TEST}");
    let mut env = guest::environment(None);
    env.push((DURATION_VAR.to_owned(), args.duration.as_secs().max(1).to_string()));
    let machine = MachineArgs { stress: true, ..args.machine.clone() };
    let shape = machine.shape(kernel, args.duration + MARGIN)?;
    say!("booting {} ({:?}, {} CPUs)", kernel.release, shape.accel, shape.smp);
    let job = Job { argv: vec![path.clone(), "--nocapture".to_owned()], env, limit_s: 0 };
    let guest = Guest { kernel, shape, files: vec![(file, path)], debian: None, jobs: vec![job] };
    let report = guest.run(&mut vm::pass_through)?;
    report.statuses.first().copied().context("the test did not end")
}
