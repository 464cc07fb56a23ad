//! What was shed, by port: whoever is shed wants to know who he is.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Upcalls of one port that were refused by us, by reason. The sums over all ports are in
/// [`LedgerSnapshot`](crate::LedgerSnapshot).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortSheds {
    /// The port's number; `u32::MAX` for packets without a port.
    pub port: u32,
    /// It had taken its share of the room for upcalls that wait.
    pub no_room: u64,
    /// It had as many waiting as it may ([`QueueLimits::port_upcalls_max`](crate::QueueLimits)).
    pub quota: u64,
    /// It, or a class of it, had more than its rate ([`Limits::port_rates`](crate::Limits)).
    pub rate: u64,
}

impl PortSheds {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.no_room + self.quota + self.rate
    }
}

/// The counts of all ports; there are 65,536 at most. Locked for an upcall that is shed, which costs
/// less than one that is handled.
#[derive(Debug, Default)]
pub(crate) struct Sheds(Mutex<HashMap<u32, PortSheds>>);

impl Sheds {
    /// Counts an upcall of `port` in the counter that `reason` chooses.
    pub(crate) fn count(&self, port: u32, reason: impl FnOnce(&mut PortSheds) -> &mut u64) {
        let mut ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sheds = ports.entry(port).or_insert(PortSheds { port, ..PortSheds::default() });
        *reason(sheds) += 1;
    }

    /// Ports of which something was shed, the one with most first.
    pub(crate) fn read(&self) -> Vec<PortSheds> {
        let ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = ports.values().copied().collect();
        all.sort_by_key(|sheds| (std::cmp::Reverse(sheds.total()), sheds.port));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sheds_are_counted_by_port_and_reason() {
        let sheds = Sheds::default();
        sheds.count(3, |port| &mut port.quota);
        sheds.count(7, |port| &mut port.rate);
        sheds.count(7, |port| &mut port.no_room);
        let read = sheds.read();
        assert_eq!(read[0], PortSheds { port: 7, no_room: 1, quota: 0, rate: 1 });
        assert_eq!((read.len(), read[1].port, read[1].total()), (2, 3, 1));
    }
}
