//! The daemon: command line, configuration, handlers, reports.
//!
//! It refuses netlink: everything about the kernel goes through the `upcall` crate.

mod cli;
mod config;
mod exit;
mod hand_over;
mod handler;
mod logging;
mod probe;
mod report;
mod run;
mod settings;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let outcome = match cli.command {
        cli::Command::Run(args) => run::run(&args),
        cli::Command::Probe(args) => probe::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("upcalld: {err}");
            err.exit_code()
        }
    }
}
