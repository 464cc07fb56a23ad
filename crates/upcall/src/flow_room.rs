//! Room for flows on the datapath: taken by workers, counted anew by each sweep.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use upcall_core::FlowLimit;

/// How many flows may be installed.
pub(crate) struct FlowRoom {
    limit: Mutex<FlowLimit>,
    /// Flows at the last sweep.
    flows: AtomicU64,
    /// Flows that may still be installed before the next sweep counts anew.
    room: AtomicI64,
}

impl FlowRoom {
    pub(crate) fn new(flows_max: u64) -> Self {
        let limit = Mutex::new(FlowLimit::new(flows_max));
        Self { limit, flows: AtomicU64::new(0), room: AtomicI64::new(flows_max.cast_signed()) }
    }

    /// Takes room for one flow; `false` if the limit is reached.
    pub(crate) fn take(&self) -> bool {
        self.room.fetch_sub(1, Ordering::Relaxed) > 0
    }

    /// A sweep found `found` flows, of which `left` are left; it took so long, if it asked about each.
    pub(crate) fn swept(&self, found: u64, left: u64, took: Option<Duration>) {
        let mut limit = self.lock();
        if let Some(took) = took {
            follow(&mut limit, found, took);
        }
        self.flows.store(left, Ordering::Relaxed);
        self.count(&limit);
    }

    /// Are fewer flows allowed than at most? Only sweeps that ask about each raise the limit again.
    pub(crate) fn is_lowered(&self) -> bool {
        self.lock().is_lowered()
    }

    /// Allows another number of flows at most.
    pub(crate) fn set_max(&self, flows_max: u64) {
        let mut limit = self.lock();
        limit.set_max(flows_max);
        self.count(&limit);
    }

    /// Flows that are allowed now, and how often that was lowered.
    pub(crate) fn limit(&self) -> FlowLimit {
        *self.lock()
    }

    /// Flows at the last sweep, as far as they are beyond what is allowed now.
    pub(crate) fn excess(&self) -> u64 {
        self.flows.load(Ordering::Relaxed).saturating_sub(self.lock().now())
    }

    fn count(&self, limit: &FlowLimit) {
        let flows = self.flows.load(Ordering::Relaxed);
        let room = limit.now().cast_signed().saturating_sub_unsigned(flows);
        self.room.store(room, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, FlowLimit> {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn follow(limit: &mut FlowLimit, flows: u64, took: Duration) {
    let before = limit.now();
    limit.dumped(flows, took);
    if limit.now() < before {
        tracing::warn!(
            flows,
            ?took,
            limit = limit.now(),
            "a sweep of the flow table was slow: fewer flows are allowed until it is fast again"
        );
    }
}
