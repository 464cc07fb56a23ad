//! The life of flows: how long it is, what they have counted when it ends, what a successor does with
//! them, and what a sweep of many takes.
#![allow(missing_docs, reason = "a test binary")]

mod counts;
mod hard;
mod many;
mod moved;
mod restart;

use anyhow::{Context as _, Result};
use netns_tests::{DATAPATH, Lab, ctl_json, station};
use ovs_datapath::Control;
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::{Frame, NetNs};

fn frame(from: u8, to: u8) -> Vec<u8> {
    Frame::new(station(from), station(to)).raw(ETHERTYPE_EXPERIMENTAL, &[0; 46])
}

/// What the daemon has counted under a name.
fn counted(lab: &Lab, name: &str) -> Result<u64> {
    let all = ctl_json(lab, "coverage/show")?;
    all[name]["total"].as_u64().with_context(|| format!("no {name}: {all}"))
}

/// The ids of all flows.
fn ids(ns: &NetNs) -> Result<Vec<Vec<u8>>> {
    ns.block_on(async || {
        let control = Control::open().await?;
        let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
        let mut ids = control
            .flows(dp.ifindex, |flow| flow.ufid.map(<[u8]>::to_vec))
            .await?
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .context("a flow without an id")?;
        ids.sort_unstable();
        Ok(ids)
    })?
}
