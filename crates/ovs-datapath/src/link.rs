//! Network devices, through rtnetlink: what a port's name stands for before it is a port.

use futures::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use crate::ControlError;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Is it administratively up?
    pub up: bool,
    /// Interface index of the device it is a member of: a bridge, a bond, or a datapath's local port.
    pub controller: Option<u32>,
    /// Is it a loopback device? The datapath takes none.
    pub loopback: bool,
}

/// Questions about network devices, in the namespace of the thread that opened it.
#[derive(Debug, Clone)]
pub struct Links(rtnetlink::Handle);

impl Links {
    /// Opens a connection, driven on the current runtime.
    pub fn open() -> Result<Self, ControlError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| ControlError::Socket { call: "rtnetlink", source })?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// The device `name`, or `None` if there is none.
    pub async fn by_name(&self, name: &str) -> Result<Option<Link>, ControlError> {
        let query = self.0.link().get().match_name(name.to_owned());
        Self::one(query, &format!("look up interface '{name}'")).await
    }

    /// The device with this interface index, or `None`.
    pub async fn by_index(&self, ifindex: u32) -> Result<Option<Link>, ControlError> {
        let query = self.0.link().get().match_index(ifindex);
        Self::one(query, &format!("look up interface {ifindex}")).await
    }

    /// All devices there are.
    pub async fn all(&self) -> Result<Vec<Link>, ControlError> {
        let replies = self.0.link().get().execute().map_ok(Link::from);
        replies.try_collect().await.map_err(|err| ControlError::Link {
            op: "list the interfaces".to_owned(),
            message: err.to_string(),
        })
    }

    async fn one(query: rtnetlink::LinkGetRequest, op: &str) -> Result<Option<Link>, ControlError> {
        let mut replies = std::pin::pin!(query.execute());
        let first = replies.try_next().await;
        // To the end: the connection warns of replies that nobody takes.
        while let Ok(Some(_)) = replies.try_next().await {}
        match first {
            Ok(message) => Ok(message.map(Link::from)),
            Err(rtnetlink::Error::NetlinkError(err))
                if err.raw_code() == -rustix::io::Errno::NODEV.raw_os_error() =>
            {
                Ok(None)
            }
            Err(err) => Err(ControlError::Link { op: op.to_owned(), message: err.to_string() }),
        }
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            ifindex: message.header.index,
            name: String::new(),
            up: message.header.flags.contains(LinkFlags::Up),
            controller: None,
            loopback: message.header.flags.contains(LinkFlags::Loopback),
        };
        for attr in message.attributes {
            match attr {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                _ => {}
            }
        }
        link
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finds_the_loopback_device_and_not_others() {
        let links = Links::open().unwrap();
        let lo = links.by_name("lo").await.unwrap().unwrap();
        assert!(lo.loopback);
        assert_eq!(links.by_index(lo.ifindex).await.unwrap().unwrap().name, "lo");
        assert_eq!(links.by_name("no-such-if0").await.unwrap(), None);
        assert!(links.all().await.unwrap().contains(&lo));
    }
}
