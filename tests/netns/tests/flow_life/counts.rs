//! What flows have counted, when they are gone and come again.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns_tests::{Fabric, Lab, SOON, TestResult, ctl, modes};
use upcall_testkit::{Hosts, wait_until};

use super::{counted, frame};

/// Packets on a flow between two things that happen to it.
const PACKETS: u64 = 20;

/// Packets of the flow that `dpctl/dump-flows` shows from station 1 to station 2.
fn shown(lab: &Lab) -> Result<Option<u64>> {
    let flows = ctl(lab, &["dpctl/dump-flows"])?;
    let is_it = |line: &&str| line.contains("src=02:50:00:00:00:01,dst=02:50:00:00:00:02");
    let Some(line) = flows.lines().find(is_it) else { return Ok(None) };
    let packets = line.split("packets:").nth(1).and_then(|rest| rest.split(',').next());
    Ok(Some(packets.with_context(|| format!("no packets: {line}"))?.parse()?))
}

/// Sends until the flow is there, and then [`PACKETS`] that it takes; gives what the kernel's flows have
/// taken in all.
fn send(lab: &Lab, fabric: &mut Fabric, to: usize) -> Result<u64> {
    let there = frame(1, 2);
    let mut deliver = || -> Result<()> {
        fabric.send(0, &there)?;
        fabric.wait(to, &there)
    };
    wait_until("the flow", SOON, || deliver().is_ok() && matches!(shown(lab), Ok(Some(_))))?;
    let before = kernel_hit(lab)?;
    (0..PACKETS).try_for_each(|_| deliver())?;
    let hit = kernel_hit(lab)?;
    ensure!(hit == before + PACKETS, "{} of {PACKETS} took the flow", hit - before);
    Ok(hit)
}

fn kernel_hit(lab: &Lab) -> Result<u64> {
    counted(lab, "kernel_hit")
}

/// Waits until a counter is more than it was.
fn wait_more(lab: &Lab, name: &str, was: u64) -> TestResult {
    let more = || counted(lab, name).is_ok_and(|now| now > was);
    wait_until(name, SOON, more).with_context(|| lab.daemon.log())
}

#[test]
fn a_flow_that_was_wrong_or_flushed_counts_on_when_it_is_back() -> TestResult {
    for mode in modes() {
        let lab = Lab::start(Hosts::new(3)?, |builder| {
            builder.dispatch(mode).option("--flow-idle", "1h")
        })?;
        let mut fabric = Fabric::new(&lab.hosts)?;
        let told = frame(2, 0xee);
        fabric.reach(1, &told)?;
        let first = send(&lab, &mut fabric, 1)?;
        ensure!(shown(&lab)? == Some(first), "{mode}: nothing but this flow was hit");
        // The station is elsewhere; and there again.
        for host in [2, 1] {
            let wrong = counted(&lab, "flows_removed_wrong")?;
            fabric.reach(host, &told)?;
            wait_more(&lab, "flows_removed_wrong", wrong)?;
            let hit = send(&lab, &mut fabric, host)?;
            ensure!(shown(&lab)? == Some(hit), "{mode}: {:?} of {hit}", shown(&lab)?);
        }
        ctl(&lab, &["fdb/flush"])?;
        fabric.reach(1, &told)?;
        let hit = send(&lab, &mut fabric, 1)?;
        ensure!(shown(&lab)? == Some(hit), "{mode}: {:?} of {hit}", shown(&lab)?);
        ensure!(hit >= 4 * PACKETS && counted(&lab, "flow_counts_forgotten")? == 0, "{mode}");
        lab.finish_after_races()?;
    }
    Ok(())
}

#[test]
fn a_flow_that_idled_out_counts_on_when_it_is_back() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| {
        builder.option("--flow-idle", "2s").option("--sweep-interval", "50ms")
    })?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    fabric.reach(1, &frame(2, 0xee))?;
    let there = frame(1, 2);
    while kernel_hit(&lab)? < PACKETS {
        // Several, because on a slow machine it idles out while its counters are asked for.
        for _ in 0..PACKETS {
            fabric.send(0, &there)?;
            fabric.wait(1, &there)?;
        }
    }
    wait_more(&lab, "flows_removed_idle", 0)?;
    lab.wait_flows("it to idle out", <[_]>::is_empty)?;
    let all_gone =
        || Ok::<_, anyhow::Error>(counted(&lab, "flows_gone_packets")? == kernel_hit(&lab)?);
    wait_until("what it had counted", SOON, || all_gone().unwrap_or(false))?;
    wait_until("it to be back and count on", SOON, || {
        let sent = fabric.send(0, &there).and_then(|()| fabric.wait(1, &there));
        sent.is_ok() && shown(&lab).is_ok_and(|n| n.is_some_and(|n| n >= PACKETS))
    })
    .with_context(|| format!("{:?} of {:?}", shown(&lab), kernel_hit(&lab)))?;
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn what_flows_in_use_had_counted_is_complete_however_often_they_end() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| {
        builder.option("--flow-hard", "200ms").option("--sweep-interval", "20ms")
    })?;
    let mut fabric = Fabric::new(&lab.hosts)?;
    let (there, back) = (frame(1, 2), frame(2, 1));
    fabric.reach(0, &there)?;
    let begun = std::time::Instant::now();
    while counted(&lab, "flows_removed_old")? < 10 {
        ensure!(begun.elapsed() < Duration::from_mins(1), "{}", lab.daemon.log());
        for _ in 0..PACKETS {
            for (from, frame) in [(0, &there), (1, &back)] {
                fabric.send(from, frame)?;
                fabric.wait(from ^ 1, frame)?;
            }
        }
    }
    // Nothing is sent any more, so the last ones end, too.
    lab.wait_flows("the last to end", <[_]>::is_empty)?;
    wait_until("it to be counted", SOON, || {
        let hit = kernel_hit(&lab);
        hit.is_ok_and(|hit| hit > 0 && counted(&lab, "flows_gone_packets").is_ok_and(|n| n == hit))
    })
    .with_context(|| {
        format!("{:?} of {:?}", counted(&lab, "flows_gone_packets"), kernel_hit(&lab))
    })?;
    lab.finish_after_races()?;
    Ok(())
}
