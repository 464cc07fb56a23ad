//! The one door for people and CI: `cargo xtask setup | vm | test | demo | pictures | bench | soak | fuzz | loom | miri | tidy | check`.
//!
//! It refuses to link any of the product's crates: it builds them, boots kernels around them and
//! reads what they print, so it can never pass because it shares their mistakes.

mod accel;
mod apt;
mod bench;
mod build;
mod cache;
mod check;
mod cmd;
mod console;
mod debian;
mod demo;
mod fuzz;
mod guest;
mod host;
mod image;
mod initramfs;
mod kernels;
mod libtest;
mod lines;
mod models;
mod modules;
mod pictures;
mod qemu;
mod report;
mod setup;
mod soak;
mod sources;
mod suite;
mod tidy;
mod turns;
mod unpack;
mod vm;

use clap::Parser;
use std::process::ExitCode;

/// Builds, boots and tests upcalld.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
enum Xtask {
    /// Gets what the other commands need: a Rust target, QEMU, kernels
    Setup(setup::Args),
    /// Runs a command on real kernels, as a child of PID 1 in an emulated machine
    Vm(vm::Args),
    /// Runs all tests, here and on every kernel; the last line is the sum
    Test(suite::Args),
    /// Shows the learning switch at work on a real kernel
    Demo(demo::Args),
    /// Takes the pictures of the documentation, of the demo on a real kernel
    Pictures(pictures::Args),
    /// Measures upcalld beside ovs-vswitchd and the floor, on one real kernel
    Bench(bench::Args),
    /// Everything at once on a real kernel, for a long time, checked every second
    Soak(soak::Args),
    /// Feeds the parsers with made-up input
    Fuzz(fuzz::Args),
    /// Tries every order in which threads may hand lanes to each other; a minute, most of it building
    Loom,
    /// Runs the tests of the pure crates under miri, which needs a nightly toolchain; takes minutes
    Miri,
    /// Checks the rules of the house: arrows between crates, unsafe, files, the map
    Tidy,
    /// Format, tidy, lints, documentation, licences; needs no privileges
    Check,
}

fn main() -> ExitCode {
    let outcome = match Xtask::parse() {
        Xtask::Setup(args) => setup::run(&args).map(|()| 0),
        Xtask::Vm(args) => vm::run(&args),
        Xtask::Test(args) => suite::run(&args),
        Xtask::Demo(args) => demo::run(&args),
        Xtask::Pictures(args) => pictures::run(&args),
        Xtask::Bench(args) => bench::run(&args),
        Xtask::Soak(args) => soak::run(&args),
        Xtask::Fuzz(args) => fuzz::run(&args),
        Xtask::Loom => models::loom(),
        Xtask::Miri => models::miri(),
        Xtask::Tidy => tidy::run(),
        Xtask::Check => check::run(),
    };
    match outcome {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(e) => {
            cmd::say!("{e:#}");
            ExitCode::FAILURE
        }
    }
}
