//! What a reload refuses: then nothing is changed, whatever else was to be.

use anyhow::{Result, ensure};
use netns_tests::{SOON, TestResult};
use upcall_testkit::daemon::Signal;
use upcall_testkit::{Hosts, PingPlan, ping, wait_until};

use crate::Configured;

const BEFORE: &str = "ports = ['p0', 'p1']\nflow_max = 1234\n";

/// What can be seen of a configuration.
fn state(configured: &Configured) -> Result<Vec<String>> {
    let show = configured.ask(&["dpctl/show"])?;
    let ports = show.lines().filter(|line| line.contains("port "));
    let mut seen: Vec<String> = ports.map(str::to_owned).collect();
    let flows = configured.ask(&["upcall/show"])?;
    seen.extend(
        flows
            .lines()
            .find(|line| line.contains("limit"))
            .and_then(|l| Some(l.rsplit_once('(')?.1.to_owned())),
    );
    seen.push(configured.ask(&["vlog/list"])?);
    seen.push(configured.ask(&["dpif-netlink/dispatch-mode"])?);
    Ok(seen)
}

#[test]
fn a_reload_that_cannot_be_done_changes_nothing_and_says_why() -> TestResult {
    let configured = Configured::start(Hosts::new(3)?, BEFORE, |builder| builder)?;
    let lab = &configured.lab;
    lab.hosts.switch.links(async |links| {
        links.add_veth(&upcall_testkit::links::Veth::new("other", "far")).await
    })?;
    let before = state(&configured)?;
    let cases = [
        ("ports = ['p0'\nflow_max = 7\n", "missing comma"),
        ("ports = ['p0', 'p1']\nflow_max = 7\nflow_mux = 8\n", "flow_mux"),
        (
            "ports = ['p0', 'p1', 'p2']\nflow_max = 7\nhandler = 'hub'\nlog = 'debug'\n",
            "handler: learning-switch -> hub; restart it",
        ),
        ("ports = ['p0', 'p1', 'p2', 'absent']\nflow_max = 7\n", "no network interface 'absent'"),
        ("ports = ['p0', 'p1', 'p2', 'lo']\nworkers = 1\n", "'lo' cannot be a port"),
        ("ports = ['p0', 'p1', 'p[']\nflow_max = 7\n", "pattern of ports"),
        ("ports = ['p0', 'p1', 'p2']\nplacement = '4000'\n", "4000"),
        ("ports = ['p0', 'p1', 'p2']\nsweep_interval = '1ms'\n", "at least 10ms"),
        ("ports = ['p0', 'p1', 'p2']\nlog = 'loud=very'\n", "does not say what to log"),
    ];
    for (text, why) in cases {
        configured.write(text)?;
        let output = configured.ctl(&["reload"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2) && said.contains(why), "{text}: {output:?}");
        ensure!(state(&configured)? == before, "{text}: it is {:#?}", state(&configured)?);
    }
    let refused = lab.daemon.reloads();
    ensure!(refused == (cases.len() as u64, cases.len() as u64), "{refused:?}");
    let counters = configured.ask(&["coverage/show"])?;
    ensure!(counters.contains("control_reloads_refused"), "{counters}");
    // It goes on, and the next one that is right is applied.
    lab.daemon.signal(Signal::HUP)?;
    lab.daemon.wait_log("configuration not reloaded, nothing has changed", SOON)?;
    wait_until("the signal", SOON, || lab.daemon.reloads().1 > refused.1)?;
    configured.reload("ports = ['p0', 'p1', 'p2']\nflow_max = 7\n")?;
    ensure!(state(&configured)? != before);
    let plan = PingPlan { timeout: SOON, ..PingPlan::default() };
    let report = ping::ping(&lab.hosts[0].ns, lab.hosts[2].ip4, &plan)?;
    ensure!(report.answered == report.sent, "{report:?}");
    configured.lab.finish_after_races()?;
    Ok(())
}
