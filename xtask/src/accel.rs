//! What executes a guest: hardware only where a start-up check has seen it work.

use crate::cache;
use crate::cmd::{self, say};
use crate::guest::{Guest, Shape};
use crate::kernels::Kernel;
use crate::qemu::{self, Accel};
use anyhow::Result;
use std::fs::{self, OpenOptions};
use std::process::Command;
use std::time::Duration;

/// A kernel under hardware virtualisation boots in a second; one that cannot hangs for ever.
const TRIAL: Duration = Duration::from_secs(15);

/// The user's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// Hardware where it works, else emulation
    Auto,
    /// Emulation
    Tcg,
    /// Hardware
    Kvm,
    /// Emulation whose clock counts instructions, all CPUs in turn: times do not depend on the host
    Instructions,
}

pub(crate) fn choose(choice: Choice, stress: bool, kernel: &Kernel) -> Result<Accel> {
    let tcg = if stress { Accel::TcgMulti } else { Accel::TcgSingle };
    Ok(match choice {
        Choice::Auto if !stress && hardware_works(kernel)? => Accel::Kvm,
        Choice::Kvm => Accel::Kvm,
        Choice::Instructions => Accel::Instructions,
        Choice::Auto | Choice::Tcg => tcg,
    })
}

/// A device file says nothing: nested or filtered virtualisation may offer it and not run a stock
/// kernel. The answer is kept for this host kernel, CPU and QEMU.
fn hardware_works(kernel: &Kernel) -> Result<bool> {
    if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    let verdict = cache::root()?.join("hardware");
    let host = host_identity()?;
    let known = fs::read_to_string(&verdict).unwrap_or_default();
    if let Some((answer, of)) = known.split_once('\n')
        && of == host
    {
        return Ok(answer == "works");
    }
    say!("/dev/kvm is here: trying to boot {} with it", kernel.release);
    let shape =
        Shape { smp: 1, memory_mb: 512, accel: Accel::Kvm, limit: TRIAL, append: String::new() };
    let guest = Guest { kernel, shape, files: Vec::new(), debian: None, jobs: Vec::new() };
    let works = guest.run(&mut |_| {}).is_ok();
    let answer = if works { "works" } else { "fails" };
    say!("hardware virtualisation {answer} here (kept in {})", verdict.display());
    cache::write_file(&verdict, format!("{answer}\n{host}").as_bytes())?;
    Ok(works)
}

fn host_identity() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpus.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    let version = cmd::output(Command::new(qemu::PROGRAM).arg("--version"))?;
    Ok(format!("{}\n{cpu}\n{}", release.trim(), version.lines().next().unwrap_or_default()))
}
