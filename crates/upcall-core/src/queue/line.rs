//! Where an upcall belongs among those of its lane that wait.

use super::{Asked, LaneQueue, LaneState, Late, Queue, Waiting};
use crate::{Fence, SourceId};

/// Where an upcall of a lane that has upcalls waiting belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Upcalls before it.
    pub(super) at: usize,
    /// Is nothing before it, waiting or at work?
    pub(crate) is_first: bool,
    /// Where the one before it is from.
    pub(crate) before: Option<SourceId>,
    /// Where those behind it are from: they wait for it, not it for them.
    pub(crate) behind: Vec<SourceId>,
}

impl Line {
    /// Of a lane of which nothing waits or is at work.
    pub(crate) fn of_idle(owner: Option<SourceId>) -> Self {
        Self { at: 0, is_first: true, before: owner, behind: Vec::new() }
    }
}

impl Queue {
    /// Where an upcall of a queued lane belongs.
    pub(crate) fn line(&self, lane: u32, arrival: &Late<'_>) -> Line {
        let Some(queue) = self.lanes.get(&lane) else { return Line::of_idle(None) };
        let at = queue.place_in_time(arrival).unwrap_or_else(|| queue.place_unknown(arrival));
        let upcalls = &queue.upcalls;
        Line {
            at,
            is_first: at == 0 && !matches!(queue.state, LaneState::Running | LaneState::Detained),
            before: if at == 0 { queue.owner } else { Some(upcalls[at - 1].source) },
            behind: upcalls.range(at..).map(|upcall| upcall.source).collect(),
        }
    }
}

impl LaneQueue {
    /// By when it was sent, if that is known of all that it may be before: none whom the handler was asked about.
    fn place_in_time(&self, arrival: &Late<'_>) -> Option<usize> {
        let sent_ns = arrival.sent_ns?;
        let mut at = self.upcalls.len();
        for (place, upcall) in self.upcalls.iter().enumerate().rev() {
            if upcall.asked != Asked::NotYet {
                break;
            }
            if upcall.sent_ns? > sent_ns {
                at = place;
            }
        }
        Some(at)
    }

    /// Behind those of its own socket, and before those that wait for what this reading of it brought.
    fn place_unknown(&self, arrival: &Late<'_>) -> usize {
        let is_it = |fence: &Fence| fence.source == arrival.source && arrival.read <= fence.through;
        let unordered = arrival.gather.filter(|gather| !gather.ordered);
        let gather = unordered.map_or(0, |gather| gather.id);
        // Of what one gather found, that comes first which came by the flow's last known socket.
        let known = self.upcalls.iter().rev().find(|upcall| upcall.gather != gather);
        let last_known = known.map_or(self.owner, |upcall| Some(upcall.source));
        let continues = last_known == Some(arrival.source);
        let waits_for_it = |upcall: &Waiting| {
            upcall.fence.iter().any(is_it)
                || (continues
                    && gather != 0
                    && upcall.gather == gather
                    && upcall.source != arrival.source)
        };
        self.upcalls.iter().position(waits_for_it).unwrap_or(self.upcalls.len())
    }
}
