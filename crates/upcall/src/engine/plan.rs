//! Flows that wait to be installed, and the upcalls of theirs that are answered meanwhile.

use std::hash::{BuildHasher, Hasher};

use foldhash::quality::RandomState;
use ovs_wire::WireError;
use ovs_wire::flow::Flow;
use ovs_wire::key::FlowKey;
use ovs_wire::mask::MatchFields;
use ovs_wire::nl::NlMsgs;
use upcall_core::{InstallLimits, InstallPlan, Ledger, Observed, Offer, Wanted};

use crate::batch::Batch;
use crate::shared::Shared;

/// Masks that are looked for at most: beyond, a look would cost more than to ask the handler.
const MASKS_MAX: usize = 4;

/// The installs of a socket's flows, or of those that may come by any.
#[derive(Debug)]
pub(super) struct Plan {
    installs: InstallPlan,
    /// The epoch of decisions that the installs are from ([`Shared::epoch`]).
    epoch: u64,
    hasher: RandomState,
    /// What the installs match, each once.
    masks: Vec<MatchFields>,
    /// For keys that are compared.
    masked: [Masked; 2],
}

/// A flow that was looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    fields: MatchFields,
    flow: u64,
}

impl Plan {
    pub(super) fn new(limits: InstallLimits) -> Self {
        Self {
            installs: InstallPlan::new(limits),
            epoch: 0,
            hasher: RandomState::default(),
            masks: Vec::new(),
            masked: Default::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.installs.is_empty()
    }

    /// See [`InstallPlan::silent_in_us`].
    pub(super) fn silent_in_us(&self, now_us: u64) -> u64 {
        self.installs.silent_in_us(now_us)
    }

    /// Gives up installs that were decided before something was learned that may make them wrong.
    pub(super) fn follow(&mut self, shared: &Shared) {
        let epoch = shared.epoch();
        if self.epoch != epoch {
            self.epoch = epoch;
            self.installs.clear();
        }
    }

    /// The actions of the install that matches this key. If none does, the flow that was looked for last.
    pub(super) fn answer(&mut self, key: &[u8]) -> Result<&[u8], Option<Known>> {
        let mut known = None;
        for &fields in &self.masks {
            let Ok(flow) = hash(&self.hasher, key, fields) else { continue };
            known = Some(Known { fields, flow });
            let agrees = |planned: &[u8]| {
                let planned = read(planned)?;
                let [a, b] = &mut self.masked;
                Some(a.set(planned.key, fields)? == b.set(key, fields)?)
            };
            if self.installs.waiting(flow).and_then(agrees) == Some(true) {
                self.installs.touch(flow);
                return self.installs.waiting(flow).and_then(read).map(|f| f.actions).ok_or(known);
            }
        }
        Err(known)
    }

    /// Plans the install of the flow that `key` and `fields` make, for an upcall of `lane`, and like
    /// others; see [`InstallPlan::offer`]. `known` is what [`Plan::answer`] gave for this key, if it was asked.
    pub(super) fn offer<E: From<WireError>>(
        &mut self,
        (key, fields, known): (&[u8], MatchFields, Option<Known>),
        (lane, alike, now_us): (u64, usize, u64),
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Offer, E> {
        let flow = match known.filter(|known| known.fields == fields) {
            Some(known) => known.flow,
            None => hash(&self.hasher, key, fields)?,
        };
        if self.installs.is_empty() {
            self.masks.clear();
        }
        let offer = self.installs.offer(Wanted { flow, lane, alike }, now_us, write)?;
        let is_new = offer == Offer::Planned && !self.masks.contains(&fields);
        if is_new && self.masks.len() < MASKS_MAX {
            self.masks.push(fields);
        }
        Ok(offer)
    }

    /// Ends a round: appends the installs that are due to the batch. `waits` and `is_unread` as for
    /// [`InstallPlan::end_round`].
    pub(super) fn send_due(
        &mut self,
        seen: Observed,
        waits: impl Fn(u64) -> bool,
        is_unread: impl Fn(usize) -> bool,
        ledger: &Ledger,
        batch: &mut Batch,
    ) {
        let end = self.installs.end_round(seen, waits, is_unread, |message, planned_us| {
            batch.put(ledger, message, planned_us);
        });
        ledger.install_deferrals.add(end.deferred);
        ledger.install_forced.add(end.forced);
    }
}

/// A flow by its masked key.
fn hash(hasher: &RandomState, key: &[u8], fields: MatchFields) -> Result<u64, WireError> {
    let mut hasher = hasher.build_hasher();
    FlowKey::new(key).hash_masked(fields, &mut hasher)?;
    Ok(hasher.finish())
}

/// The flow of an install's message, which we wrote.
fn read(message: &[u8]) -> Option<Flow<'_>> {
    let message = NlMsgs::new(message).next()?.ok()?;
    Some(Flow::parse(message.payload).ok()?.1)
}

/// What a flow of a key would match, as bytes: equal for two keys that are equal under the mask. Two
/// that only hash alike are not the same flow, and a packet must not leave by the other's port.
#[derive(Debug, Default, PartialEq, Eq)]
struct Masked(Vec<u8>);

impl Masked {
    fn set(&mut self, key: &[u8], fields: MatchFields) -> Option<&Self> {
        self.0.clear();
        FlowKey::new(key).hash_masked(fields, self).ok()?;
        Some(self)
    }
}

impl Hasher for Masked {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        self.0.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_wire::AttrBuilder;
    use ovs_wire::flow::FlowPut;
    use ovs_wire::key::KeyAttr;

    const FIELDS: MatchFields = MatchFields::IN_PORT;

    fn key(port: u32, priority: u32) -> Vec<u8> {
        let mut key = Vec::new();
        let mut b = AttrBuilder::new(&mut key);
        KeyAttr::Priority(priority).write(&mut b);
        KeyAttr::InPort(port).write(&mut b);
        b.finish().unwrap();
        key
    }

    fn write(key: &[u8]) -> impl FnOnce(&mut Vec<u8>) -> Result<(), WireError> {
        let put =
            FlowPut { dp_ifindex: 1, key, mask: None, actions: &[7; 8], probe: false, ufid: None };
        move |buf| put.write(buf, 0x20, 0, 1)
    }

    #[test]
    fn packets_that_agree_in_what_the_flow_matches_are_answered() {
        let mut plan = Plan::new(InstallLimits::default());
        let planned = key(1, 0);
        assert!(matches!(plan.answer(&planned), Err(None)));
        plan.offer((&planned, FIELDS, None), (1, 0, 0), write(&planned)).unwrap();
        assert_eq!(plan.answer(&key(1, 5)).unwrap(), [7; 8]);
        let known = plan.answer(&key(2, 0)).unwrap_err();
        let other = key(2, 0);
        plan.offer((&other, FIELDS, known), (2, 0, 0), write(&other)).unwrap();
        assert!(plan.answer(&key(2, 9)).is_ok(), "what was looked for is what it is known by");
    }

    #[test]
    fn a_key_that_only_hashes_alike_is_not_answered() {
        let mut plan = Plan::new(InstallLimits::default());
        let (planned, asked) = (key(1, 0), key(2, 0));
        let known = Known { fields: FIELDS, flow: hash(&plan.hasher, &asked, FIELDS).unwrap() };
        plan.offer((&planned, FIELDS, Some(known)), (1, 0, 0), write(&planned)).unwrap();
        assert!(plan.answer(&asked).is_err());
    }
}
