//! Many flows: what a sweep of them takes, with and without a question about each.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, ctl_json, tell};
use ovs_datapath::Control;
use ovs_wire::vport::Vport;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket, wait_until};

use super::counted;

/// Names how many flows. By default as many as are allowed on any machine, however slow: more, and the
/// limit may fall below them.
const FLOWS: &str = "UPCALL_FLOWS";
const FLOWS_DEFAULT: u32 = 1_000;
/// How long anything may take that is done to all of them.
const LIMIT: Duration = Duration::from_mins(5);
/// Frames between two looks at how far the daemon is.
const BURST: u32 = 512;

fn flows_wanted() -> u32 {
    std::env::var(FLOWS).ok().and_then(|text| text.parse().ok()).unwrap_or(FLOWS_DEFAULT)
}

async fn control<T>(ask: impl AsyncFnOnce(Control, i32) -> Result<T>) -> Result<T> {
    let control = Control::open().await?;
    let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
    ask(control, dp.ifindex).await
}

fn flows(lab: &Lab) -> Result<u64> {
    lab.hosts.switch.block_on(async || {
        let dp = Control::open().await?.datapath(DATAPATH).await?;
        Ok(dp.context("no datapath")?.stats.flows)
    })?
}

/// Sends a frame of each flow, until each has one.
fn install(lab: &Lab, wanted: u32) -> Result<()> {
    let link = RawSocket::sender(&lab.hosts[0].ns, HOST_LINK)?;
    let frame = Frame::new([2, 0, 0, 1, 0, 0], [2, 0, 0, 2, 0, 1]);
    let to = SocketAddr::from(([10, 2, 0, 1], 9));
    let begun = Instant::now();
    while flows(lab)? < u64::from(wanted) {
        ensure!(begun.elapsed() < LIMIT, "{} flows\n{}", flows(lab)?, lab.daemon.log());
        for flow in 0..wanted {
            let [_, high, a, b] = flow.to_be_bytes();
            let from = SocketAddr::from(([10, 1, high, 1], u16::from_be_bytes([a, b])));
            link.send(&frame.udp(from, to, &[0; 24])?)?;
            if flow % BURST == 0 {
                let sent = u64::from(flow.min(wanted));
                // Not faster than it is answered: what is lost has to be sent again.
                let near = || flows(lab).is_ok_and(|have| have + 2 * u64::from(BURST) >= sent);
                let _again = wait_until("flows", Duration::from_secs(1), near);
            }
        }
    }
    Ok(())
}

/// What the last sweep took, in milliseconds.
fn took_ms(lab: &Lab) -> Result<u64> {
    let shown = ctl_json(lab, "upcall/show")?;
    let took = &shown[format!("system@{DATAPATH}")]["dump_duration_ms"];
    took.as_u64().with_context(|| format!("no duration: {shown}"))
}

fn resident_kb(lab: &Lab) -> Result<u64> {
    ctl_json(lab, "memory/show")?["resident-kB"].as_u64().context("no resident-kB")
}

#[test]
fn at_rest_sweeps_read_times_alone_and_a_change_of_ports_is_followed_at_once() -> TestResult {
    let wanted = flows_wanted();
    let lab = Lab::start(Hosts::new(2)?, |builder| {
        let builder = builder.handler("cross-connect").option("--cross-connect", "p0=p1");
        builder.install("exact").option("--flow-idle", "1h").option("--sweep-interval", "100ms")
    })?;
    install(&lab, wanted)?;
    let memory_kb = resident_kb(&lab)?;
    let (sweeps, whole) = (counted(&lab, "flow_sweeps")?, counted(&lab, "flow_sweeps_whole")?);
    wait_until("sweeps", LIMIT, || counted(&lab, "flow_sweeps").is_ok_and(|n| n >= sweeps + 20))?;
    let took = took_ms(&lab)?;
    let (sweeps, whole) =
        (counted(&lab, "flow_sweeps")? - sweeps, counted(&lab, "flow_sweeps_whole")? - whole);
    // Where sweeps are so slow that fewer flows are allowed, each one asks.
    let slow = counted(&lab, "flow_limit_cuts")? > 0;
    ensure!(whole > 0, "none of {sweeps} sweeps asked about flows");
    ensure!(slow || whole <= sweeps / 5, "{whole} of {sweeps} sweeps asked about every flow");
    ensure!(flows(&lab)? == u64::from(wanted), "nothing was removed");
    let begun = Instant::now();
    lab.hosts.switch.block_on(async || {
        control(async |control, dp_ifindex| {
            let is_p1 = |port: &Vport| port.name == "p1";
            let ports = control.vports(dp_ifindex).await?;
            let port = ports.into_iter().find(is_p1).context("no p1")?;
            Ok(control.delete_vport(dp_ifindex, port.port_no).await?)
        })
        .await
    })??;
    wait_until("no flow to the port that is gone", LIMIT, || flows(&lab).is_ok_and(|n| n == 0))?;
    tell(&format!(
        "figures: {wanted} flows: {took} ms to read their times, {:.0?} to remove all; resident {memory_kb} kB",
        begun.elapsed(),
    ));
    let all = || counted(&lab, "flows_removed_wrong").is_ok_and(|n| n == u64::from(wanted));
    wait_until("all to be counted", SOON, all)?;
    lab.finish_after_races()?;
    Ok(())
}
