//! The kernel's families, datapaths and ports are what our control plane takes them for, on every
//! kernel.
#![allow(missing_docs, reason = "a test binary")]

mod datapaths;
mod families;
mod ports;

use netns_tests::TestResult;
use ovs_datapath::{Control, Event, Events};
use upcall_testkit::NetNs;

/// Runs a test in a namespace of its own, on a connection of its own.
fn alone(test: impl AsyncFnOnce(&Control) -> TestResult + Send) -> TestResult {
    let ns = NetNs::new("abi")?;
    ns.disable_ipv6()?;
    ns.block_on(async || test(&Control::open().await?).await)?
}

/// The next event that `wanted` accepts.
async fn next_event(events: &mut Events, wanted: impl Fn(&Event) -> bool) -> anyhow::Result<Event> {
    use futures::StreamExt as _;
    let search = async {
        while let Some(event) = events.next().await {
            if wanted(&event) {
                return Ok(event);
            }
        }
        anyhow::bail!("the events end")
    };
    tokio::time::timeout(netns_tests::SOON, search).await?
}
