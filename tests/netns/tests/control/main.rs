//! The control socket: what operators ask and steer, with our client and the peer's, and what hostile
//! clients cannot do.
#![allow(missing_docs, reason = "a test binary")]

mod appctl;
mod commands;
mod hostile;
mod watch;

use std::time::Instant;

use anyhow::{Result, ensure};
use netns_tests::{Lab, SOON};
use upcall_testkit::{Hosts, PingPlan, ping};

/// A switch that knows both hosts, with a flow for each way.
fn busy_lab() -> Result<Lab> {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder.option("--flow-idle", "1m"))?;
    pings(&lab, &PingPlan::default())?;
    lab.wait_flows("a flow for each way", |flows| flows.len() >= 2)?;
    Ok(lab)
}

/// Reads what two sides say of the same until they agree: a host may ask for an address at any time.
fn wait_agreed<T: PartialEq + std::fmt::Debug>(
    mut read: impl FnMut() -> Result<(T, T)>,
) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        let (ours, theirs) = read()?;
        if ours == theirs {
            return Ok(ours);
        }
        ensure!(Instant::now() < deadline, "ours: {ours:#?}\ntheirs: {theirs:#?}");
    }
}

/// Pings, of which none may be lost.
fn pings(lab: &Lab, plan: &PingPlan) -> Result<()> {
    let report = ping::ping(&lab.hosts[0].ns, lab.hosts[1].ip4, plan)?;
    ensure!(report.answered == report.sent, "{report:?}");
    Ok(())
}
