//! Upcalls that wait: for a fence, for their turn, or for the handler to be done with the one before.
//!
//! The queue is used under a lock, and only for lanes that cannot be handled as they are read. Its
//! order within a lane is the order of the flow: upcalls of one socket as they were read; between
//! sockets, what was read behind a hop waits until the sockets that may hold older packets of the flow
//! have been read empty (the *fence*, contract O2).
//!
//! It holds a limited number of upcalls. A port may fill at most as much as is still free (the dynamic
//! threshold of Choudhury and Hahne, 1998), so that one that floods leaves room for those that do not;
//! what exceeds it is refused, newest first.

mod detain;
mod line;

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::fair::FairQueue;
use crate::{Fence, SourceId};

pub use detain::Ticket;
pub(crate) use line::Line;

/// Bounds of what waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Upcalls that may wait, in all lanes together.
    pub upcalls_max: usize,
    /// Upcalls of one port that may wait. Default: as many as there is room for.
    pub port_upcalls_max: usize,
    /// Bytes that they may take.
    pub bytes_max: usize,
    /// How long an upcall waits for a fence, in microseconds; then it goes on without, and is counted.
    pub fence_us: u64,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            upcalls_max: 4096,
            port_upcalls_max: usize::MAX,
            bytes_max: 8 << 20,
            fence_us: 200_000,
        }
    }
}

/// What comes first when there is more than can be handled (contract F2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Class {
    /// A packet that no flow matched.
    #[default]
    Miss,
    /// A packet that a flow sent up.
    Action,
    /// A sample of traffic: nobody waits for it.
    Sample,
}

pub(crate) const CLASSES: usize = 3;

/// An upcall that waits.
#[derive(Debug)]
pub struct Waiting {
    /// The message, from its generic-netlink header on.
    pub message: Vec<u8>,
    /// The socket it was read from.
    pub source: SourceId,
    /// The port it came in by; `u32::MAX` for none.
    pub port: u32,
    /// Its class.
    pub class: Class,
    /// When it was read.
    pub since_us: u64,
    /// When the kernel sent it, in nanoseconds, if that is known.
    pub sent_ns: Option<u64>,
    /// Sockets that may hold older packets of its flow.
    fence: Vec<Fence>,
    /// The gather that it was part of; 0 for none.
    gather: u64,
    asked: Asked,
}

impl Waiting {
    /// What its answer is known by, if the handler was asked and has answered since.
    pub fn answered(&self) -> Option<Ticket> {
        match self.asked {
            Asked::Answered(ticket) => Some(ticket),
            Asked::NotYet | Asked::Pending(_) => None,
        }
    }
}

/// How far the handler is with an upcall that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    NotYet,
    Pending(Ticket),
    Answered(Ticket),
}

#[derive(Debug)]
struct LaneQueue {
    upcalls: VecDeque<Waiting>,
    state: LaneState,
    /// Where the last upcall that was handled, or is, was read from.
    owner: Option<SourceId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LaneState {
    /// Its first upcall waits for a fence.
    Fenced,
    /// Its first upcall waits for its turn.
    Ready,
    /// Upcalls were taken and are not answered yet.
    Running,
    /// Its first upcall waits for the handler's answer.
    Detained,
}

/// A look at all sockets at once, because a flow hopped: what was in them is taken out then, and what
/// comes later can be told from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gather {
    /// Tells it from other gathers.
    pub id: u64,
    /// Sockets with upcalls that were read before and are not answered; and, [`Fence::OPEN`] until
    /// [`crate::Lanes::narrow`], those with something to take out: their own readers may be first.
    pub busy: Vec<Fence>,
    /// The reader that gathers, if there is something to take out: what is found waits until its round
    /// ends, when all is in its place.
    pub hold: Option<Fence>,
    /// Is what it finds brought in the order in which it was sent? Else only the order within a socket
    /// is known, and which of them the flow came by last.
    pub ordered: bool,
    /// Is all that it names known to be older than the upcall? Then nothing is taken out, and it waits for that
    /// whatever the socket that the one before it came by.
    pub older: bool,
}

/// What became of an upcall that was brought to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// Nothing is before it: to be handled at once, by the reader.
    Run,
    /// It waits.
    Waits,
    /// Like [`Placed::Run`], although older packets of the flow may be in other sockets: there was no
    /// room to wait.
    Unfenced,
    /// Refused.
    Shed(Refusal),
}

/// Why there is no room for an upcall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its port has taken its share of what is left.
    NoRoom,
    /// Its port has as many waiting as it may.
    Quota,
}

/// Counters of the queue, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueStats {
    /// Upcalls that wait now.
    pub upcalls: u64,
    /// Bytes they take now.
    pub bytes: u64,
    /// Lanes with upcalls that wait or are handled out of the queue, now.
    pub lanes: u64,
    /// Of these, lanes whose first upcall waits for the handler's answer.
    pub lanes_detained: u64,
    /// Most upcalls that ever waited.
    pub upcalls_peak: u64,
    /// Fences that were given up because they took too long.
    pub fence_timeouts: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: QueueLimits,
    lanes: HashMap<u32, LaneQueue>,
    ready: [FairQueue; CLASSES],
    fenced: Vec<u32>,
    by_port: HashMap<u32, usize>,
    /// Ports of which another number may wait than the limits say.
    own_max: HashMap<u32, usize>,
    stats: QueueStats,
    /// Upcalls in lanes that are detained.
    detained: usize,
    last_ticket: u64,
    /// Messages and lanes of which nothing waits any more, to be used again.
    spare: Vec<Vec<u8>>,
    spare_lanes: Vec<VecDeque<Waiting>>,
}

/// Messages, and lanes, kept for reuse; a larger one is given back.
const SPARE_MAX: usize = 256;
const SPARE_BYTES_MAX: usize = 4 << 10;
const SPARE_LANE_MAX: usize = 16;

/// An upcall that cannot be handled as it is read.
#[derive(Debug, Clone, Copy)]
pub struct Late<'a> {
    /// The message, from its generic-netlink header on.
    pub message: &'a [u8],
    /// The hash of its flow.
    pub flow: u64,
    /// The socket it was read from.
    pub source: SourceId,
    /// The number of the reading that brought it ([`crate::SourceState::begin_read`]).
    pub read: u64,
    /// When the kernel sent it, in nanoseconds, if that is known: on one clock for all sockets.
    pub sent_ns: Option<u64>,
    /// The port it came in by; `u32::MAX` for none.
    pub port: u32,
    /// Its class.
    pub class: Class,
    /// Was it taken out of its socket by another than its reader?
    pub ahead: bool,
    /// The gather that it is part of, once its flow is known to have hopped.
    pub gather: Option<&'a Gather>,
    /// May older packets of its flow be in other sockets, although nobody knows of a hop ([`crate::Claim::Doubt`])?
    pub in_doubt: bool,
    /// Must it wait for its turn even if it could be handled at once, so that other workers can help?
    pub defer: bool,
}

impl Queue {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            lanes: HashMap::new(),
            ready: Default::default(),
            fenced: Vec::new(),
            by_port: HashMap::new(),
            own_max: HashMap::new(),
            stats: QueueStats::default(),
            detained: 0,
            last_ticket: 0,
            spare: Vec::new(),
            spare_lanes: Vec::new(),
        }
    }

    pub(crate) fn set_port_upcalls_max(&mut self, all: usize, own: HashMap<u32, usize>) {
        self.limits.port_upcalls_max = all;
        self.own_max = own;
    }

    fn port_upcalls_max(&self, port: u32) -> usize {
        self.own_max.get(&port).copied().unwrap_or(self.limits.port_upcalls_max)
    }

    pub(crate) fn stats(&self) -> QueueStats {
        QueueStats { lanes: self.lanes.len() as u64, ..self.stats }
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.ready.iter().any(|class| !class.is_empty())
    }

    /// Is there no room for one more of this port and class?
    pub(crate) fn refuses(&self, arrival: &Late<'_>) -> Option<Refusal> {
        let free = self.limits.upcalls_max.saturating_sub(self.stats.upcalls as usize);
        let used = self.by_port.get(&arrival.port).copied().unwrap_or(0);
        let threshold = free >> (arrival.class as u32);
        let bytes = self.stats.bytes as usize + arrival.message.len();
        if used >= self.port_upcalls_max(arrival.port) {
            return Some(Refusal::Quota);
        }
        (used >= threshold || bytes > self.limits.bytes_max).then_some(Refusal::NoRoom)
    }

    /// The first upcall in line of a queued lane is handled by the reader of `source`.
    pub(crate) fn passed(&mut self, lane: u32, source: SourceId) {
        if let Some(queue) = self.lanes.get_mut(&lane) {
            queue.owner = Some(source);
        }
    }

    /// Makes a lane one that is queued. `owner` is where its last upcall was read from.
    pub(crate) fn open(&mut self, lane: u32, owner: Option<SourceId>) {
        let upcalls = self.spare_lanes.pop().unwrap_or_default();
        let queue = LaneQueue { upcalls, state: LaneState::Running, owner };
        self.lanes.insert(lane, queue);
    }

    /// Adds an upcall to its lane, at its place. `fence` is what it must wait for itself.
    pub(crate) fn insert(
        &mut self,
        lane: u32,
        arrival: &Late<'_>,
        since_us: u64,
        place: &Line,
        fence: Vec<Fence>,
    ) {
        let upcall = self.waiting(arrival, since_us, fence);
        let Some(queue) = self.lanes.get_mut(&lane) else { return };
        self.detained += usize::from(queue.state == LaneState::Detained);
        queue.upcalls.insert(place.at, upcall);
        if place.is_first && place.behind.is_empty() {
            self.settle(lane);
        }
    }

    /// A copy of an upcall that will wait, counted.
    fn waiting(&mut self, arrival: &Late<'_>, since_us: u64, fence: Vec<Fence>) -> Waiting {
        let mut message = self.spare.pop().unwrap_or_default();
        message.extend_from_slice(arrival.message);
        let Late { source, port, class, sent_ns, .. } = *arrival;
        let gather = arrival.gather.map_or(0, |gather| gather.id);
        let asked = Asked::NotYet;
        let upcall =
            Waiting { message, source, port, class, since_us, sent_ns, fence, gather, asked };
        self.count_in(&upcall);
        upcall
    }

    fn count_in(&mut self, upcall: &Waiting) {
        self.stats.upcalls += 1;
        self.stats.upcalls_peak = self.stats.upcalls_peak.max(self.stats.upcalls);
        self.stats.bytes += upcall.message.len() as u64;
        *self.by_port.entry(upcall.port).or_default() += 1;
    }

    /// Opens fences: `passed` tells whether all that the fence waits for has been read and answered.
    pub(crate) fn open_fences(&mut self, now_us: u64, passed: impl Fn(&Fence) -> bool) {
        for lane in std::mem::take(&mut self.fenced) {
            let Some(queue) = self.lanes.get_mut(&lane) else { continue };
            for upcall in &mut queue.upcalls {
                upcall.fence.retain(|fence| !passed(fence));
                let age_us = now_us.saturating_sub(upcall.since_us);
                if !upcall.fence.is_empty() && age_us >= self.limits.fence_us {
                    upcall.fence.clear();
                    self.stats.fence_timeouts += 1;
                }
            }
            self.settle(lane);
        }
    }

    /// What a gather's open fences for a socket wait for is known now.
    pub(crate) fn narrow(&mut self, gather: u64, known: Fence) {
        let of_gather = |upcall: &&mut Waiting| upcall.gather == gather;
        let upcalls = self.lanes.values_mut().flat_map(|lane| &mut lane.upcalls);
        for upcall in upcalls.filter(of_gather) {
            known.replace_in(&mut upcall.fence);
        }
    }

    /// Takes up to `max` upcalls whose turn it is, of one or more lanes, in order.
    pub(crate) fn take(&mut self, max: usize, out: &mut Vec<(u32, Waiting)>) {
        let room = out.len() + max;
        for class in 0..CLASSES {
            while out.len() < room
                && let Some(turn) = self.ready[class].next()
            {
                let allowance = (turn.allowance as usize).min(room - out.len());
                let taken = self.take_lane(turn.lane, allowance, out);
                self.ready[class].charge(turn.port, taken);
            }
        }
    }

    fn take_lane(&mut self, lane: u32, max: usize, out: &mut Vec<(u32, Waiting)>) -> u32 {
        if self.is_pending(lane) {
            // Detained since it was put in line: it leaves that now.
            self.set_detained(lane);
            return 0;
        }
        let Some(queue) = self.lanes.get_mut(&lane) else { return 0 };
        queue.state = LaneState::Running;
        let mut taken = 0;
        while taken < max
            && queue.upcalls.front().is_some_and(|upcall| upcall.fence.is_empty())
            && let Some(upcall) = queue.upcalls.pop_front()
        {
            self.stats.upcalls -= 1;
            self.stats.bytes -= upcall.message.len() as u64;
            if let Some(used) = self.by_port.get_mut(&upcall.port) {
                *used -= 1;
                if *used == 0 {
                    self.by_port.remove(&upcall.port);
                }
            }
            queue.owner = Some(upcall.source);
            out.push((lane, upcall));
            taken += 1;
        }
        if taken == 0 {
            // One with a fence came before those that it was ready with: nobody will finish it.
            self.settle(lane);
        }
        taken as u32
    }

    /// The upcalls taken of this lane are answered. If nothing of it waits, it is no longer in the queue:
    /// gives where its last upcall was read from.
    pub(crate) fn finish(&mut self, lane: u32) -> Option<SourceId> {
        let queue = self.lanes.get(&lane)?;
        if queue.state != LaneState::Running {
            // A fence that took too long let two at it, and one of them detained it.
            return None;
        }
        if !queue.upcalls.is_empty() {
            self.settle(lane);
            return None;
        }
        let LaneQueue { upcalls, owner, .. } = self.lanes.remove(&lane)?;
        if self.spare_lanes.len() < SPARE_MAX && upcalls.capacity() <= SPARE_LANE_MAX {
            self.spare_lanes.push(upcalls);
        }
        owner
    }

    /// Gives a message's memory back.
    pub(crate) fn reuse(&mut self, mut message: Vec<u8>) {
        if self.spare.len() < SPARE_MAX && message.capacity() <= SPARE_BYTES_MAX {
            message.clear();
            self.spare.push(message);
        }
    }

    /// Puts a lane that is not running where it belongs.
    fn settle(&mut self, lane: u32) {
        if self.is_pending(lane) {
            return self.set_detained(lane);
        }
        let Some(queue) = self.lanes.get_mut(&lane) else { return };
        let Some(first) = queue.upcalls.front() else { return };
        if first.fence.is_empty() {
            queue.state = LaneState::Ready;
            let class = first.class as usize;
            self.ready[class].push(first.port, lane);
        } else {
            queue.state = LaneState::Fenced;
            self.fenced.push(lane);
        }
    }
}
