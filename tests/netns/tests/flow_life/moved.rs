//! A station moves: its flows go, and no other is looked at.

use anyhow::{Context as _, ensure};
use netns_tests::{Fabric, Lab, SOON, TestResult, modes};
use upcall_testkit::{Hosts, wait_until};

use super::{counted, frame, ids};

/// Sends both ways between station 1 at host 0 and station `to` at `host`, until there are `flows`.
fn talk(lab: &Lab, fabric: &mut Fabric, (host, to): (usize, u8), flows: usize) -> TestResult {
    let talk = |fabric: &mut Fabric| -> TestResult {
        fabric.reach(0, &frame(1, to))?;
        fabric.reach(host, &frame(to, 1))?;
        Ok(())
    };
    let there = || {
        let said = talk(fabric);
        said.is_ok() && ids(&lab.hosts.switch).is_ok_and(|ids| ids.len() >= flows)
    };
    wait_until("the flows", SOON, there).with_context(|| lab.daemon.log())?;
    Ok(())
}

#[test]
fn the_flows_of_a_station_that_moves_go_and_no_other_is_looked_at() -> TestResult {
    for mode in modes() {
        // No sweep but those that are asked for.
        let lab = Lab::start(Hosts::new(3)?, |builder| {
            let builder = builder.dispatch(mode).option("--flow-idle", "1h");
            builder.option("--sweep-interval", "30m").option("--mac-age", "2h")
        })?;
        let mut fabric = Fabric::new(&lab.hosts)?;
        talk(&lab, &mut fabric, (1, 3), 2)?;
        let others = ids(&lab.hosts.switch)?;
        // The first move finds the sweep that looks at all flows once more after the start.
        for (host, whole) in [(2, 1), (1, 0), (2, 0)] {
            talk(&lab, &mut fabric, (3 - host, 2), 4)?;
            let count = |name| counted(&lab, name);
            let before = (count("flows_removed_wrong")?, count("flow_sweeps_whole")?);
            fabric.reach(host, &frame(2, 0xee))?;
            let gone = || count("flows_removed_wrong").is_ok_and(|now| now >= before.0 + 2);
            wait_until("its flows to go", SOON, gone).with_context(|| lab.daemon.log())?;
            let after = (count("flows_removed_wrong")?, count("flow_sweeps_whole")?);
            ensure!(after == (before.0 + 2, before.1 + whole), "{mode}: {before:?}, {after:?}");
            let left = ids(&lab.hosts.switch)?;
            ensure!(others.iter().all(|id| left.contains(id)), "{mode}: a flow of others is gone");
        }
        lab.finish_after_races()?;
    }
    Ok(())
}
