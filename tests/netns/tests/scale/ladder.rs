//! A datapath with a wire between two hosts, and more and more other ports.

use std::time::Duration;

use anyhow::{Context as _, Result};
use netns_tests::{DATAPATH, has_per_cpu, since};
use ovs_datapath::Control;
use ovs_wire::datapath::UserFeatures;
use ovs_wire::vport::VportType;
use upcall_testkit::{Hosts, Upcalld};

/// The numbers of ports that figures are taken at, the datapath's own and the wire's among them. The
/// thousand where per-vport dispatch is all there is, and on one kernel beside per-CPU dispatch: an
/// emulated kernel takes its time to make and to delete them.
pub(crate) fn steps() -> &'static [usize] {
    let thousand = !has_per_cpu() || (since(6, 12) && !since(7, 0));
    if thousand { &[10, 200, 1000] } else { &[10, 200] }
}

/// Two hosts, and a datapath that belongs to the test: a daemon that ends leaves it there.
#[derive(Debug)]
pub(crate) struct Ladder {
    pub(crate) hosts: Hosts,
    /// Ports there are, all kinds of them.
    pub(crate) ports: usize,
}

impl Ladder {
    /// A datapath with the ports of the two hosts.
    pub(crate) fn new() -> Result<Self> {
        let hosts = Hosts::new(2)?;
        hosts.switch.block_on(async || {
            let control = Control::open().await?;
            let dp = control.create_datapath(DATAPATH, UserFeatures::UNALIGNED).await?;
            for port in hosts.ports() {
                control.add_vport(&dp, VportType::Netdev, port, None, 0).await?;
            }
            anyhow::Ok(())
        })??;
        Ok(Self { ports: 1 + hosts.len(), hosts })
    }

    /// Adds internal ports, which need no device, until there are so many. They have no socket: it is for
    /// the daemon to give them one.
    pub(crate) fn grow(&mut self, ports: usize) -> Result<()> {
        self.hosts.switch.block_on(async || {
            let control = Control::open().await?;
            let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
            for number in self.ports..ports {
                let (kind, name) = (VportType::Internal, device(number));
                control.add_vport(&dp, kind, &name, None, 0).await?;
            }
            anyhow::Ok(())
        })??;
        self.ports = ports;
        Ok(())
    }

    /// A daemon that sends everything from one host to the other, packet by packet.
    pub(crate) fn serve(&self, mode: &str) -> Result<Upcalld> {
        let builder = Upcalld::builder(DATAPATH).dispatch(mode).install("never");
        let wire = builder.handler("cross-connect").option("--cross-connect", "p0=p1");
        Ok(wire.stats(Duration::from_millis(100)).start(&self.hosts.switch)?)
    }
}

/// Device of the internal port that was made as number so much, from 0.
pub(crate) fn device(number: usize) -> String {
    format!("many{number}")
}
