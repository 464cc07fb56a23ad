//! Upcalls that the handler answers later: into their lane, and out of it again.

use upcall_core::{Late, Ticket, Work};

use super::Engine;
use crate::Upcall;
use crate::deferred::{Deferred, Later, Outcome, Refused};

impl Engine {
    /// The handler answers an upcall later that was asked about as it was read.
    pub(super) fn detain(&mut self, arrival: &Late<'_>, later: Later) {
        let Some(promise) = self.reserve() else { return };
        let shared = self.shared.clone();
        match shared.lanes.detain(arrival, || shared.now_us()) {
            Ok(ticket) => promise.keep(ticket, later),
            Err(why) => self.refuse(arrival.port, why),
        }
    }

    /// The handler answers the next upcall of `work` later.
    pub(super) fn detain_taken(&mut self, work: &mut Work, later: Later) {
        let Some(promise) = self.reserve() else { return work.handled() };
        match self.shared.lanes.detain_taken(work) {
            Some(ticket) => promise.keep(ticket, later),
            None => work.handled(),
        }
    }

    fn reserve(&mut self) -> Option<crate::deferred::Promise> {
        // Another worker may carry the answer out: what was answered here comes before.
        self.batch.flush(&self.ledger);
        match Deferred::reserve(&self.shared) {
            Ok(promise) => {
                self.ledger.deferred.add(1);
                return Some(promise);
            }
            Err(Refused::Full) => self.ledger.shed_for(&self.ledger.shed_pending_full),
            Err(Refused::Stopping) => self.ledger.shed_for(&self.ledger.shed_stopped),
        }
        None
    }

    /// Carries out what the handler answered to an upcall that was detained.
    pub(super) fn answered(&mut self, ticket: Ticket, upcall: &Upcall<'_>) {
        match self.shared.deferred.take(ticket) {
            Outcome::Answer(verdict, epoch) => {
                self.verdict = *verdict;
                if self.shared.epoch() != epoch {
                    // It may be wrong by now for packets to come.
                    self.verdict.install = None;
                }
                self.carry_out(None, upcall, None);
                self.verdict.ports = self.shared.ports.load_full();
            }
            Outcome::Panicked => self.ledger.shed_for(&self.ledger.shed_handler_panic),
            Outcome::TimedOut => self.ledger.shed_for(&self.ledger.shed_handler_timeout),
            Outcome::Stopped => self.ledger.shed_for(&self.ledger.shed_stopped),
        }
    }
}
