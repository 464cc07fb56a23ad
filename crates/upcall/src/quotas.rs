//! What single ports may have, in place of what all may.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use upcall_core::{Police, PortRates};

use crate::shared::Shared;
use crate::{Dispatcher, Error, Limits, Ports};

/// What one port may have, in place of what all may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortQuota {
    /// In place of [`Limits::port_rates`].
    pub rates: PortRates,
    /// In place of [`QueueLimits::port_upcalls_max`](crate::QueueLimits::port_upcalls_max).
    pub upcalls_max: usize,
}

impl PortQuota {
    fn of_all(limits: &Limits) -> Self {
        Self { rates: limits.port_rates, upcalls_max: limits.queue.port_upcalls_max }
    }
}

/// Quotas of single ports, by number: no more than there are ports. Locked while they change.
#[derive(Default)]
pub(crate) struct Quotas(Mutex<BTreeMap<u32, PortQuota>>);

impl Quotas {
    fn read<T>(&self, read: impl FnOnce(&BTreeMap<u32, PortQuota>) -> T) -> T {
        read(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    /// Bounds a port that is there by `quota`; `false` if there is none.
    pub(crate) fn set_port_quota(&self, port: u32, quota: PortQuota) -> bool {
        let mut own = self.quotas.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: a port that leaves after this is forgotten after it, too.
        if self.ports.load().by_number(port).is_none() {
            return false;
        }
        own.insert(port, quota);
        self.bound_ports(&own);
        true
    }

    /// All ports may have what the limits say.
    pub(crate) fn clear_port_quotas(&self) {
        let mut own = self.quotas.0.lock().unwrap_or_else(PoisonError::into_inner);
        own.clear();
        self.bound_ports(&own);
    }

    /// Forgets quotas of ports that have left: another may get their number.
    pub(crate) fn keep_port_quotas(&self, ports: &Ports) {
        let mut own = self.quotas.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = own.len();
        own.retain(|port, _| ports.by_number(*port).is_some());
        if own.len() < before {
            self.bound_ports(&own);
        }
    }

    /// Rates and places are what limits and `own` say. Who was bounded like that keeps its tokens.
    fn bound_ports(&self, own: &BTreeMap<u32, PortQuota>) {
        let limits = self.limits.load();
        let rates = own.iter().map(|(port, quota)| (*port, quota.rates));
        let police = Police::new(limits.port_rates, rates, self.police.load().as_deref());
        self.police.store(police.map(Arc::new));
        let places = own.iter().map(|(port, quota)| (*port, quota.upcalls_max));
        self.lanes.set_port_upcalls_max(limits.queue.port_upcalls_max, places);
    }
}

impl Dispatcher {
    /// What the port of this number may have now.
    pub fn port_quota(&self, port: u32) -> PortQuota {
        let own = self.shared.quotas.read(|own| own.get(&port).copied());
        own.unwrap_or_else(|| PortQuota::of_all(&self.shared.limits.load()))
    }

    /// Ports that have a quota of their own, by number.
    pub fn port_quotas(&self) -> Vec<(u32, PortQuota)> {
        self.shared.quotas.read(|own| own.iter().map(|(port, quota)| (*port, *quota)).collect())
    }

    /// Bounds one port by `quota`, from the next round of upcalls on, until it leaves or
    /// [`Dispatcher::reconfigure`] puts all ports back to the limits. No upcall is lost by that; what
    /// exceeds the quota is shed and counted as ever.
    ///
    /// # Errors
    ///
    /// [`Error::NoPort`] if there is no port of this number.
    pub fn set_port_quota(&self, port: u32, quota: PortQuota) -> Result<(), Error> {
        let set = self.shared.set_port_quota(port, quota);
        if set { Ok(()) } else { Err(Error::NoPort { port }) }
    }
}
