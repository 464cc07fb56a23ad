//! Messages to the kernel, many in one system call.

use std::io;
use std::sync::Arc;

use netlink_io::Socket;
use upcall_core::{Ledger, Sampler};

use crate::clock::Clock;

/// Bytes after which a batch is sent before its round ends. A batch may exceed it by one message; the
/// default send buffer (212,992 bytes) holds any. What the kernel copies it to is 8 KiB then, as a rule: for more it
/// takes whole pages, and clears them.
const BATCH_BYTES_MAX: usize = 7_600;

/// Of so many batches with installs, the time is taken of one.
const INSTALLS_EVERY: u32 = 16;

/// What a sequence number says of its message, so that an error reply names its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Execute,
    FlowPut,
}

impl Op {
    pub(crate) fn of_seq(seq: u32) -> Self {
        if seq & 1 == 0 { Self::Execute } else { Self::FlowPut }
    }
}

/// Messages waiting to be sent, on the worker's own socket: replies cannot crowd out upcalls.
#[derive(Debug)]
pub(crate) struct Batch {
    socket: Arc<Socket>,
    buf: Vec<u8>,
    executes: u64,
    puts: u64,
    next_seq: u32,
    clock: Clock,
    /// Since when an EXECUTE of the batch is measured.
    decided_ns: Option<u64>,
    /// Since when an install of the batch is measured.
    planned_us: Option<u64>,
    installs: Sampler,
}

impl Batch {
    pub(crate) fn new(socket: Arc<Socket>, clock: Clock) -> Self {
        Self {
            socket,
            buf: Vec::with_capacity(2 * BATCH_BYTES_MAX),
            executes: 0,
            puts: 0,
            next_seq: 2,
            clock,
            decided_ns: None,
            planned_us: None,
            installs: Sampler::new(INSTALLS_EVERY),
        }
    }

    /// A sequence number for a message of this kind.
    pub(crate) fn seq(&mut self, op: Op) -> u32 {
        self.next_seq = self.next_seq.wrapping_add(2).max(2);
        match op {
            Op::Execute => self.next_seq,
            Op::FlowPut => self.next_seq | 1,
        }
    }

    /// Appends an EXECUTE written by `write`; sends the batch if it is large.
    pub(crate) fn execute<E>(
        &mut self,
        ledger: &Ledger,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        write(&mut self.buf)?;
        self.executes += 1;
        self.flush_if_large(ledger);
        Ok(())
    }

    /// Takes the time of the EXECUTE that comes next: it was decided about at `decided_ns`.
    pub(crate) fn time(&mut self, decided_ns: u64) {
        self.decided_ns.get_or_insert(decided_ns);
    }

    /// Appends an encoded `FLOW_PUT`, planned at `planned_us`; sends the batch if it is large.
    pub(crate) fn put(&mut self, ledger: &Ledger, message: &[u8], planned_us: u64) {
        if self.puts == 0 {
            self.installs.at(planned_us);
            self.planned_us = self.installs.take().then_some(planned_us);
        }
        self.buf.extend_from_slice(message);
        self.puts += 1;
        self.flush_if_large(ledger);
    }

    fn flush_if_large(&mut self, ledger: &Ledger) {
        if self.buf.len() >= BATCH_BYTES_MAX {
            self.flush(ledger);
        }
    }

    /// Sends what there is. A batch the kernel does not take is not sent again: part of it may have
    /// been carried out, and a packet must not leave twice.
    pub(crate) fn flush(&mut self, ledger: &Ledger) {
        if self.buf.is_empty() {
            return;
        }
        let sent = self.socket.send(&self.buf);
        self.settle(ledger, sent);
        self.buf.clear();
        (self.executes, self.puts) = (0, 0);
        (self.decided_ns, self.planned_us) = (None, None);
    }

    /// The kernel has carried the batch out: it does that within the call.
    fn measure(&self, ledger: &Ledger) {
        if self.decided_ns.is_none() && self.planned_us.is_none() {
            return;
        }
        let now_ns = self.clock.now_ns();
        if let Some(decided_ns) = self.decided_ns {
            ledger.latency.execute.record(now_ns.saturating_sub(decided_ns));
        }
        if let Some(planned_us) = self.planned_us {
            ledger.latency.install.record(now_ns.saturating_sub(planned_us * 1_000));
        }
    }

    fn settle(&self, ledger: &Ledger, sent: io::Result<()>) {
        match sent {
            Ok(()) => {
                self.measure(ledger);
                ledger.executed.add(self.executes);
                ledger.completed.add(self.executes);
                ledger.flows_put.add(self.puts);
            }
            Err(err) => {
                ledger.shed.add(self.executes);
                ledger.shed_send_failed.add(self.executes);
                tracing::warn!(%err, executes = self.executes, puts = self.puts,
                    "the kernel did not take a batch; its packets and flows are given up");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_tell_operations_apart() {
        let mut batch = Batch::new(Arc::new(Socket::open().unwrap()), Clock::start());
        batch.next_seq = u32::MAX - 3;
        for _ in 0..4 {
            let (execute, put) = (batch.seq(Op::Execute), batch.seq(Op::FlowPut));
            assert_ne!(execute, 0);
            assert_eq!(Op::of_seq(execute), Op::Execute);
            assert_eq!(Op::of_seq(put), Op::FlowPut);
        }
    }
}
