//! One port more, where there are many.

use anyhow::{Context as _, Result, ensure};
use netns_tests::traffic::{Load, Traffic, ensure_all};
use netns_tests::{SOON, TestResult, modes, station};
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::{Frame, RawSocket, Stats, Upcalld};

use crate::ladder::{Ladder, device, steps};

/// Packets that the new port sends.
const PACKETS: u64 = 5;

/// Sends from the device of the newest port, which has no other end of a wire: its packets are dropped,
/// and counted.
fn use_newest_port(ladder: &Ladder, daemon: &Upcalld) -> Result<()> {
    let name = device(ladder.ports - 1);
    ladder.hosts.switch.links(async |links| links.up(&name).await)?;
    let from = RawSocket::sender(&ladder.hosts.switch, &name)?;
    let frame = Frame::new(station(1), station(2)).raw(ETHERTYPE_EXPERIMENTAL, &[0; 46]);
    for _ in 0..PACKETS {
        from.send(&frame)?;
    }
    let all = |stats: &Stats| stats.dropped == PACKETS;
    daemon.wait_stats("the upcalls of the new port", SOON, all)?;
    Ok(())
}

#[test]
fn one_more_port_under_load_is_served_and_costs_no_upcall() -> TestResult {
    let mut ladder = Ladder::new()?;
    ladder.grow(steps().last().context("a step")? - 1)?;
    for mode in modes() {
        let daemon = ladder.serve(mode)?;
        // Long and early enough for a machine that takes its time to add a port.
        let load = Load { flows: 1000, ..Load::default() };
        let traffic = Traffic::start(&ladder.hosts, load)?;
        traffic.wait(5)?;
        // A host that asks for its neighbour while no daemon runs loses that one.
        let before = daemon.wait_stats("counters", SOON, |_| true)?.kernel_lost;
        ladder.grow(ladder.ports + 1)?;
        ensure!(traffic.goes_on(), "{mode}: the port came after the load");
        let all = |stats: &Stats| stats.ports == ladder.ports as u64;
        daemon.wait_stats("the new port", SOON, all)?;
        let totals = traffic.finish()?;
        ensure_all(&totals).with_context(|| format!("{mode}\n{}", daemon.log()))?;
        use_newest_port(&ladder, &daemon)?;
        let stats = daemon.stop()?.stats.context("no counters")?;
        ensure!(stats.kernel_lost == before, "{mode}: {stats:?}");
    }
    Ok(())
}
