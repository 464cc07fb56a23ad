//! The rules of an upcall dispatcher: the order of a flow, who comes first, when a flow may be
//! installed, which port floods a socket, and what became of every upcall.
//!
//! It refuses sockets, tokio, logging and clocks: bytes and the time are passed in, and what is to be
//! sent is passed out, so that every rule can be tested in any order of events.

mod fair;
mod flow_limit;
mod funnel;
mod histogram;
mod install;
mod lane;
mod lanes;
mod latency;
mod ledger;
mod police;
mod queue;
mod shield;
mod source;
mod sync;
mod tally;

pub use flow_limit::FlowLimit;
pub use funnel::Funnel;
pub use histogram::{Histogram, HistogramSnapshot};
pub use install::{InstallLimits, InstallPlan, Observed, Offer, RoundEnd, Wanted};
pub use lane::{Claim, Lane, LaneTable, Tick, Whereabouts};
pub use lanes::{Lanes, Work};
pub use latency::{Latency, LatencySnapshot, Sampler};
pub use ledger::{Counter, Ledger, LedgerSnapshot};
pub use police::{Police, PortRates, Rate, TokenBucket};
pub use queue::{Class, Gather, Late, Placed, QueueLimits, QueueStats, Refusal, Ticket, Waiting};
pub use shield::{Backlog, SHIELDED_PORTS_MAX, StormShield};
pub use source::{Fence, SourceId, SourceState};
pub use tally::PortTally;
