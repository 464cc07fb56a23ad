//! What a dispatcher is and what it has done.

use ovs_wire::datapath::DatapathStats;
use upcall_core::LedgerSnapshot;

use crate::DispatchMode;

/// What a dispatcher is; fixed when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Name of the datapath.
    pub datapath: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// Dispatch mode.
    pub mode: DispatchMode,
    /// Why that mode: what was asked and what the kernel said.
    pub reason: String,
    /// Worker threads.
    pub workers: usize,
    /// Did the dispatcher create the datapath?
    pub created: bool,
    /// Bytes of kernel memory each upcall socket may fill.
    pub recv_buffer_bytes: usize,
}

/// A reading of all counters, since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The workers' counters, added up.
    pub ledger: LedgerSnapshot,
    /// The kernel's counters of the datapath, less what they were at the start.
    pub kernel: DatapathStats,
    /// Upcalls the kernel dropped because a socket of ours was full.
    pub socket_drops: u64,
    /// Upcall sockets; in per-vport mode also those that wait for a switch to per-CPU.
    pub sockets: usize,
    /// Ports, the datapath's own among them.
    pub ports: usize,
    /// Flows on the datapath now.
    pub flows_current: u64,
    /// Times that features or table were set right after somebody changed them.
    pub repairs: u64,
}

impl Stats {
    /// Upcalls of a flow that were read after its installation was sent (contract O3).
    pub fn install_stragglers(&self) -> u64 {
        self.ledger.install_stragglers
    }
}
