//! What systemd does when the daemon is killed, hangs, or cannot start.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use netns_tests::traffic::Traffic;
use netns_tests::{TestResult, tell};

use crate::life::{ROOMY, load};
use crate::outside_guests;
use crate::unit::{NAME, Service, configure};

#[test]
fn a_kill_costs_what_was_in_flight_which_is_counted() -> TestResult {
    if outside_guests("a_kill_costs_what_was_in_flight_which_is_counted") {
        return Ok(());
    }
    let service = Service::start(ROOMY, "")?;
    let traffic = Traffic::start(service.hosts, load(&service)?)?;
    traffic.wait(5)?;
    service.replaced_after("KILL")?;
    ensure!(traffic.goes_on(), "the traffic ended before the kill");
    let totals = traffic.finish()?;
    let stats = service.ctl("stats/show")?;
    let told = stats["counters"]["crash_lost"].as_u64().with_context(|| stats.to_string())?;
    tell(&format!("figures: kill -9 under traffic: {totals:?}, told {told}"));
    ensure!(
        totals.lost <= told && totals.duplicates == 0,
        "{totals:?}, told {told}\n{}",
        service.state()
    );
    let datapath = service.datapath()?.context("no datapath")?;
    ensure!(datapath.stats.lost == 0, "{datapath:?}");
    ensure!(service.log().contains("inherited sockets read empty"), "{}", service.log());
    Ok(())
}

/// How long the daemon may be silent here; it speaks twice as often, on however busy a machine.
const WATCHDOG: &str = "WatchdogSec=5s\n";

#[test]
fn one_that_hangs_is_replaced() -> TestResult {
    if outside_guests("one_that_hangs_is_replaced") {
        return Ok(());
    }
    let service = Service::start("", WATCHDOG)?;
    let (pid, index) = (service.pid()?, service.datapath()?.context("no datapath")?.ifindex);
    let stopped = Instant::now();
    service.replaced_after("STOP")?;
    tell(&format!("figures: one that hung was replaced after {:.1?}", stopped.elapsed()));
    let log = service.log();
    ensure!(log.contains("Watchdog timeout") && log.contains("result 'watchdog'"), "{log}");
    let datapath = service.datapath()?.context("no datapath")?;
    ensure!(service.pid()? != pid && datapath.ifindex == index, "{}", service.state());
    service.ensure_switches()
}

#[test]
fn one_that_cannot_start_says_why_and_is_not_tried_again() -> TestResult {
    if outside_guests("one_that_cannot_start_says_why_and_is_not_tried_again") {
        return Ok(());
    }
    let service = Service::prepare("flow_maximum = 7\n", "")?;
    ensure!(service.systemctl(&["start", NAME]).is_err(), "{}", service.state());
    ensure!(service.property("ActiveState")? == "failed", "{}", service.state());
    ensure!(service.property("NRestarts")? == "0" && service.property("ExecMainStatus")? == "3");
    let log = service.log();
    ensure!(log.contains("/etc/upcalld.toml") && log.contains("flow_maximum"), "{log}");
    ensure!(service.datapath()?.is_none());
    // It is a matter of the file alone.
    configure(&["p0", "p1"], "")?;
    service.systemctl(&["start", NAME]).with_context(|| service.state())?;
    service.ensure_switches()
}
