//! A dump of the kernel's flow table, read a piece at a time: its memory does not grow with the table.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use netlink_io::{AsyncSocket, Socket};
use ovs_wire::flow::{self, Flow, Omit};
use ovs_wire::nl::{NLMSG_DONE, NLMSG_ERROR, NlAck, NlMsg, NlMsgs};
use rustix::time::{ClockId, clock_gettime};

/// Bytes of a piece of a dump; the kernel fills at most 32 KiB.
const PIECE_MAX: usize = 64 << 10;
/// How long the kernel may take for one piece.
const PIECE_LIMIT: Duration = Duration::from_secs(5);

/// Hands every flow of a datapath to `each`, without what is to be omitted. After an error the rest of
/// the dump may be on its way, so the socket must not be used for another.
pub(crate) async fn read(
    socket: &Arc<Socket>,
    flow_family: u16,
    (dp_ifindex, omit): (i32, Omit),
    mut each: impl FnMut(&Flow<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let readable = AsyncSocket::new(socket.clone())?;
    let mut request = Vec::new();
    flow::write_dump(&mut request, (flow_family, 1), dp_ifindex, omit).map_err(io::Error::other)?;
    socket.send(&request)?;
    let mut buf = vec![0; PIECE_MAX];
    let mut done = false;
    while !done {
        let mut ready = tokio::time::timeout(PIECE_LIMIT, readable.readable()).await??;
        while let Some(piece) = ready.try_recv(&mut buf)? {
            done |= take(&buf[..piece.len], flow_family, &mut each)?;
        }
    }
    Ok(())
}

/// Handles a piece of the dump; `true` at its end.
fn take(
    datagram: &[u8],
    flow_family: u16,
    each: &mut impl FnMut(&Flow<'_>) -> io::Result<()>,
) -> io::Result<bool> {
    for msg in NlMsgs::new(datagram) {
        let msg = msg.map_err(io::Error::other)?;
        match msg.kind {
            NLMSG_DONE => return check_done(&msg).map(|()| true),
            NLMSG_ERROR => {
                let ack = NlAck::parse(&msg).map_err(io::Error::other)?;
                return Err(io::Error::from_raw_os_error(ack.errno));
            }
            kind if kind == flow_family => {
                let (_, flow) = Flow::parse(msg.payload).map_err(io::Error::other)?;
                each(&flow)?;
            }
            _ => {}
        }
    }
    Ok(false)
}

/// The end of a dump carries an errno of its own: of a datapath that is gone, say.
fn check_done(msg: &NlMsg<'_>) -> io::Result<()> {
    match NlAck::parse(msg) {
        Ok(ack) if ack.errno > 0 => Err(io::Error::from_raw_os_error(ack.errno)),
        _ => Ok(()),
    }
}

/// The clock of the kernel's `used` times.
pub(crate) fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1000 + now.tv_nsec.cast_unsigned() / 1_000_000
}
