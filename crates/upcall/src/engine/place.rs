//! The part of an upcall's way that waits: its lane's queue, and what a hop makes us take.

use std::cell::OnceCell;
use std::sync::Arc;

use upcall_core::{Gather, Late, Placed, Refusal, SourceId};

use super::intake::Reading;
use super::{DATAGRAM_MAX, DEFERRED_MAX, Engine};
use crate::Upcall;
use crate::shared::Shared;
use crate::sources::{HeldOff, Registered};

/// Datagrams that one gather takes at most: more than a socket holds by default.
pub(super) const GATHERED_MAX: usize = 4 * DEFERRED_MAX;

impl Reading<'_> {
    /// What the upcall waits for of a flow that came by socket `before`, and sockets with something to take out.
    fn look(
        &self,
        shared: &Shared,
        upcall: &Upcall<'_>,
        before: Option<SourceId>,
    ) -> (Gather, Vec<Arc<Registered>>) {
        let key = shared.lane_key.is_one_key(upcall.key).then_some(upcall.wire.key);
        let older = |key| shared.sources.older(self.entry, self.taken, key);
        if before == Some(self.entry.id) {
            // Without a key anything would be taken for its flow.
            return (key.and_then(|key| older(Some(key))).unwrap_or_default(), Vec::new());
        }
        if before.is_none()
            && let Some(older) = older(key)
        {
            return (older, Vec::new());
        }
        shared.sources.gather(self.entry, before)
    }
}

impl Engine {
    /// Brings an upcall to the queue; `true` if it is to be handled at once.
    pub(super) fn place(
        &mut self,
        reading: &Reading<'_>,
        message: &[u8],
        upcall: &Upcall<'_>,
    ) -> bool {
        let arrival = reading.late(&self.shared, message, upcall);
        // Another worker may take it before this round ends: what was answered here comes before.
        self.batch.flush(&self.ledger);
        let shared = self.shared.clone();
        let looked = OnceCell::new();
        let placed = shared.lanes.place(
            &arrival,
            || shared.now_us(),
            |before| {
                if before.is_some_and(|before| before != reading.entry.id) {
                    shared.hopped(reading.entry);
                }
                let look = || reading.look(&shared, upcall, before);
                reading.gather.unwrap_or_else(|| &looked.get_or_init(look).0)
            },
        );
        if let Some((gather, unread)) = looked.into_inner()
            && gather.hold.is_some()
        {
            self.take_all(reading.entry, &unread, gather);
        }
        self.count_placed(placed, &arrival);
        matches!(placed, Placed::Run | Placed::Unfenced)
    }

    fn count_placed(&mut self, placed: Placed, arrival: &Late<'_>) {
        match placed {
            Placed::Run => self.ledger.hops.add(u64::from(!arrival.defer && !arrival.in_doubt)),
            Placed::Unfenced => self.ledger.fences_without_room.add(1),
            Placed::Waits => {
                self.ledger.queued.add(1);
                self.fenced = true;
            }
            Placed::Shed(why) => self.refuse(arrival.port, why),
        }
    }

    /// Sheds an upcall of `port` that the queue has no place for.
    pub(super) fn refuse(&self, port: u32, why: Refusal) {
        match why {
            Refusal::NoRoom => {
                self.ledger.shed_for(&self.ledger.shed_no_room);
                self.shared.sheds.count(port, |port| &mut port.no_room);
            }
            Refusal::Quota => {
                self.ledger.shed_for(&self.ledger.shed_quota);
                self.shared.sheds.count(port, |port| &mut port.quota);
            }
        }
    }

    /// A flow hopped to the socket `own`: takes what is in the sockets now, so that nobody has to wait
    /// for their readers, and what comes into them later can be told from it.
    fn take_all(&mut self, own: &Registered, unread: &[Arc<Registered>], mut gather: Gather) {
        let mut buf = std::mem::take(&mut self.gather_buf);
        buf.resize(DATAGRAM_MAX, 0);
        let mut left = GATHERED_MAX;
        for entry in std::iter::once(own).chain(unread.iter().map(|entry| &**entry)) {
            let held = entry.hold_off();
            self.shared.lanes.narrow(&mut gather, held.read_before());
            if !self.take_out(entry, held, &gather, &mut left, &mut buf) {
                // What is left there may be older than what waits.
                self.ledger.fences_without_room.add(1);
                left = 1;
            }
        }
        self.gather_buf = buf;
    }

    /// Takes what is in one socket, up to `left` datagrams; `false` if there may be more.
    pub(super) fn take_out(
        &mut self,
        entry: &Registered,
        held: HeldOff<'_>,
        gather: &Gather,
        left: &mut usize,
        buf: &mut [u8],
    ) -> bool {
        self.in_flight.about_to_take(&self.ledger);
        // What is left would be overtaken, if its place is known.
        let in_order = gather.ordered || entry.tells_times();
        let waiting_max = if in_order { GATHERED_MAX } else { DEFERRED_MAX };
        let in_hand = held.in_hand();
        held.take_all(buf, |taken, datagram, buf| {
            self.ledger.gathered.add(1);
            let now;
            let gather = if gather.ordered {
                now = self.shared.sources.at_once(gather, entry.id, in_hand);
                Some(&now)
            } else {
                Some(gather)
            };
            let reading = Reading {
                entry,
                taken,
                plan: None,
                others_hold: false,
                in_doubt: false,
                defer: true,
                tally: None,
                gather,
            };
            self.datagram(reading, datagram, buf);
            self.in_flight.about_to_take(&self.ledger);
            *left -= 1;
            *left > 0 && self.shared.lanes.waiting() < waiting_max
        })
    }
}
