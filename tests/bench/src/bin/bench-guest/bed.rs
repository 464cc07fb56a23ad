//! A contestant among hosts, the frames that make upcalls, and what the kernel counted.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ovs_datapath::Control;
use ovs_wire::datapath::DatapathStats;
use upcall_testkit::raw::TcpFlags;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket, Veth, wait_until};

use crate::contestant::{Contestant, Install, Running};
use crate::usage::Usage;

/// How long packets that were sent may take to arrive.
const ARRIVAL_LIMIT: Duration = Duration::from_mins(1);
/// Where the source address and port of [`frame`] are.
const SOURCE_ADDRESS: usize = 14 + 12;
const SOURCE_PORT: usize = 14 + 20;
const CHECKSUM: usize = 14 + 20 + 6;
/// Payload of a frame: with the headers 66 bytes, which is about the shortest that there is.
pub(crate) const PAYLOAD_BYTES: usize = 24;

/// Two hosts and more, a contestant that joins them in pairs, and a voice at each.
pub(crate) struct Bed {
    pub(crate) hosts: Hosts,
    pub(crate) running: Running,
    pub(crate) links: Vec<RawSocket>,
}

impl Bed {
    pub(crate) fn new(contestant: Contestant, install: Install, hosts: usize) -> Result<Self> {
        Self::with_ports(contestant, install, hosts, 0)
    }

    /// With so many ports beside those of the hosts.
    pub(crate) fn with_ports(
        contestant: Contestant,
        install: Install,
        hosts: usize,
        more: usize,
    ) -> Result<Self> {
        let hosts = Hosts::new(hosts)?;
        let more = add_ports(&hosts, more)?;
        let running = contestant.start(&hosts, &more, install)?;
        let links = hosts.iter().map(|host| RawSocket::sender(&host.ns, HOST_LINK));
        let links = links.collect::<Result<_, _>>()?;
        Ok(Self { hosts, running, links })
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.running.pid())
    }

    /// The counters of the datapath.
    pub(crate) fn kernel(&self) -> Result<DatapathStats> {
        self.hosts.switch.block_on(async || {
            let dp = Control::open().await?.datapath(self.running.datapath()).await?;
            Ok(dp.context("the datapath is gone")?.stats)
        })?
    }

    /// Frames that have arrived at a host, whoever they were for.
    pub(crate) fn arrived(&self, host: usize) -> Result<u64> {
        let read = || std::fs::read_to_string("/proc/thread-self/net/dev");
        let text = self.hosts[host].ns.run(read)??;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
        let packets = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(packets.context("a host without eth0")?.parse()?)
    }

    /// Waits until `count` frames more than `before` have arrived at a host.
    pub(crate) fn wait_arrived(&self, host: usize, before: u64, count: u64) -> Result<()> {
        let there = || self.arrived(host).is_ok_and(|now| now - before >= count);
        wait_until("all packets to arrive", ARRIVAL_LIMIT, there).with_context(|| {
            format!("{:?} of {count} arrived; {:?}", self.arrived(host), self.kernel())
        })
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.running.stop()
    }
}

/// Devices in the namespace of the switch, each with another end there.
fn add_ports(hosts: &Hosts, count: usize) -> Result<Vec<String>> {
    let names: Vec<_> =
        (0..count).map(|number| (format!("x{number}"), format!("y{number}"))).collect();
    hosts.switch.links(async |links| {
        for (port, end) in &names {
            links.add_veth(&Veth::new(port, end)).await?;
            links.up(port).await?;
        }
        Ok(())
    })?;
    Ok(names.into_iter().map(|(port, _)| port).collect())
}

/// A UDP frame from `host` to an address that no stack answers for: it is counted and thrown away.
pub(crate) fn frame(host: usize) -> Result<Vec<u8>> {
    frame_with(host, &[0; PAYLOAD_BYTES])
}

/// As [`frame`], with this payload.
pub(crate) fn frame_with(host: usize, payload: &[u8]) -> Result<Vec<u8>> {
    let from = SocketAddr::from(([10, 1, 0, host as u8], 1));
    let mut bytes = ends(host).udp(from, SocketAddr::from(([10, 2, 0, 1], 9)), payload)?;
    // No checksum, so that the source may change.
    bytes[CHECKSUM..CHECKSUM + 2].fill(0);
    Ok(bytes)
}

/// A TCP frame as [`frame`], whose payload is of so many segments.
pub(crate) fn segments(host: usize, count: usize) -> Result<Vec<u8>> {
    let from = SocketAddr::from(([10, 1, 0, host as u8], 1));
    let (to, start) = (SocketAddr::from(([10, 2, 0, 1], 9)), (1, TcpFlags::default()));
    Ok(ends(host).tcp(from, to, start, &vec![0; count * PAYLOAD_BYTES])?)
}

fn ends(host: usize) -> Frame {
    Frame::new([2, 0, 0, 1, 0, host as u8], [2, 0, 0, 2, 0, (host ^ 1) as u8])
}

/// Makes `frame` one of flow `number`.
pub(crate) fn set_flow(frame: &mut [u8], number: u32) {
    let [_, high, low_a, low_b] = number.to_be_bytes();
    frame[SOURCE_ADDRESS + 2] = high;
    frame[SOURCE_PORT..SOURCE_PORT + 2].copy_from_slice(&[low_a, low_b]);
}

/// Checks that the kernel saw what a measurement believes: `upcalls` misses, none lost, and `flows`.
pub(crate) fn check(
    before: DatapathStats,
    after: DatapathStats,
    upcalls: u64,
    flows: u64,
) -> Result<()> {
    let missed = after.missed - before.missed;
    let lost = after.lost - before.lost;
    let added = after.flows.saturating_sub(before.flows);
    ensure!(
        (missed, lost, added) == (upcalls, 0, flows),
        "the kernel counted {missed} misses ({upcalls} expected), {lost} lost (0 expected) and {added} \
         new flows ({flows} expected)"
    );
    Ok(())
}
