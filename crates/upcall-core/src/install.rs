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
//! an install waits for a pause of its flow, or goes in right behind an upcall that came after one. An upcall
//! that came alone waits for nobody.
//!
//! What still slips through, upcalls read after the FLOW_PUT was sent, is counted as stragglers.

use std::collections::VecDeque;

use hashbrown::HashTable;

/// Bounds of an [`InstallPlan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstallLimits {
    /// Installs that may wait; one more is given up, and the flow's next upcall asks again.
    pub pending_max: usize,
    /// Upcalls of its flow that an install may be put off for: more than a burst has.
    pub upcalls_max: u16,
    /// Rounds with an upcall of its flow that it may be put off for: a reader that is faster than the sender
    /// has rounds of one.
    pub rounds_max: u8,
    /// How long it may be put off in any case, in microseconds: the socket may never be read empty.
    pub wait_us_max: u64,
    /// Time without an upcall of its flow for which an install waits while there is traffic
    /// ([`Observed::busy`]), in microseconds: longer than a sender pauses within a burst.
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
            pause_us: 200,
            recent_max: 1024,
            recent_us: 100_000,
        }
    }
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
    /// The end of the last round with an upcall of the flow.
    touched_us: u64,
    /// Did that come alone, behind a pause?
    slow: bool,
}

impl Pending {
    fn touch(&mut self) {
        self.busy = true;
        self.now = self.now.saturating_add(1);
        self.upcalls = self.upcalls.saturating_add(1);
    }

    /// Ends a round. Is now a time when no packet of the flow is to be expected?
    fn has_paused(&mut self, seen: Observed, pause_us: u64) -> bool {
        let silent_us = seen.now_us.saturating_sub(self.touched_us);
        let paused = silent_us >= pause_us;
        self.busy |= seen.busy;
        if self.now > 0 {
            self.slow = self.now == 1 && self.put_off && paused;
            self.touched_us = seen.now_us;
            return false;
        }
        !self.busy || self.slow || paused
    }

    fn has_waited_enough(&self, now_us: u64, limits: &InstallLimits) -> bool {
        self.upcalls >= limits.upcalls_max
            || self.rounds >= limits.rounds_max
            || now_us.saturating_sub(self.planned_us) >= limits.wait_us_max
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
    bytes: Vec<u8>,
    spare: Vec<u8>,
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
            recent: HashTable::new(),
            recent_order: VecDeque::new(),
        }
    }

    /// Does nothing wait?
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// An upcall of `flow`, and of the lane with this hash, whose verdict is to install it. `write` appends
    /// the encoded message and is called only if the install is planned.
    ///
    /// # Errors
    ///
    /// What `write` fails with; the plan is as it was.
    pub fn offer<E>(
        &mut self,
        (flow, lane): (u64, u64),
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
            planned_us: now_us,
            start,
            end,
            now: 1,
            upcalls: 1,
            rounds: 0,
            put_off: false,
            busy: false,
            touched_us: now_us,
            slow: false,
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
    /// answered; it is asked about those due alone.
    pub fn end_round(
        &mut self,
        seen: Observed,
        waits: impl Fn(u64) -> bool,
        mut send: impl FnMut(&[u8], u64),
    ) -> RoundEnd {
        let mut end = RoundEnd::default();
        if self.pending.is_empty() {
            return end;
        }
        self.index.clear();
        self.spare.clear();
        let bytes = std::mem::take(&mut self.bytes);
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain_mut(|install| {
            let message = &bytes[install.start..install.end];
            let paused = install.has_paused(seen, self.limits.pause_us);
            let proven = seen.drained && paused && !waits(install.lane);
            let forced = install.has_waited_enough(seen.now_us, &self.limits);
            let due = proven || forced;
            if due {
                end.sent += 1;
                end.forced += u64::from(!proven);
                send(message, install.planned_us);
                self.remember(install.flow, seen.now_us);
            } else {
                end.deferred += u64::from(install.put_off);
                install.put_off();
                install.start = self.spare.len();
                self.spare.extend_from_slice(message);
                install.end = self.spare.len();
            }
            !due
        });
        for (at, install) in pending.iter().enumerate() {
            self.index.insert_unique(install.flow, at, |&at| pending[at].flow);
        }
        self.pending = pending;
        self.bytes = std::mem::replace(&mut self.spare, bytes);
        end
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn plan(limits: InstallLimits) -> InstallPlan {
        InstallPlan::new(limits)
    }

    fn offer(plan: &mut InstallPlan, flow: u64, now_us: u64) -> Offer {
        let write = |out: &mut Vec<u8>| {
            out.extend(flow.to_ne_bytes());
            Ok::<(), ()>(())
        };
        plan.offer((flow, flow), now_us, write).unwrap()
    }

    fn end_round(plan: &mut InstallPlan, now_us: u64) -> Vec<u64> {
        end_round_with(plan, now_us, true)
    }

    fn end_round_with(plan: &mut InstallPlan, now_us: u64, drained: bool) -> Vec<u64> {
        let mut sent = Vec::new();
        let note = |m: &[u8], _| sent.push(u64::from_ne_bytes(m.try_into().unwrap()));
        plan.end_round(Observed { now_us, drained, busy: false }, |_| false, note);
        sent
    }

    #[test]
    fn a_round_that_left_packets_in_the_socket_proves_nothing() {
        let limits = InstallLimits { wait_us_max: 10, ..InstallLimits::default() };
        let mut plan = plan(limits);
        offer(&mut plan, 1, 0);
        for _ in 0..8 {
            assert_eq!(end_round_with(&mut plan, 0, false), [0u64; 0]);
        }
        assert_eq!(end_round(&mut plan, 0), [1]);
        offer(&mut plan, 2, 0);
        let waited =
            (0..100).take_while(|now| end_round_with(&mut plan, *now, false).is_empty()).count();
        assert_eq!(waited, 10, "a backlog without an end does not hold an install for ever");
    }

    #[test]
    fn an_install_waits_while_upcalls_of_its_lane_do() {
        let limits = InstallLimits { wait_us_max: 10, ..InstallLimits::default() };
        let mut plan = plan(limits);
        (1..=2).for_each(|flow| assert_eq!(offer(&mut plan, flow, 0), Offer::Planned));
        let mut round = |now_us| {
            let mut sent = Vec::new();
            let seen = Observed { now_us, drained: true, busy: false };
            let end = plan.end_round(seen, |lane| lane == 1, |m, _| sent.extend_from_slice(m));
            (sent, end.forced)
        };
        assert_eq!(round(0), (vec![], 0));
        assert_eq!(round(0), (2u64.to_ne_bytes().to_vec(), 0), "the lane of the other is free");
        let waited = (0..100).take_while(|now| round(*now).0.is_empty()).count();
        assert_eq!(waited, 10, "what waits for ever does not hold an install for ever");
    }

    #[test]
    fn what_is_cleared_is_not_sent_and_can_be_asked_for_again() {
        let mut plan = plan(InstallLimits::default());
        offer(&mut plan, 1, 0);
        plan.clear();
        assert_eq!(end_round(&mut plan, 0), [0u64; 0]);
        assert_eq!(offer(&mut plan, 1, 0), Offer::Planned);
        end_round(&mut plan, 0);
        assert_eq!(end_round(&mut plan, 0), [1]);
        plan.clear();
        assert_eq!(offer(&mut plan, 1, 0), Offer::Planned, "a sent install is forgotten too");
    }

    #[test]
    fn an_install_waits_for_a_round_without_its_flow() {
        let mut plan = plan(InstallLimits::default());
        assert_eq!(offer(&mut plan, 1, 0), Offer::Planned);
        assert_eq!(offer(&mut plan, 1, 0), Offer::Duplicate);
        assert_eq!(end_round(&mut plan, 0), [0u64; 0]);
        assert_eq!(offer(&mut plan, 1, 0), Offer::Duplicate);
        assert_eq!(offer(&mut plan, 2, 0), Offer::Planned);
        assert_eq!(end_round(&mut plan, 0), [0u64; 0]);
        assert_eq!(end_round(&mut plan, 200), [1, 2]);
        assert!(plan.is_empty());
    }

    #[test]
    fn a_flow_that_is_sending_is_installed_in_its_next_pause() {
        let mut plan = plan(InstallLimits { pause_us: 50, ..InstallLimits::default() });
        (1..=3).for_each(|flow| assert_eq!(offer(&mut plan, flow, 0), Offer::Planned));
        plan.touch(1);
        assert_eq!(end_round(&mut plan, 10), [0u64; 0]);
        assert_eq!(offer(&mut plan, 2, 20), Offer::Duplicate);
        assert_eq!(end_round(&mut plan, 20), [3], "one upcall is no reason to expect another");
        assert_eq!(end_round(&mut plan, 59), [0u64; 0]);
        assert_eq!(end_round(&mut plan, 60), [1]);
        assert_eq!(end_round(&mut plan, 70), [2]);
    }

    #[test]
    fn a_flow_of_packets_with_pauses_is_installed_right_behind_one() {
        let mut plan = plan(InstallLimits { pause_us: 50, ..InstallLimits::default() });
        offer(&mut plan, 1, 0);
        let end = |plan: &mut InstallPlan, now_us| {
            let seen = Observed { now_us, drained: true, busy: true };
            plan.end_round(seen, |_| false, |_, _| ()).sent
        };
        assert_eq!(end(&mut plan, 10), 0);
        plan.touch(1);
        assert_eq!([end(&mut plan, 59), end(&mut plan, 60)], [0, 0], "too soon after the first");
        (0..2).for_each(|_| plan.touch(1));
        assert_eq!([end(&mut plan, 120), end(&mut plan, 121)], [0, 0], "a burst begins");
        plan.touch(1);
        assert_eq!([end(&mut plan, 170), end(&mut plan, 171)], [0, 1]);
    }

    #[test]
    fn while_others_send_an_install_waits_for_a_pause_too() {
        let mut plan = plan(InstallLimits { pause_us: 50, ..InstallLimits::default() });
        offer(&mut plan, 1, 0);
        let mut sent = 0;
        let mut round = |now_us, busy| {
            let seen = Observed { now_us, drained: true, busy };
            plan.end_round(seen, |_| false, |_, _| sent += 1).sent
        };
        assert_eq!([round(0, true), round(49, false), round(50, false)], [0, 0, 1]);
    }

    #[test]
    fn an_elephant_is_installed_at_the_limit_of_rounds_or_upcalls() {
        let limits = InstallLimits { rounds_max: 3, upcalls_max: 100, ..InstallLimits::default() };
        for (upcalls, expected) in [(1, 3), (40, 2)] {
            let mut plan = plan(limits);
            let mut rounds = 0;
            loop {
                (0..upcalls).for_each(|_| _ = offer(&mut plan, 1, 0));
                if end_round(&mut plan, 0) == [1] {
                    break;
                }
                rounds += 1;
            }
            assert_eq!(rounds, expected, "{upcalls} in a round");
        }
    }

    #[test]
    fn upcalls_after_the_install_are_stragglers_for_a_while() {
        let mut plan = plan(InstallLimits { recent_us: 100, ..InstallLimits::default() });
        offer(&mut plan, 1, 0);
        end_round(&mut plan, 0);
        assert_eq!(end_round(&mut plan, 10), [1]);
        assert_eq!(offer(&mut plan, 1, 110), Offer::Straggler);
        assert_eq!(offer(&mut plan, 1, 111), Offer::Planned);
    }

    #[test]
    fn limits_hold() {
        let limits = InstallLimits { pending_max: 2, recent_max: 1, ..InstallLimits::default() };
        let mut plan = plan(limits);
        assert_eq!(offer(&mut plan, 1, 0), Offer::Planned);
        assert_eq!(offer(&mut plan, 2, 0), Offer::Planned);
        assert_eq!(offer(&mut plan, 3, 0), Offer::Full);
        end_round(&mut plan, 0);
        assert_eq!(end_round(&mut plan, 0), [1, 2]);
        assert_eq!(offer(&mut plan, 2, 0), Offer::Straggler);
        assert_eq!(offer(&mut plan, 1, 0), Offer::Planned, "only one flow is remembered");
    }

    #[test]
    fn a_message_that_cannot_be_written_is_not_planned() {
        let mut plan = plan(InstallLimits::default());
        let failed = plan.offer((1, 1), 0, |out| {
            out.push(1);
            Err("no")
        });
        assert_eq!(failed, Err("no"));
        assert!(plan.is_empty());
        offer(&mut plan, 2, 0);
        end_round(&mut plan, 0);
        assert_eq!(end_round(&mut plan, 0), [2]);
    }

    proptest! {
        /// Whatever the order of events: every planned install is sent once, in its own bytes, in no
        /// round that saw an upcall of its flow unless the limit forced it, and within the limit.
        #[test]
        fn every_planned_install_is_sent_once_and_behind_its_packets(
            rounds in prop::collection::vec(
                (prop::collection::vec(0u64..6, 0..8), any::<bool>(), prop::bool::weighted(0.1)),
                1..40,
            ),
        ) {
            let limits = InstallLimits {
                rounds_max: 3,
                wait_us_max: 9_000,
                recent_us: 0,
                ..InstallLimits::default()
            };
            let mut plan = plan(limits);
            // Flow to rounds waited, and of these those with an upcall of it.
            let mut waiting: HashMap<u64, (u16, u8)> = HashMap::new();
            let last = (0..2).map(|_| (vec![], true, false));
            for (now, (round, drained, learned)) in rounds.into_iter().chain(last).enumerate() {
                let now = now as u64 * 1_000;
                if learned {
                    // What was decided before is neither sent nor answered from.
                    plan.clear();
                    waiting.clear();
                }
                for flow in &round {
                    let planned = plan.waiting(*flow).map(<[u8]>::to_vec);
                    let expected = waiting.contains_key(flow).then(|| flow.to_ne_bytes().to_vec());
                    prop_assert_eq!(&planned, &expected, "flow {}", flow);
                    if planned.is_some() && flow % 2 == 0 {
                        // Answered from the plan.
                        plan.touch(*flow);
                        continue;
                    }
                    match offer(&mut plan, *flow, now) {
                        Offer::Planned => prop_assert!(waiting.insert(*flow, (0, 0)).is_none()),
                        Offer::Duplicate => prop_assert!(waiting.contains_key(flow)),
                        other => prop_assert!(false, "{other:?}"),
                    }
                }
                for flow in end_round_with(&mut plan, now, drained) {
                    let (waited, touched) = waiting.remove(&flow).expect("sent but not planned");
                    let proven = drained && !round.contains(&flow);
                    prop_assert!(proven || touched == 3 || waited == 9);
                }
                for (flow, (waited, touched)) in &mut waiting {
                    *waited += 1;
                    *touched += u8::from(round.contains(flow));
                    prop_assert!(*waited <= 9 && *touched <= 3);
                }
            }
            prop_assert!(plan.is_empty() && waiting.is_empty());
        }
    }
}
