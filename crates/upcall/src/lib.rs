//! The slow path of a Linux Open vSwitch datapath, to embed.
//!
//! The kernel's `openvswitch` module sends a packet that misses its flow table to user space: an
//! *upcall*. A [`Dispatcher`] receives upcalls, asks a [`Handler`] what to do, gives the packet back
//! (EXECUTE) and installs a flow (`FLOW_PUT`), on as many CPUs and ports as the host has.
//!
//! It refuses to contain a policy: what a packet's fate is, the handler says. And it refuses queues
//! without a limit.
//!
//! # The contract
//!
//! What holds today; `ARCHITECTURE.md` numbers the invariants and names the test of each.
//!
//! * **Order.** Upcalls read from one socket reach the handler, and their EXECUTEs the kernel, in the
//!   order they were read. A flow is installed only after the EXECUTEs of all its upcalls that were
//!   read from that socket and after a further non-blocking read of it brought none; bounded in
//!   rounds. What slips through is counted ([`Stats::install_stragglers`]). Across sockets nothing is
//!   promised yet: a flow that changes its CPU may be reordered. EXECUTE carries hash, MRU and the
//!   socket's port id back.
//! * **Bounds.** Receive buffers, waiting installs and flows have limits, printed at start, each with
//!   a counter; batches are bounded in messages and bytes. Overload shows as kernel loss, not as
//!   memory.
//! * **Conservation.** `received = completed + shed + malformed + foreign` once at rest.
//! * **Trust.** Sockets are connected to the kernel, which refuses messages of others. No byte from
//!   the kernel or a packet can panic the dispatcher; a handler that panics costs its own packet.
//! * **Nothing left behind.** What the dispatcher created it removes, also when starting fails.
//!
//! # Example
//!
//! ```no_run
//! use upcall::{Dispatcher, Handler, Upcall, Verdict};
//!
//! /// Sends every packet to every other port.
//! struct Hub;
//!
//! impl Handler for Hub {
//!     fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
//!         verdict.flood(upcall.in_port());
//!     }
//! }
//!
//! # async fn run() -> Result<(), upcall::Error> {
//! let dispatcher = Dispatcher::builder("dp0").port("veth0").port("veth1").start(Hub).await?;
//! println!("{}", dispatcher.info().await.reason);
//! dispatcher.stop().await?;
//! # Ok(())
//! # }
//! ```

mod assembly;
mod batch;
mod builder;
mod delivery;
mod dispatcher;
mod engine;
mod error;
mod handler;
mod keeper;
mod ports;
mod replies;
mod setup;
mod shared;
mod stats;
mod sweep;
mod worker;

pub use builder::{Builder, InstallPolicy, Limits, Shape};
pub use dispatcher::Dispatcher;
pub use error::{Error, ErrorKind, Failure};
pub use handler::{Fate, FlowView, Handler, Upcall, Verdict};
pub use netlink_io::Socket;
pub use ovs_features as features;
pub use ovs_features::{DispatchMode, Wanted as Dispatch};
pub use ovs_wire::action::{Action, ActionBuf, Actions};
pub use ovs_wire::datapath::DatapathStats;
pub use ovs_wire::key::{KeySummary, L3Addrs, MacAddr, VlanTci};
pub use ovs_wire::mask::MatchFields;
pub use ovs_wire::packet::UpcallKind;
pub use ports::{Port, Ports};
pub use stats::{Info, LossByCause, Stats};
pub use upcall_core::{InstallLimits, LedgerSnapshot};
