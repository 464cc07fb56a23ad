//! What happens to a host and its datapath while it switches, and costs no upcall.

mod changes;
mod host;
mod placement;
