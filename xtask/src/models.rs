//! `cargo xtask loom | miri`: checkers that need the code compiled in a way of their own, each in a
//! folder of its own below the target folder.

use crate::cmd::{self, say};
use crate::{build, suite};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// The crate whose threads are modelled.
const MODELLED: &str = "upcall-core";
/// The crates that open nothing, so that the interpreter can run them.
const PURE: [&str; 2] = ["ovs-wire", "upcall-core"];

/// Every order of every access between threads, as far as the models go.
pub(crate) fn loom() -> Result<i32> {
    cmd::run(&mut loom_command(&build::target_dir()?))?;
    Ok(0)
}

/// The same, as tests of `cargo xtask test`.
pub(crate) fn loom_cases() -> Result<Vec<crate::libtest::Case>> {
    suite::run_tests_here(&mut loom_command(&build::target_dir()?), "loom::")
}

fn loom_command(target_dir: &Path) -> Command {
    let mut command = cmd::cargo();
    command.args(["test", "--profile", "loom", "--package", MODELLED, "--test", "loom"]);
    command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", target_dir.join("loom"));
    command
}

/// The pure crates under an interpreter that knows undefined behaviour; properties with a few cases.
pub(crate) fn miri() -> Result<i32> {
    let has_it = Command::new("cargo").args(["+nightly", "miri", "--version"]).output();
    if !has_it.is_ok_and(|output| output.status.success()) {
        bail!(
            "there is no miri here: `rustup toolchain install nightly --component miri,rust-src`"
        );
    }
    say!("miri: takes minutes");
    let mut command = Command::new("cargo");
    command.args(["+nightly", "miri", "test"]);
    command.args(PURE.map(|package| format!("--package={package}")));
    command.env("CARGO_TARGET_DIR", build::target_dir()?.join("miri"));
    command.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", "2");
    // Which toolchain runs is said here alone.
    for name in ["RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "CARGO"] {
        command.env_remove(name);
    }
    cmd::run(&mut command)?;
    Ok(0)
}
