//! One generic-netlink connection of `netlink-proto`, with requests as bytes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use futures::lock::Mutex;
use netlink_packet_core::{
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_proto::sys::{SocketAddr, protocols::NETLINK_GENERIC};
use netlink_proto::{Connection, ConnectionHandle};
use netlink_sys::AsyncSocket;
use ovs_wire::nl::{NLM_F_DUMP, NLMSG_ERROR, NlAck, NlMsg};

use crate::ControlError;

/// A message's payload and type, as they are on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) family: u16,
    pub(crate) payload: Vec<u8>,
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.payload);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { family: header.message_type, payload: payload.to_vec() })
    }
}

/// Messages nobody asked for: notifications, and the notice that some were lost.
///
/// The queue behind it is `netlink-proto`'s and has no limit of its own; what bounds it is that only
/// datapath and port changes are subscribed to, which a privileged process has to make one by one.
pub(crate) type Unsolicited = UnboundedReceiver<(NetlinkMessage<Raw>, SocketAddr)>;

/// Sends requests and matches replies. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    handle: ConnectionHandle<Raw>,
    limit: Duration,
    /// The socket's own: notifications of a change name the socket that asked for it.
    pub(crate) port_id: u32,
    /// Held by the dump that is under way: a socket has one at a time, and a second one is refused
    /// with `EBUSY` (`__netlink_dump_start`, `net/netlink/af_netlink.c`).
    dump: Arc<Mutex<()>>,
}

/// Opens a connection in the network namespace of the calling thread and drives it on the current
/// runtime; `groups` are multicast group ids to join.
pub(crate) fn open(
    groups: &[u32],
    limit: Duration,
) -> Result<(Requests, Unsolicited), ControlError> {
    let socket_error = |call| move |source| ControlError::Socket { call, source };
    let (mut connection, handle, unsolicited): (Connection<Raw>, _, _) =
        netlink_proto::new_connection(NETLINK_GENERIC).map_err(socket_error("socket"))?;
    connection.set_forward_done(true);
    let socket = connection.socket_mut().socket_mut();
    let port_id = socket.bind_auto().map_err(socket_error("bind"))?.port_number();
    socket.set_ext_ack(true).map_err(socket_error("NETLINK_EXT_ACK"))?;
    socket.set_cap_ack(true).map_err(socket_error("NETLINK_CAP_ACK"))?;
    for group in groups {
        socket.add_membership(*group).map_err(socket_error("NETLINK_ADD_MEMBERSHIP"))?;
    }
    tokio::spawn(connection);
    Ok((Requests { handle, limit, port_id, dump: Arc::default() }, unsolicited))
}

impl Requests {
    /// The same connection, with another time limit.
    pub(crate) fn within(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// Sends one request and gives the payloads of its replies. Asks for an acknowledgement, so that
    /// every request is answered: `netlink-proto` forgets to wake up behind requests that are not,
    /// and never ends their reply streams.
    pub(crate) async fn ask(
        &self,
        op: &str,
        family: u16,
        flags: u16,
        payload: Vec<u8>,
    ) -> Result<Vec<Vec<u8>>, ControlError> {
        let dumps = flags & NLM_F_DUMP == NLM_F_DUMP;
        let _turn = if dumps { Some(self.dump.lock().await) } else { None };
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let message =
            NetlinkMessage::new(header, NetlinkPayload::InnerMessage(Raw { family, payload }));
        let mut replies = self
            .handle
            .request(message, SocketAddr::new(0, 0))
            .map_err(|_| ControlError::Closed)?;
        let collect = async {
            let mut payloads = Vec::new();
            while let Some(reply) = replies.next().await {
                match reply.payload {
                    NetlinkPayload::InnerMessage(raw) => payloads.push(raw.payload),
                    NetlinkPayload::Error(err) => {
                        return refusal(op, reply.header.flags, err.raw_code(), &err.header)
                            .map(|()| payloads);
                    }
                    // A dump that fails midway, or of a datapath that is gone, ends with an errno.
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return refusal(op, 0, done.code, &[]).map(|()| payloads);
                    }
                    NetlinkPayload::Overrun(_) => return Err(self.no_answer(op)),
                    _ => {}
                }
            }
            Ok(payloads)
        };
        tokio::time::timeout(self.limit, collect).await.map_err(|_| self.no_answer(op))?
    }

    fn no_answer(&self, op: &str) -> ControlError {
        ControlError::NoAnswer { op: op.to_owned(), limit_ms: self.limit.as_millis() as u64 }
    }
}

/// Turns a negative acknowledgement into an error; `repeated` is what follows the code.
fn refusal(op: &str, flags: u16, code: i32, repeated: &[u8]) -> Result<(), ControlError> {
    if code == 0 {
        return Ok(());
    }
    let payload = [&code.to_ne_bytes(), repeated].concat();
    let msg = NlMsg { kind: NLMSG_ERROR, flags, seq: 0, portid: 0, payload: &payload };
    let ack = NlAck::parse(&msg)
        .map_err(|source| ControlError::BadReply { op: op.to_owned(), source })?;
    Err(ControlError::Refused {
        op: op.to_owned(),
        errno: ack.errno,
        ext_ack: ack.ext_ack.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_wire::family;

    #[tokio::test]
    async fn asks_a_real_kernel_and_reads_its_refusal() {
        let (requests, _unsolicited) = open(&[], Duration::from_secs(5)).unwrap();
        let mut payload = Vec::new();
        family::write_get(&mut payload, "nlctrl").unwrap();
        let replies =
            requests.ask("find nlctrl", family::CTRL_FAMILY_ID, 5, payload).await.unwrap();
        assert_eq!(family::Family::parse(&replies[0]).unwrap().id, family::CTRL_FAMILY_ID);

        let mut payload = Vec::new();
        family::write_get(&mut payload, "no_such_family").unwrap();
        let err = requests.ask("find it", family::CTRL_FAMILY_ID, 5, payload).await.unwrap_err();
        assert_eq!(err.errno(), Some(2));
    }
}
