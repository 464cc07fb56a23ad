//! The rules of an upcall dispatcher: when a flow may be installed, and what became of every upcall.
//!
//! It refuses sockets, tokio, logging and clocks: bytes and the time are passed in, and what is to be
//! sent is passed out, so that every rule can be tested in any order of events.

mod install;
mod ledger;

pub use install::{InstallLimits, InstallPlan, Offer, RoundEnd};
pub use ledger::{Counter, Ledger, LedgerSnapshot};
