//! Who the upcalls of a socket are from, at a price that every upcall can pay.

/// Slots of a [`PortTally`]; a power of two.
const SLOTS: usize = 64;

/// Counts upcalls by port in a table of fixed size. Ports that share a slot vote each other down
/// (Boyer and Moore's majority vote), so a count is never more than the port's upcalls, and a port with
/// more than the others of its slot together has one.
#[derive(Debug)]
pub struct PortTally {
    slots: [(u32, u32); SLOTS],
    total: u32,
}

impl Default for PortTally {
    fn default() -> Self {
        Self { slots: [(0, 0); SLOTS], total: 0 }
    }
}

impl PortTally {
    /// An upcall of a packet that came in by `port`.
    pub fn count(&mut self, port: u32) {
        self.total = self.total.saturating_add(1);
        let (owner, count) = &mut self.slots[port as usize % SLOTS];
        if *count == 0 {
            (*owner, *count) = (port, 1);
        } else if *owner == port {
            *count = count.saturating_add(1);
        } else {
            *count -= 1;
        }
    }

    /// Upcalls of all ports.
    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// Upcalls of this port, or fewer.
    pub(crate) fn of(&self, port: u32) -> u32 {
        let (owner, count) = self.slots[port as usize % SLOTS];
        if owner == port { count } else { 0 }
    }

    /// Ports with their counts; some may be missing.
    pub(crate) fn ports(&self) -> impl Iterator<Item = (u32, u32)> {
        self.slots.iter().copied().filter(|(_, count)| *count > 0)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_count_is_never_too_high_and_a_heavy_port_never_missing(
            ports in proptest::collection::vec(0..200u32, 0..400),
        ) {
            let mut tally = PortTally::default();
            for &port in &ports {
                tally.count(port);
            }
            prop_assert_eq!(tally.total() as usize, ports.len());
            for port in 0..200 {
                let real = ports.iter().filter(|p| **p == port).count();
                let rivals = ports.iter().filter(|p| **p as usize % SLOTS == port as usize % SLOTS);
                prop_assert!(tally.of(port) as usize <= real);
                prop_assert!(2 * real <= rivals.count() || tally.of(port) > 0, "port {}", port);
            }
        }
    }
}
