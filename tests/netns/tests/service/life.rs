//! Reload, restart and stop, as they are asked for.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use netns_tests::traffic::{Load, Traffic, ensure_all, last_cpu};
use netns_tests::{TestResult, flows_of, tell};
use ovs_datapath::Control;
use ovs_wire::datapath::UserFeatures;
use ovs_wire::vport::VportType;

use crate::outside_guests;
use crate::unit::{DATAPATH, NAME, Service, configure};

/// Room in each socket for all that comes during a restart, however long that takes; flows stay.
pub(crate) const ROOMY: &str =
    "recv_buffer_bytes = 8388608\ninstall = 'exact'\nflow_idle = '10m'\n";
const FLOWS_MAX: u32 = 4000;

/// New flows for five times as long as a start takes here, and 15 seconds at least; all that comes meanwhile fits into a socket.
pub(crate) fn load(service: &Service) -> Result<Load> {
    let seconds = 5 * service.started_in.as_secs().max(3) as u32;
    let flows = (200 * seconds).min(FLOWS_MAX);
    let flows_per_second = (flows / seconds).max(1);
    let cpu = Some(last_cpu()?);
    Ok(Load { flows: flows as u16, packets_per_flow: 3, flows_per_second, cpu })
}

#[test]
fn a_reload_applies_what_has_changed_or_says_why_not() -> TestResult {
    if outside_guests("a_reload_applies_what_has_changed_or_says_why_not") {
        return Ok(());
    }
    let service = Service::start("", "")?;
    let (pid, status) = (service.pid()?, service.property("StatusText")?);
    configure(&["p0", "p1"], "flow_max = 1234\n")?;
    service.systemctl(&["reload", NAME]).with_context(|| service.state())?;
    let shown = service.ctl("upcall/show")?.to_string();
    ensure!(shown.contains("1234"), "{shown}");
    ensure!(service.property("StatusText")? == status, "{}", service.state());
    configure(&["p0", "p1"], "keep = true\n")?;
    let refused = service.systemctl(&["reload", NAME]);
    ensure!(refused.is_err(), "{}", service.state());
    let status = service.property("StatusText")?;
    ensure!(status.contains("reload refused") && status.contains("keep"), "{status}");
    ensure!(service.property("ActiveState")? == "active" && service.pid()? == pid);
    service.ensure_switches()
}

#[test]
fn a_restart_under_traffic_loses_no_packet_and_no_flow() -> TestResult {
    if outside_guests("a_restart_under_traffic_loses_no_packet_and_no_flow") {
        return Ok(());
    }
    let service = Service::start(ROOMY, "")?;
    let (pid, index) = (service.pid()?, service.datapath()?.context("no datapath")?.ifindex);
    let traffic = Traffic::start(service.hosts, load(&service)?)?;
    traffic.wait(5)?;
    let keys = || -> Result<BTreeSet<String>> {
        Ok(flows_of(&service.hosts.switch)?.into_iter().map(|flow| flow.key).collect())
    };
    let before = keys()?;
    service.systemctl(&["restart", NAME]).with_context(|| service.state())?;
    ensure!(traffic.goes_on(), "the traffic ended before the restart");
    let totals = traffic.finish()?;
    tell(&format!("figures: systemctl restart with {} flows: {totals:?}", before.len()));
    // Flows are installed, so the order is not promised to the last packet (`tests/hitless` has it without).
    ensure_all(&totals).with_context(|| service.state())?;
    let (after, datapath) = (keys()?, service.datapath()?.context("no datapath")?);
    ensure!(
        before.len() > 10 && before.is_subset(&after),
        "{} flows, {}",
        before.len(),
        after.len()
    );
    ensure!(datapath.ifindex == index && datapath.stats.lost == 0, "{datapath:?}");
    ensure!(service.pid()? != pid && service.log().contains("inherited sockets read empty"));
    ensure!(service.ctl("stats/show")?["counters"]["crash_lost"] == 0, "{}", service.state());
    Ok(())
}

/// What the unit leaves when it is stopped.
fn ensure_nothing_left(service: &Service) -> Result<()> {
    ensure!(service.property("ActiveState")? == "inactive", "{}", service.state());
    ensure!(service.property("Result")? == "success", "{}", service.state());
    ensure!(service.property("NFileDescriptorStore")? == "0", "{}", service.state());
    ensure!(!service.machine.path("/run/upcalld").exists(), "its directory is left");
    let sockets =
        service.hosts.switch.run(|| std::fs::read_to_string("/proc/thread-self/net/netlink"))??;
    // Protocol 16 is generic netlink; the kernel's own socket has port id 0.
    let generic = sockets.lines().filter(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some("16") && fields.next() != Some("0")
    });
    ensure!(generic.count() == 0, "sockets are left:\n{sockets}");
    Ok(())
}

#[test]
fn a_stop_removes_all_that_was_made_before_restarts_and_crashes() -> TestResult {
    if outside_guests("a_stop_removes_all_that_was_made_before_restarts_and_crashes") {
        return Ok(());
    }
    let service = Service::start("", "")?;
    service.systemctl(&["restart", NAME]).with_context(|| service.state())?;
    service.replaced_after("KILL")?;
    service.ensure_switches()?;
    ensure!(service.datapath()?.is_some());
    service.systemctl(&["stop", NAME]).with_context(|| service.state())?;
    ensure!(service.datapath()?.is_none(), "the datapath is left\n{}", service.state());
    let links = service.hosts.switch.links(async |links| links.list().await)?;
    ensure!(links.iter().all(|link| link.controller.is_none()), "{links:?}");
    ensure_nothing_left(&service)
}

#[test]
fn a_stop_leaves_what_was_there_before() -> TestResult {
    if outside_guests("a_stop_leaves_what_was_there_before") {
        return Ok(());
    }
    let service = Service::prepare("", "")?;
    service.hosts.switch.block_on(async || {
        let control = Control::open().await?;
        let dp = control.create_datapath(DATAPATH, UserFeatures::UNALIGNED).await?;
        control.add_vport(&dp, VportType::Netdev, "p2", Some(7), 0).await.map(drop)
    })??;
    service.systemctl(&["start", NAME]).with_context(|| service.state())?;
    service.ensure_switches()?;
    // A port that nobody asks for any more is taken out by the successor.
    let with_both = service.ports()?;
    configure(&["p0"], "")?;
    service.systemctl(&["restart", NAME]).with_context(|| service.state())?;
    ensure!((with_both.len(), service.ports()?.len()) == (4, 3), "{with_both:?}");
    service.systemctl(&["stop", NAME]).with_context(|| service.state())?;
    ensure!(
        service.ports()? == [0, 7],
        "what it added is gone, the rest is there: {:?}",
        service.ports()?
    );
    ensure!(flows_of(&service.hosts.switch)?.is_empty(), "nobody revalidates the flows any more");
    ensure_nothing_left(&service)
}

impl Service {
    /// Numbers of the datapath's ports.
    fn ports(&self) -> Result<Vec<u32>> {
        let dp = self.datapath()?.context("there is no datapath")?;
        let list = async || Control::open().await?.vports(dp.ifindex).await;
        Ok(self.hosts.switch.block_on(list)??.into_iter().map(|port| port.port_no).collect())
    }
}
