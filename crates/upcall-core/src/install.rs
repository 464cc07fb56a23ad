//! Deferred installs (contract O3): a flow is installed behind its own packets.
//!
//! A packet that matches a flow overtakes packets of that flow which still wait in a socket. So a
//! FLOW_PUT is not sent with the EXECUTE of the upcall that asked for it but at the end of a later
//! *round*: one reading of the socket, as far as a batch goes. If that round brought no more upcalls
//! of the flow, none was left when it was read, and the flow goes in. If it did, the install waits for
//! the next round, up to limits of upcalls and rounds, so that an elephant is installed as well. While the
//! socket has more than a round of datagrams queued, a round without the flow proves nothing: its next packet
//! may be further back. Then the install waits until the socket was read empty, up to a limit of time. So it
//! does while upcalls of the flow that were read wait for their turn, or are in another reader's hands.
//!
//! Between the look that finds the socket empty and the flow's arrival in the kernel there is room for a
//! packet that another CPU sends. So where more than one upcall came, which shows that somebody is sending,
//! an install waits until its flow is silent, or has come alone and behind a pause twice in a row: then it goes
//! in right behind the second, when the next one is farthest away. Once may be a sender that was kept from
//! running within a burst. An upcall that came alone waits for nobody, and one that has seen many of its flow
//! waits for an empty socket alone. But flows are like those before them: where one of the last few came in a burst,
//! one that came alone is taken for the first of another, whose sender was kept from running, and waits as well.
//!
//! Where it is told which flows may have packets unread, those wait for the reading of these as well: also when
//! they have waited for so long that they do not wait for an empty socket any more.
//!
//! What still slips through, upcalls read after the FLOW_PUT was sent, is counted as stragglers.

use std::collections::VecDeque;

use hashbrown::HashTable;

/// Upcalls in a row that came alone and behind a pause, of a flow whose packets come one by one.
const APART_MIN: u8 = 2;
/// Upcalls of a flow that an install waits for silence, or for one that comes alone. A sender that gave no better
/// time until then, with two packets each 0.8 ms for instance, is not going to.
const PATIENT_MAX: u16 = 32;
/// Flows in a row that must come alone behind one that came in a burst, until one is taken for alone at once.
const LONE_MIN: u8 = 16;
/// So many times the limit of time, an install waits while packets of its flow may be unread: who tells that may
/// take others for them.
const UNREAD_WAITS: u64 = 4;

/// Bounds of an [`InstallPlan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstallLimits {
    /// Installs that may wait; one more is given up, and the flow's next upcall asks again. With the silence below,
    /// 1,024 are 100,000 new flows a second.
    pub pending_max: usize,
    /// Upcalls of its flow that an install may be put off for: more than a burst has.
    pub upcalls_max: u16,
    /// Rounds with an upcall of its flow that it may be put off for: a reader that is faster than the sender
    /// has rounds of one.
    pub rounds_max: u8,
    /// How long it may be put off, in microseconds: the socket may never be read empty. Four times as long while
    /// packets of its flow are known to be unread.
    pub wait_us_max: u64,
    /// Time without an upcall of its flow for which an install waits while there is traffic
    /// ([`Observed::busy`]), in microseconds: longer than a sender that is sending is kept from it, which is two ticks
    /// of a scheduler at 250 Hz. No longer asked for after 32 upcalls.
    pub silence_us: u64,
    /// Time between two upcalls of a flow that makes them packets with a pause, in microseconds: longer than a
    /// sender takes from one packet of a burst to the next, where a worker that has its CPU in between is slow.
    pub pause_us: u64,
    /// Flows remembered after their installation was sent, to know stragglers.
    pub recent_max: usize,
    /// How long they are remembered, in microseconds: an upcall after that asks for an install again.
    pub recent_us: u64,
}

impl Default for InstallLimits {
    fn default() -> Self {
        Self {
            pending_max: 1024,
            upcalls_max: 128,
            rounds_max: 64,
            wait_us_max: 50_000,
            silence_us: 10_000,
            pause_us: 1_000,
            recent_max: 1024,
            recent_us: 100_000,
        }
    }
}

/// A flow that is to be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The hash of what it matches.
    pub flow: u64,
    /// The hash of the lane that its upcall came by.
    pub lane: u64,
    /// What upcalls that are like that one have in common, for whoever tells which are unread.
    pub alike: usize,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It waits for its round.
    Planned,
    /// The flow's install was waiting already.
    Duplicate,
    /// The flow's install has been sent; this upcall is a straggler.
    Straggler,
    /// The plan is full.
    Full,
}

#[derive(Debug)]
struct Pending {
    flow: u64,
    /// The hash of the lane that asked for it.
    lane: u64,
    /// What upcalls of the flow have in common ([`Wanted`]).
    alike: usize,
    planned_us: u64,
    /// The encoded message, as a range of `InstallPlan::bytes`.
    start: usize,
    end: usize,
    /// Upcalls of the flow in this round, in all, and rounds with one of them.
    now: u16,
    upcalls: u16,
    rounds: u8,
    /// Was it put off?
    put_off: bool,
    /// Has it been seen with others, of this flow or of any?
    busy: bool,
    /// Is it taken for the first of a burst?
    expecting: bool,
    /// The end of the last round with an upcall of the flow.
    touched_us: u64,
    /// Did that one come alone, behind a pause?
    alone: bool,
    /// Such upcalls in a row, each found to be the last in the socket.
    apart: u8,
}

impl Pending {
    fn touch(&mut self) {
        self.busy = true;
        self.now = self.now.saturating_add(1);
        self.upcalls = self.upcalls.saturating_add(1);
    }

    /// Ends a round. Is now a time when no packet of the flow is to be expected?
    fn has_paused(&mut self, seen: Observed, limits: &InstallLimits) -> bool {
        let silent_us = seen.now_us.saturating_sub(self.touched_us);
        self.busy |= seen.busy;
        // Only the next look tells whether an upcall was alone, or what its reader took of more.
        let alone = std::mem::take(&mut self.alone);
        if alone {
            let found_last = self.now == 0 && seen.drained;
            self.apart = if found_last { self.apart.saturating_add(1) } else { 0 };
        }
        if self.now > 0 {
            self.alone = self.now == 1 && self.put_off && silent_us >= limits.pause_us;
            self.apart *= u8::from(self.alone);
            self.touched_us = seen.now_us;
            return false;
        }
        self.apart >= APART_MIN || self.silent_in_us(seen.now_us, limits) == 0
    }

    /// Did its flow come in a burst?
    fn is_burst(&self) -> bool {
        self.upcalls > 1 && self.apart == 0
    }

    /// For how long it still waits for silence.
    fn silent_in_us(&self, now_us: u64, limits: &InstallLimits) -> u64 {
        let is_impatient = !(self.busy || self.expecting) || self.upcalls >= PATIENT_MAX;
        let wanted_us = if is_impatient { 0 } else { limits.silence_us };
        wanted_us.saturating_sub(now_us.saturating_sub(self.touched_us))
    }

    fn has_waited_enough(
        &self,
        now_us: u64,
        limits: &InstallLimits,
        is_unread: impl FnOnce() -> bool,
    ) -> bool {
        let waited_us = now_us.saturating_sub(self.planned_us);
        self.upcalls >= limits.upcalls_max
            || self.rounds >= limits.rounds_max
            || waited_us >= limits.wait_us_max.saturating_mul(UNREAD_WAITS)
            || waited_us >= limits.wait_us_max && !is_unread()
    }

    fn put_off(&mut self) {
        self.put_off = true;
        self.rounds += u8::from(self.now > 0);
        self.now = 0;
    }
}

/// What a round has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// When it ended, in microseconds.
    pub now_us: u64,
    /// Was all that may hold packets of the flows read empty, and answered?
    pub drained: bool,
    /// Has more than one upcall come since there was nothing to do?
    pub busy: bool,
}

/// How the installs of a round were settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundEnd {
    /// Installs handed out to be sent.
    pub sent: u64,
    /// Of these, sent because the limit of rounds was reached.
    pub forced: u64,
    /// Installs put off to the next round.
    pub deferred: u64,
}

/// The installs of one socket that wait for their round. Flows are told apart by a 64-bit seeded hash
/// of their masked key; two that collide share a wait, never an order.
#[derive(Debug)]
pub struct InstallPlan {
    limits: InstallLimits,
    pending: Vec<Pending>,
    index: HashTable<usize>,
    /// The messages of those that wait, with gaps where some went.
    bytes: Vec<u8>,
    spare: Vec<u8>,
    /// Flows that are still to come alone before one is taken for alone.
    bursts: u8,
    recent: HashTable<(u64, u64)>,
    recent_order: VecDeque<(u64, u64)>,
}

impl InstallPlan {
    /// An empty plan.
    pub fn new(limits: InstallLimits) -> Self {
        Self {
            limits,
            pending: Vec::new(),
            index: HashTable::new(),
            bytes: Vec::new(),
            spare: Vec::new(),
            bursts: 0,
            recent: HashTable::new(),
            recent_order: VecDeque::new(),
        }
    }

    /// Does nothing wait?
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// An upcall whose verdict is to install its flow. `write` appends the encoded message and is called only if
    /// the install is planned.
    ///
    /// # Errors
    ///
    /// What `write` fails with; the plan is as it was.
    pub fn offer<E>(
        &mut self,
        Wanted { flow, lane, alike }: Wanted,
        now_us: u64,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Offer, E> {
        let pending = &mut self.pending;
        if let Some(&at) = self.index.find(flow, |&at| pending[at].flow == flow) {
            pending[at].touch();
            return Ok(Offer::Duplicate);
        }
        self.forget(now_us);
        if self.recent.find(flow, |(f, _)| *f == flow).is_some() {
            self.bursts = LONE_MIN;
            return Ok(Offer::Straggler);
        }
        if self.pending.len() >= self.limits.pending_max {
            return Ok(Offer::Full);
        }
        let start = self.bytes.len();
        if let Err(err) = write(&mut self.bytes) {
            self.bytes.truncate(start);
            return Err(err);
        }
        let at = self.pending.len();
        let end = self.bytes.len();
        self.pending.push(Pending {
            flow,
            lane,
            alike,
            planned_us: now_us,
            start,
            end,
            now: 1,
            upcalls: 1,
            rounds: 0,
            put_off: false,
            busy: false,
            expecting: self.bursts > 0,
            touched_us: now_us,
            alone: false,
            apart: 0,
        });
        let pending = &self.pending;
        self.index.insert_unique(flow, at, |&at| pending[at].flow);
        Ok(Offer::Planned)
    }

    /// The message of the flow's install, if that waits.
    pub fn waiting(&self, flow: u64) -> Option<&[u8]> {
        let at = *self.index.find(flow, |&at| self.pending[at].flow == flow)?;
        let install = &self.pending[at];
        Some(&self.bytes[install.start..install.end])
    }

    /// There was an upcall of a flow whose install waits, which needed no verdict.
    pub fn touch(&mut self, flow: u64) {
        let pending = &mut self.pending;
        if let Some(&at) = self.index.find(flow, |&at| pending[at].flow == flow) {
            pending[at].touch();
        }
    }

    /// Ends a round: hands the message of every install that is due to `send`, with the time it was planned
    /// at, in the order they were planned. `waits` tells whether upcalls of a lane were read that are not
    /// answered, and `is_unread` whether upcalls like some may be unread, if that is known; they are asked about
    /// those due alone.
    pub fn end_round(
        &mut self,
        seen: Observed,
        waits: impl Fn(u64) -> bool,
        is_unread: impl Fn(usize) -> bool,
        mut send: impl FnMut(&[u8], u64),
    ) -> RoundEnd {
        let mut end = RoundEnd::default();
        let mut pending = std::mem::take(&mut self.pending);
        let planned = pending.len();
        pending.retain_mut(|install| {
            let paused = install.has_paused(seen, &self.limits);
            let is_unread = || is_unread(install.alike);
            let proven = seen.drained && paused && !waits(install.lane) && !is_unread();
            let forced = install.has_waited_enough(seen.now_us, &self.limits, is_unread);
            let due = proven || forced;
            if due {
                end.sent += 1;
                end.forced += u64::from(!proven);
                send(&self.bytes[install.start..install.end], install.planned_us);
                self.learn_from(install);
                self.remember(install.flow, seen.now_us);
            } else {
                end.deferred += u64::from(install.put_off);
                install.put_off();
            }
            !due
        });
        self.pending = pending;
        if self.pending.len() < planned {
            self.close_gaps();
        }
        end
    }

    /// What the next flows are to be taken for.
    fn learn_from(&mut self, install: &Pending) {
        if install.is_burst() {
            self.bursts = LONE_MIN;
        } else if install.expecting {
            self.bursts = self.bursts.saturating_sub(1);
        }
    }

    /// Some installs are gone: finds the others where they are now.
    fn close_gaps(&mut self) {
        let kept: usize = self.pending.iter().map(|install| install.end - install.start).sum();
        // Not each time: those that wait would be copied in each round.
        if 2 * kept <= self.bytes.len() {
            self.spare.clear();
            for install in &mut self.pending {
                let start = self.spare.len();
                self.spare.extend_from_slice(&self.bytes[install.start..install.end]);
                (install.start, install.end) = (start, self.spare.len());
            }
            std::mem::swap(&mut self.bytes, &mut self.spare);
        }
        self.index.clear();
        let pending = &self.pending;
        for (at, install) in pending.iter().enumerate() {
            self.index.insert_unique(install.flow, at, |&at| pending[at].flow);
        }
    }

    /// Microseconds from now on until the first of those that wait has been silent for long enough, if no
    /// more upcalls come; 0 if one has, and waits for something else.
    pub fn silent_in_us(&self, now_us: u64) -> u64 {
        let waits = |install: &Pending| install.silent_in_us(now_us, &self.limits);
        self.pending.iter().map(waits).min().unwrap_or(0)
    }

    /// Forgets everything: what was decided before may be wrong now. Flows that waited ask again with
    /// their next upcall.
    pub fn clear(&mut self) {
        self.pending.clear();
        self.index.clear();
        self.bytes.clear();
        self.recent.clear();
        self.recent_order.clear();
    }

    fn remember(&mut self, flow: u64, now_us: u64) {
        if self.recent_order.len() >= self.limits.recent_max {
            self.forget_oldest();
        }
        self.recent.insert_unique(flow, (flow, now_us), |(f, _)| *f);
        self.recent_order.push_back((flow, now_us));
    }

    fn forget(&mut self, now_us: u64) {
        let expired = now_us.saturating_sub(self.limits.recent_us);
        while self.recent_order.front().is_some_and(|(_, at)| *at < expired) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.recent_order.pop_front()
            && let Ok(entry) = self.recent.find_entry(oldest.0, |known| *known == oldest)
        {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests;
