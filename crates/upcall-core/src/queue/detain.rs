//! Upcalls whose handler answers later. They stay at the head of their lane, which is detained until the
//! answer is there: later upcalls of the flow wait behind them, other lanes go on.
//!
//! A lane may be in line for its turn, or for a fence, when its first upcall is detained: upcalls read
//! from another socket wait behind one that was handled as it was read. It is left in line, and leaves
//! it when its turn comes ([`Queue::take`]) or the fence opens.

use super::{Asked, LaneState, Late, Queue, Waiting};

/// Names an upcall that the handler answers later, until it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    lane: u32,
    number: u64,
}

impl Queue {
    /// Lanes that are not waiting for the handler.
    pub(crate) fn active_lanes(&self) -> usize {
        self.lanes.len() - self.stats.lanes_detained as usize
    }

    /// Upcalls that wait for something else than the handler.
    pub(crate) fn active_upcalls(&self) -> usize {
        self.stats.upcalls as usize - self.detained
    }

    /// Puts an upcall that was being handled as it was read at the head of its lane, which is in the
    /// queue.
    pub(crate) fn detain(&mut self, lane: u32, arrival: &Late<'_>, since_us: u64) -> Ticket {
        let ticket = self.ticket(lane);
        let mut upcall = self.waiting(arrival, since_us, Vec::new());
        (upcall.asked, upcall.gather) = (Asked::Pending(ticket), 0);
        if let Some(queue) = self.lanes.get_mut(&lane) {
            let is_new = queue.upcalls.is_empty() && queue.state == LaneState::Running;
            queue.upcalls.push_front(upcall);
            if is_new {
                self.set_detained(lane);
            }
        }
        ticket
    }

    /// Puts upcalls of a lane that were taken and are not handled back at its head, in their order; the
    /// first of them is detained.
    pub(crate) fn put_back(
        &mut self,
        lane: u32,
        upcalls: impl DoubleEndedIterator<Item = Waiting>,
    ) -> Ticket {
        let ticket = self.ticket(lane);
        for upcall in upcalls.rev() {
            self.count_in(&upcall);
            if let Some(queue) = self.lanes.get_mut(&lane) {
                queue.upcalls.push_front(upcall);
            }
        }
        if let Some(queue) = self.lanes.get_mut(&lane)
            && let Some(first) = queue.upcalls.front_mut()
        {
            (first.asked, first.gather) = (Asked::Pending(ticket), 0);
            self.set_detained(lane);
        }
        ticket
    }

    /// The handler has answered: the lane may run. `false` if there is no such upcall any more.
    pub(crate) fn answered(&mut self, ticket: Ticket) -> bool {
        let Some(queue) = self.lanes.get_mut(&ticket.lane) else { return false };
        let pending = |upcall: &&mut Waiting| upcall.asked == Asked::Pending(ticket);
        let Some(first) = queue.upcalls.front_mut().filter(pending) else { return false };
        first.asked = Asked::Answered(ticket);
        if queue.state == LaneState::Detained {
            self.detained -= queue.upcalls.len();
            self.stats.lanes_detained -= 1;
            self.settle(ticket.lane);
        }
        true
    }

    /// Does the lane's first upcall wait for the handler?
    pub(super) fn is_pending(&self, lane: u32) -> bool {
        let first = self.lanes.get(&lane).and_then(|queue| queue.upcalls.front());
        first.is_some_and(|upcall| matches!(upcall.asked, Asked::Pending(_)))
    }

    /// Takes a lane out of line.
    pub(super) fn set_detained(&mut self, lane: u32) {
        let Some(queue) = self.lanes.get_mut(&lane) else { return };
        if std::mem::replace(&mut queue.state, LaneState::Detained) == LaneState::Detained {
            return;
        }
        self.detained += queue.upcalls.len();
        self.stats.lanes_detained += 1;
    }

    fn ticket(&mut self, lane: u32) -> Ticket {
        self.last_ticket += 1;
        Ticket { lane, number: self.last_ticket }
    }
}
