//! A station is where it was heard last, whichever worker reads first.

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, ctl_json, has_per_cpu, skip_ok};
use ovs_features::cpu;
use rustix::process::{Pid, Signal, kill_process};
use upcall_testkit::RawSocket;
use upcall_testkit::topology::HOST_LINK;

use super::{BROADCAST, Packet, lab, mac};

const NAME: &str = "a_station_that_moved_is_where_it_was_heard_last";
/// Readers race: one time alone would tell nothing.
const TIMES: u32 = 24;
/// The host that hears what the station says at two others.
const EAR: usize = 2;

fn stop_and_go(lab: &Lab, signal: Signal) -> TestResult {
    let pid = Pid::from_raw(lab.daemon.pid().cast_signed()).context("no process")?;
    Ok(kill_process(pid, signal)?)
}

/// The port at which the switch knows the only station there is.
fn known_at(lab: &Lab) -> Result<Option<u64>> {
    let known = ctl_json(lab, "fdb/show")?[DATAPATH].clone();
    let wanted = mac(0).map(|byte| format!("{byte:02x}")).join(":");
    let all = known.as_array().context("no list")?;
    let found = all.iter().find(|station| station["mac"] == wanted);
    Ok(found.and_then(|station| station["port"].as_u64()))
}

/// The station speaks at one port and then at another, each from a CPU of its own, before anybody reads.
fn speak(lab: &Lab, ends: &[RawSocket], turn: u32) -> Result<[Packet; 2]> {
    let said =
        [2 * turn, 2 * turn + 1].map(|number| Packet { from: mac(0), to: BROADCAST, number });
    stop_and_go(lab, Signal::STOP)?;
    for (host, packet) in said.iter().enumerate() {
        // Now the one CPU is first and now the other.
        cpu::pin_to((host + turn as usize) % 2)?;
        ends[host].send(&packet.bytes(None))?;
    }
    stop_and_go(lab, Signal::CONT)?;
    Ok(said)
}

#[test]
fn a_station_that_moved_is_where_it_was_heard_last() -> TestResult {
    if !has_per_cpu() {
        skip_ok(NAME, "this kernel dispatches by port alone (before 5.15)");
        return Ok(());
    }
    let lab = lab(EAR + 1, "", |builder| builder.dispatch("per-cpu"))?;
    let open = |host: &upcall_testkit::Host| RawSocket::open(&host.ns, HOST_LINK);
    let mut ends = lab.hosts.iter().map(open).collect::<upcall_testkit::Result<Vec<_>>>()?;
    for turn in 0..TIMES {
        let mut said = speak(&lab, &ends, turn)?.map(|packet| packet.bytes(None)).to_vec();
        ends[EAR].receive_matching("what the station said", SOON, |got| {
            said.retain(|bytes| bytes != got);
            said.is_empty()
        })?;
        // What is sent was decided, and so learned, before.
        let at = known_at(&lab)?;
        ensure!(at == Some(2), "turn {turn}: it is known at {at:?}, and was at port 2 last");
    }
    lab.finish_after_races()?;
    Ok(())
}
