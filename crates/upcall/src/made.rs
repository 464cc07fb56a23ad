//! What a process made of datapath and ports, told to its successor, which removes it in its stead.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ovs_datapath::Control;
use ovs_wire::datapath::Datapath;
use rustix::io::Errno;

use crate::setup::Created;
use crate::{Dispatcher, InFlight};

/// Port numbers there are (`DP_MAX_PORTS`, `net/openvswitch/datapath.h`).
const PORTS: usize = 65_536;
/// Words of a record: the datapath's, and a bit for each port number.
pub(crate) const WORDS: usize = 1 + PORTS / 64;
/// Set beside the datapath's interface index if the datapath itself was made.
const DATAPATH: u64 = 1 << 32;

/// What was made of a datapath, which its interface index tells apart from a later one of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    dp_ifindex: u32,
    datapath: bool,
    ports: BTreeSet<u32>,
}

impl Made {
    fn of(created: &Created, dp: &Datapath) -> Self {
        let dp_ifindex = dp.ifindex.cast_unsigned();
        let ports = created.members.ours().into_iter().collect();
        Self { dp_ifindex, datapath: created.datapath, ports }
    }

    pub(crate) fn read(words: &[AtomicU64]) -> Self {
        let word = words[0].load(Relaxed);
        let is_set = |port: &u32| {
            let (at, bit) = place(*port);
            words[at].load(Relaxed) & bit != 0
        };
        let ports = (0..PORTS as u32).filter(is_set).collect();
        Self { dp_ifindex: word as u32, datapath: word & DATAPATH != 0, ports }
    }

    fn write(&self, words: &[AtomicU64]) {
        let mut bits = vec![0; WORDS];
        bits[0] = u64::from(self.dp_ifindex) | if self.datapath { DATAPATH } else { 0 };
        for port in self.ports.iter().filter(|port| **port < PORTS as u32) {
            let (at, bit) = place(*port);
            bits[at] |= bit;
        }
        for (word, bits) in words.iter().zip(bits) {
            // What is 0 and stays 0 takes no memory.
            if word.load(Relaxed) != bits {
                word.store(bits, Relaxed);
            }
        }
    }
}

/// Index of the word, and the bit in it.
fn place(port: u32) -> (usize, u64) {
    (1 + port as usize / 64, 1 << (port % 64))
}

impl Created {
    /// What predecessors made of this datapath is ours to remove from now on: at the end, or now if nobody
    /// asks for it any more.
    pub(crate) async fn inherit(&mut self, made: &[Made], control: &Control, dp: &Datapath) {
        let mut ports = BTreeSet::new();
        for made in made.iter().filter(|made| made.dp_ifindex == dp.ifindex.cast_unsigned()) {
            self.datapath |= made.datapath;
            ports.extend(&made.ports);
        }
        for port in self.members.made_before(&ports) {
            match control.delete_vport(dp.ifindex, port).await {
                Err(err) if !err.is(Errno::NODEV) => {
                    tracing::warn!(port, %err, "cannot remove a port that a predecessor made");
                }
                _ => {}
            }
        }
    }
}

impl Dispatcher {
    /// The record of what the workers have in their hands, and of what was made of datapath and ports until
    /// now. Whoever keeps it with the sockets can tell a successor what was lost with this process if it is
    /// killed, and what is to be removed in its stead ([`Builder::inherit_in_flight`](crate::Builder)).
    pub fn in_flight(&self) -> &InFlight {
        let record = &*self.shared.in_flight;
        Made::of(&self.created, &self.dp).write(record.made());
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(dp_ifindex: u32, datapath: bool, ports: &[u32]) -> Made {
        Made { dp_ifindex, datapath, ports: ports.iter().copied().collect() }
    }

    #[test]
    fn a_successor_reads_what_was_made() {
        let words: Vec<_> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        assert_eq!(Made::read(&words), made(0, false, &[]));
        for made in [made(7, true, &[0, 1, 63, 64, 65_535]), made(u32::MAX, false, &[2])] {
            made.write(&words);
            assert_eq!(Made::read(&words), made);
        }
    }
}
