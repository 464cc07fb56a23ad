//! The handlers that the daemon offers.

mod cross_connect;
mod hub;
mod learning_switch;
mod mac_table;

use std::sync::Arc;

use upcall::Handler;

use crate::cli::HandlerKind;
use crate::settings::Settings;

/// A handler, and what it can report of itself.
pub(crate) trait Policy: Handler {
    /// MAC addresses known, and addresses not learned because the table was full.
    fn macs(&self) -> (u64, u64) {
        (0, 0)
    }
}

/// The handler that was asked for.
pub(crate) fn from_settings(settings: &Settings) -> Arc<dyn Policy> {
    match settings.handler {
        HandlerKind::LearningSwitch => {
            Arc::new(learning_switch::LearningSwitch::new(settings.mac_age, settings.mac_max))
        }
        HandlerKind::Hub => Arc::new(hub::Hub),
        HandlerKind::CrossConnect => {
            Arc::new(cross_connect::CrossConnect::new(settings.cross_connect.clone()))
        }
    }
}
