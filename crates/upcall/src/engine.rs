//! The way of one upcall, from datagram to batch, on the thread that read it.

mod decide;
mod hopping;
mod intake;
mod later;
mod place;
mod plan;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use netlink_io::{Datagram, Socket};
use upcall_core::{
    InstallLimits, Ledger, Observed, Police, PortTally, Sampler, Tick, Whereabouts, Work,
};

pub(crate) use self::hopping::Hopping;
pub(crate) use self::intake::ALIKE;
use self::intake::Reading;
use self::plan::Plan;
use crate::Verdict;
use crate::batch::Batch;
use crate::flow_id::FlowIds;
use crate::in_flight::Slot;
use crate::observe::Onlooker;
use crate::shared::Shared;
use crate::shield::Shield;
use crate::sources::Registered;

/// Datagrams of one round: enough to spread a system call's cost, few enough that the other sockets
/// of the worker wait less than a millisecond.
const ROUND_MAX: usize = 64;
/// Bytes of a receive buffer: a packet attribute ends at 65,531 bytes, key and rest take under 2 KiB.
const DATAGRAM_MAX: usize = 72 << 10;

/// Upcalls that a worker takes out of the queue at a time: as many as a port may have in its turn, so
/// that several workers find work in a queue that is not long.
const WORK_MAX: usize = 8;
/// Upcalls waiting in the queue with which a reader that defers stops reading and helps.
const DEFERRED_MAX: usize = 4 * ROUND_MAX;
/// Microseconds for an upcall from which on it is worth to hand it to another worker: waking one costs
/// several.
const SPREAD_US: u64 = 10;
/// Datagrams between two looks at the clock in a round, and at the other sockets.
const LOOK_EVERY: usize = 8;
/// Microseconds after which a round ends although there is more, if its handler is slow: others are to
/// help with the rest, and a lane that is in use must not look idle to them.
const ROUND_US_MAX: u64 = 5_000;

/// Of so many upcalls, the time is taken of one. Prime to [`ROUND_MAX`], so that it is now this one of a
/// round and now that.
const TIMED_EVERY: u32 = 61;

/// Everything a worker needs to handle upcalls. It never blocks and never waits.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    in_flight: Slot,
    batch: Batch,
    verdict: Verdict,
    flow_ids: FlowIds,
    /// What bounds rates, since the round began.
    police: Option<Arc<Police>>,
    /// Who looks on in this round.
    onlooker: Onlooker,
    timed: Sampler,
    buf: Vec<u8>,
    /// For what is read in a gather, while `buf` is in use.
    gather_buf: Vec<u8>,
    mask: Vec<u8>,
    now_us: u64,
    /// From when until when it last read.
    read_us: (u64, u64),
    tick: Tick,
    work: Work,
    /// Installs of flows whose packets may come by other sockets, or that waited.
    wide: Plan,
    /// Did this engine make an upcall wait that may still do so?
    fenced: bool,
    /// The flow that this round began with.
    first_flow: Option<u64>,
    /// Upcalls of this round that are of other flows: those that others could handle meanwhile.
    other_flows: usize,
    /// [`ROUND_US_MAX`], but in tests, which count on more time or none.
    round_us_max: u64,
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Round {
    /// Was the socket read empty?
    pub(crate) drained: bool,
    /// Datagrams read.
    pub(crate) received: usize,
}

impl Round {
    /// Did it stop behind the first one, which is likely to be alone? The next look tells.
    pub(crate) fn is_cut_short(self) -> bool {
        !self.drained && self.received == 1
    }
}

/// A socket that an engine reads.
pub(crate) struct Source {
    pub(crate) entry: Arc<Registered>,
    /// Its flows that wait to be installed.
    plan: Plan,
    /// It has more than its worker can handle: what is read waits for any worker.
    spread: bool,
    /// Some of that may wait still: packets that an install would let others overtake.
    handed_out: bool,
    /// Since when it is known to hold what the next round reads.
    unread_since_us: Option<u64>,
    /// Its last upcall came alone, and its flow is to be installed. Then the next one is answered before
    /// the look that finds no other: that look is the one which contract O3 asks for, too.
    alone: bool,
    /// Datagrams since there was nothing to do.
    since_rest: usize,
}

impl Source {
    pub(crate) fn new(entry: Arc<Registered>, limits: InstallLimits) -> Self {
        Self {
            entry,
            plan: Plan::new(limits),
            spread: false,
            handed_out: false,
            unread_since_us: None,
            alone: false,
            since_rest: 0,
        }
    }

    /// A wake-up told, at this time, that there is something to read.
    pub(crate) fn told_of(&mut self, at_us: u64) {
        self.unread_since_us.get_or_insert(at_us);
    }

    /// Datagrams of the next round at most.
    fn round_max(&self) -> usize {
        if self.alone && self.is_settled() { 1 } else { ROUND_MAX }
    }

    /// A round of at most `max` datagrams has ended.
    fn round_ended(&mut self, max: usize, round: Round) {
        let waits = !self.is_settled();
        self.alone = match round.received {
            0 => self.alone,
            1 if max == 1 => waits,
            1 => waits && round.drained && !self.alone,
            _ => false,
        };
        if round.drained && !waits {
            self.since_rest = 0;
        }
    }

    /// Microseconds until an install may have waited for long enough, if nothing comes; 0 if it has.
    pub(crate) fn silent_in_us(&self, now_us: u64) -> u64 {
        self.plan.silent_in_us(now_us)
    }

    /// Does no install wait for a further look into the socket?
    pub(crate) fn is_settled(&self) -> bool {
        self.plan.is_empty()
    }
}

impl Engine {
    /// An engine that answers on `tx`.
    pub(crate) fn new(
        shared: Arc<Shared>,
        ledger: Arc<Ledger>,
        in_flight: Slot,
        tx: Arc<Socket>,
    ) -> Self {
        let wide = Plan::new(shared.limits.load().install);
        let batch = Batch::new(tx, shared.clock);
        let flow_ids = FlowIds::new(shared.engines.fetch_add(1, Ordering::Relaxed));
        Self {
            shared,
            ledger,
            in_flight,
            batch,
            verdict: Verdict::new(),
            flow_ids,
            police: None,
            onlooker: None,
            timed: Sampler::new(TIMED_EVERY),
            buf: vec![0; DATAGRAM_MAX],
            gather_buf: Vec::new(),
            mask: Vec::with_capacity(512),
            now_us: 0,
            read_us: (0, 0),
            tick: Tick::of_us(0),
            work: Work::default(),
            wide,
            fenced: false,
            first_flow: None,
            other_flows: 0,
            round_us_max: ROUND_US_MAX,
        }
    }

    /// A storm shield for a socket.
    pub(crate) fn shield(&self, socket: Arc<Socket>) -> Shield {
        Shield::new(socket, self.shared.clone(), self.ledger.clone())
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// From when until when it last read, by the clock of what it shares; without the helping behind it.
    pub(crate) fn last_read_us(&self) -> (u64, u64) {
        self.read_us
    }

    /// Is there so much waiting from this socket that helping comes before reading?
    pub(crate) fn is_crowded(&self, source: &Source) -> bool {
        source.spread && self.shared.lanes.waiting() >= DEFERRED_MAX
    }

    /// Reads and handles up to a round of datagrams, counted by port in `tally`, then sends the answers,
    /// then the installs that are due; then helps with what waits.
    ///
    /// # Errors
    ///
    /// What `recv` fails with; everything read before is answered.
    pub(crate) fn round(
        &mut self,
        source: &mut Source,
        tally: Option<&mut PortTally>,
        recv: impl FnMut(&mut [u8]) -> io::Result<Option<Datagram>>,
    ) -> io::Result<Round> {
        self.begin();
        (self.first_flow, self.other_flows) = (None, 0);
        source.plan.follow(&self.shared);
        source.handed_out |= source.spread;
        let unread_since_us = self.unread_since_us(source);
        let max = source.round_max();
        let read = self.read(source, max, tally, recv);
        let received = read.as_ref().map_or(0, |read| read.received);
        source.since_rest += received;
        let drained = matches!(read, Ok(Round { drained: true, .. }));
        self.end_round(source, received, drained);
        source.entry.answer_all();
        if let Some(since_us) = unread_since_us.filter(|_| received > 0) {
            let known_us = self.now_us.saturating_sub(since_us);
            self.ledger.latency.queued_socket.record(known_us * 1_000);
        }
        if let Ok(round) = read {
            source.round_ended(max, round);
        }
        if max == ROUND_MAX {
            self.spread(source, received, drained);
        }
        if received > 0 {
            self.read_us = (self.now_us, self.shared.now_us());
        }
        if self.shared.lanes.any_queued() || !self.wide.is_empty() {
            self.help();
        }
        read
    }

    /// Since when there is something in the socket, as far as that is known, if it is to be measured.
    fn unread_since_us(&self, source: &mut Source) -> Option<u64> {
        let told_us = source.unread_since_us.take()?;
        let sent_ns = source.entry.oldest_ns();
        Some(sent_ns.map_or(told_us, |ns| self.shared.clock.of_kernel_ns(ns)))
    }

    fn begin(&mut self) {
        self.now_us = self.shared.now_us();
        self.tick = Tick::of_us(self.now_us);
        self.timed.at(self.now_us);
        // Before anything is added: what is decided from here on is from this epoch.
        self.wide.follow(&self.shared);
    }

    /// Looks up, before the first of many upcalls and behind [`Engine::begin`], what is the same for all.
    fn look_up(&mut self) {
        self.verdict.ports = self.shared.ports.load_full();
        self.police = self.shared.police.load_full();
        self.onlooker = self.shared.observers.current();
    }

    fn read(
        &mut self,
        source: &mut Source,
        max: usize,
        mut tally: Option<&mut PortTally>,
        mut recv: impl FnMut(&mut [u8]) -> io::Result<Option<Datagram>>,
    ) -> io::Result<Round> {
        let mut buf = std::mem::take(&mut self.buf);
        let (mut received, mut others_hold) = (0, false);
        let mut end = Ok(false);
        while received < max {
            self.in_flight.about_to_take(&self.ledger);
            let (taken, datagram) = source.entry.take(|| recv(&mut buf));
            match datagram {
                Ok(Some(datagram)) => {
                    if received == 0 {
                        self.look_up();
                    }
                    if received % LOOK_EVERY == 0 {
                        others_hold = self.shared.sources.others_hold(&source.entry);
                    }
                    received += 1;
                    let defer = source.spread;
                    let Source { entry, plan, .. } = &mut *source;
                    let (plan, tally) = (Some(plan), tally.as_deref_mut());
                    let reading = Reading {
                        entry,
                        taken,
                        plan,
                        others_hold,
                        in_doubt: false,
                        defer,
                        tally,
                        gather: None,
                    };
                    self.datagram(reading, datagram, &buf);
                    if received % LOOK_EVERY == 0 && self.is_overdue() {
                        break;
                    }
                }
                Ok(None) => {
                    end = Ok(true);
                    break;
                }
                Err(err) => {
                    end = Err(err);
                    break;
                }
            }
        }
        self.buf = buf;
        end.map(|drained| Round { drained, received })
    }

    /// Has the round taken long enough? Lanes claimed from now on are in use as of now.
    fn is_overdue(&mut self) -> bool {
        let now_us = self.shared.now_us();
        self.tick = Tick::of_us(now_us);
        now_us.saturating_sub(self.now_us) >= self.round_us_max
    }

    fn end_round(&mut self, source: &mut Source, received: usize, drained: bool) {
        if !source.plan.is_empty() {
            // The kernel would take its time for these while somebody sends what the flow then overtakes, or
            // something is learned that makes it wrong.
            self.batch.flush(&self.ledger);
            source.entry.answer_all();
        }
        source.plan.follow(&self.shared);
        source.handed_out &= self.shared.lanes.any_queued();
        // What came since the look that found nothing is seen without another one, if it is told.
        let answered = drained && !source.handed_out && source.entry.oldest_ns().is_none();
        let waits = |lane| self.shared.waits(lane, source.entry.id, self.tick);
        if !source.plan.is_empty() {
            // A round that reads something may take longer than the pause that an install waits for.
            let now_us = if received > 0 { self.shared.now_us() } else { self.now_us };
            let seen = Observed { now_us, drained: answered, busy: source.since_rest > 1 };
            let is_unread = |alike| self.shared.sources.may_hold(alike);
            source.plan.send_due(seen, waits, is_unread, &self.ledger, &mut self.batch);
        }
        self.flush();
    }

    /// Sends the answers; nothing is about to be read.
    fn flush(&mut self) {
        self.batch.flush(&self.ledger);
        self.in_flight.at_rest(&self.ledger);
    }

    /// Decides whether the next round's upcalls are shared with other workers: if this one found more
    /// than it could read, each took a while, they are not of one flow, whose upcalls come one by one
    /// whoever handles them, and somebody has nothing to do or helps already.
    fn spread(&mut self, source: &mut Source, received: usize, drained: bool) {
        if drained {
            source.spread = false;
            return;
        }
        let now_us = self.shared.now_us();
        source.unread_since_us = Some(now_us);
        let took_us = now_us.saturating_sub(self.now_us);
        let slow = took_us >= SPREAD_US * received as u64;
        let mixed = self.other_flows * ROUND_MAX >= received * WORK_MAX;
        if source.spread || slow && mixed {
            let wanted = self.shared.lanes.waiting().div_ceil(WORK_MAX);
            source.spread = self.shared.crew.call(wanted, now_us);
        }
    }

    /// Handles what waits in the queue and may run, and settles this engine's installs. `true` if there
    /// may be more to do.
    pub(crate) fn help(&mut self) -> bool {
        self.begin();
        let shared = self.shared.clone();
        let mut work = std::mem::take(&mut self.work);
        if shared.lanes.any_queued()
            && shared.lanes.open_fences(self.now_us, |f| shared.sources.passed(f))
        {
            shared.lanes.take(WORK_MAX, &mut work);
        }
        let helped = !work.is_empty();
        if helped {
            self.look_up();
        }
        while let Some(upcall) = work.current() {
            match self.waited(upcall) {
                Some(later) => self.detain_taken(&mut work, later),
                None => work.handled(),
            }
        }
        self.end_wide();
        self.flush();
        if helped {
            shared.lanes.finish(&mut work);
        }
        self.work = work;
        self.fenced &= shared.lanes.any_queued();
        helped
    }

    /// Ends a round of the installs whose packets may be in any socket.
    fn end_wide(&mut self) {
        if !self.wide.is_empty() {
            self.batch.flush(&self.ledger);
        }
        self.wide.follow(&self.shared);
        if !self.wide.is_empty() {
            let shared = &self.shared;
            let answered = !shared.lanes.any_queued() && shared.sources.all_answered();
            // Of a lane that is detained, nothing is at work.
            let waits = |lane| shared.lanes.whereabouts(lane, self.tick) == Whereabouts::Waiting;
            let seen = Observed { now_us: shared.now_us(), drained: answered, busy: true };
            let is_unread = |alike| shared.sources.may_hold(alike);
            self.wide.send_due(seen, waits, is_unread, &self.ledger, &mut self.batch);
        }
    }

    /// Is there something that only the passing of time will tell: a fence, an install?
    pub(crate) fn must_look_again(&self) -> bool {
        self.fenced || !self.wide.is_empty()
    }
}

#[cfg(test)]
mod tests;
