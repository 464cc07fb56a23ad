//! Links and addresses of a namespace, through rtnetlink.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::link::{
    InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan};

use crate::error::{Error, Result};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Longest name of a link in bytes (`IFNAMSIZ` less the NUL).
pub const NAME_LEN_MAX: usize = 15;

/// Pause between two looks at the operational state of links, and how long in all.
const OPERATIONAL_POLL: Duration = Duration::from_millis(2);
const OPERATIONAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique within the namespace.
    pub index: u32,
    /// Name, at most [`NAME_LEN_MAX`] bytes.
    pub name: String,
    /// Ethernet address; zero where the link has none.
    pub mac: Mac,
    /// Largest payload of a frame in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether the kernel's link watch has seen it working (operational state "up").
    pub operational: bool,
    /// Index of the device it is enslaved to (a bridge, or an Open vSwitch datapath's device).
    pub controller: Option<u32>,
    /// The driver's name ("veth", "openvswitch"), where the kernel gives it.
    pub kind: Option<String>,
}

/// A veth pair to be made by [`Links::add_veth`].
#[derive(Debug)]
pub struct Veth<'a> {
    name: &'a str,
    peer: &'a str,
    peer_ns: Option<std::os::fd::BorrowedFd<'a>>,
    mac: Option<Mac>,
    peer_mac: Option<Mac>,
    mtu: Option<u32>,
}

impl<'a> Veth<'a> {
    /// A pair `name` and `peer`, both in the namespace of the request.
    pub fn new(name: &'a str, peer: &'a str) -> Self {
        Self { name, peer, peer_ns: None, mac: None, peer_mac: None, mtu: None }
    }

    /// Makes the peer in another namespace.
    #[must_use]
    pub fn peer_in(mut self, ns: &'a impl AsFd) -> Self {
        self.peer_ns = Some(ns.as_fd());
        self
    }

    /// The Ethernet address of the near end. Default: random, by the kernel.
    #[must_use]
    pub fn mac(mut self, mac: Mac) -> Self {
        self.mac = Some(mac);
        self
    }

    /// The Ethernet address of the peer. Default: random, by the kernel.
    #[must_use]
    pub fn peer_mac(mut self, mac: Mac) -> Self {
        self.peer_mac = Some(mac);
        self
    }

    /// Maximum transmission unit of both ends in bytes. Default: 1500.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    fn message(&self) -> LinkMessage {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(self.peer);
        let mut near = LinkVeth::new(self.name, self.peer);
        if let Some(ns) = self.peer_ns {
            peer = peer.setns_by_fd(ns.as_raw_fd());
        }
        if let Some(mac) = self.peer_mac {
            peer = peer.address(mac.to_vec());
        }
        if let Some(mac) = self.mac {
            near = near.address(mac.to_vec());
        }
        if let Some(mtu) = self.mtu {
            peer = peer.mtu(mtu);
            near = near.mtu(mtu);
        }
        near.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).build()
    }
}

/// A connection to the routing family of one namespace; [`crate::NetNs::links`] lends it.
#[derive(Debug)]
pub struct Links {
    handle: rtnetlink::Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Connects from the namespace of the calling thread. Call it inside a tokio runtime that was
    /// built on that thread.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(Error::system("open a routing socket"))?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Makes a veth pair; both ends are down.
    pub async fn add_veth(&self, veth: &Veth<'_>) -> Result<()> {
        check_name(veth.name)?;
        check_name(veth.peer)?;
        let what = || format!("add the veth pair {} and {}", veth.name, veth.peer);
        self.handle.link().add(veth.message()).execute().await.map_err(|e| refused(what(), &e))
    }

    /// Makes a VLAN device `name` on `parent` that sends and receives frames tagged with `vlan_id`.
    ///
    /// # Errors
    /// [`Error::System`] with `EOPNOTSUPP` on a kernel without 8021q.
    pub async fn add_vlan(&self, name: &str, parent: &str, vlan_id: u16) -> Result<()> {
        check_name(name)?;
        let parent_index = self.get(parent).await?.index;
        let message = LinkVlan::new(name, parent_index, vlan_id).build();
        let what = || format!("add the VLAN {vlan_id} device {name} on {parent}");
        self.handle.link().add(message).execute().await.map_err(|e| refused(what(), &e))
    }

    /// Sets the link administratively up.
    pub async fn up(&self, name: &str) -> Result<()> {
        self.change(name, "bring up", LinkMessageBuilder::up).await
    }

    /// Waits until packets pass on all of these links, at most 10 s. Both ends must be up.
    ///
    /// Of a veth pair, the end brought up first gets its carrier when the other follows, and its queue
    /// from a work item of its own (`net/core/link_watch.c`): until then it drops what is sent. The
    /// end brought up last works at once, but may be told operational up to a second later.
    ///
    /// # Errors
    /// [`Error::Timeout`] that names them.
    pub async fn wait_operational(&self, names: &[&str]) -> Result<()> {
        let wait = async {
            loop {
                let links = self.list().await?;
                let operational =
                    |name| links.iter().any(|link| link.name == name && link.operational);
                if names.iter().copied().all(operational) {
                    return Ok(());
                }
                tokio::time::sleep(OPERATIONAL_POLL).await;
            }
        };
        tokio::time::timeout(OPERATIONAL_TIMEOUT, wait).await.unwrap_or_else(|_| {
            let what = format!("{} to be operational", names.join(", "));
            Err(Error::Timeout { what, waited: OPERATIONAL_TIMEOUT })
        })
    }

    /// Sets the link administratively down.
    pub async fn down(&self, name: &str) -> Result<()> {
        self.change(name, "bring down", LinkMessageBuilder::down).await
    }

    /// Sets the Ethernet address.
    pub async fn set_mac(&self, name: &str, mac: Mac) -> Result<()> {
        self.change(name, "set the MAC address of", |link| link.address(mac.to_vec())).await
    }

    /// Sets the maximum transmission unit in bytes.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        self.change(name, "set the MTU of", |link| link.mtu(mtu)).await
    }

    /// Gives the link another name; it must be down.
    pub async fn rename(&self, name: &str, new_name: &str) -> Result<()> {
        check_name(new_name)?;
        self.change(name, "rename", |link| link.name(new_name)).await
    }

    /// Moves the link to another namespace, where it is down and without addresses.
    pub async fn move_to(&self, name: &str, ns: impl AsFd) -> Result<()> {
        let fd = ns.as_fd().as_raw_fd();
        self.change(name, "move to another namespace", |link| link.setns_by_fd(fd)).await
    }

    /// Adds an address with its prefix length. An IPv6 address is usable at once (no duplicate
    /// address detection).
    pub async fn add_address(&self, name: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
        use rtnetlink::packet_route::address::AddressHeaderFlags;
        let index = self.get(name).await?.index;
        let mut request = self.handle.address().add(index, address, prefix_len);
        if address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        let what = || format!("add {address}/{prefix_len} to {name}");
        request.execute().await.map_err(|e| refused(what(), &e))
    }

    /// Deletes the link; of a veth pair both ends go.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let index = self.get(name).await?.index;
        let request = self.handle.link().del(index).execute();
        request.await.map_err(|e| refused(format!("delete {name}"), &e))
    }

    /// The link of this name.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`] when there is none.
    pub async fn get(&self, name: &str) -> Result<Link> {
        let found = self.list().await?.into_iter().find(|link| link.name == name);
        found.ok_or_else(|| Error::NoSuchLink { name: name.to_owned() })
    }

    /// All links of the namespace, in the kernel's order.
    pub async fn list(&self) -> Result<Vec<Link>> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| refused("list the links", &e))?;
        Ok(messages.iter().map(Link::from_message).collect())
    }

    async fn change(
        &self,
        name: &str,
        verb: &str,
        edit: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        let index = self.get(name).await?.index;
        let message = edit(LinkUnspec::new_with_index(index)).build();
        let request = self.handle.link().set(message).execute();
        request.await.map_err(|e| refused(format!("{verb} {name}"), &e))
    }
}

impl Link {
    fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: Mac::default(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            operational: false,
            controller: None,
            kind: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(mac) => {
                    link.mac = mac.as_slice().try_into().unwrap_or_default();
                }
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::OperState(state) => link.operational = *state == State::Up,
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        let problem = format!("a link name has 1 to {NAME_LEN_MAX} bytes: \"{name}\"");
        return Err(Error::Invalid(problem));
    }
    Ok(())
}

fn refused(what: impl Into<String>, error: &rtnetlink::Error) -> Error {
    let what = what.into();
    match error {
        rtnetlink::Error::NetlinkError(message) => Error::System { what, cause: message.to_io() },
        other => Error::Link { what, cause: other.to_string() },
    }
}
