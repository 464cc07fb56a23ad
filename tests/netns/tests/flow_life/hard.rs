//! The age at which a flow ends although it is used.

use std::time::{Duration, Instant};

use anyhow::ensure;
use netns_tests::{Fabric, Lab, SOON, TestResult, modes, tell};
use upcall_testkit::Hosts;

use super::{counted, frame, ids};

/// Longer than a round of the test takes on a slow machine.
const HARD: Duration = Duration::from_secs(2);

#[test]
fn a_flow_in_use_ends_in_time_and_no_packet_with_it() -> TestResult {
    for mode in modes() {
        let lab = Lab::start(Hosts::new(2)?, |builder| {
            let hard = humantime(HARD);
            builder.dispatch(mode).option("--flow-hard", &hard).option("--sweep-interval", "50ms")
        })?;
        let mut fabric = Fabric::new(&lab.hosts)?;
        let (there, back) = (frame(1, 2), frame(2, 1));
        fabric.reach(0, &there)?;
        // Each installation has an id of its own: when it was first seen, and last.
        let mut seen: Vec<(Vec<Vec<u8>>, Instant, Instant)> = Vec::new();
        let begun = Instant::now();
        while seen.len() < 4 {
            ensure!(begun.elapsed() < 3 * HARD + SOON, "{mode}: {seen:?}\n{}", lab.daemon.log());
            for (from, frame) in [(0, &there), (1, &back)] {
                fabric.send(from, frame)?;
                fabric.wait(from ^ 1, frame)?;
            }
            let (asked, flows) = (Instant::now(), ids(&lab.hosts.switch)?);
            let answered = Instant::now();
            match seen.last_mut().filter(|(known, ..)| *known == flows) {
                Some((_, _, last)) => *last = asked,
                None if flows.len() == 2 => seen.push((flows, answered, asked)),
                None => {}
            }
        }
        let lives: Vec<_> =
            seen.iter().map(|(_, first, last)| last.duration_since(*first)).collect();
        tell(&format!("figures: {mode}: seen to live for {lives:.1?} of {HARD:?}"));
        // A reading that was asked for in time may be answered by what the sweep found just then.
        ensure!(lives.iter().all(|life| *life <= 2 * HARD), "{mode}: {lives:?}");
        ensure!(counted(&lab, "flows_removed_old")? >= 3, "{mode}");
        ensure!(counted(&lab, "flows_removed_idle")? + counted(&lab, "flows_removed_wrong")? == 0);
        let stats = lab.finish_after_races()?;
        ensure!(stats.kernel_lost == 0, "{mode}: {stats:?}");
    }
    Ok(())
}

fn humantime(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}
