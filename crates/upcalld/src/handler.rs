//! The handlers that the daemon offers.

mod cross_connect;
mod hub;
mod learning_switch;
mod mac_table;
mod switch_port;
mod vlan;

use std::sync::Arc;
use std::time::Duration;

use upcall::{Handler, MacAddr};

use crate::cli::HandlerKind;
use crate::counting::Reading;
use crate::settings::Settings;
pub(crate) use learning_switch::SwitchConfig;
pub(crate) use switch_port::{Flood, FloodRates, PortFigures, PortRules};
pub(crate) use vlan::{VLAN_IDS, Vlans};

/// A handler, and what it can report of itself.
pub(crate) trait Policy: Handler {
    /// MAC addresses known.
    fn macs(&self) -> u64 {
        0
    }

    /// What it counts.
    fn readings(&self) -> Vec<Reading> {
        Vec::new()
    }

    /// Settings have changed while it runs: takes over those that it can.
    fn tune(&self, _settings: &Settings) {}

    /// The table of addresses, if it has one.
    fn fdb(&self) -> Option<&dyn Fdb> {
        None
    }
}

/// A table of learned addresses, as operators see it.
pub(crate) trait Fdb {
    /// All stations, in no order.
    fn stations(&self) -> Vec<Station>;

    /// Its ports, by number.
    fn ports(&self) -> Vec<PortFigures>;

    /// Most stations there may be.
    fn macs_max(&self) -> usize;

    /// Forgets all that were learned, and learns none from flows that a sweep has read already.
    fn forget(&self);
}

/// An address, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Station {
    pub(crate) port: u32,
    /// VLAN id, 0 for untagged.
    pub(crate) vlan: u16,
    pub(crate) mac: MacAddr,
    /// How long ago it was seen, to a sweep's interval; `None` if it is there for ever.
    pub(crate) age: Option<Duration>,
}

/// The handler that was asked for.
pub(crate) fn from_settings(settings: &Settings) -> Arc<dyn Policy> {
    match settings.handler {
        HandlerKind::LearningSwitch => {
            Arc::new(learning_switch::LearningSwitch::new(settings.switch.clone()))
        }
        HandlerKind::Hub => Arc::new(hub::Hub),
        HandlerKind::CrossConnect => {
            Arc::new(cross_connect::CrossConnect::new(settings.cross_connect.clone()))
        }
    }
}
