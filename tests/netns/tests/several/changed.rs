//! What happens to one datapath or to all while packets flow.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use netns_tests::traffic::{Load, Traffic, ensure_all, last_cpu};
use netns_tests::{SOON, TestResult, modes, tell};
use upcall_testkit::daemon::{STOP_TIMEOUT, Signal};
use upcall_testkit::{Hosts, Upcalld, wait_until};

use super::{LATER, Several, TWO, delete, kernel_lost, written};

/// Room in each socket for all of it, however long a change takes on a busy machine; and every packet comes up.
const ROOMY: &str = "recv_buffer_bytes = 8388608\ninstall = 'never'\n";

/// New flows of a pair of hosts, for some seconds.
fn traffic(hosts: &Hosts, from: usize) -> Result<Traffic> {
    let cpu = Some(last_cpu()?);
    let load = Load { flows: 1200, packets_per_flow: 2, flows_per_second: 120, cpu };
    Traffic::between(&hosts[from], &hosts[from + 1], load)
}

/// All of it arrived, in order.
fn whole(traffic: Traffic, what: &str, log: impl Fn() -> String) -> Result<()> {
    let totals = traffic.finish()?;
    tell(&format!("figures: {what}: {totals:?}"));
    ensure_all(&totals).with_context(&log)?;
    ensure!(totals.reordered == 0, "{what}: {totals:?}\n{}", log());
    Ok(())
}

#[test]
fn one_that_is_deleted_is_made_anew_and_the_other_loses_nothing() -> TestResult {
    let text = format!("on_deleted = 'recreate'\n{TWO}");
    let several = Several::start(Hosts::new(4)?, &text)?;
    let (hosts, daemon) = (&several.hosts, &several.daemon);
    several.pings(0, 1)?;
    let flowing = traffic(hosts, 2)?;
    flowing.wait(5)?;
    ensure!(flowing.goes_on(), "the traffic ended before the first deletion");
    // Three times, if that is so long.
    for times in (1..=3).take_while(|times| *times == 1 || flowing.goes_on()) {
        delete(hosts, "dp0")?;
        let served = || daemon.log().matches("serving datapath=\"dp0\"").count() == times + 1;
        wait_until("a new datapath", LATER, served).with_context(|| daemon.log())?;
        // It switches, and the other one is asked as if nothing was.
        several.pings(0, 1)?;
        ensure!(several.ask(&["lane/show", "dp1"])?.contains("lanes of dp1"));
    }
    ensure!(daemon.log().contains("dp{name=dp0}"), "{}", daemon.log());
    whole(flowing, "dp1 while dp0 is deleted", || daemon.log())?;
    ensure!(kernel_lost(hosts, "dp1")? == 0, "{}", daemon.log());
    several.finish()?;
    Ok(())
}

#[test]
fn one_whose_policy_is_to_exit_ends_the_process_in_order() -> TestResult {
    let text = format!("{TWO}on_deleted = 'exit'\n");
    let several = Several::start(Hosts::new(4)?, &text)?;
    several.pings(0, 1)?;
    delete(&several.hosts, "dp1")?;
    let exit = several.daemon.wait_exit(LATER)?;
    ensure!(exit.status.code() == Some(1), "{}\n{}", exit.status, exit.log);
    let last = exit.log.lines().last().unwrap_or_default();
    ensure!(last.contains("datapath 'dp1' was deleted"), "{}", exit.log);
    ensure!(
        exit.stats_by_datapath.get("dp0").is_some_and(|stats| stats.final_line),
        "{}",
        exit.log
    );
    let left = netns_tests::datapaths(&several.hosts.switch)?;
    ensure!(left.is_empty(), "it left {left:?}");
    Ok(())
}

#[test]
fn one_that_cannot_be_made_anew_is_tried_again_and_the_other_goes_on() -> TestResult {
    let text = format!("on_deleted = 'recreate'\n{TWO}");
    let several = Several::start(Hosts::new(4)?, &text)?;
    let (hosts, daemon) = (&several.hosts, &several.daemon);
    // Older kernels rename what is down alone.
    hosts.switch.links(async |links| {
        links.down("p0").await?;
        links.rename("p0", "away").await
    })?;
    delete(hosts, "dp0")?;
    daemon.wait_log("cannot make the datapath anew", SOON)?;
    let why = several.refusal(&["lane/show", "dp0"])?;
    ensure!(why.contains("is being made anew"), "{why}");
    let shown = several.ask(&["dpif/show"])?;
    ensure!(
        shown.contains("system@dp1") && shown.contains("dp0: datapath 'dp0' is being"),
        "{shown}"
    );
    several.pings(2, 3)?;
    hosts.switch.links(async |links| {
        links.rename("away", "p0").await?;
        links.up("p0").await
    })?;
    wait_until("the datapath", LATER, || several.ask(&["lane/show", "dp0"]).is_ok())?;
    several.pings(0, 1)?;
    several.finish()?;
    Ok(())
}

#[test]
fn a_reload_of_both_under_traffic_loses_nothing() -> TestResult {
    for mode in modes() {
        let tables = |first: &str, second: &str| {
            format!(
                "stats = '50ms'\n{ROOMY}dispatch = '{mode}'\n[datapath.dp0]\n{first}\n[datapath.dp1]\n{second}\n"
            )
        };
        let before = tables("ports = ['p0', 'p1']", "ports = ['p2', 'p3', 'p5']\nworkers = 1");
        let after =
            tables("ports = ['p0', 'p1', 'p4']\nworkers = 1", "ports = ['p2', 'p3']\nflow_max = 7");
        let several = Several::start(Hosts::new(6)?, &before)?;
        let (hosts, daemon) = (&several.hosts, &several.daemon);
        let (one, two) = (traffic(hosts, 0)?, traffic(hosts, 2)?);
        one.wait(5)?;
        two.wait(5)?;
        ensure!(one.goes_on() && two.goes_on(), "the traffic ended before the reload");
        let begun = Instant::now();
        // Not by a command, which is answered within 30 s or not at all: it ends when what the old sockets hold
        // is answered, which is much where the guest cannot keep up.
        fs::write(several.file.path(), &after)?;
        daemon.signal(Signal::HUP)?;
        let told = daemon.wait_log("configuration reloaded", 4 * LATER)?;
        tell(&format!(
            "figures: a reload of two datapaths in {mode} mode: {:.1?}",
            begun.elapsed()
        ));
        for change in [
            "dp0: ports: p0,p1 -> p0,p1,p4",
            "dp0: workers: unset -> 1",
            "dp1: ports: p2,p3,p5 -> p2,p3",
            "dp1: flow_max: 200000 -> 7",
        ] {
            ensure!(told.contains(change), "no {change} in {told}");
        }
        whole(one, "dp0 during a reload", || daemon.log())?;
        whole(two, "dp1 during a reload", || daemon.log())?;
        for name in ["dp0", "dp1"] {
            ensure!(kernel_lost(hosts, name)? == 0, "{mode}: {name}\n{}", daemon.log());
        }
        several.pings(4, 0)?;
        ensure!(!several.ask(&["dpctl/show", "dp1"])?.contains("p5"));
        ensure!(several.ask(&["upcall/show", "dp1"])?.contains("(limit 7)"));
        several.finish()?;
    }
    Ok(())
}

#[test]
fn a_restart_hands_both_over() -> TestResult {
    for mode in modes() {
        let text = format!("hand_over = true\ndispatch = '{mode}'\n{ROOMY}{TWO}");
        let file = written(&text)?;
        let hosts = Hosts::new(4)?;
        let first = Upcalld::of_file(file.path()).start(&hosts.switch)?;
        let (one, two) = (traffic(&hosts, 0)?, traffic(&hosts, 2)?);
        one.wait(5)?;
        two.wait(5)?;
        let stored = first.stored()?;
        for name in ["upcall-dp0/", "upcall-dp1/", "upcall-dp0/in-flight-", "upcall-dp1/in-flight-"]
        {
            ensure!(
                stored.iter().any(|(stored, _)| stored.starts_with(name)),
                "no {name}: {stored:?}"
            );
        }
        first.signal(Signal::USR2)?;
        let exit = first.wait_exit(STOP_TIMEOUT)?;
        ensure!(exit.status.success(), "{exit:?}");
        ensure!(one.goes_on() && two.goes_on(), "{mode}: the traffic ended before the restart");
        let second = Upcalld::of_file(file.path()).adopt_stored(stored).start(&hosts.switch)?;
        whole(one, "dp0 over a restart", || second.log())?;
        whole(two, "dp1 over a restart", || second.log())?;
        for name in ["dp0", "dp1"] {
            let lost = kernel_lost(&hosts, name)?;
            ensure!(lost == 0, "{mode}: the kernel lost {lost} of {name}\n{}", second.log());
        }
        ensure!(
            second.log().matches("inherited sockets read empty").count() == 2,
            "{}",
            second.log()
        );
        let foreign: u64 =
            ["dp0", "dp1"].iter().filter_map(|name| second.stats_of(name)).map(|s| s.foreign).sum();
        ensure!(foreign == 0, "a socket went to the wrong datapath\n{}", second.log());
    }
    Ok(())
}
