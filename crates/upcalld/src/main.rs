//! The daemon: command line, configuration, handlers, reports.
//!
//! It refuses netlink: everything about the kernel goes through the `upcall` crate.

mod cli;
mod columns;
mod config;
mod control;
mod counting;
mod crash;
mod dispatch_mode;
mod exit;
mod hand_over;
mod handler;
mod logging;
mod metrics;
mod packaging;
mod probe;
mod reload;
mod report;
mod run;
mod settings;
mod target;
mod top;
mod trace;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let outcome = match cli.command {
        cli::Command::Run(args) => run::run(&args),
        cli::Command::Probe(args) => probe::run(&args),
        cli::Command::DispatchMode(args) => dispatch_mode::run(&args),
        cli::Command::Ctl(args) => control::client::run(&args),
        cli::Command::Top(args) => top::run(&args),
        cli::Command::Trace(args) => trace::client::run(&args),
        cli::Command::CheckConfig { file } => config::check::run(&file),
        cli::Command::Man { directory } => packaging::man(&directory),
        cli::Command::Completions { shell } => {
            packaging::completions(shell);
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("upcalld: {err}");
            err.exit_code()
        }
    }
}
