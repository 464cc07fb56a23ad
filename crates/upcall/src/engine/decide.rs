//! What the handler says to an upcall, and what is made of it: an EXECUTE and, later, an install.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ovs_wire::action::Actions;
use ovs_wire::flow::FlowPut;
use ovs_wire::key::FlowKey;
use ovs_wire::mask::MatchFields;
use ovs_wire::packet::{Execute, UpcallKind};
use ovs_wire::{AttrBuilder, WireError};
use upcall_core::{Ledger, Offer};

use super::Engine;
use super::plan::{Known, Plan};
use crate::batch::{Batch, Op};
use crate::deferred::Later;
use crate::observe::{self, Answer};
use crate::shared::Shared;
use crate::{InstallPolicy, Upcall};

impl Engine {
    /// Asks the handler and does what it says, unless that is known. Installs wait in `plan`, or in the
    /// engine's own. Gives what the handler answers later.
    pub(super) fn decide(
        &mut self,
        mut plan: Option<&mut Plan>,
        upcall: &Upcall<'_>,
    ) -> Option<Later> {
        if self.shared.deferred.is_closed() {
            self.ledger.shed_for(&self.ledger.shed_stopped);
            return None;
        }
        let known = match self.answer_from_plan(plan.as_deref_mut(), upcall) {
            Ok(()) => return None,
            Err(known) => known,
        };
        self.verdict.clear();
        let asked_ns = self.timed.take().then(|| self.shared.clock.now_ns());
        let (handler, verdict) = (&self.shared.handler, &mut self.verdict);
        if catch_unwind(AssertUnwindSafe(|| handler.upcall(upcall, verdict))).is_err() {
            self.ledger.shed_for(&self.ledger.shed_handler_panic);
            return None;
        }
        if let Some(asked_ns) = asked_ns {
            let decided_ns = self.shared.clock.now_ns();
            self.ledger.latency.decide.record(decided_ns.saturating_sub(asked_ns));
            if !self.verdict.actions.is_empty() {
                self.batch.time(decided_ns);
            }
        }
        if self.verdict.refused {
            self.ledger.shed_for(&self.ledger.shed_listener_full);
            return None;
        }
        if self.verdict.later.is_some() {
            return self.verdict.later.take();
        }
        self.carry_out(plan, upcall, known);
        None
    }

    /// Does what the verdict says. `known` is the flow, if it was looked for.
    pub(super) fn carry_out(
        &mut self,
        plan: Option<&mut Plan>,
        upcall: &Upcall<'_>,
        known: Option<Known>,
    ) {
        if self.verdict.revalidate {
            self.shared.revalidate();
        }
        if let Some(station) = self.verdict.moved {
            self.shared.moved(station);
        }
        let actions = self.verdict.actions.as_bytes();
        execute(&self.shared, (&self.ledger, &mut self.batch), upcall, actions);
        let install = self.verdict.install.is_some();
        observe::show(&mut self.onlooker, upcall, &answer(actions, install, false));
        if let Some(fields) = self.verdict.install
            && upcall.kind() == UpcallKind::Miss
            && self.knows(upcall.in_port())
        {
            self.install(plan, upcall, (fields, known));
        }
    }

    /// A verdict about a port that the handler was not told of yet is good for one packet alone.
    fn knows(&self, port: Option<u32>) -> bool {
        port.is_none_or(|number| self.verdict.ports.by_number(number).is_some())
    }

    /// Answers an upcall of a flow whose install waits as the handler did the one that asked for it. If
    /// there is none, gives what was looked for.
    fn answer_from_plan(
        &mut self,
        plan: Option<&mut Plan>,
        upcall: &Upcall<'_>,
    ) -> Result<(), Option<Known>> {
        let plan = plan.unwrap_or(&mut self.wide);
        if plan.is_empty() || !self.shared.answer_from_plan || upcall.kind() != UpcallKind::Miss {
            return Err(None);
        }
        // Another worker, or the upcall before this one, may have taught the handler something.
        plan.follow(&self.shared);
        let actions = plan.answer(upcall.wire.key)?;
        execute(&self.shared, (&self.ledger, &mut self.batch), upcall, actions);
        observe::show(&mut self.onlooker, upcall, &answer(actions, true, true));
        self.ledger.duplicate_misses.add(1);
        self.ledger.answered_from_plan.add(1);
        Ok(())
    }

    fn install(
        &mut self,
        plan: Option<&mut Plan>,
        upcall: &Upcall<'_>,
        (fields, known): (MatchFields, Option<Known>),
    ) {
        if self.shared.installs_held() {
            return;
        }
        let fields = match self.shared.install {
            InstallPolicy::Never => return,
            InstallPolicy::Exact => MatchFields::EXACT,
            InstallPolicy::Wildcard => fields,
        };
        let exact = fields == MatchFields::EXACT;
        let stations = [upcall.key.eth_src, upcall.key.eth_dst];
        let (lane, upcall) = (upcall.flow, upcall.wire);
        let (shared, mask, batch) = (&self.shared, &mut self.mask, &mut self.batch);
        let (ids, now_ms) = (&mut self.flow_ids, self.shared.clock.to_monotonic_ms(self.now_us));
        let actions = self.verdict.actions.as_bytes();
        let plan = plan.unwrap_or(&mut self.wide);
        let asked = (lane, shared.sources.alike(upcall.key), self.now_us);
        let offer = plan.offer((upcall.key, fields, known), asked, |buf| {
            if !shared.flow_room.take() {
                return Err(NotInstalled::NoRoom);
            }
            mask.clear();
            if !exact {
                FlowKey::new(upcall.key).write_mask(fields, &mut AttrBuilder::new(mask))?;
            }
            let put = FlowPut {
                dp_ifindex: upcall.dp_ifindex,
                key: upcall.key,
                mask: (!exact).then_some(mask.as_slice()),
                actions,
                probe: false,
                ufid: Some(&ids.next(now_ms, stations)),
            };
            Ok(put.write(buf, shared.flow_family, 0, batch.seq(Op::FlowPut))?)
        });
        match offer {
            Ok(Offer::Planned) => {}
            Ok(Offer::Duplicate) => self.ledger.duplicate_misses.add(1),
            Ok(Offer::Straggler) => self.ledger.install_stragglers.add(1),
            Ok(Offer::Full) => self.ledger.install_overflow.add(1),
            Err(why) => not_installed(&self.ledger, &why),
        }
    }
}

fn answer(actions: &[u8], install: bool, from_plan: bool) -> Answer<'_> {
    Answer { actions: Actions::new(actions), install, from_plan }
}

/// Gives a packet back with its actions; without any it is dropped.
fn execute(
    shared: &Shared,
    (ledger, batch): (&Ledger, &mut Batch),
    upcall: &Upcall<'_>,
    actions: &[u8],
) {
    if actions.is_empty() {
        ledger.dropped.add(1);
        ledger.completed.add(1);
        return;
    }
    let mut short = [0; 8];
    let key = upcall.key.execute_key(upcall.wire.key, &mut short);
    let execute = Execute { key, ..Execute::reply(upcall.wire, actions, upcall.port_id) };
    let (seq, family) = (batch.seq(Op::Execute), shared.packet_family);
    if let Err(err) = batch.execute(ledger, |buf| execute.write(buf, family, seq)) {
        ledger.shed_for(&ledger.shed_unwritable);
        tracing::debug!(%err, "a verdict cannot be written as a message");
    }
}

fn not_installed(ledger: &Ledger, why: &NotInstalled) {
    match why {
        NotInstalled::NoRoom => ledger.flow_limit_hits.add(1),
        NotInstalled::Unwritable(err) => {
            tracing::debug!(%err, "a flow cannot be written as a message");
        }
    }
}

/// Why no install was planned.
enum NotInstalled {
    NoRoom,
    Unwritable(WireError),
}

impl From<WireError> for NotInstalled {
    fn from(err: WireError) -> Self {
        Self::Unwritable(err)
    }
}
