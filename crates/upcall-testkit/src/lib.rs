//! What the tests and the demo of upcalld stand on: network namespaces that live as long as a value,
//! links between them, traffic whose receiver can say what was lost, doubled or overtaken, and a
//! guard around the real `upcalld` binary.
//! It refuses to be part of a product build (dev-dependency only), to touch the namespace of the
//! thread that calls it, to use an address outside the namespaces it made, and to hide a failed
//! clean-up or a skipped test.
//!
//! A namespace belongs to a *thread* in Linux, so everything here runs closures on threads of its
//! own: [`NetNs::run`] enters, does the work and is gone; the caller's thread never moves. Sockets
//! belong to the namespace they were opened in and may be carried out freely.
//!
//! ```no_run
//! use upcall_testkit::{Hosts, PingPlan, ping};
//!
//! let hosts = Hosts::new(2)?; // a switch namespace with p0 and p1, two hosts with eth0
//! let report = ping::ping(&hosts[0].ns, hosts[1].ip4, &PingPlan::default())?;
//! assert_eq!(report.answered, 0, "nobody switches between p0 and p1 yet");
//! # Ok::<(), upcall_testkit::Error>(())
//! ```

pub mod daemon;
mod error;
pub mod links;
pub mod netns;
pub mod ping;
pub mod raw;
pub mod topology;
pub mod traffic;
pub mod wait;

pub use daemon::{Quantiles, ShedPort, Stats, Upcalld, UpcalldBuilder};
pub use error::{Error, Result};
pub use links::{Link, Links, Veth};
pub use netns::{NetNs, NsThread, skip, skip_unless_root};
pub use ping::{PingPlan, PingReport};
pub use raw::{Frame, RawSocket, SegmentSender, VlanTag};
pub use topology::{Host, Hosts, HostsConfig};
pub use traffic::{Stamp, Tally, Totals};
pub use wait::wait_until;
