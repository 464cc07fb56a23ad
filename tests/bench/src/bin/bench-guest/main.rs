//! The benchmark inside the guest: runs the contestants in turn, and prints a line of JSON for each
//! sample. It refuses to judge: ratios, bounds and pages are made by `cargo xtask bench`.

mod bed;
mod contestant;
mod flow_life;
mod generator;
mod load;
mod measure;
mod memory;
mod order;
mod usage;
mod vswitchd;

use anyhow::Result;
use clap::Parser;
use contestant::Contestant;
use measure::Measure;
use serde_json::json;

/// Measures those who answer upcalls, in turn.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    measure: Vec<Measure>,
    /// Who is measured
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    contestant: Vec<Contestant>,
    /// How often each measures each
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: u32,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let cpus = std::thread::available_parallelism()?.get();
    let about = json!({ "peer": vswitchd::Vswitchd::version()?, "cpus": cpus });
    println!("{}", json!({ "about": about }));
    for measure in &args.measure {
        for repetition in 0..args.repeat {
            for contestant in args.contestant.iter().filter(|who| measure.is_of(**who)) {
                let line = json!({
                    "measure": measure.name(),
                    "contestant": contestant.name(),
                    "repetition": repetition,
                    "figures": measure.sample(*contestant)?,
                });
                println!("{line}");
            }
        }
    }
    Ok(())
}
