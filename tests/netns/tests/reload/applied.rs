//! What a reload applies, and that it costs no packet.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_tests::traffic::{Load, Traffic, ensure_all, last_cpu};
use netns_tests::{SOON, TestResult, modes, tell};
use upcall_testkit::daemon::Signal;
use upcall_testkit::{Hosts, PingPlan, ping, wait_until};

use crate::Configured;

/// Room in each socket for all of it, however long a change takes on a busy machine; and every packet comes
/// up.
const ROOMY: &str = "recv_buffer_bytes = 8388608\ninstall = 'never'\n";

/// Configurations that change everything that can be changed, in turn.
const STATES: [&str; 3] = [
    "ports = ['p0', 'p1', 'p2']\nworkers = 2\nflow_max = 150000\nflow_idle = '20s'\nflow_hard = '1h'\n\
     sweep_interval = '300ms'\nstorm_shield = 'off'\nport_rate = '1000000'\nmac_max = 100\n\
     port_queue_max = 4000\nmac_age = '1m'\n",
    "ports = ['p*']\nworkers = 1\nplacement = 'housekeeping'\nmiss_rate = '900000'\n\
     on_deleted = 'recreate'\n",
    "ports = ['p0', 'p1']\n",
];

/// Below that the guest is too slow for the test to say what its name says.
const FLOWS_PER_SECOND_MIN: f64 = 250.0;

/// New flows from one CPU, and a reload that begins in the middle of them.
fn reload_under_load(configured: &Configured, text: &str) -> Result<()> {
    let lab = &configured.lab;
    let cpu = Some(last_cpu()?);
    let load = Load { flows: 3000, packets_per_flow: 3, flows_per_second: 1000, cpu };
    let traffic = Traffic::start(&lab.hosts, load.clone())?;
    traffic.wait(10)?;
    ensure!(traffic.goes_on(), "the traffic ended before the reload");
    let begun = Instant::now();
    let answer = configured.reload(text)?;
    let took = begun.elapsed();
    ensure!(answer.contains("ports: ") && answer.contains("workers: "), "{answer}");
    let (tally, sent) = traffic.finish_whole()?;
    let (totals, rate) = (tally.totals(), f64::from(load.flows) / sent.elapsed.as_secs_f64());
    // It ends when what the old sockets hold is answered, which is much where the guest cannot keep up.
    tell(&format!("figures: a reload of {took:.1?} under {rate:.0} new flows/s: {totals:?}"));
    ensure!(rate > FLOWS_PER_SECOND_MIN, "the guest sent {rate:.0} new flows/s only");
    ensure_all(&totals).with_context(|| lab.daemon.log())?;
    ensure!(totals.reordered == 0, "{totals:?}\n{}", lab.daemon.log());
    Ok(())
}

#[test]
fn a_reload_under_many_new_flows_loses_nothing_and_keeps_the_order() -> TestResult {
    for mode in modes() {
        let text = |state: &str| format!("{ROOMY}dispatch = '{mode}'\n{state}");
        let configured = Configured::start(Hosts::new(3)?, &text(STATES[2]), |builder| builder)?;
        for state in STATES {
            reload_under_load(&configured, &text(state)).context(*mode)?;
        }
        let stats = configured.lab.finish_after_races()?;
        ensure!(stats.kernel_lost == 0, "{mode}: {stats:?}");
    }
    Ok(())
}

#[test]
fn what_is_reloaded_is_in_force_and_the_service_manager_is_told() -> TestResult {
    let configured = Configured::start(Hosts::new(3)?, STATES[2], |builder| builder)?;
    let lab = &configured.lab;
    lab.daemon.wait_stats("the ports", SOON, |stats| stats.ports == 3)?;
    let loud = format!("{}log = 'debug,netlink_proto=warn'\n", STATES[0]);
    configured.write(&loud)?;
    lab.daemon.signal(Signal::HUP)?;
    wait_until("the reload", SOON, || lab.daemon.reloads() == (1, 1))
        .with_context(|| lab.daemon.log())?;
    let line = lab.daemon.wait_log("configuration reloaded", SOON)?;
    for change in [
        "ports: p0,p1 -> p0,p1,p2",
        "workers: unset -> 2",
        "flow_max: 200000 -> 150000",
        "flow_idle: 10s -> 20s",
        "flow_hard: unset -> 1h",
        "storm_shield: on -> off",
        "port_rate: unset -> 1000000:100000",
        "log: unset -> debug,netlink_proto=warn",
    ] {
        ensure!(line.contains(change), "no {change} in {line}");
    }
    lab.daemon.wait_stats("a port and workers", SOON, |stats| {
        stats.ports == 4 && stats.workers == 2.min(stats.sockets)
    })?;
    ensure!(configured.ask(&["upcall/show"])?.contains("(limit 150000)"));
    ensure!(configured.ask(&["vlog/list"])?.contains("upcall             DBG"));
    let plan = PingPlan { timeout: SOON, ..PingPlan::default() };
    let report = ping::ping(&lab.hosts[0].ns, lab.hosts[2].ip4, &plan)?;
    ensure!(report.answered == report.sent, "the new port: {report:?}");
    ensure!(configured.reload(&loud)? == "nothing to change\n");
    // Back again: the port is taken out, and its station forgotten.
    configured.reload(STATES[2])?;
    ensure!(lab.daemon.reloads() == (3, 3), "{:?}", lab.daemon.reloads());
    lab.daemon.wait_stats("one port less", SOON, |stats| stats.ports == 3)?;
    ensure!(!configured.ask(&["dpctl/show"])?.contains("p2"));
    let stats = configured.lab.finish_after_races()?;
    ensure!(stats.ports_vanished == 0, "{stats:?}");
    Ok(())
}

#[test]
fn a_rate_that_is_reloaded_bounds_the_port_and_then_no_longer() -> TestResult {
    let quiet = "ports = ['p0', 'p1']\ninstall = 'never'\n";
    let configured = Configured::start(Hosts::new(2)?, quiet, |builder| builder)?;
    let hosts = &configured.lab.hosts;
    let pings = |timeout| {
        let plan = PingPlan { count: 30, interval: Duration::from_millis(5), timeout };
        Ok::<_, anyhow::Error>(ping::ping(&hosts[0].ns, hosts[1].ip4, &plan)?)
    };
    let all = pings(SOON)?;
    ensure!(all.answered == 30, "{all:?}");
    configured.reload(&format!("{quiet}port_rate = '1:3'\n"))?;
    let bounded = pings(Duration::from_secs(1))?;
    ensure!(bounded.answered < 10, "three at once, one a second: {bounded:?}");
    configured.reload(quiet)?;
    let all = pings(SOON)?;
    ensure!(all.answered == 30, "{all:?}");
    configured.lab.finish_after_races()?;
    Ok(())
}
