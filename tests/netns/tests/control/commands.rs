//! Each command, with our client.

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, ctl, ctl_at, ctl_json, has_per_cpu};
use serde_json::json;
use upcall_testkit::{PingPlan, wait_until};

use super::{busy_lab, pings, wait_agreed};

/// The names that `list-commands` gives.
fn names(lab: &Lab) -> Result<Vec<String>> {
    let text = ctl(lab, &["list-commands"])?;
    let lines = text.strip_prefix("The available commands are:\n").context("no title")?;
    let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
    Ok(lines.lines().filter_map(name).collect())
}

#[test]
fn every_command_that_is_listed_answers_in_both_forms() -> TestResult {
    let lab = busy_lab()?;
    let names = names(&lab)?;
    ensure!(names.len() > 15 && names.is_sorted(), "{names:?}");
    for name in names.iter().filter(|name| {
        !["exit", "set-options", "trace/read", "trace/stop"].contains(&name.as_str())
    }) {
        let text = ctl(&lab, &[name])?;
        ensure!(name == "vlog/set" || !text.is_empty(), "{name} says nothing");
        let value = ctl_json(&lab, name)?;
        ensure!(value.is_object(), "{name}: {value}");
    }
    let wrong = ctl_at(&lab.daemon.control(), &["dpif/shwo"])?;
    let said = String::from_utf8(wrong.stderr)?;
    ensure!(wrong.status.code() == Some(2) && said.contains("not a valid command"), "{said}");
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn the_datapath_is_shown_as_it_is() -> TestResult {
    let lab = busy_lab()?;
    let mode = if has_per_cpu() { "per-cpu" } else { "per-vport" };
    let told = ctl(&lab, &["dpif-netlink/dispatch-mode"])?;
    ensure!(told == format!("{DATAPATH}: {mode} dispatch mode\n"), "{told}");
    let shown = ctl(&lab, &["dpif/show"])?;
    ensure!(shown.starts_with("system@dp0: hit:"), "{shown}");
    for line in ["  dp0:", "    dp0 65534/0: (internal)", "    p0 1/1: (system)"] {
        ensure!(shown.lines().any(|shown| shown == line), "no '{line}' in {shown}");
    }
    let statistics = ctl(&lab, &["dpctl/show", "-s", "system@dp0"])?;
    ensure!(statistics.contains("  port 0: dp0 (internal)\n    RX packets:"), "{statistics}");
    let other = ctl_at(&lab.daemon.control(), &["dpctl/show", "dp9"])?;
    ensure!(other.status.code() == Some(2), "{other:?}");
    let flows = wait_agreed(|| {
        let mut ours =
            ctl(&lab, &["dpctl/dump-flows"])?.lines().map(parts).collect::<Result<Vec<_>>>()?;
        let mut kernels: Vec<_> = lab.flows()?.into_iter().map(|f| (f.key, f.actions)).collect();
        ours.sort();
        kernels.sort();
        Ok((ours, kernels))
    })?;
    ensure!(flows.len() >= 2, "{flows:#?}");
    let upcalls = ctl(&lab, &["upcall/show"])?;
    ensure!(upcalls.starts_with("system@dp0:\n"), "{upcalls}");
    ensure!(upcalls.contains("(limit 200000)\n"), "{upcalls}");
    wait_agreed(|| {
        let upcalls = ctl(&lab, &["upcall/show"])?;
        let current = format!("  flows         : (current {}) (avg ", lab.flows()?.len());
        Ok((upcalls.contains(&current).then_some(current.clone()), Some(current)))
    })?;
    lab.finish_after_races()?;
    Ok(())
}

/// Key and actions of a line of a dump.
fn parts(line: &str) -> Result<(String, String)> {
    let (key, rest) = line.split_once(", packets:").context("no packets")?;
    let (_, actions) = rest.split_once(", actions:").context("no actions")?;
    Ok((key.to_owned(), actions.to_owned()))
}

#[test]
fn addresses_are_shown_and_flushed_with_their_flows() -> TestResult {
    let lab = busy_lab()?;
    let entries = ctl_json(&lab, "fdb/show")?[DATAPATH].clone();
    let entries = entries.as_array().context("no list")?.clone();
    ensure!(entries.len() == 2, "{entries:?}");
    for (port, host) in [(1, 0), (2, 1)] {
        let mac = lab.hosts[host].mac.map(|byte| format!("{byte:02x}")).join(":");
        let wanted = |entry: &serde_json::Value| {
            entry["mac"] == mac.as_str() && entry["port"] == port && entry["vlan"] == 0
        };
        ensure!(entries.iter().any(wanted), "no {mac} at {port}: {entries:?}");
        let text = ctl(&lab, &["fdb/show", DATAPATH])?;
        let line = format!("    {port}     0  {mac}  ");
        ensure!(text.lines().any(|shown| shown.starts_with(&line)), "{text}");
    }
    ensure!(ctl(&lab, &["fdb/flush"])? == "table successfully flushed\n");
    ensure!(ctl_json(&lab, "fdb/show")? == json!({ DATAPATH: [] }));
    ensure!(ctl(&lab, &["dpctl/dump-flows"])?.is_empty());
    pings(&lab, &PingPlan::default())?;
    ensure!(ctl_json(&lab, "fdb/show")?[DATAPATH].as_array().is_some_and(|all| all.len() == 2));
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn counters_are_those_of_the_last_line() -> TestResult {
    let lab = busy_lab()?;
    let losses = ctl_json(&lab, "loss/show")?;
    let of = |name: &str| losses[name].as_u64().with_context(|| format!("no {name}: {losses}"));
    ensure!(of("received")? > 0 && of("received")? == of("completed")? + of("in_flight")?);
    let coverage = ctl(&lab, &["coverage/show"])?;
    let received = coverage.lines().find(|line| line.starts_with("received  "));
    let received = received.with_context(|| format!("no upcall: {coverage}"))?;
    ensure!(received.contains("/sec ") && received.contains("total: "), "{received}");
    ensure!(coverage.trim_end().ends_with("events never hit"), "{coverage}");
    let memory = ctl_json(&lab, "memory/show")?;
    ensure!(memory["macs"] == 2 && memory["ports"] == 3, "{memory}");
    ensure!(memory["resident-kB"].as_u64().is_some_and(|kb| kb > 1000), "{memory}");
    let total = |name: &str| ctl_json(&lab, "coverage/show").map(|all| all[name]["total"].clone());
    // Those before in this test, and each of these two; with --json there are two commands.
    ensure!(total("control_commands")? == 2 + 1 + 2 + 2);
    ensure!(total("control_accepted")? == 5);
    let completed = of("completed")?;
    let stats = lab.finish_after_races()?;
    ensure!(stats.completed >= completed, "{stats:?}");
    Ok(())
}

#[test]
fn what_is_logged_is_set_while_it_runs() -> TestResult {
    let lab = busy_lab()?;
    let line =
        |text: &str| text.lines().find(|line| line.starts_with("upcall ")).map(str::to_owned);
    let before = line(&ctl(&lab, &["vlog/list"])?).context("no upcall")?;
    ensure!(before.split_whitespace().nth(1) == Some("INFO"), "{before}");
    ctl(&lab, &["vlog/set", "upcalld:console:dbg", "upcall:dbg"])?;
    ensure!(line(&ctl(&lab, &["vlog/list"])?).is_some_and(|line| line.contains("DBG")));
    let wrong = ctl_at(&lab.daemon.control(), &["vlog/set", "upcall:loud"])?;
    ensure!(wrong.status.code() == Some(2), "{wrong:?}");
    ctl(&lab, &["fdb/flush"])?;
    lab.daemon.wait_log("addresses flushed", SOON)?;
    lab.daemon.wait_log("a client of the control socket sets what is logged", SOON)?;
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn exit_ends_it_as_a_signal_does() -> TestResult {
    let lab = busy_lab()?;
    let path = lab.daemon.control();
    let answer = ctl(&lab, &["exit"])?;
    ensure!(answer.is_empty(), "{answer}");
    let exit = lab.daemon.wait_exit(SOON)?;
    ensure!(
        exit.status.success() && exit.stats.is_some_and(|stats| stats.final_line),
        "{}",
        exit.log
    );
    wait_until("the socket to be gone", SOON, || !path.exists())?;
    let nobody = ctl_at(&path, &["version"])?;
    ensure!(nobody.status.code() == Some(1), "{nobody:?}");
    Ok(())
}
