//! `upcalld dispatch-mode`: what it says of each datapath holds, down to the thread that reads.
#![allow(missing_docs, reason = "a test binary")]

use std::fs;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, modes, station};
use ovs_datapath::Control;
use ovs_features::cpu;
use ovs_wire::datapath::UserFeatures;
use serde_json::Value;
use upcall_testkit::daemon::UPCALLD_BIN;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, NetNs, RawSocket, raw::ETHERTYPE_EXPERIMENTAL, wait_until};

fn ask(ns: &NetNs, arguments: &[&str]) -> Result<Output> {
    let program = std::env::var_os(UPCALLD_BIN).context("no UPCALLD_BIN")?;
    let mut command = Command::new(program);
    command.arg("dispatch-mode").args(arguments).stdin(Stdio::null());
    Ok(ns.run(|| command.output())??)
}

fn ask_json(ns: &NetNs) -> Result<Value> {
    let output = ask(ns, &["--json"])?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The thread of a process that bears this name.
fn thread(pid: u32, name: &str) -> Result<String> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path().display().to_string();
        if fs::read_to_string(format!("{path}/comm"))?.trim() == name {
            return Ok(path);
        }
    }
    anyhow::bail!("process {pid} has no thread '{name}'")
}

/// How often a thread went to sleep: it does so behind every wake-up.
fn sleeps(thread: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("{thread}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(line.context("no such line")?.trim().parse()?)
}

/// Does sending wake the thread that `target` names?
fn wakes(lab: &Lab, target: &Value, mut send: impl FnMut() -> Result<()>) -> TestResult {
    ensure!(target["pid"] == lab.daemon.pid() && target["alive"] == true, "{target}");
    let name = target["worker"].as_str().with_context(|| format!("no worker: {target}"))?;
    let reader = thread(lab.daemon.pid(), name)?;
    let before = sleeps(&reader)?;
    send()?;
    wait_until(name, SOON, || sleeps(&reader).is_ok_and(|now| now > before))?;
    Ok(())
}

fn frame(number: u8) -> Vec<u8> {
    Frame::new(station(1), station(number)).raw(ETHERTYPE_EXPERIMENTAL, &[number; 46])
}

#[test]
fn each_cpu_or_port_leads_to_the_thread_that_reads_it() -> TestResult {
    for mode in modes() {
        let lab = Lab::start(Hosts::new(2)?, |builder| {
            builder.dispatch(mode).install("never").option("--workers", "3")
        })?;
        let told = ask_json(&lab.hosts.switch)?;
        let dp = &told["datapaths"][0];
        ensure!(dp["name"] == DATAPATH && dp["dispatch_mode"] == *mode, "{told}");
        let stats = lab.daemon.wait_stats("counters", SOON, |_| true)?;
        ensure!(dp["reason"] == stats.reason && !stats.reason.is_empty(), "{told}");
        ensure!(dp["table_in_force"] == (*mode == "per-cpu"), "{told}");
        let link = RawSocket::open(&lab.hosts[0].ns, HOST_LINK)?;
        if *mode == "per-cpu" {
            let entries = dp["table"].as_array().context("no table")?;
            ensure!(entries.len() == cpu::table_len()? && dp["sockets"] == entries.len(), "{told}");
            for cpu in cpu::usable()? {
                cpu::pin_to(cpu)?;
                wakes(&lab, &entries[cpu], || Ok(link.send(&frame(cpu as u8))?))?;
            }
        } else {
            let ports = dp["ports"].as_array().context("no ports")?;
            ensure!(ports.len() == 3 && dp["sockets"] == 3, "{told}");
            let port = ports.iter().find(|port| port["name"] == lab.hosts[0].port.as_str());
            let port = port.with_context(|| format!("{told}"))?;
            wakes(&lab, &port["targets"][0], || Ok(link.send(&frame(1))?))?;
        }
        let text = ask(&lab.hosts.switch, &["--datapath", DATAPATH])?;
        let text = String::from_utf8(text.stdout)?;
        ensure!(text.contains(" -> upcall-") && text.contains("because"), "{text}");
        lab.finish_after_races()?;
    }
    Ok(())
}

#[test]
fn what_nobody_tells_is_not_invented() -> TestResult {
    let ns = NetNs::new("nobody")?;
    let none = ask_json(&ns)?;
    ensure!(none["datapaths"].as_array().is_some_and(Vec::is_empty), "{none}");
    ns.block_on(async || {
        let control = Control::open().await?;
        control.create_datapath("dp9", UserFeatures::UNALIGNED).await?;
        anyhow::Ok(())
    })??;
    let told = ask_json(&ns)?;
    let dp = &told["datapaths"][0];
    ensure!(dp["name"] == "dp9" && dp["dispatch_mode"] == "per-vport", "{told}");
    ensure!(dp["reason"].is_null() && dp["unknown_because"] == "nobody known serves it", "{told}");
    ensure!(dp["ports"][0]["targets"][0]["worker"].is_null(), "{told}");
    let absent = ask(&ns, &["--datapath", "dp8"])?;
    ensure!(absent.status.code() == Some(1), "{absent:?}");
    ensure!(String::from_utf8(absent.stderr)?.contains("no datapath 'dp8'"));
    Ok(())
}

#[test]
fn daemons_of_two_namespaces_are_told_apart() -> TestResult {
    let (one, other) = (
        Lab::start(Hosts::new(2)?, |builder| builder.option("--workers", "1"))?,
        Lab::start(Hosts::new(2)?, |builder| builder.option("--workers", "2"))?,
    );
    for lab in [one, other] {
        let told = ask_json(&lab.hosts.switch)?;
        ensure!(told["datapaths"].as_array().is_some_and(|all| all.len() == 1), "{told}");
        let by = &told["datapaths"][0]["served_by"];
        ensure!(by.as_array().is_some_and(|by| by.len() == 1), "{told}");
        ensure!(by[0]["pid"] == lab.daemon.pid(), "{told}");
        lab.finish()?;
    }
    Ok(())
}
