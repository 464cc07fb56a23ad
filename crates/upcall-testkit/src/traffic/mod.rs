//! Traffic that knows its order: each packet carries a [`Stamp`], each receiver keeps a [`Tally`].
//!
//! A [`Plan`] says how many flows and packets, in which order, how fast and from which CPUs; an
//! [`Outlet`] says what a packet of a flow is (a UDP datagram of a socket, or any frame); a
//! [`Receiver`] reads until it is stopped.

mod plan;
mod receiver;
mod stamp;
mod tally;

pub use plan::{Order, Outlet, Pace, Plan, RawFlows, Sent, UdpFlows};
pub use receiver::{Receiver, UdpCounters, udp_counters};
pub use stamp::{STAMP_BYTES, Stamp, monotonic_ns};
pub use tally::{FLOWS_MAX, FlowTally, SEQ_MAX, Tally, Totals};
