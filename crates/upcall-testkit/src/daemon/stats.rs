//! The statistics that `upcalld run --stats INTERVAL` prints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line of statistics. Fields that the daemon does not print are 0 or empty; fields that this
/// type does not know are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Whether this is the last line, printed on the way out.
    #[serde(rename = "final")]
    pub final_line: bool,
    /// Name of the datapath.
    pub datapath: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// `per-cpu` or `per-vport`.
    pub dispatch_mode: String,
    /// Why that mode, in words.
    pub reason: String,
    /// Receive sockets.
    pub sockets: u64,
    /// Worker threads.
    pub workers: u64,
    /// Ports of the datapath that are its own.
    pub ports: u64,
    /// Upcalls read.
    pub upcalls_received: u64,
    /// Upcalls that were answered: executed or dropped by the handler.
    pub completed: u64,
    /// Packets handed back to the kernel.
    pub executed: u64,
    /// Packets that the kernel refused to execute.
    pub execute_errors: u64,
    /// Packets that the handler dropped.
    pub dropped: u64,
    /// Flows installed, in all.
    pub flows_installed: u64,
    /// Flows installed now.
    pub flows_current: u64,
    /// Flows that the kernel refused to install.
    pub put_errors: u64,
    /// Of these, flows that another worker had installed already: the kernel refuses another id for them.
    pub put_raced: u64,
    /// Packets that the kernel's flow table knew.
    pub kernel_hit: u64,
    /// Packets that it did not know.
    pub kernel_missed: u64,
    /// Upcalls that the kernel could not deliver.
    pub kernel_lost: u64,
    /// Upcalls that the kernel dropped because a socket of ours was full.
    pub lost_full: u64,
    /// Upcalls lost because a socket was gone.
    pub lost_dead: u64,
    /// Upcalls lost because there was no socket to send to.
    pub lost_no_socket: u64,
    /// Times the dispatch mode or table was set right after somebody changed it.
    pub repairs: u64,
    /// Ports that lost their interface.
    pub ports_vanished: u64,
    /// Upcalls lost with a predecessor that was killed, at most.
    pub crash_lost: u64,
    /// CPUs that share another one's socket.
    pub cpus_sharing: u64,
    /// Upcalls refused for want of room.
    pub shed: u64,
    /// Of these, over the rate of their port or its class.
    pub shed_rate: u64,
    /// Of these, over the places of their port in the queue.
    pub shed_quota: u64,
    /// What was shed of each port.
    pub shed_ports: Vec<ShedPort>,
    /// Upcalls that made no sense.
    pub malformed: u64,
    /// Messages that are no upcalls of this datapath.
    pub foreign: u64,
    /// Upcalls that storm shields refused, by estimate.
    pub shield_refused: u64,
    /// Times that the upcalls of all CPUs were sent to one socket.
    pub funnels: u64,
    /// Sockets with a storm shield up.
    pub sockets_shielded: u64,
    /// Ports that storm shields are up against.
    pub ports_shielded: u64,
    /// Upcalls of a flow read after the flow was installed.
    pub install_stragglers: u64,
    /// Upcalls by another socket than the one before of their flow that had not to wait.
    pub lane_hops: u64,
    /// Upcalls that waited for another socket or a worker.
    pub lane_queued: u64,
    /// Fences given up after their time.
    pub fence_timeouts: u64,
    /// Fences given up for want of room.
    pub fences_without_room: u64,
    /// Ethernet addresses learned now.
    pub macs: u64,
    /// How long each stage of an upcall's way took, of those that were measured.
    pub latency_ns: BTreeMap<String, Quantiles>,
}

/// What was shed of a port, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShedPort {
    /// Its number.
    pub port: Option<u32>,
    /// For want of room.
    pub no_room: u64,
    /// Over its places in the queue.
    pub quota: u64,
    /// Over its rate.
    pub rate: u64,
}

/// Nanoseconds that so many of a hundred did not exceed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Measured.
    pub count: u64,
    /// Half of them.
    pub p50: Option<u64>,
    /// 90 of a hundred.
    pub p90: Option<u64>,
    /// 99 of a hundred.
    pub p99: Option<u64>,
    /// 999 of a thousand.
    pub p999: Option<u64>,
}
