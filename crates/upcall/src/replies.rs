//! Error replies to batches: what the kernel refused.

use std::io;

use netlink_io::Datagram;
use ovs_wire::nl::{NLMSG_ERROR, NlAck, NlMsgs};
use rustix::io::Errno;
use upcall_core::Ledger;

use crate::batch::Op;

/// Reads all replies there are. Success is not acknowledged, so every reply is a refusal; it repeats
/// the sequence number, which tells the operation.
pub(crate) fn drain(
    buf: &mut [u8],
    ledger: &Ledger,
    mut recv: impl FnMut(&mut [u8]) -> io::Result<Option<Datagram>>,
) -> io::Result<()> {
    while let Some(datagram) = recv(buf)? {
        for msg in NlMsgs::new(&buf[..datagram.len]).map_while(Result::ok) {
            if msg.kind == NLMSG_ERROR
                && let Ok(ack) = NlAck::parse(&msg)
                && ack.errno != 0
            {
                count(Op::of_seq(msg.seq), &ack, ledger);
            }
        }
    }
    Ok(())
}

fn count(op: Op, ack: &NlAck<'_>, ledger: &Ledger) {
    let err = io::Error::from_raw_os_error(ack.errno);
    match op {
        Op::Execute => {
            ledger.execute_errors.add(1);
            tracing::debug!(%err, ext_ack = ack.ext_ack, "the kernel refused to execute actions");
        }
        // The same flow from another key: another worker saw a packet of it too, and was first
        // (`ovs_flow_cmd_new`, net/openvswitch/datapath.c).
        Op::FlowPut if ack.errno == Errno::NOENT.raw_os_error() => {
            ledger.put_errors.add(1);
            ledger.put_raced.add(1);
        }
        Op::FlowPut => {
            ledger.put_errors.add(1);
            tracing::debug!(%err, ext_ack = ack.ext_ack, "the kernel refused to install a flow");
        }
    }
}
