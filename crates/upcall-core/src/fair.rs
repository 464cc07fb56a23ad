//! Deficit round-robin over ports (Shreedhar and Varghese, 1996), with lanes as the things that queue.

use std::collections::VecDeque;

use hashbrown::HashMap;

/// Upcalls a port may have handled before the next port's turn.
const QUANTUM: u32 = 8;

/// Lanes that can run, shared out among the ports that their upcalls came in by.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    ports: HashMap<u32, PortQueue>,
    /// Ports with lanes, in turn.
    turns: VecDeque<u32>,
}

#[derive(Debug, Default)]
struct PortQueue {
    lanes: VecDeque<u32>,
    deficit: u32,
}

/// A lane whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) lane: u32,
    pub(crate) port: u32,
    /// Upcalls it may have handled, from 1.
    pub(crate) allowance: u32,
}

impl FairQueue {
    pub(crate) fn push(&mut self, port: u32, lane: u32) {
        let queue = self.ports.entry(port).or_default();
        if queue.lanes.is_empty() {
            self.turns.push_back(port);
        }
        queue.lanes.push_back(lane);
    }

    /// The next lane; it leaves the queue.
    pub(crate) fn next(&mut self) -> Option<Turn> {
        let port = *self.turns.front()?;
        let queue = self.ports.get_mut(&port)?;
        if queue.deficit == 0 {
            queue.deficit = QUANTUM;
        }
        let (lane, allowance) = (queue.lanes.pop_front()?, queue.deficit);
        if queue.lanes.is_empty() {
            // What a port without work does not use, it does not save up.
            self.ports.remove(&port);
            self.turns.pop_front();
        }
        Some(Turn { lane, port, allowance })
    }

    /// `count` upcalls of the port's were taken at its turn, at most its allowance.
    pub(crate) fn charge(&mut self, port: u32, count: u32) {
        if self.turns.front() != Some(&port) {
            return;
        }
        let Some(queue) = self.ports.get_mut(&port) else { return };
        queue.deficit = queue.deficit.saturating_sub(count);
        if queue.deficit == 0 {
            self.turns.rotate_left(1);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn take(queue: &mut FairQueue, count: u32) -> Option<(u32, u32)> {
        let turn = queue.next()?;
        queue.charge(turn.port, count.min(turn.allowance));
        Some((turn.port, turn.lane))
    }

    #[test]
    fn ports_share_whatever_the_number_of_their_lanes() {
        let mut queue = FairQueue::default();
        for lane in 0..100 {
            queue.push(1, lane);
        }
        for lane in 100..110 {
            queue.push(2, lane);
        }
        let taken: Vec<_> = std::iter::from_fn(|| take(&mut queue, 1)).take(20).collect();
        let quiet = taken.iter().filter(|(port, _)| *port == 2).count();
        assert!((8..=10).contains(&quiet), "{taken:?}");
        assert_eq!(std::iter::from_fn(|| take(&mut queue, 1)).count(), 90);
        assert!(queue.is_empty());
    }

    #[test]
    fn lanes_of_a_port_keep_their_turn() {
        let mut queue = FairQueue::default();
        (0..5).for_each(|lane| queue.push(1, lane));
        let order: Vec<_> = std::iter::from_fn(|| take(&mut queue, 8)).map(|(_, l)| l).collect();
        assert_eq!(order, [0, 1, 2, 3, 4]);
    }
}
