//! Notifications of the kernel: who changed what.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use ovs_wire::datapath::{self, Datapath};
use ovs_wire::vport::Vport;

use crate::connection::{self, Raw, Requests, Unsolicited};
use crate::{Control, ControlError};

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A datapath.
    Datapath(Datapath),
    /// A port.
    Vport(Vport),
    /// Notifications were lost: what is known of datapaths and ports must be read again.
    Lost,
}

/// A change of a datapath or a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The object, as it is after the change; as it was, when it is gone.
    pub object: Object,
    /// The command: `NEW`, `DEL` or `SET` of the object's family.
    pub cmd: u8,
    /// Port id of the requester's socket; 0 if the kernel acted by itself.
    pub by_port_id: u32,
}

/// Stream of the changes of all datapaths and ports in a namespace.
///
/// Subscribe first, then list: what changes in between is seen twice, never missed.
#[derive(Debug)]
pub struct Events {
    messages: Unsolicited,
    datapath_family: u16,
    vport_family: u16,
    /// The connection lives as long as someone could use it.
    _requests: Requests,
}

impl Events {
    /// Subscribes on a connection of its own, so that a flood of notifications cannot push replies out.
    pub fn subscribe(control: &Control) -> Result<Self, ControlError> {
        let families = control.families();
        let group = |family: &ovs_wire::family::Family| {
            family.group(&family.name).ok_or(ControlError::NoFamily { family: datapath::FAMILY })
        };
        let groups = [group(&families.datapath)?, group(&families.vport)?];
        let (requests, messages) = connection::open(&groups, Duration::from_secs(1))?;
        Ok(Self {
            messages,
            datapath_family: families.datapath.id,
            vport_family: families.vport.id,
            _requests: requests,
        })
    }

    /// The next event; `None` when the connection has ended.
    pub async fn recv(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// `None` for messages that are neither: they are of no use here.
    fn read(&self, message: &NetlinkMessage<Raw>) -> Option<Event> {
        let by_port_id = message.header.port_number;
        let (cmd, object) = match &message.payload {
            NetlinkPayload::Overrun(_) => (0, Object::Lost),
            NetlinkPayload::InnerMessage(raw) if raw.family == self.datapath_family => {
                Datapath::parse(&raw.payload).map(|(cmd, dp)| (cmd, Object::Datapath(dp))).ok()?
            }
            NetlinkPayload::InnerMessage(raw) if raw.family == self.vport_family => {
                Vport::parse(&raw.payload).map(|(cmd, port)| (cmd, Object::Vport(port))).ok()?
            }
            _ => return None,
        };
        Some(Event { object, cmd, by_port_id })
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            let Some((message, _)) = ready!(Pin::new(&mut self.messages).poll_next(cx)) else {
                return Poll::Ready(None);
            };
            if let Some(event) = self.read(&message) {
                return Poll::Ready(Some(event));
            }
        }
    }
}
