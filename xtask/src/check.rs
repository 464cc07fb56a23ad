//! `cargo xtask check`: what needs no privileges and no kernel, the cheapest first.

use crate::cmd::{self, say};
use crate::tidy;
use anyhow::{Result, bail};
use std::process::Command;

pub(crate) fn run() -> Result<i32> {
    step("fmt", cmd::cargo().args(["fmt", "--all", "--check"]))?;
    say!("check: tidy");
    if tidy::run()? != 0 {
        bail!("tidy has findings");
    }
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    step("clippy", cmd::cargo().args(clippy))?;
    let doc = ["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"];
    step("doc", cmd::cargo().args(doc).env("RUSTDOCFLAGS", "-D warnings"))?;
    if cmd::find("cargo-deny").is_some() {
        step("deny", cmd::cargo().args(["deny", "--all-features", "check"]))?;
    } else {
        say!("check: cargo-deny is not installed, licences and bans are not checked here");
    }
    say!("check: all in order");
    Ok(0)
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    say!("check: {name}");
    cmd::run(command)
}
