//! Memory and sockets: what a daemon holds with many ports, and with many flows.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::contestant::{Contestant, Install};
use crate::generator::Bursts;
use crate::measure::{PAUSE, per};

/// Frames of a burst; the pause behind it is long enough for any contestant.
const BURST: u32 = 64;
/// Flows of the last figure, in whole bursts.
const FLOWS: u32 = 100_000 / BURST * BURST;

/// Resident memory and sockets with `ports` ports.
pub(crate) fn ports(contestant: Contestant, ports: usize) -> Result<Value> {
    let bed = Bed::new(contestant, Install::Never, ports)?;
    let pid = bed.running.pid();
    let figures = json!({ "resident_mb": resident_mb(pid)?, "sockets": sockets(pid)? });
    bed.stop()?;
    Ok(figures)
}

/// Resident memory while 100,000 flows are set up: right behind the last one.
pub(crate) fn flows(contestant: Contestant) -> Result<Value> {
    let bed = Bed::new(contestant, Install::Exact, 2)?;
    let before = bed.arrived(1)?;
    let bursts = Bursts { first: 0, count: FLOWS / BURST, frames: BURST, pause: PAUSE };
    bursts.send(&bed)?;
    bed.wait_arrived(1, before, bursts.total())?;
    let figures =
        json!({ "resident_mb": resident_mb(bed.running.pid())?, "flows": bed.kernel()?.flows });
    bed.stop()?;
    Ok(figures)
}

fn resident_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(per(kilobytes.parse()?, 1024))
}

/// Sockets of the process, of whatever family.
fn sockets(pid: u32) -> Result<usize> {
    let is_socket = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().filter(is_socket).count())
}
