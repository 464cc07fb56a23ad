//! A running `upcalld` among hosts, and what its datapath holds.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ovs_datapath::Control;
use ovs_wire::{Actions, FlowKey, text};
use upcall_testkit::{Hosts, NetNs, Stats, Upcalld, UpcalldBuilder, wait::wait_for};

use crate::SOON;

/// Name of the datapath in every test of the daemon.
pub const DATAPATH: &str = "dp0";

/// How often the daemon prints its counters.
const STATS_INTERVAL: Duration = Duration::from_millis(20);

/// Hosts, and the daemon that switches between them.
#[derive(Debug)]
pub struct Lab {
    /// The namespaces.
    pub hosts: Hosts,
    /// The daemon, which serves all ports.
    pub daemon: Upcalld,
}

impl Lab {
    /// Starts the daemon on all ports of `hosts`, with what `configure` adds.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(
        hosts: Hosts,
        configure: impl FnOnce(UpcalldBuilder) -> UpcalldBuilder,
    ) -> Result<Self> {
        let builder = Upcalld::builder(DATAPATH).ports(hosts.ports()).stats(STATS_INTERVAL);
        let daemon = configure(builder).start(&hosts.switch)?;
        Ok(Self { hosts, daemon })
    }

    /// The flows of the datapath now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn flows(&self) -> Result<Vec<FlowText>> {
        flows_of(&self.hosts.switch)
    }

    /// Waits until the flows satisfy `wanted`, and gives them.
    ///
    /// # Errors
    /// When they do not.
    pub fn wait_flows(
        &self,
        what: &str,
        wanted: impl Fn(&[FlowText]) -> bool,
    ) -> Result<Vec<FlowText>> {
        let mut last = Vec::new();
        let found = wait_for(what, SOON, || {
            last = self.flows().ok()?;
            wanted(&last).then(|| last.clone())
        });
        found.with_context(|| format!("the flows are {last:#?}; the log:\n{}", self.daemon.log()))
    }

    /// Stops the daemon with SIGTERM and checks its last word: exit status 0, every upcall accounted
    /// for, nothing refused or malformed but a flow that another worker had installed already, and no datapath
    /// left.
    ///
    /// # Errors
    /// When one of these does not hold.
    pub fn finish(self) -> Result<Stats> {
        let stats = self.finish_after_races()?;
        ensure!(stats.put_errors == stats.put_raced, "a flow was refused: {stats:?}");
        Ok(stats)
    }

    /// As [`Lab::finish`], where flows may be refused for other reasons.
    ///
    /// # Errors
    /// As [`Lab::finish`].
    pub fn finish_after_races(self) -> Result<Stats> {
        let exit = self.daemon.stop()?;
        ensure!(exit.status.success(), "it ended with {}\n{}", exit.status, exit.log);
        let stats = exit.stats.context("it printed no counters")?;
        balanced(&stats).with_context(|| exit.log.clone())?;
        let left = datapaths(&self.hosts.switch)?;
        ensure!(left.is_empty(), "it left {left:?}\n{}", exit.log);
        Ok(stats)
    }
}

/// Checks a final line: contract B3 with nothing in flight, and no packet refused.
///
/// # Errors
/// When that is not so.
pub fn balanced(stats: &Stats) -> Result<()> {
    ensure!(stats.final_line, "the last line is no final one: {stats:?}");
    let accounted = stats.completed + stats.shed + stats.malformed + stats.foreign;
    ensure!(stats.upcalls_received == accounted, "not every upcall is accounted for: {stats:?}");
    let refused = stats.malformed + stats.foreign + stats.execute_errors;
    ensure!(refused == 0, "something was refused: {stats:?}");
    Ok(())
}

/// A flow as text, in the form of `ovs-dpctl dump-flows`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowText {
    /// Key and mask.
    pub key: String,
    /// Actions.
    pub actions: String,
    /// Packets it matched.
    pub packets: u64,
    /// Does it match its key exactly, without a wildcard?
    pub exact: bool,
}

/// The flows of the datapath in `ns`; none if there is no datapath.
///
/// # Errors
/// When the kernel does not tell.
pub fn flows_of(ns: &NetNs) -> Result<Vec<FlowText>> {
    ns.block_on(async || {
        let control = Control::open().await?;
        let Some(dp) = control.datapath(DATAPATH).await? else { return Ok(Vec::new()) };
        let read = |flow: &ovs_wire::flow::Flow<'_>| {
            let (key, mask) = (FlowKey::new(flow.key), FlowKey::new(flow.mask));
            FlowText {
                key: text::format_key(key, Some(mask)).to_string(),
                actions: text::format_actions(Actions::new(flow.actions)).to_string(),
                packets: flow.stats.packets,
                exact: is_exact(mask),
            }
        };
        Ok(control.flows(dp.ifindex, read).await?)
    })?
}

/// A mask whose Ethernet addresses and in-port are whole, and that matches the ports of UDP: what an
/// exact flow of UDP shows.
fn is_exact(mask: FlowKey<'_>) -> bool {
    mask.summary().is_ok_and(|mask| {
        mask.in_port == Some(u32::MAX)
            && mask.eth_src.is_broadcast()
            && mask.eth_dst.is_broadcast()
            && (mask.tp_src, mask.tp_dst) == (u16::MAX, u16::MAX)
    })
}

/// Names of the datapaths in `ns`.
///
/// # Errors
/// When the kernel does not tell.
pub fn datapaths(ns: &NetNs) -> Result<Vec<String>> {
    ns.block_on(async || {
        let all = Control::open().await?.datapaths().await?;
        Ok(all.into_iter().map(|dp| dp.name).collect())
    })?
}
