//! Order: how many packets of a flow are overtaken by later ones.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::{Outlet, Pace, Plan, RawFlows, Receiver};

use crate::bed::{Bed, frame_with, set_flow};
use crate::contestant::{Contestant, Install};
use crate::measure::per;

/// Packets of the one flow whose sender hops.
const HOP_PACKETS: u32 = 10_000;
/// Their rate: less than any contestant can do under emulation, so that what is measured is order and
/// not loss.
const HOP_RATE: u32 = 3000;
/// Flows that are set up, and packets of each.
const FLOWS: u32 = 300;
const FLOW_PACKETS: u32 = 20;
/// Packets of a flow that comes before them, and how long later nobody takes its hop for one of theirs.
const WARM_UP: u32 = 100;
const FORGOTTEN: Duration = Duration::from_secs(2);
/// Rate of all flows together where they are paced.
const PACED_RATE: u32 = 4000;
/// What is on its way is there by then.
const SETTLE: Duration = Duration::from_millis(500);

/// A sender that moves to the next CPU every `every` packets, of one flow that is never installed.
pub(crate) fn hopping(contestant: Contestant, every: u32) -> Result<Value> {
    let cpus: Vec<usize> = (0..std::thread::available_parallelism()?.get()).collect();
    ensure!(cpus.len() > 1, "a sender can only hop between CPUs: there is one");
    let plan = Plan {
        cpus,
        hop_every: every,
        pace: Pace::PerSecond(HOP_RATE),
        ..Plan::new(1, HOP_PACKETS)
    };
    run(contestant, Install::Never, &plan)
}

/// Flows of 20 packets each, installed: in bursts, or at a pace.
pub(crate) fn set_up(contestant: Contestant, paced: bool) -> Result<Value> {
    let pace = if paced { Pace::PerSecond(PACED_RATE) } else { Pace::Burst };
    run(contestant, Install::Exact, &Plan { pace, ..Plan::new(FLOWS, FLOW_PACKETS) })
}

/// A flow from each CPU that stays there, and one that hops once. An emulator translates what has never run: without
/// this the first packets waited for 40 ms, and those of the first hop for 30, while a flow filled all sockets in turn.
fn warm_up(outlet: &mut impl Outlet) -> Result<()> {
    let pace = Pace::PerSecond(HOP_RATE);
    let cpus = std::thread::available_parallelism()?.get();
    let stays = (0..cpus).map(|cpu| (cpu as u32, vec![cpu], 0));
    let hops = (cpus as u32, vec![0, cpus - 1], WARM_UP / 2);
    for (flow, cpus, hop_every) in stays.chain([hops]) {
        let plan = Plan { cpus, hop_every, pace, ..Plan::new(1, WARM_UP) };
        plan.flows_from(FLOWS + flow).send(outlet)?;
    }
    std::thread::sleep(FORGOTTEN);
    Ok(())
}

fn run(contestant: Contestant, install: Install, plan: &Plan) -> Result<Value> {
    let bed = Bed::new(contestant, install, 2)?;
    // What is measured is the order in which packets are sent on, not that in which CPUs deliver.
    bed.hosts[1].ns.receive_on(HOST_LINK, 0)?;
    let mut outlet = RawFlows::new(&bed.links[0], stamped);
    warm_up(&mut outlet)?;
    let before = bed.kernel()?;
    let receiver = Receiver::raw(&bed.hosts[1].ns, HOST_LINK)?;
    let sent = plan.send(&mut outlet)?;
    std::thread::sleep(SETTLE);
    let tally = receiver.stop()?;
    let kernel = bed.kernel()?;
    bed.stop()?;
    let missed = kernel.missed - before.missed;
    ensure!(missed > 0, "nothing came up");
    let (totals, sent) = (tally.totals(), sent.packets);
    Ok(json!({
        "reordered_percent": 100.0 * per(totals.reordered, sent),
        "lost_percent": 100.0 * per(sent - (totals.received - totals.duplicates), sent),
        "duplicates": totals.duplicates,
        "upcalls_per_flow": per(missed, u64::from(plan.flows)),
    }))
}

/// A frame from host 0 of this flow with a stamp in it.
pub(crate) fn stamped(flow: u32, payload: &[u8]) -> upcall_testkit::Result<Vec<u8>> {
    let frame = frame_with(0, payload);
    let mut frame = frame.map_err(|error| upcall_testkit::Error::Invalid(error.to_string()))?;
    set_flow(&mut frame, flow);
    Ok(frame)
}
