//! The demo: hosts in network namespaces, upcalld between them, traffic in all directions, and a
//! report of what came of it that a person and a program can read.
//! It refuses to print a number that was not measured: they come from upcalld's last statistics and
//! from the tallies of the receivers.

mod flood;
mod live;
mod load;
mod picture;
mod report;
mod scenario;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use live::Live;
use report::Report;

/// Watch a real kernel datapath being switched by upcalld.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The upcalld binary
    #[arg(long, env = "UPCALLD_BIN", value_name = "PATH")]
    upcalld: PathBuf,
    /// Hosts around the switch
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=16))]
    hosts: u8,
    /// Seconds of traffic after the pings
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=300))]
    seconds: u16,
    /// Dispatch mode to ask upcalld for: auto, per-cpu or per-vport
    #[arg(long, value_name = "MODE")]
    dispatch: Option<String>,
    /// What upcalld installs: wildcard, exact or never
    #[arg(long, value_name = "WHAT")]
    install: Option<String>,
    /// Vary the traffic, and print the screen of `upcalld top` in it, as SVG, and metrics as they were scraped
    #[arg(long, hide = true)]
    picture: bool,
    /// Print one JSON object as the last line of standard output
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("upcall-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo and prints its report; whether all went well.
fn run(args: &Args) -> Result<bool> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "making network namespaces needs root: run it with sudo"
    );
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(Arc::clone(&stop)).context("cannot watch for signals")?;
    let mut live = Live::new();
    let outcome = scenario::run(args, &stop, &mut live);
    live.end();
    let report = Report::new(args, &outcome?);
    println!("{report}");
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(report.ok)
}

/// Sets `stop` at SIGINT or SIGTERM, so that namespaces, datapath and daemon are cleared away.
fn watch_signals(stop: Arc<AtomicBool>) -> Result<()> {
    use std::sync::atomic::Ordering;
    use tokio::signal::unix::{SignalKind, signal};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(entered);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let (first, second) =
                (std::pin::pin!(interrupt.recv()), std::pin::pin!(terminate.recv()));
            futures::future::select(first, second).await;
            stop.store(true, Ordering::Relaxed);
        });
    })?;
    Ok(())
}
