//! The slow path of a Linux Open vSwitch datapath, to embed.
//!
//! The kernel's `openvswitch` module sends a packet that misses its flow table to user space: an
//! *upcall*. A [`Dispatcher`] receives upcalls, asks a [`Handler`] what to do, gives the packet back
//! (EXECUTE) and installs a flow (`FLOW_PUT`), on as many CPUs and ports as the host has.
//!
//! It refuses to contain a policy: what a packet's fate is, the handler says. And it refuses queues
//! without a limit.
//!
//! # Two faces
//!
//! * A [`Handler`] is called with each upcall and fills in a [`Verdict`], on the thread that read the
//!   socket: the fast path, without a queue, a copy or an allocation. One that has to wait for something
//!   gives a future instead ([`Verdict::later`]).
//! * A [`Listener`] gives flows, as a server's listener gives connections: [`Listener::accept`] a new
//!   flow, [`Flow::recv`] its next upcall, [`FlowUpcall::execute`], [`FlowUpcall::install`] and
//!   [`FlowUpcall::answer`] answer it; both are [streams](futures::Stream) too. It copies each upcall.
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
//!
//! The same, a task for each flow:
//!
//! ```no_run
//! use upcall::Dispatcher;
//!
//! # async fn run() -> Result<(), upcall::Error> {
//! let builder = Dispatcher::builder("dp0").port("veth0").port("veth1");
//! let (dispatcher, mut listener) = builder.listen().await?;
//! while let Some(mut flow) = listener.accept().await {
//!     tokio::spawn(async move {
//!         while let Some(upcall) = flow.recv().await {
//!             let in_port = upcall.in_port();
//!             if let Err(err) = upcall.answer(|verdict| _ = verdict.flood(in_port)) {
//!                 eprintln!("{err}");
//!             }
//!         }
//!     });
//! }
//! # dispatcher.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Programs to run are in the crate's `examples`: `hub`, `learning_switch`, `tap` (writes a capture with
//! flow and CPU in the comments) and `policy` (asks a slow oracle).
//!
//! # The contract
//!
//! `ARCHITECTURE.md` numbers the invariants and names the test of each.
//!
//! ## Order
//!
//! * Upcalls read from one socket reach the handler, and their EXECUTEs the kernel, in the order they were
//!   read; and one upcall of a flow at a time, whatever the number of workers and however long its answer
//!   takes. What a flow is, [`Builder::lane_by`] says.
//! * When a flow hops from one CPU to another, what was in the sockets at that moment comes first: it is
//!   taken out at once, and what others are answering just then is waited for, the *fence*; bounded in
//!   time ([`QueueLimits::fence_us`]), and a fence given up is counted ([`QueueStats::fence_timeouts`]).
//!   What is taken out of several sockets comes in the order in which the kernel sent it, also where a flow
//!   hopped on before anybody has looked, and where it is new ([`Shape::arrival_times`]); but for one that comes
//!   back to the socket it was last read from while packets of it are still in another.
//! * Where the kernel does not tell when it sent ([`Stats::arrival_times`]), a flow that hops before anybody has
//!   looked may be reordered. So while flows go on hopping, the upcalls of all CPUs come by one socket
//!   ([`Limits::funnel`]).
//! * A flow is installed only after the EXECUTEs of all its upcalls that were read, and after a further
//!   non-blocking read brought none, of its socket, or of all sockets if it hopped; bounded in rounds
//!   ([`InstallLimits`]). What slips through is counted ([`Stats::install_stragglers`]). Until it is
//!   installed, the handler is not asked about it again ([`Builder::answer_from_plan`]).
//! * EXECUTE carries hash, MRU and the socket's port id back.
//! * Between flows there is no order.
//!
//! ## Fairness
//!
//! * A port that floods the socket it shares with others is admitted what the others leave, before its
//!   upcalls take room ([`Limits::storm_shield`]); no other port loses by that.
//! * What waits is shared out over ports by deficit round-robin; a port may fill as much of the queue as is
//!   still free, so one that floods finds no room before others do. Misses come before action upcalls, and
//!   these before samples ([`Builder::sample_userdata`]).
//! * What each port may have taken in can be bounded, by class ([`Limits::port_rates`],
//!   [`QueueLimits::port_upcalls_max`], for one port [`Dispatcher::set_port_quota`]); what exceeds that is
//!   shed, newest first, and counted for the port ([`Stats::sheds`]).
//! * A worker with nothing to do helps one that has too much.
//! * A flow that waits for an answer holds up itself alone.
//!
//! ## Bounds
//!
//! Nothing grows with the rate of upcalls: without room nothing is read, and overload shows as a loss that
//! the kernel counts. Each limit has a counter for being reached.
//!
//! | What | Limit | Reached |
//! |---|---|---|
//! | an upcall socket's buffer | [`Shape::recv_buffer_bytes`] | [`LossByCause::full`] |
//! | upcalls that wait | [`Limits::queue`] | `shed_no_room`, `fences_without_room` |
//! | upcalls of a port that wait | [`QueueLimits::port_upcalls_max`] | `shed_quota` |
//! | upcalls of a port, by class | [`Limits::port_rates`] | `shed_rate` |
//! | lanes | [`Limits::lanes`] | flows share lanes: order holds |
//! | answers that a handler owes | [`Limits::pending_max`] | `shed_pending_full` |
//! | time for an answer | [`Limits::handler_timeout`] | `shed_handler_timeout` |
//! | flows of a listener | [`Limits::accept_max`], [`Limits::accepted_max`] | `shed_listener_full` |
//! | installs that wait | [`Limits::install`] | `install_overflow`, `install_forced` |
//! | flows whose counters are remembered when they are removed | 16,384 | [`Stats::flow_counts_forgotten`] |
//! | flows on the datapath | [`Limits::flows_max`], and how long a sweep takes | `flow_limit_hits`, [`Stats::flow_limit_cuts`] |
//!
//! ## Losses
//!
//! * `received = completed + shed + malformed + foreign` once at rest, and each upcall that was shed has a
//!   reason ([`LedgerSnapshot`]). What the kernel lost before, [`Stats::lost`] tells by cause; what storm
//!   shields refused, [`Stats::shield_refused`] estimates.
//! * A handler that panics, or a future of it, costs its own packet, and so does a future that takes too
//!   long. A call that does not return keeps its worker, which is told and counted
//!   ([`Stats::handler_stalls`]); other workers go on.
//! * [`Dispatcher::stop_within`] answers what is queued within a time limit, and counts what it sheds then.
//!   [`Dispatcher::hand_over`] leaves what is in the sockets to a successor. Dropping a future of
//!   [`Listener::accept`] or [`Flow::recv`] loses nothing; dropping a [`FlowUpcall`] drops its packet.
//! * What a process had in its hands when it was killed, its successor can count ([`InFlight`]).
//!
//! ## Trust
//!
//! * Sockets are connected to the kernel, which refuses messages of others. No byte from the kernel or a
//!   packet can panic the dispatcher.
//! * What the dispatcher created it removes, also when starting fails; what a predecessor created, which it
//!   inherits with the record ([`InFlight`]), when it stops.
//! * [`Error::kind`] names the party at fault.
//!
//! # Statistics
//!
//! [`Dispatcher::stats`] reads all counters, [`Dispatcher::stats_every`] is a stream of such readings.
//!
//! # Requirements
//!
//! Linux 5.10 or newer with the `openvswitch` module, `CAP_NET_ADMIN` in the user namespace of the network
//! namespace, and a tokio runtime with time and I/O enabled. Better with `CAP_BPF` ([`Shape::arrival_times`]).

mod assembly;
mod batch;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod builder;
mod clock;
mod cpu_keeper;
mod crew;
mod deferred;
mod delivery;
mod dispatcher;
mod engine;
mod error;
mod flow_counts;
mod flow_dump;
mod flow_id;
mod flow_room;
mod funnel;
mod grace;
mod handler;
mod in_flight;
mod keeper;
mod lane_key;
mod listen;
mod made;
mod members;
mod observe;
mod owned;
mod placement;
mod places;
mod port_spec;
mod ports;
mod quotas;
mod reconfigure;
mod recruit;
mod recv_buffer;
mod replies;
mod reshape;
mod roam;
mod setup;
mod shared;
mod sheds;
mod shield;
mod sockets;
mod sources;
mod stall;
mod stats;
mod stop;
mod sweep;
mod wakes;
mod worker;

pub use builder::{Builder, InstallPolicy, Limits, OnPortGone, Shape};
pub use dispatcher::{Dispatcher, FlowFilter, FlowQuery, FlowText, HotFlow, HotFlows};
pub use error::{Error, ErrorKind, Failure};
pub use handler::{Fate, FlowView, Handler, Look, Upcall, Verdict};
pub use in_flight::InFlight;
pub use lane_key::LaneBy;
pub use listen::{Flow, FlowUpcall, Listener};
#[doc(inline)]
pub use netlink_io::Socket;
pub use observe::{Answer, Observer};
#[doc(inline)]
pub use ovs_features as features;
#[doc(inline)]
pub use ovs_features::{DispatchMode, Wanted as Dispatch};
#[doc(inline)]
pub use ovs_wire::action::{Action, ActionBuf, Actions};
#[doc(inline)]
pub use ovs_wire::datapath::{Datapath, DatapathStats};
#[doc(inline)]
pub use ovs_wire::flow::FlowStats;
#[doc(inline)]
pub use ovs_wire::key::{KeySummary, L3Addrs, MacAddr, VlanTci};
#[doc(inline)]
pub use ovs_wire::mask::MatchFields;
#[doc(inline)]
pub use ovs_wire::packet::UpcallKind;
#[doc(inline)]
pub use ovs_wire::vport::{Vport, VportType};
#[doc(inline)]
pub use ovs_wire::{FlowKey, text};
pub use owned::OwnedUpcall;
pub use placement::Placement;
pub use port_spec::PortSpec;
pub use ports::{Port, Ports};
pub use quotas::PortQuota;
pub use reconfigure::Prepared;
pub use setup::check_name;
pub use sheds::PortSheds;
pub use stats::{
    Assignment, Info, LossByCause, SocketReader, SocketStats, Stats, SweepStats, WorkerStats,
};
#[doc(inline)]
pub use upcall_core::{
    HistogramSnapshot, InstallLimits, LatencySnapshot, LedgerSnapshot, PortRates, QueueLimits,
    QueueStats, Rate, TokenBucket,
};
