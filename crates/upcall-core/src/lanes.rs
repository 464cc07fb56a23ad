//! Lanes: one for each flow, whatever socket its packets came by.

use crate::lane::{Claim, Lane, LaneTable, Tick, Whereabouts};
use crate::queue::{
    Gather, Late, Line, Placed, Queue, QueueLimits, QueueStats, Refusal, Ticket, Waiting,
};
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};
use crate::{Fence, SourceId};

/// Sockets that an upcall must wait for. There are none but its own, if others took it ahead of its
/// reader, when the one before it came by the same socket; where nothing is known to be older in the others.
fn fence(place: &Line, arrival: &Late<'_>, gather: &Gather) -> Vec<Fence> {
    let continues = place.before == Some(arrival.source);
    let waits_for = |rival: &&Fence| {
        let own = rival.source == arrival.source;
        let newer = place.behind.contains(&rival.source);
        if own { arrival.ahead } else { gather.older || !continues && !newer }
    };
    gather.busy.iter().filter(waits_for).chain(&gather.hold).copied().collect()
}

/// What becomes of an upcall that belongs at `place`.
fn settle(
    place: &Line,
    arrival: &Late<'_>,
    fence: &[Fence],
    was_queued: bool,
    queue: &Queue,
) -> Placed {
    let free = place.is_first && fence.is_empty();
    match (free && !arrival.defer, queue.refuses(arrival)) {
        (true, _) => Placed::Run,
        (false, None) => Placed::Waits,
        (false, Some(why)) if was_queued => Placed::Shed(why),
        (false, Some(_)) if fence.is_empty() => Placed::Run,
        (false, Some(_)) => Placed::Unfenced,
    }
}

/// A lane's upcalls, taken to be handled in order.
#[derive(Debug, Default)]
pub struct Work {
    upcalls: Vec<(u32, Waiting)>,
    /// Those before it are handled.
    next: usize,
}

impl Work {
    /// The upcalls, those of a lane in its order.
    pub fn upcalls(&self) -> impl Iterator<Item = &Waiting> {
        self.upcalls.iter().map(|(_, upcall)| upcall)
    }

    /// The next upcall to handle, if there is one.
    pub fn current(&self) -> Option<&Waiting> {
        self.upcalls.get(self.next).map(|(_, upcall)| upcall)
    }

    /// That one is handled.
    pub fn handled(&mut self) {
        self.next += 1;
    }

    /// Is there nothing?
    pub fn is_empty(&self) -> bool {
        self.upcalls.is_empty()
    }

    /// Upcalls.
    pub fn len(&self) -> usize {
        self.upcalls.len()
    }
}

/// The lanes of a dispatcher: the table that every reader looks at, and the queue of what waits.
#[derive(Debug)]
pub struct Lanes {
    table: LaneTable,
    queue: Mutex<Queue>,
    /// Lanes in the queue that do not wait for the handler: read by readers to know that there is
    /// nothing to do.
    queued: AtomicUsize,
    /// Upcalls in such lanes that wait.
    waiting: AtomicUsize,
}

impl Lanes {
    /// Lanes for at least `lanes` flows at a time.
    pub fn new(lanes: usize, limits: QueueLimits) -> Self {
        Self {
            table: LaneTable::new(lanes),
            queue: Mutex::new(Queue::new(limits)),
            queued: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    /// May an upcall of the flow with this hash, read from `source`, be handled at once? If nothing is known
    /// of the flow, `is_first` is asked whether no older packet of it can be in another socket.
    #[inline]
    pub fn claim(
        &self,
        flow: u64,
        source: SourceId,
        now: Tick,
        is_first: impl FnMut() -> bool,
    ) -> (Lane, Claim) {
        self.table.claim(flow, source, now, is_first)
    }

    /// Finds the place of an upcall that [`Lanes::claim`] would not let through. `now_us` tells the
    /// time: after the claim. If the flow hopped, or is in doubt, or it is known when it was sent, `look` looks at all
    /// sockets but the one it came by; it is given the one that the flow came by before, if by any. It is asked with the lane taken
    /// over, so that whoever still handles an upcall of the flow is either seen or sees that it must not.
    /// If the upcall is part of a gather already, `look` is to give that one.
    pub fn place<'a>(
        &self,
        arrival: &Late<'a>,
        now_us: impl Fn() -> u64,
        look: impl FnOnce(Option<SourceId>) -> &'a Gather,
    ) -> Placed {
        let mut queue = self.lock();
        let (lane, was_queued, owner, since_us) = loop {
            let since_us = now_us();
            let tick = Tick::of_us(since_us);
            let (lane, claim) = self.table.claim(arrival.flow, arrival.source, tick, || true);
            // Another reader may have taken the lane meanwhile, after all.
            let in_doubt = arrival.in_doubt && claim == Claim::Run;
            if claim == Claim::Run && !arrival.defer && !in_doubt {
                return Placed::Run; // It was settled since.
            }
            if let Some(before) = self.table.enter(lane, arrival.source, tick) {
                let owner = before.source().filter(|_| !in_doubt);
                break (lane.slot, before.is_queued(), owner, since_us);
            }
        };
        let place = if was_queued { queue.line(lane, arrival) } else { Line::of_idle(owner) };
        let hopped = place.before != Some(arrival.source);
        let tells = arrival.sent_ns.is_some();
        let gather = if hopped || tells { Some(look(place.before)) } else { arrival.gather };
        let arrival = &Late { gather, ..*arrival };
        let fence = gather.map_or(Vec::new(), |gather| fence(&place, arrival, gather));
        let placed = settle(&place, arrival, &fence, was_queued, &queue);
        match placed {
            Placed::Waits => {
                if !was_queued {
                    queue.open(lane, owner);
                }
                queue.insert(lane, arrival, since_us, &place, fence);
                self.publish(&queue);
            }
            _ if !was_queued => self.table.leave(lane, arrival.source),
            Placed::Run => queue.passed(lane, arrival.source),
            Placed::Unfenced | Placed::Shed(_) => {}
        }
        placed
    }

    /// The socket of an open fence of this gather is about to be taken from, and its own reader held
    /// off: what that reader took before has numbers up to `known.through`.
    pub fn narrow(&self, gather: &mut Gather, known: Fence) {
        known.replace_in(&mut gather.busy);
        self.lock().narrow(gather.id, known);
    }

    /// Are there lanes in the queue that do not wait for the handler? One load, to be asked after every
    /// round.
    pub fn any_queued(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > 0
    }

    /// Where the upcalls are that were read of the flow with this hash: an install of it would let later
    /// packets overtake them (contract O3).
    pub fn whereabouts(&self, flow: u64, now: Tick) -> Whereabouts {
        self.table.whereabouts(flow, now)
    }

    /// Opens the fences that can be opened: `passed` tells whether all that one waits for has been read
    /// and answered. `true` if there are upcalls to take.
    pub fn open_fences(&self, now_us: u64, passed: impl Fn(&Fence) -> bool) -> bool {
        let mut queue = self.lock();
        queue.open_fences(now_us, passed);
        queue.has_ready()
    }

    /// Takes up to `max` upcalls whose turn it is into `work`, which must be empty.
    pub fn take(&self, max: usize, work: &mut Work) {
        let mut queue = self.lock();
        queue.take(max, &mut work.upcalls);
        self.publish(&queue);
    }

    /// The handler answers an upcall later that it was asked about as it was read; only after its claim
    /// or place let it through, and once the answers before it are sent. Later upcalls of its flow wait
    /// until [`Lanes::answered`].
    ///
    /// # Errors
    ///
    /// Why there is no room for it.
    pub fn detain(&self, arrival: &Late<'_>, now_us: impl Fn() -> u64) -> Result<Ticket, Refusal> {
        let mut queue = self.lock();
        if let Some(why) = queue.refuses(arrival) {
            return Err(why);
        }
        let (lane, was_queued) = loop {
            let tick = Tick::of_us(now_us());
            let (lane, _) = self.table.claim(arrival.flow, arrival.source, tick, || true);
            if let Some(before) = self.table.enter(lane, arrival.source, tick) {
                break (lane.slot, before.is_queued());
            }
        };
        if !was_queued {
            queue.open(lane, Some(arrival.source));
        }
        let ticket = queue.detain(lane, arrival, now_us());
        self.publish(&queue);
        Ok(ticket)
    }

    /// The handler answers the next upcall of `work` later ([`Work::current`]); the answers before it must
    /// be sent. It goes back to the head of its lane, and what was taken of the lane behind it.
    pub fn detain_taken(&self, work: &mut Work) -> Option<Ticket> {
        let mut queue = self.lock();
        let (lane, _) = work.upcalls.get(work.next)?;
        let lane = *lane;
        let is_its = |(of, _): &(u32, Waiting)| *of == lane;
        let begin = work.upcalls.iter().position(is_its)?;
        let end = begin + work.upcalls[begin..].iter().take_while(|taken| is_its(taken)).count();
        let back = work.upcalls.drain(work.next..end).map(|(_, upcall)| upcall);
        let ticket = queue.put_back(lane, back);
        for (_, handled) in work.upcalls.drain(begin..work.next) {
            queue.reuse(handled.message);
        }
        work.next = begin;
        self.publish(&queue);
        Some(ticket)
    }

    /// The handler has answered an upcall that was detained: it can be taken, as one that is
    /// [answered](Waiting::answered). `false` if it is not there any more.
    pub fn answered(&self, ticket: Ticket) -> bool {
        let mut queue = self.lock();
        let is_there = queue.answered(ticket);
        self.publish(&queue);
        is_there
    }

    fn publish(&self, queue: &Queue) {
        self.queued.store(queue.active_lanes(), Ordering::Relaxed);
        self.waiting.store(queue.active_upcalls(), Ordering::Relaxed);
    }

    /// The upcalls of `work` have been answered: what waits behind them may run.
    pub fn finish(&self, work: &mut Work) {
        let mut queue = self.lock();
        let mut last = None;
        work.next = 0;
        for (lane, upcall) in work.upcalls.drain(..) {
            queue.reuse(upcall.message);
            if last != Some(lane)
                && let Some(last) = last.replace(lane)
            {
                self.finish_lane(&mut queue, last);
            }
        }
        if let Some(last) = last {
            self.finish_lane(&mut queue, last);
        }
        self.publish(&queue);
    }

    fn finish_lane(&self, queue: &mut Queue, lane: u32) {
        if let Some(last) = queue.finish(lane) {
            self.table.leave(lane, last);
        }
    }

    /// From now on so many upcalls of each port may wait, and of those of `own` so many as that says.
    pub fn set_port_upcalls_max(&self, all: usize, own: impl Iterator<Item = (u32, usize)>) {
        let own = own.collect();
        self.lock().set_port_upcalls_max(all, own);
    }

    /// Upcalls that wait for something else than the handler, a moment ago.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Counters of the queue.
    pub fn stats(&self) -> QueueStats {
        self.lock().stats()
    }

    /// Lanes of the table.
    pub fn capacity(&self) -> usize {
        self.table.capacity()
    }

    #[cfg(not(loom))]
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[cfg(loom)]
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic under the lock")
    }
}
