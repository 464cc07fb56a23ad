//! The peer's client: it and ours get the same answers, and they agree with the peer's own tools.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, ctl, skip_ok};

use super::{busy_lab, wait_agreed};

fn lacks_programs(test: &str) -> bool {
    let there = std::env::var_os("UPCALL_TEST_DEBIAN").is_some();
    if !there {
        skip_ok(test, "no ovs-appctl and ovs-dpctl here (UPCALL_TEST_DEBIAN is not set)");
    }
    !there
}

fn run(lab: &Lab, program: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    if program == "ovs-appctl" {
        command.arg("-t").arg(lab.daemon.control());
    }
    command.args(arguments).stdin(Stdio::null());
    let output = lab.hosts.switch.run(|| command.output())?;
    output.with_context(|| format!("cannot run {program}"))
}

fn clean(lab: &Lab, program: &str, arguments: &[&str]) -> Result<String> {
    let output = run(lab, program, arguments)?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn it_gets_what_our_client_gets() -> TestResult {
    if lacks_programs("it_gets_what_our_client_gets") {
        return Ok(());
    }
    let lab = busy_lab()?;
    // What does not change from one moment to the next.
    for command in
        ["list-commands", "version", "dpif-netlink/dispatch-mode", "vlog/list", "loss/show"]
    {
        let (theirs, ours) = (clean(&lab, "ovs-appctl", &[command])?, ctl(&lab, &[command])?);
        ensure!(theirs == ours && !ours.is_empty(), "{command}: {theirs:?} {ours:?}");
    }
    let every = ["coverage/show", "memory/show", "upcall/show", "fdb/show", "lane/show", "probe"];
    for command in every {
        ensure!(!clean(&lab, "ovs-appctl", &[command])?.is_empty(), "{command}");
    }
    ensure!(clean(&lab, "ovs-appctl", &["vlog/set", "upcall:warn"])?.trim().is_empty());
    let wrong = run(&lab, "ovs-appctl", &["upcall/hide"])?;
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    ensure!(wrong.status.code() == Some(2) && said.contains("is not a valid command"), "{said}");
    let json = clean(&lab, "ovs-appctl", &["--format", "json", "fdb/show"])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    ensure!(json[DATAPATH].as_array().is_some_and(|entries| entries.len() == 2), "{json}");
    ensure!(clean(&lab, "ovs-appctl", &["exit"])?.trim().is_empty());
    let exit = lab.daemon.wait_exit(SOON)?;
    ensure!(exit.status.success(), "{}", exit.log);
    Ok(())
}

/// The lines that tell ports and the names of what is counted.
fn shape(shown: &str) -> Vec<String> {
    let digits =
        |line: &str| line.chars().map(|c| if c.is_ascii_digit() { 'N' } else { c }).collect();
    let unnumbered: Vec<String> = shown.lines().map(digits).collect();
    unnumbered
        .iter()
        .map(|line| line.replace("NN", "N").replace("NN", "N").replace("NN", "N"))
        .collect()
}

#[test]
fn our_forms_are_those_of_the_peers_tools() -> TestResult {
    if lacks_programs("our_forms_are_those_of_the_peers_tools") {
        return Ok(());
    }
    let lab = busy_lab()?;
    let theirs = clean(&lab, "ovs-dpctl", &["show"])?;
    let ours = clean(&lab, "ovs-appctl", &["dpctl/show"])?;
    ensure!(shape(&theirs) == shape(&ours), "theirs:\n{theirs}\nours:\n{ours}");
    // `used` goes on.
    let flows = |text: &str| {
        let mut lines: Vec<_> = text
            .lines()
            .map(|line| {
                let (before, rest) = line.split_once(", used:").unwrap_or((line, ""));
                let (_, after) = rest.split_once(", ").unwrap_or_default();
                format!("{before} {after}")
            })
            .collect();
        lines.sort();
        lines
    };
    let agreed = wait_agreed(|| {
        let ours = flows(&clean(&lab, "ovs-appctl", &["dpctl/dump-flows"])?);
        Ok((ours, flows(&clean(&lab, "ovs-dpctl", &["dump-flows", DATAPATH])?)))
    })?;
    ensure!(agreed.len() >= 2, "{agreed:#?}");
    lab.finish_after_races()?;
    Ok(())
}
