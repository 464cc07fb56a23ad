//! The peer's tools on our datapath, and everyday programs through it.
#![allow(missing_docs, reason = "a test binary")]

use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, has_per_cpu, modes, skip_ok};
use ovs_wire::{Actions, FlowKey, text};
use upcall_testkit::{Hosts, NetNs, PingPlan, ping, wait_until};

/// `true`, and reported, where the peer's programs are not there.
fn lacks_programs(test: &str) -> bool {
    let there = std::env::var_os("UPCALL_TEST_DEBIAN").is_some();
    if !there {
        skip_ok(test, "no ovs-dpctl, ping and iperf3 here (UPCALL_TEST_DEBIAN is not set)");
    }
    !there
}

/// Runs a program in a namespace.
fn run(ns: &NetNs, program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    ns.run(|| command.output())?.with_context(|| format!("cannot run {program}"))
}

/// The output of a program that succeeds and complains about nothing.
fn clean(ns: &NetNs, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = run(ns, program, arguments)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && complaint.trim().is_empty(), "{arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// A switch with a flow for each way, of ARP and of IPv4.
fn busy_lab() -> anyhow::Result<Lab> {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder.option("--flow-idle", "1m"))?;
    let report = ping::ping(&lab.hosts[0].ns, lab.hosts[1].ip4, &PingPlan::default())?;
    ensure!(report.answered == report.sent, "{report:?}");
    lab.wait_flows("a flow for each way", |flows| flows.len() >= 2)?;
    Ok(lab)
}

#[test]
fn ovs_dpctl_shows_datapath_and_ports() -> TestResult {
    if lacks_programs("ovs_dpctl_shows_datapath_and_ports") {
        return Ok(());
    }
    let lab = busy_lab()?;
    let shown = clean(&lab.hosts.switch, "ovs-dpctl", &["show"])?;
    ensure!(shown.starts_with("system@dp0:\n"), "{shown}");
    for line in ["port 0: dp0 (internal)", "port 1: p0", "port 2: p1"] {
        ensure!(shown.lines().any(|shown| shown.trim() == line), "no '{line}' in:\n{shown}");
    }
    ensure!(shown.contains("lost:0"), "{shown}");
    // Looking at it does not stop it.
    let report = ping::ping(&lab.hosts[1].ns, lab.hosts[0].ip4, &PingPlan::default())?;
    ensure!(report.answered == report.sent, "{report:?}");
    let stats = lab.finish_after_races()?;
    ensure!((stats.dispatch_mode == "per-cpu") == has_per_cpu(), "{stats:?}");
    Ok(())
}

#[test]
fn ovs_dpctl_and_we_print_the_same_flows() -> TestResult {
    if lacks_programs("ovs_dpctl_and_we_print_the_same_flows") {
        return Ok(());
    }
    let lab = busy_lab()?;
    let dumped = clean(&lab.hosts.switch, "ovs-dpctl", &["dump-flows", DATAPATH])?;
    let mut ours: Vec<_> = lab.flows()?.into_iter().map(|flow| (flow.key, flow.actions)).collect();
    let mut theirs = Vec::new();
    for line in dumped.lines() {
        // KEY, packets:N, bytes:N, used:T, actions:ACTIONS
        let key = line.split(", packets:").next().unwrap_or_default();
        let (_, actions) = line.split_once(", actions:").with_context(|| line.to_owned())?;
        reads_back(key, actions).with_context(|| line.to_owned())?;
        theirs.push((key.to_owned(), actions.to_owned()));
    }
    ours.sort();
    theirs.sort();
    ensure!(ours == theirs, "ours {ours:#?}, theirs {theirs:#?}");
    lab.finish_after_races()?;
    Ok(())
}

/// Our reader takes the peer's text, and our writer gives it back.
fn reads_back(key: &str, actions: &str) -> TestResult {
    let (mut bytes, mut mask, mut list) = (Vec::new(), Vec::new(), Vec::new());
    text::parse_key(key, &mut bytes, &mut mask)?;
    let again = text::format_key(FlowKey::new(&bytes), Some(FlowKey::new(&mask))).to_string();
    ensure!(again == key, "{again}");
    text::parse_actions(actions, &mut list)?;
    let again = text::format_actions(Actions::new(&list)).to_string();
    ensure!(again == actions, "{again}");
    Ok(())
}

#[test]
fn ping_passes() -> TestResult {
    if lacks_programs("ping_passes") {
        return Ok(());
    }
    for mode in modes() {
        let lab = Lab::start(Hosts::new(2)?, |builder| builder.dispatch(mode))?;
        let (ns, to) = (&lab.hosts[0].ns, lab.hosts[1].ip4.to_string());
        let said = clean(ns, "ping", &["-c", "4", "-i", "0.2", "-W", "5", &to])?;
        ensure!(said.contains("4 packets transmitted, 4 received, 0% packet loss"), "{said}");
        lab.finish_after_races()?;
    }
    Ok(())
}

/// A process that is killed with the value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _nobody_to_tell = self.0.wait();
    }
}

#[test]
fn iperf3_passes_both_ways() -> TestResult {
    if lacks_programs("iperf3_passes_both_ways") {
        return Ok(());
    }
    let lab = Lab::start(Hosts::new(2)?, |builder| builder)?;
    let mut command = Command::new("iperf3");
    command.args(["-s"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server(lab.hosts[1].ns.run(|| command.spawn())??);
    let listens = || {
        let read = || std::fs::read_to_string("/proc/thread-self/net/tcp6");
        // 5201, in state LISTEN.
        lab.hosts[1].ns.run(read).is_ok_and(|text| {
            text.is_ok_and(|text| {
                text.lines().any(|line| line.contains(":1451 ") && line.contains(" 0A "))
            })
        })
    };
    wait_until("iperf3 to listen", SOON, listens)?;
    let to = lab.hosts[1].ip4.to_string();
    for direction in [&[][..], &["-R"]] {
        let arguments = [&["-c", &to, "-t", "2", "-J"], direction].concat();
        let report = clean(&lab.hosts[0].ns, "iperf3", &arguments)?;
        let report: serde_json::Value = serde_json::from_str(&report)?;
        let received = &report["end"]["sum_received"]["bytes"];
        ensure!(received.as_f64().is_some_and(|bytes| bytes > 1e6), "{received:?}: {report}");
    }
    drop(server);
    let stats = lab.finish_after_races()?;
    ensure!(stats.kernel_lost == 0, "{stats:?}");
    ensure!(stats.kernel_hit > 10 * stats.kernel_missed, "a flow does the work: {stats:?}");
    Ok(())
}
