//! A quota that is set by hand for one port, while packets flow: until the file is read again.

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::traffic::{Load, Traffic, ensure_all, last_cpu};
use netns_tests::{SOON, TestResult};
use upcall_testkit::{Hosts, PingPlan, PingReport, ping};

use crate::Configured;

const FILE: &str = "ports = ['p0', 'p1', 'p2']\ninstall = 'never'\nmiss_rate = '900000'\n";
const PINGS: u32 = 30;

fn pings(configured: &Configured, from: usize, to: usize) -> Result<PingReport> {
    pings_within(SOON, configured, from, to)
}

fn pings_within(
    timeout: Duration,
    configured: &Configured,
    from: usize,
    to: usize,
) -> Result<PingReport> {
    let hosts = &configured.lab.hosts;
    let interval = Duration::from_millis(5);
    let plan = PingPlan { count: PINGS as u16, interval, timeout };
    Ok(ping::ping(&hosts[from].ns, hosts[to].ip4, &plan)?)
}

#[test]
fn a_quota_bounds_one_port_and_a_reload_puts_the_file_back() -> TestResult {
    let configured = Configured::start(Hosts::new(3)?, FILE, |builder| builder)?;
    let ask = |words: &[&str]| configured.ask(words);
    ensure!(pings(&configured, 0, 1)?.answered == PINGS);
    ensure!(pings(&configured, 2, 1)?.answered == PINGS);
    let said = ask(&["port/quota", "p0", "miss", "1:3"])?;
    ensure!(said.starts_with("p0: all no limit, miss 1:3, "), "{said}");
    let bounded = pings_within(Duration::from_secs(1), &configured, 0, 1)?;
    ensure!(bounded.answered < 10, "three at once, one a second: {bounded:?}");
    let other = pings(&configured, 2, 1)?;
    ensure!(other.answered == PINGS, "another port: {other:?}");
    ask(&["port/quota", "p2", "waiting", "0"])?;
    let shown = ask(&["port/quota"])?;
    for line in [
        "  miss     900000:90000\n",
        "p0 by hand: all no limit, miss 1:3, action no limit, sample no limit, waiting no limit\n",
        "p2 by hand: all no limit, miss 900000:90000, action no limit, sample no limit, waiting 0\n",
    ] {
        ensure!(shown.contains(line), "no {line} in {shown}");
    }
    let refused = configured.ctl(&["port/quota", "p7", "5"])?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(2) && why.contains("there are dp0, p0, p1, p2"), "{why}");
    let answer = configured.reload(FILE)?;
    ensure!(answer == "quotas of ports set by hand: 2 -> none\n", "{answer}");
    ensure!(!ask(&["port/quota"])?.contains("by hand"));
    ensure!(pings(&configured, 0, 1)?.answered == PINGS);
    let stats = configured.lab.finish_after_races()?;
    ensure!(stats.shed_ports.iter().all(|port| port.port == Some(1)), "{stats:?}");
    Ok(())
}

#[test]
fn a_quota_that_is_set_and_lifted_under_load_loses_nothing() -> TestResult {
    let configured = Configured::start(Hosts::new(3)?, FILE, |builder| builder)?;
    let cpu = Some(last_cpu()?);
    let load = Load { flows: 2000, packets_per_flow: 3, flows_per_second: 500, cpu };
    let traffic = Traffic::start(&configured.lab.hosts, load)?;
    let mut set = 0;
    while traffic.goes_on() {
        for quota in [&["p0", "miss", "1000000"][..], &["p0", "none"], &["p1", "waiting", "4000"]] {
            configured.ask(&[&["port/quota"], quota].concat())?;
            set += 1;
        }
    }
    ensure!(set >= 3, "{set} quotas set under load");
    ensure_all(&traffic.finish()?)?;
    let stats = configured.lab.finish_after_races()?;
    ensure!(stats.kernel_lost == 0 && stats.shed == 0, "{stats:?}");
    Ok(())
}
