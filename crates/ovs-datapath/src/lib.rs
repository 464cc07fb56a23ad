//! Control plane of the Open vSwitch kernel datapath: datapaths, ports, flows, packets to execute,
//! notifications, and the network devices behind ports. CPUs that come and go are heard of here too.
//!
//! It refuses the hot path: no upcall is received and no upcall is answered here. Requests are rare,
//! each is answered by the kernel, and each has a time limit, which is what `netlink-proto` is good
//! at; none of its types, nor rtnetlink's, is in this crate's API.

mod connection;
mod control;
mod error;
mod events;
mod hotplug;
mod link;
mod link_events;
mod owner;

pub use control::{Control, Families};
pub use error::ControlError;
pub use events::{Event, Events, Object};
pub use hotplug::Hotplug;
pub use link::{Link, Links};
pub use link_events::{LinkEvent, LinkEvents};
pub use owner::{SocketOwner, live_port_ids, socket_owner};
