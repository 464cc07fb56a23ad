//! Generic-netlink sockets for the rates of a slow path: options, non-blocking receive, batched send,
//! drop counters.
//!
//! It refuses to know what is in a message, and it is the only crate of the workspace that may hold
//! `unsafe` code (the module `sys`: socket options and calls that no library offers, shared memory).
//!
//! A [`Socket`] is set up for upcalls: connected to the kernel, so that other processes cannot send to
//! it; without the overflow latch, so that it takes messages again as soon as it has room
//! ([`Socket::open`] says how); with extended acknowledgements. [`AsyncSocket`] waits for it on tokio.
//! It may record when each message came ([`Socket::record_arrivals`]), and refuse a part of some ([`Socket::sample`]).
//! [`SharedWords`] are counters that outlive the process, as the sockets can.

mod arrival_order;
mod arrivals;
mod filter;
mod shared_words;
mod socket;
mod stream;
mod sys;

pub use arrival_order::ArrivalOrder;
pub use arrivals::Alike;
pub use filter::FilterInsn;
pub use shared_words::SharedWords;
pub use socket::{Datagram, MemInfo, RecvBuffer, Socket, readable, record_arrivals};
pub use stream::{AsyncSocket, Ready};
