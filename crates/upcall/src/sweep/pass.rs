//! One reading of the flow table.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::io;
use std::time::Duration;

use foldhash::quality::RandomState;
use ovs_wire::action::Actions;
use ovs_wire::flow::{Flow, Omit};
use ovs_wire::key::FlowKey;

use super::affected::Moved;
use super::deletions::Deletions;
use crate::flow_id::Told;
use crate::shared::Shared;
use crate::{Fate, FlowView, Ports, flow_id};

/// What a reading is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To show the handler what there is: a flow of an earlier run may come before the one that teaches
    /// its destination.
    Show,
    /// To delete what is wrong or has lived long enough.
    Judge,
    /// To delete what has lived long enough, and the flows of stations that moved.
    Time,
}

impl Purpose {
    pub(super) fn omit(self) -> Omit {
        if self == Self::Time { Omit::Terse } else { Omit::Nothing }
    }
}

/// How long a flow may live.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Without being used.
    pub(super) idle_max: Duration,
    /// In any case.
    pub(super) age_max: Option<Duration>,
}

/// What a reading found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) flows: u64,
    pub(super) idle: u64,
    pub(super) old: u64,
    pub(super) wrong: u64,
    /// Does the id of any flow not tell its stations?
    pub(super) strangers: bool,
    /// First sight of flows whose id does not tell when they were installed, as far as that is asked.
    pub(super) first_seen_ms: HashMap<u64, u64>,
}

impl Found {
    /// Flows that were deleted.
    pub(super) fn deleted(&self) -> u64 {
        self.idle + self.old + self.wrong
    }
}

pub(super) struct Pass<'a> {
    pub(super) shared: &'a Shared,
    pub(super) ports: &'a Ports,
    pub(super) purpose: Purpose,
    /// Their flows are wrong.
    pub(super) moved: &'a Moved,
    pub(super) bounds: Bounds,
    pub(super) now_ms: u64,
    pub(super) hasher: &'a RandomState,
    /// From the reading before.
    pub(super) first_seen_ms: &'a HashMap<u64, u64>,
    pub(super) deletions: Deletions<'a>,
    pub(super) found: Found,
}

impl Pass<'_> {
    pub(super) fn flow(&mut self, flow: &Flow<'_>) -> io::Result<()> {
        self.found.flows += 1;
        let told = flow.ufid.and_then(flow_id::read);
        self.found.strangers |= told.is_none();
        let installed_ms = self.installed_ms(flow, told);
        let since = |at_ms: u64| Duration::from_millis(self.now_ms.saturating_sub(at_ms));
        let idle = flow.used_ms.or(installed_ms).map_or(Duration::ZERO, since);
        let age = installed_ms.map_or(Duration::ZERO, since);
        let is_right = match self.purpose {
            Purpose::Time => !told.is_some_and(|told| self.moved.affects(told)),
            Purpose::Show | Purpose::Judge => self.is_right(flow, idle),
        };
        let cause = if !is_right {
            &mut self.found.wrong
        } else if self.bounds.age_max.is_some_and(|max| age >= max) {
            &mut self.found.old
        } else if idle >= self.bounds.idle_max {
            &mut self.found.idle
        } else {
            return Ok(());
        };
        if self.purpose == Purpose::Show {
            return Ok(());
        }
        *cause += 1;
        self.deletions.push(flow)
    }

    /// When it was installed, or first seen if that is not known and of interest.
    fn installed_ms(&mut self, flow: &Flow<'_>, told: Option<Told>) -> Option<u64> {
        let known = told.map(|told| told.installed_ms);
        if known.is_some() || flow.used_ms.is_some() && self.bounds.age_max.is_none() {
            return known;
        }
        let id = self.hasher.hash_one(flow.ufid.unwrap_or(flow.key));
        let first_ms = self.first_seen_ms.get(&id).copied().unwrap_or(self.now_ms);
        // No more than there are flows, whose number has a limit.
        self.found.first_seen_ms.insert(id, first_ms);
        Some(first_ms)
    }

    /// What the handler says; what it cannot be asked is right.
    fn is_right(&self, flow: &Flow<'_>, idle: Duration) -> bool {
        let Ok(key) = FlowKey::new(flow.key).summary() else { return true };
        let view = FlowView {
            key: &key,
            mask: flow.mask,
            actions: Actions::new(flow.actions),
            packets: flow.stats.packets,
            idle,
        };
        self.shared.guarded(|handler| handler.revalidate(&view, self.ports)) != Some(Fate::Delete)
    }
}
