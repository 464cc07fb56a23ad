//! The datapath's side: what was sent, which flows are installed, and what was read and is in nobody's
//! answer yet.

use std::collections::BTreeSet;

use crate::host::{FLOWS, Packet};

#[derive(Default)]
pub(crate) struct Kernel {
    installed: [bool; FLOWS],
    /// Packets as they left the datapath, those that matched a flow among them.
    pub(crate) out: Vec<Packet>,
    /// Of these, those that were upcalls.
    pub(crate) executed: Vec<Packet>,
    /// Packets that were in a socket when their flow was installed: nothing could tell.
    pub(crate) late: BTreeSet<Packet>,
    /// Upcalls that were read and are neither answered nor shed.
    pub(crate) in_flight: BTreeSet<Packet>,
    pub(crate) received: usize,
    pub(crate) shed: usize,
    pub(crate) puts: usize,
}

impl Kernel {
    /// A packet comes; `false` if it misses.
    pub(crate) fn forward(&mut self, packet: Packet) -> bool {
        let hit = self.installed[packet.0];
        if hit {
            self.out.push(packet);
        }
        hit
    }

    pub(crate) fn read(&mut self, packet: Packet) {
        self.received += 1;
        assert!(self.in_flight.insert(packet), "{packet:?} was read twice");
    }

    pub(crate) fn execute(&mut self, packet: Packet) {
        assert!(self.in_flight.remove(&packet), "{packet:?} was answered twice");
        self.executed.push(packet);
        self.out.push(packet);
    }

    pub(crate) fn shed(&mut self, packet: Packet) {
        assert!(self.in_flight.remove(&packet), "{packet:?} was answered, and shed");
        self.shed += 1;
    }

    /// Installs a flow; `unread` is what the sockets hold of it.
    pub(crate) fn put(&mut self, flow: usize, unread: impl Iterator<Item = Packet>) {
        self.puts += 1;
        if !self.installed[flow] {
            self.late.extend(unread);
        }
        self.installed[flow] = true;
    }

    pub(crate) fn expire(&mut self, flow: usize) {
        self.installed[flow] = false;
    }

    /// Upcalls of a flow that were read and are not answered.
    pub(crate) fn unanswered(&self, flow: usize) -> usize {
        self.in_flight.range((flow, 0)..(flow + 1, 0)).count()
    }
}
