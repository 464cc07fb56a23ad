//! The shape most tests need: one switch namespace, and around it hosts on veth pairs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{Deref, Index};

use crate::error::{Error, Result};
use crate::links::{Mac, Veth};
use crate::netns::NetNs;

/// Most hosts of one topology: their number is the last byte of address and MAC.
pub const HOSTS_MAX: usize = 250;

/// The name of the only link of each host.
pub const HOST_LINK: &str = "eth0";

/// What [`Hosts::with`] builds.
#[derive(Clone, Copy, Debug)]
pub struct HostsConfig {
    /// Number of hosts, 1 to [`HOSTS_MAX`].
    pub hosts: usize,
    /// Whether hosts have IPv6 addresses. Default no: then IPv6 is off, and the only packets are the
    /// test's own and ARP.
    pub ipv6: bool,
    /// Maximum transmission unit of every link in bytes. Default 1500.
    pub mtu: u32,
}

impl HostsConfig {
    /// `hosts` hosts, IPv4 only, MTU 1500.
    pub fn new(hosts: usize) -> Self {
        Self { hosts, ipv6: false, mtu: 1500 }
    }
}

/// One host: a namespace with one link, `eth0`, whose peer is a port of the switch namespace.
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub ns: NetNs,
    /// Its number, from 0.
    pub index: usize,
    /// The name of its peer in the switch namespace: `p0`, `p1`, …
    pub port: String,
    /// Address of `eth0`: `02:00:00:00:00:(index+1)`.
    pub mac: Mac,
    /// Address of `eth0`: `10.0.0.(index+1)/24`.
    pub ip4: Ipv4Addr,
    /// Address of `eth0` where [`HostsConfig::ipv6`] is on: `fd00::(index+1)/64`.
    pub ip6: Ipv6Addr,
}

/// A switch namespace and hosts around it; nothing switches until somebody does.
///
/// Dereferences to the slice of hosts. All namespaces end with the value.
#[derive(Debug)]
pub struct Hosts {
    /// Where the datapath and upcalld live; ports `p0`, `p1`, … are up and have no addresses.
    pub switch: NetNs,
    hosts: Vec<Host>,
}

impl Deref for Hosts {
    type Target = [Host];

    fn deref(&self) -> &[Host] {
        &self.hosts
    }
}

impl Index<usize> for Hosts {
    type Output = Host;

    fn index(&self, index: usize) -> &Host {
        &self.hosts[index]
    }
}

impl Hosts {
    /// `hosts` hosts, IPv4 only.
    pub fn new(hosts: usize) -> Result<Self> {
        Self::with(&HostsConfig::new(hosts))
    }

    /// Builds what `config` says.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number of hosts out of bounds, and whatever the kernel refuses.
    pub fn with(config: &HostsConfig) -> Result<Self> {
        if config.hosts == 0 || config.hosts > HOSTS_MAX {
            return Err(Error::Invalid(format!(
                "a topology has 1 to {HOSTS_MAX} hosts, not {}",
                config.hosts
            )));
        }
        let switch = NetNs::new("switch")?;
        switch.disable_ipv6()?;
        let hosts = (0..config.hosts)
            .map(|index| Host::build(index, &switch, config))
            .collect::<Result<_>>()?;
        let hosts = Self { switch, hosts };
        let ports: Vec<_> = hosts.ports().collect();
        hosts.switch.links(async |links| links.wait_operational(&ports).await)?;
        Ok(hosts)
    }

    /// Names of the switch's ports, in the order of the hosts.
    pub fn ports(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(|host| host.port.as_str())
    }

    /// All ordered pairs of different hosts.
    pub fn pairs(&self) -> impl Iterator<Item = (&Host, &Host)> {
        self.hosts.iter().flat_map(|from| {
            self.hosts.iter().filter(|to| to.index != from.index).map(move |to| (from, to))
        })
    }
}

impl Host {
    fn build(index: usize, switch: &NetNs, config: &HostsConfig) -> Result<Self> {
        let number = (index + 1) as u8;
        let ns = NetNs::new(&format!("host{index}"))?;
        if config.ipv6 {
            quiet_ipv6(&ns)?;
        } else {
            ns.disable_ipv6()?;
        }
        let host = Self {
            ns,
            index,
            port: format!("p{index}"),
            mac: [2, 0, 0, 0, 0, number],
            ip4: Ipv4Addr::new(10, 0, 0, number),
            ip6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)),
        };
        host.connect(switch, config)?;
        Ok(host)
    }

    fn connect(&self, switch: &NetNs, config: &HostsConfig) -> Result<()> {
        switch.links(async |links| {
            let veth = Veth::new(&self.port, HOST_LINK)
                .peer_in(&self.ns)
                .peer_mac(self.mac)
                .mtu(config.mtu);
            links.add_veth(&veth).await?;
            links.up(&self.port).await
        })?;
        self.ns.links(async |links| {
            links.up(HOST_LINK).await?;
            links.add_address(HOST_LINK, IpAddr::V4(self.ip4), 24).await?;
            if config.ipv6 {
                links.add_address(HOST_LINK, IpAddr::V6(self.ip6), 64).await?;
            }
            Ok(())
        })
    }
}

/// IPv6 without what it says unasked: router solicitations and duplicate address detection.
fn quiet_ipv6(ns: &NetNs) -> Result<()> {
    for key in ["accept_ra", "router_solicitations", "dad_transmits", "autoconf"] {
        ns.set_sysctl(&format!("ipv6/conf/default/{key}"), "0")?;
    }
    Ok(())
}
