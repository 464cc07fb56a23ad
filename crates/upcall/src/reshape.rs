//! Replacing the delivery of a running dispatcher by another one.

use std::sync::{Arc, Mutex, PoisonError};

use ovs_datapath::Control;
use ovs_wire::datapath::Datapath;
use upcall_core::{LatencySnapshot, LedgerSnapshot};

use crate::assembly::Assembly;
use crate::delivery::Delivery;
use crate::shared::Shared;
use crate::{Error, Shape, grace};

/// What deliveries that were replaced have done.
#[derive(Debug, Default)]
pub(crate) struct Past {
    pub(crate) ledger: LedgerSnapshot,
    pub(crate) latency: LatencySnapshot,
    pub(crate) drops: u64,
}

/// Replaces deliveries.
#[derive(Clone)]
pub(crate) struct Reshaper {
    pub(crate) control: Control,
    pub(crate) dp: Datapath,
    pub(crate) shared: Arc<Shared>,
    pub(crate) past: Arc<Mutex<Past>>,
}

impl Reshaper {
    /// Builds a delivery of this shape and puts it in the place of `current`, which the caller holds
    /// locked. On an error all stays as it was.
    pub(crate) async fn replace(
        &self,
        current: &mut Arc<Delivery>,
        shape: Shape,
    ) -> Result<(), Error> {
        let Self { control, dp, shared, .. } = self;
        // Until the new sockets are read.
        let held = shared.hold_installs();
        let assembly = Assembly { control, dp, shared, shape, previous: Some(&**current) };
        let next = assembly.deliver(&[]).await?;
        let old = std::mem::replace(current, Arc::new(next));
        grace::upcalls_under_way().await;
        tracing::info!("upcalls go to new sockets; reading the old ones empty");
        let drops = old.sockets().drops();
        old.stop().await;
        current.open().await;
        tracing::info!("the old sockets are empty; reading the new ones");
        drop(held);
        let mut past = self.past();
        past.ledger += old.ledger();
        past.latency += &old.latency();
        past.drops += drops;
        Ok(())
    }

    pub(crate) fn past(&self) -> std::sync::MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
