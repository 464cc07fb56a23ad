//! Memory and sockets: what a daemon holds with many ports, with many flows, and on many CPUs.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use upcall_testkit::Hosts;

use crate::bed::Bed;
use crate::contestant::{Contestant, Install};
use crate::generator::Bursts;
use crate::measure::{PAUSE, per};

/// Frames of a burst; the pause behind it is long enough for any contestant.
const BURST: u32 = 64;
/// Flows of the last figure, in whole bursts.
const FLOWS: u32 = 100_000 / BURST * BURST;

/// Hosts at most; further ports have none.
const HOSTS_MAX: usize = 200;

/// Resident memory and sockets with `ports` ports.
pub(crate) fn ports(contestant: Contestant, ports: usize) -> Result<Value> {
    let hosts = ports.min(HOSTS_MAX);
    let bed = Bed::with_ports(contestant, Install::Never, hosts, ports - hosts)?;
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

/// How long the daemon takes from its start until it serves two ports, on a machine of `cpus` CPUs, and
/// what it holds then.
pub(crate) fn start_up(contestant: Contestant, cpus: usize) -> Result<Value> {
    let there = std::thread::available_parallelism()?.get();
    ensure!(there == cpus, "this machine has {there} CPUs, not {cpus}");
    let hosts = Hosts::new(2)?;
    let begun = Instant::now();
    let running = contestant.start(&hosts, &[], Install::Never)?;
    let took_ms = begun.elapsed().as_secs_f64() * 1000.0;
    let pid = running.pid();
    let figures = json!({
        "start_ms": took_ms,
        "sockets": sockets(pid)?,
        "resident_mb": resident_mb(pid)?,
    });
    running.stop()?;
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
