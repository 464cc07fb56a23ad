//! Notifications of the kernel about network devices.

use std::collections::VecDeque;
use std::time::Duration;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use crate::{ControlError, Link};

/// `RTNLGRP_LINK` as a bit (`include/uapi/linux/rtnetlink.h`).
const RTMGRP_LINK: u32 = 1;
/// Pause after an error of the socket, so that it cannot spin.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// A change of a network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It was made, came into this namespace, was renamed or changed otherwise: as it is now.
    Changed(Link),
    /// It was deleted or left this namespace: as it was.
    Gone(Link),
    /// Notifications were lost, or could not be read: what is known of devices must be read again.
    Lost,
}

/// The changes of all network devices in a namespace.
///
/// Subscribe first, then look: what changes in between is seen twice, never missed. What waits, waits in
/// the socket, whose buffer the kernel bounds: more than fits is [`LinkEvent::Lost`].
pub struct LinkEvents {
    socket: TokioSocket,
    waiting: VecDeque<LinkEvent>,
}

impl LinkEvents {
    /// Subscribes in the namespace of the calling thread.
    pub fn subscribe() -> Result<Self, ControlError> {
        let error = |call| move |source| ControlError::Socket { call, source };
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(error("rtnetlink"))?;
        let address = SocketAddr::new(0, RTMGRP_LINK);
        socket.socket_mut().bind(&address).map_err(error("bind"))?;
        Ok(Self { socket, waiting: VecDeque::new() })
    }

    /// The next change. May be dropped and called again without missing one.
    pub async fn recv(&mut self) -> LinkEvent {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return event;
            }
            if let Ok((datagram, _)) = self.socket.recv_from_full().await {
                self.waiting.extend(read(&datagram));
            } else {
                // ENOBUFS: some did not fit. It waits before the pause, which may be cut short.
                self.waiting.push_back(LinkEvent::Lost);
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// The messages of a datagram. One that cannot be read may have been of use: it counts as lost.
fn read(mut datagram: &[u8]) -> Vec<LinkEvent> {
    let mut events = Vec::new();
    while !datagram.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) else {
            events.push(LinkEvent::Lost);
            return events;
        };
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                events.push(LinkEvent::Changed(link.into()));
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                events.push(LinkEvent::Gone(link.into()));
            }
            _ => {}
        }
        let len = (message.header.length as usize).next_multiple_of(4).max(4);
        datagram = datagram.get(len..).unwrap_or_default();
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_counts_as_lost() {
        assert_eq!(read(&[1, 2, 3]), [LinkEvent::Lost]);
        assert_eq!(read(&[]), []);
        // RTM_NEWLINK (16) with a header that ends early.
        let short = [20, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(read(&short), [LinkEvent::Lost]);
    }

    #[test]
    fn a_device_is_read_with_its_index() {
        // RTM_DELLINK (17) of interface 7 (`struct ifinfomsg`) called "a" (IFLA_IFNAME, 3).
        let mut datagram = vec![40, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        datagram.extend([0, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        datagram.extend([6, 0, 3, 0, b'a', 0, 0, 0]);
        let events = read(&[datagram.clone(), datagram].concat());
        assert_eq!(events.len(), 2);
        let LinkEvent::Gone(link) = &events[0] else { panic!("{events:?}") };
        assert_eq!((link.ifindex, link.name.as_str()), (7, "a"));
    }
}
