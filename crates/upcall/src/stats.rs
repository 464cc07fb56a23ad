//! What a dispatcher is and what it has done.

use ovs_wire::datapath::DatapathStats;
use upcall_core::LedgerSnapshot;

use crate::DispatchMode;

/// What a dispatcher is.
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
    /// `kernel.lost` by cause.
    pub lost: LossByCause,
    /// Upcall sockets; in per-vport mode also those that wait for a switch to per-CPU.
    pub sockets: usize,
    /// CPUs that share another one's socket because theirs could not be opened.
    pub cpus_sharing: usize,
    /// Ports, the datapath's own among them.
    pub ports: usize,
    /// Flows on the datapath now.
    pub flows_current: u64,
    /// Times that features or table were set right after somebody changed them.
    pub repairs: u64,
    /// Calls of the handler outside of upcalls that panicked.
    pub handler_panics: u64,
}

impl Stats {
    /// Upcalls of a flow that were read after its installation was sent (contract O3).
    pub fn install_stragglers(&self) -> u64 {
        self.ledger.install_stragglers
    }
}

/// Upcalls that reached no socket, by cause.
///
/// The kernel does not tell causes; they follow from three counters that it keeps for different ends
/// (`ovs_dp_upcall`, `net/openvswitch/datapath.c`): the datapath counts every loss; a port counts a
/// failed delivery, but not a missing socket (since 6.2); a socket counts what it had no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LossByCause {
    /// A socket of ours had no room.
    pub full: u64,
    /// The socket was gone, or the packet was too large for a message. Since 6.2.
    pub dead: u64,
    /// There was no socket to send to: no per-CPU table, or port id 0. Since 6.2.
    pub no_socket: u64,
    /// Before 6.2: lost, but not by a full socket.
    pub unclassified: u64,
}

impl LossByCause {
    /// Tells causes apart: `lost` of the datapath, `failed` deliveries of all ports on kernels that
    /// count them, `full` drops of our sockets. The counters are read one after the other, so that a
    /// difference can be negative for a moment; then it counts as 0. The count of a port that is gone
    /// is gone with it, so `failed` is at least `full`.
    pub(crate) fn classify(lost: u64, failed: Option<u64>, full: u64) -> Self {
        match failed {
            Some(failed) => Self {
                full,
                dead: failed.saturating_sub(full),
                no_socket: lost.saturating_sub(failed.max(full)),
                unclassified: 0,
            },
            None => Self { full, unclassified: lost.saturating_sub(full), ..Self::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_from_three_counters() {
        let new = LossByCause::classify(10, Some(7), 4);
        assert_eq!((new.full, new.dead, new.no_socket, new.unclassified), (4, 3, 3, 0));
        let port_gone = LossByCause::classify(10, Some(0), 10);
        assert_eq!((port_gone.full, port_gone.no_socket), (10, 0));
        let old = LossByCause::classify(10, None, 4);
        assert_eq!((old.full, old.dead, old.no_socket, old.unclassified), (4, 0, 0, 6));
    }
}
