//! All or nothing: starts and reloads that one datapath refuses.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use netns_tests::{SOON, TestResult, datapaths};
use ovs_datapath::Control;
use ovs_wire::datapath::UserFeatures;
use upcall_testkit::{Hosts, Upcalld, wait_until};

use super::{LATER, Several, TWO, written};

#[test]
fn a_start_that_one_refuses_leaves_nothing() -> TestResult {
    let hosts = Hosts::new(4)?;
    let cases = [
        (TWO.replace("'p3'", "'absent'"), 2, "'absent'"),
        (TWO.replace("'p3'", "'p1'"), 3, "[datapath.dp1]"),
        (TWO.replace("'p3'", "'p*'"), 3, "a port of one datapath"),
        (format!("{TWO}metrics = '1'\n"), 3, "above all tables"),
    ];
    for (text, status, why) in cases {
        let file = written(&text)?;
        let daemon = Upcalld::of_file(file.path()).spawn(&hosts.switch)?;
        let exit = daemon.wait_exit(LATER)?;
        ensure!(exit.status.code() == Some(status) && exit.log.contains(why), "{text}: {exit:?}");
        let left = datapaths(&hosts.switch)?;
        ensure!(left.is_empty(), "{text} leaves {left:?}");
        let links = hosts.switch.links(async |links| links.list().await)?;
        ensure!(links.iter().all(|link| link.controller.is_none()), "{links:?}");
    }
    Ok(())
}

#[test]
fn a_start_that_one_refuses_leaves_what_was_there() -> TestResult {
    let hosts = Hosts::new(4)?;
    hosts.switch.block_on(async || {
        let control = Control::open().await?;
        control.create_datapath("dp0", UserFeatures::UNALIGNED).await.map(drop)
    })??;
    let file = written(&TWO.replace("'p3'", "'absent'"))?;
    let exit = Upcalld::of_file(file.path()).spawn(&hosts.switch)?.wait_exit(LATER)?;
    ensure!(exit.status.code() == Some(2), "{exit:?}");
    ensure!(datapaths(&hosts.switch)? == ["dp0"], "it was there before");
    Ok(())
}

/// Ports, limits and modes of both.
fn state(several: &Several) -> Result<Vec<String>> {
    let show = several.ask(&["dpctl/show"])?;
    let mut seen: Vec<String> =
        show.lines().filter(|l| l.contains("port ")).map(str::to_owned).collect();
    for name in ["dp0", "dp1"] {
        let memory = several.ask_json(&["memory/show", name])?;
        seen.push(format!("{name}: {} workers, {} sockets", memory["handlers"], memory["sockets"]));
        let limit = several.ask_json(&["upcall/show", name])?;
        seen.push(limit[format!("system@{name}")]["flows"]["limit"].to_string());
    }
    Ok(seen)
}

#[test]
fn a_reload_that_one_refuses_changes_none() -> TestResult {
    let tables = |first: &str, second: &str| {
        format!(
            "stats = '20ms'\n[datapath.dp0]\nports = [{first}\n[datapath.dp1]\nports = [{second}\n"
        )
    };
    let several = Several::start(Hosts::new(6)?, &tables("'p0', 'p1']", "'p2', 'p3']"))?;
    let before = state(&several)?;
    // What the first one would take.
    let first = "'p0', 'p4']\nworkers = 1\nflow_max = 7";
    for (second, why) in [
        ("'p2', 'p3', 'absent']", "datapath dp1: there is no network interface 'absent'"),
        ("'p2', 'p3', 'lo']", "'lo' cannot be a port"),
        ("'p2', 'p3']\nplacement = '4000'", "4000"),
        ("'p2', 'p3']\nhandler = 'hub'", "dp1: handler: learning-switch -> hub; restart it"),
        ("'p2', 'p3', 'p4']", "is asked for here as well"),
        (
            "'p2', 'p3']\n[datapath.dp2]\nports = ['p5']",
            "datapath: dp0,dp1 -> dp0,dp1,dp2; restart it",
        ),
    ] {
        fs::write(several.file.path(), tables(first, second))?;
        let said = several.refusal(&["reload"])?;
        ensure!(said.contains(why), "{second}: {said}");
        // In per-vport mode the socket of a port that was tried goes when the kernel has told that the port did.
        wait_until("the state before", SOON, || state(&several).is_ok_and(|is| is == before))
            .with_context(|| format!("{second}: it is {:#?}", state(&several)))?;
    }
    several.pings(0, 1)?;
    several.pings(2, 3)?;
    let told = several.reload(&tables(first, "'p2', 'p3', 'p5']"))?;
    ensure!(told.contains("dp0: flow_max: 200000 -> 7"), "{told}");
    several.pings(0, 4)?;
    several.pings(5, 3)?;
    several.finish()?;
    Ok(())
}
