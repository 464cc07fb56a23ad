//! What a machine must have before a guest can boot, and how it gets it.
//!
//! As root it installs; otherwise it names the exact command and stops. It never installs what is
//! there already, and nothing but what is named here.

use crate::cmd::{self, say};
use crate::kernels::{self, Origin};
use crate::{build, debian, qemu};
use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use std::process::Command;

/// `cargo xtask setup`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kernel lines to have ready: 5.10,6.1,6.12,7 or `all`
    #[arg(long, value_name = "LIST", default_value = "all")]
    kernel: String,
    /// Ask the archive for newer kernels even where one is cached
    #[arg(long)]
    refresh: bool,
    #[command(flatten)]
    origin: Origin,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    musl_target()?;
    emulator()?;
    cxx_compiler()?;
    for line in kernels::parse_lines(&args.kernel).map_err(anyhow::Error::msg)? {
        let kernel = if args.refresh {
            kernels::fetch(line, &args.origin)
        } else {
            kernels::get(line, &args.origin)
        }?;
        let modules = kernel.load_order()?.len();
        say!("kernel {line}: {} with {modules} modules is ready", kernel.release);
    }
    for choice in debian::Choice::value_variants() {
        choice.archive(&args.origin)?;
    }
    Ok(())
}

/// What every guest needs, kernels apart.
pub(crate) fn for_guests() -> Result<()> {
    musl_target()?;
    emulator()
}

/// The Rust target of everything that runs in a guest: static, so a guest needs no libc.
fn musl_target() -> Result<()> {
    let libdir = Command::new(build::rustc())
        .args(["--print", "target-libdir", "--target", build::MUSL])
        .output()
        .context("cannot start rustc")?;
    let path = String::from_utf8_lossy(&libdir.stdout).trim().to_owned();
    if libdir.status.success() && std::path::Path::new(&path).is_dir() {
        return Ok(());
    }
    let advice = format!("rustup target add {}", build::MUSL);
    if cmd::find("rustup").is_none() && std::env::var_os("RUSTUP_HOME").is_none() {
        bail!(
            "the Rust target {} is missing and so is rustup: install the target with the tool \
             your Rust came from, or get rustup and run `{advice}`",
            build::MUSL
        );
    }
    say!("{advice}");
    cmd::run(Command::new("rustup").args(["target", "add", build::MUSL]))
        .with_context(|| format!("run `{advice}` by hand to see more"))
}

fn emulator() -> Result<()> {
    need_package(qemu::PROGRAM, "qemu-system-x86")
}

/// libFuzzer is C++; `cargo xtask fuzz` needs it, nothing else does.
pub(crate) fn cxx_compiler() -> Result<()> {
    if cmd::find("c++").is_some() || cmd::find("clang++").is_some() {
        return Ok(());
    }
    need_package("c++", "g++")
}

/// Programs of a Debian base system, which nothing here could install.
pub(crate) fn need_programs(programs: &[&str]) -> Result<()> {
    for program in programs {
        if cmd::find(program).is_none() {
            bail!(
                "{program} is missing: kernels come through apt. Run this on Debian or a \
                 derivative, or give your own kernel with --kernel-dir"
            );
        }
    }
    Ok(())
}

fn need_package(program: &str, package: &str) -> Result<()> {
    if cmd::find(program).is_some() {
        return Ok(());
    }
    let install = ["apt-get", "install", "-y", "--no-install-recommends", package];
    let advice = install.join(" ");
    if cmd::find("apt-get").is_none() {
        bail!("{program} is missing: install it with this system's package manager");
    }
    if !cmd::is_root() {
        bail!("{program} is missing. Install it with:\n    sudo {advice}");
    }
    say!("{program} is missing: {advice}");
    let install = || {
        let mut command = Command::new(install[0]);
        command.args(["-q"]).args(&install[1..]).env("DEBIAN_FRONTEND", "noninteractive");
        cmd::output(&mut command)
    };
    if install().is_err() {
        // The package lists may be older than the archive, or not there at all.
        say!("apt-get update, and once more");
        cmd::output(Command::new("apt-get").args(["-q", "update"]))?;
        install().with_context(|| format!("cannot install {package}"))?;
    }
    Ok(())
}
