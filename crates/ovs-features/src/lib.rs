//! What this kernel and datapath can do, with the evidence, and the choice of the dispatch mode that
//! follows from it.
//!
//! It refuses to guess: an answer is *available*, *unavailable* or *undetermined*, and each carries
//! what was asked and what the kernel said. It holds no sockets and receives nothing.
//!
//! Three questions, three ways in:
//!
//! * *What can this host do?* [`Probe`] asks for every feature and remembers what is certain.
//! * *Which dispatch mode?* [`survey`] and [`choose`], then [`enable_per_cpu`] or [`enable_per_vport`].
//! * *Where do upcalls go now?* [`deliveries`]: CPU or port, to port id, to socket, to process.

mod ask;
pub mod cpu;
mod dispatch;
mod finding;
mod host;
mod probe;
mod table;
mod topology;

pub use dispatch::{DispatchMode, Wanted, choose, enable_per_cpu, enable_per_vport, survey};
pub use finding::{Cause, Decision, Facts, Finding, Support};
pub use host::{CAPABILITIES, Capabilities, Host, RecvBuffer};
pub use ovs_datapath::SocketOwner;
pub use probe::{Answer, DatapathReport, Feature, Group, Place, Probe, Report};
pub use table::{Delivery, End, PortTargets, Sockets, Table, Target, deliveries};
pub use topology::{Cpu, Topology};

/// Release of the running kernel, as `uname -r` prints it.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
