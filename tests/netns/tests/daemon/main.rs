//! The daemon from end to end: what its handlers forward, how it starts and ends, and that it keeps
//! the order of packets.
#![allow(missing_docs, reason = "a test binary")]

mod aging;
mod handlers;
mod latency;
mod lifecycle;
mod order;
mod switch;
