//! Deletions of flows, many in one system call.

use std::io;

use netlink_io::Socket;
use ovs_wire::flow::{self, Flow, FlowStats};
use ovs_wire::nl::{NLM_F_ECHO, NLMSG_ERROR, NlMsgs};

use crate::flow_counts::FlowCounts;

/// Deletions of a batch: their replies find room in the default receive buffer (212,992 bytes).
const BATCH_MAX: usize = 128;
/// Bytes of a reply: a flow with its actions, which may fill 32 KiB.
const REPLY_MAX: usize = 64 << 10;

/// Deletions that wait to be sent.
pub(super) struct Deletions<'a> {
    socket: &'a Socket,
    flow_family: u16,
    counts: &'a FlowCounts,
    messages: Vec<u8>,
    /// What the flows of the batch had counted when they were read.
    read: Vec<FlowStats>,
    replies: Vec<u8>,
}

impl<'a> Deletions<'a> {
    pub(super) fn new(socket: &'a Socket, flow_family: u16, counts: &'a FlowCounts) -> Self {
        let (messages, read, replies) = (Vec::new(), Vec::new(), Vec::new());
        Self { socket, flow_family, counts, messages, read, replies }
    }

    /// Deletes a flow. One that has counted something is asked for its last word: it is in use, and
    /// counts on until it is gone.
    pub(super) fn push(&mut self, flow: &Flow<'_>) -> io::Result<()> {
        let flags = if flow.stats.packets > 0 { NLM_F_ECHO } else { 0 };
        let head = (self.flow_family, flags, self.read.len() as u32);
        flow::write_delete(&mut self.messages, head, flow).map_err(io::Error::other)?;
        self.read.push(flow.stats);
        if self.read.len() == BATCH_MAX { self.flush() } else { Ok(()) }
    }

    /// Sends what waits, and counts what the flows had counted.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.read.is_empty() {
            return Ok(());
        }
        self.socket.send(&self.messages)?;
        self.messages.clear();
        self.replies.resize(REPLY_MAX, 0);
        while let Some(reply) = self.socket.recv(&mut self.replies)? {
            for message in NlMsgs::new(&self.replies[..reply.len]).map_while(Result::ok) {
                // A flow that is gone already is an error of no interest.
                if message.kind != NLMSG_ERROR
                    && let Ok((_, flow)) = Flow::parse(message.payload)
                    && let Some(read) = self.read.get_mut(message.seq as usize)
                {
                    *read = FlowStats::default();
                    self.counts.ended(&flow);
                }
            }
        }
        // Of those that gave no reply, what was read is the last word.
        self.read.drain(..).for_each(|stats| self.counts.add(stats));
        Ok(())
    }
}
