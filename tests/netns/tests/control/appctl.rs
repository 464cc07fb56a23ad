//! The peer's client: it and ours get the same answers, and they agree with the peer's own tools.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, ctl, skip_ok};
use upcall_testkit::Hosts;
use upcall_testkit::daemon::Signal;

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

/// The peer's client finds a daemon by its name: it reads `$OVS_RUNDIR/NAME.pid` and believes it if the
/// process that it names holds a lock of `fcntl` on it.
#[test]
fn it_finds_the_daemon_by_its_name() -> TestResult {
    if lacks_programs("it_finds_the_daemon_by_its_name") {
        return Ok(());
    }
    let rundir = tempfile::tempdir()?;
    let pidfile = rundir.path().join("upcalld.pid").display().to_string();
    let by_name = |command: &str| -> Result<Output> {
        let mut client = Command::new("ovs-appctl");
        client.env("OVS_RUNDIR", rundir.path()).args(["-t", "upcalld", command]);
        client.stdin(Stdio::null()).output().context("cannot run ovs-appctl")
    };
    let start = || Lab::start(Hosts::new(2)?, |builder| builder.option("--pidfile", &pidfile));
    let killed = start()?;
    for command in ["version", "dpif/show"] {
        let (found, ours) = (by_name(command)?, ctl(&killed, &[command])?);
        ensure!(found.status.success() && found.stderr.is_empty(), "{found:?}");
        ensure!(String::from_utf8(found.stdout)? == ours, "{command}: {ours}");
    }
    // One that was killed leaves the file and holds no lock any more: it is not believed.
    killed.daemon.signal(Signal::KILL)?;
    let Lab { hosts, daemon } = killed;
    daemon.wait_exit(SOON)?;
    drop(hosts);
    let (stale, said) = (std::fs::read_to_string(&pidfile)?, by_name("version")?);
    ensure!(!stale.is_empty() && !said.status.success(), "{said:?}");
    // The next one takes the file over.
    let lab = start()?;
    let found = by_name("version")?;
    ensure!(found.status.success(), "{found:?}");
    lab.finish()?;
    let gone = by_name("version")?;
    let said = String::from_utf8_lossy(&gone.stderr).into_owned();
    ensure!(!gone.status.success() && said.contains("upcalld.pid"), "{said}");
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
    let agreed = flows_agree(&lab, &[], &[])?;
    ensure!(agreed.len() >= 2, "{agreed:#?}");
    lab.finish_after_races()?;
    Ok(())
}

/// What both sides say of the same flows, with these options and this filter.
fn flows_agree(lab: &Lab, options: &[&str], filter: &[&str]) -> Result<Vec<String>> {
    // `used` goes on.
    let lines = |text: &str| {
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
    let ours = [&["dpctl/dump-flows"], options, filter].concat();
    let theirs = [options, &["dump-flows", DATAPATH], filter].concat();
    wait_agreed(|| {
        let ours = lines(&clean(lab, "ovs-appctl", &ours)?);
        Ok((ours, lines(&clean(lab, "ovs-dpctl", &theirs)?)))
    })
}

#[test]
fn flows_are_shown_and_chosen_as_by_the_peers_tool() -> TestResult {
    if lacks_programs("flows_are_shown_and_chosen_as_by_the_peers_tool") {
        return Ok(());
    }
    let lab = busy_lab()?;
    for options in [&["-m"][..], &["--names"], &["-m", "--no-names"]] {
        let agreed = flows_agree(&lab, options, &[])?;
        ensure!(agreed.len() >= 2, "{options:?}: {agreed:#?}");
        let named = options != ["-m", "--no-names"];
        ensure!(agreed.iter().all(|line| line.contains("in_port(p") == named), "{agreed:#?}");
        ensure!(
            agreed.iter().all(|line| line.contains("skb_mark(0/0)") == (options != ["--names"]))
        );
    }
    let (mac, ip) = (lab.hosts[0].mac, lab.hosts[1].ip4);
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    for (filter, some) in [
        ("in_port=1".to_owned(), true),
        ("in_port=7".to_owned(), false),
        (format!("dl_src={mac}"), true),
        ("dl_src=02:ee:00:00:00:00".to_owned(), false),
        (format!("ip,nw_dst={ip}"), true),
        ("icmp".to_owned(), true),
        ("tcp6".to_owned(), false),
        ("dl_vlan=5".to_owned(), false),
    ] {
        let agreed = flows_agree(&lab, &[], &[&format!("filter={filter}")])?;
        ensure!(agreed.is_empty() != some, "{filter}: {agreed:#?}");
    }
    ensure!(ctl(&lab, &["dpctl/dump-flows", "type=ovs"])?.lines().count() >= 2);
    ensure!(ctl(&lab, &["dpctl/dump-flows", "type=offloaded"])?.is_empty());
    lab.finish_after_races()?;
    Ok(())
}
