//! `cargo xtask demo`: the main job before your eyes, on a real kernel.

use crate::cmd::say;
use crate::guest::{self, Guest, Shape};
use crate::kernels::{Kernel, Origin};

use crate::vm::{self, MachineArgs};
use crate::{build, host, setup};
use anyhow::{Context, Result};
use guest_init::protocol::{Frame, Job};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PACKAGES: [&str; 2] = ["upcalld", "upcall-testkit"];
const DEMO: &str = "upcall-demo";
const DAEMON: &str = "upcalld";
/// Where the daemon is in a guest.
pub(crate) const GUEST_DAEMON: &str = "/bin/upcalld";

/// `cargo xtask demo`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A kernel line to boot, even where the running kernel has openvswitch; default 6.12
    #[arg(long, value_name = "VERSION")]
    kernel: Option<String>,
    /// Number of hosts on the switch, each in a namespace
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=64))]
    hosts: u32,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
    /// Seconds of traffic
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: Option<u32>,
    /// Stop the machine after this time
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    origin: Origin,
    #[command(flatten)]
    machine: MachineArgs,
}

impl Args {
    fn arguments(&self, daemon: &str) -> Vec<String> {
        let mut list = vec!["--upcalld".into(), daemon.into()];
        list.extend(["--hosts".into(), self.hosts.to_string()]);
        list.extend(self.seconds.iter().flat_map(|s| ["--seconds".into(), s.to_string()]));
        list.extend(self.json.then(|| "--json".into()));
        list
    }
}

pub(crate) fn run(args: &Args) -> Result<i32> {
    let chosen = args.kernel.is_some() || args.origin.kernel_dir.is_some();
    if !chosen && host::can_switch() {
        return here(args);
    }
    if !chosen {
        say!("the running kernel has no openvswitch, or we are not root: booting one that has");
    }
    in_guest(args)
}

fn here(args: &Args) -> Result<i32> {
    let (demo, daemon) = programs(None)?;
    say!("running in namespaces of this machine");
    let mut command = Command::new(demo);
    command.args(args.arguments(&daemon.to_string_lossy())).stdin(Stdio::null());
    let status = command.status().with_context(|| format!("cannot start {DEMO}"))?;
    Ok(status.code().unwrap_or(1))
}

fn in_guest(args: &Args) -> Result<i32> {
    let (kernel, begun) = (args.kernel.as_deref().unwrap_or("6.12"), Instant::now());
    let kernels = vm::chosen(kernel, &args.origin)?;
    let kernel = kernels.first().context("no kernel named")?;
    let shape = args.machine.shape(kernel, args.timeout)?;
    let status = show(kernel, shape, args.arguments(GUEST_DAEMON), &mut vm::pass_through)?;
    say!("done {:.1} s after the start", begun.elapsed().as_secs_f64());
    Ok(status)
}

/// Runs the demo in a machine with this kernel; gives its exit status.
pub(crate) fn show(
    kernel: &Kernel,
    shape: Shape,
    arguments: Vec<String>,
    sink: &mut dyn FnMut(&Frame),
) -> Result<i32> {
    setup::for_guests()?;
    let (demo, daemon) = programs(Some(build::MUSL))?;
    let small = build::target_dir()?.join("stripped");
    let files = vec![
        (build::stripped(&demo, &small)?, format!("/bin/{DEMO}")),
        (build::stripped(&daemon, &small)?, GUEST_DAEMON.to_owned()),
    ];
    let argv = std::iter::once(format!("/bin/{DEMO}")).chain(arguments).collect();
    let job = Job { argv, env: guest::environment(None), limit_s: 0 };
    say!("booting {} in QEMU", kernel.release);
    let guest = Guest { kernel, shape, files, debian: None, jobs: vec![job] };
    let report = guest.run(sink)?;
    report.statuses.first().copied().context("the demo did not end")
}

fn programs(target: Option<&str>) -> Result<(PathBuf, PathBuf)> {
    say!("building {DAEMON} and {DEMO}");
    let built = build::binaries(&PACKAGES, target)?;
    let file = |name: &str| {
        let found = built.iter().find(|program| program.name == name);
        found.map(|program| program.file.clone()).with_context(|| format!("no program {name}"))
    };
    Ok((file(DEMO)?, file(DAEMON)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn arguments_reach_the_demo() {
        let cli = Cli::parse_from(["x", "--hosts", "5", "--json", "--seconds", "3"]);
        let expected = ["--upcalld", "/d", "--hosts", "5", "--seconds", "3", "--json"];
        assert_eq!(cli.args.arguments("/d"), expected);
        assert!(Cli::try_parse_from(["x", "--hosts", "1"]).is_err());
    }
}
