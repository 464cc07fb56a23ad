//! What a dispatcher is and what it has done.

use std::time::Duration;

use ovs_wire::datapath::DatapathStats;
use ovs_wire::flow::FlowStats;
use upcall_core::{LatencySnapshot, LedgerSnapshot, QueueStats};

use crate::{DispatchMode, Placement, PortSheds, places};

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
    /// Which CPUs they are to run on.
    pub placement: Placement,
    /// CPUs that each worker may run on now, as the kernel tells; none for one that has ended.
    pub worker_cpus: Vec<Vec<usize>>,
    /// Did the dispatcher create the datapath?
    pub created: bool,
    /// Bytes of kernel memory each upcall socket may fill.
    pub recv_buffer_bytes: usize,
    /// Bytes of kernel memory all upcall sockets together may fill.
    pub recv_buffers_bytes: usize,
}

impl Info {
    /// Each worker with its CPUs in one line: `0:0 1:1-2`.
    pub fn worker_cpus_text(&self) -> String {
        places::text(&self.worker_cpus)
    }
}

/// Which worker thread reads what the kernel sends where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Assignment {
    /// The per-CPU table as it was set: port id by CPU id. In per-vport mode the one that waits for a
    /// switch; empty on kernels that have none (before 5.15). Kernels before 6.1 do not report it.
    pub table: Vec<u32>,
    /// Every upcall socket with its reader.
    pub readers: Vec<SocketReader>,
}

/// An upcall socket and the thread that reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketReader {
    /// The socket's port id.
    pub port_id: u32,
    /// The thread's name in `/proc/PID/task/TID/comm`.
    pub thread: String,
}

/// A worker, what it reads and what it has done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// The thread's name in `/proc/PID/task/TID/comm`.
    pub thread: String,
    /// CPUs that it may run on now, as the kernel tells; none once it has ended.
    pub cpus: Vec<usize>,
    /// Its sockets.
    pub sockets: Vec<SocketStats>,
    /// Its counters.
    pub ledger: LedgerSnapshot,
}

/// An upcall socket now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketStats {
    /// The socket's port id.
    pub port_id: u32,
    /// CPUs whose upcalls the kernel sends there; none in per-vport mode.
    pub cpus: Vec<usize>,
    /// Bytes of kernel memory that what waits there takes, and that it may take.
    pub queued_bytes: u64,
    /// See [`Info::recv_buffer_bytes`].
    pub buffer_bytes: u64,
    /// Upcalls that it had no room for.
    pub drops: u64,
}

/// A reading of all counters, since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The workers' counters, added up.
    pub ledger: LedgerSnapshot,
    /// How long the stages of an upcall's way take, over all workers. A part of the upcalls is measured:
    /// each stage says which.
    pub latency: LatencySnapshot,
    /// The kernel's counters of the datapath, less what they were at the start.
    pub kernel: DatapathStats,
    /// `kernel.lost` by cause.
    pub lost: LossByCause,
    /// Upcalls that wait, and what became of their fences.
    pub lanes: QueueStats,
    /// Ports of which upcalls were refused by us, the one with most first.
    pub sheds: Vec<PortSheds>,
    /// Upcall sockets; in per-vport mode also those that wait for a switch to per-CPU.
    pub sockets: usize,
    /// CPUs that share another one's socket because theirs could not be opened.
    pub cpus_sharing: usize,
    /// Is it known when the kernel sent each upcall ([`Shape::arrival_times`](crate::Shape))?
    pub arrival_times: bool,
    /// Ports, the datapath's own among them.
    pub ports: usize,
    /// Times that the upcalls of all CPUs were sent to one socket, because flows hopped
    /// ([`Limits::funnel`](crate::Limits::funnel)).
    pub funnels: u64,
    /// Is that so now?
    pub funnelled: bool,
    /// Sockets with a storm shield up.
    pub sockets_shielded: usize,
    /// Ports that storm shields are up against, counted once for each socket.
    pub ports_shielded: usize,
    /// Flows on the datapath now.
    pub flows_current: u64,
    /// Flows that may be there now: at most [`Limits::flows_max`](crate::Limits), fewer while a sweep of
    /// the flow table takes longer than about a second.
    pub flow_limit: u64,
    /// Times that a slow sweep lowered that.
    pub flow_limit_cuts: u64,
    /// What sweeps of the flow table found.
    pub sweeps: SweepStats,
    /// What flows that were removed had counted: with what the flows count that are there, all that flows
    /// have counted.
    pub flows_gone: FlowStats,
    /// Flows that were removed and count from 0 when they are installed again : more were removed
    /// than are remembered ([`Dispatcher::flow_text`](crate::Dispatcher::flow_text)).
    pub flow_counts_forgotten: u64,
    /// Times that features or table were set right after somebody changed them.
    pub repairs: u64,
    /// Times that a port that was asked for lost its interface.
    pub ports_vanished: u64,
    /// Upcalls that were lost with a predecessor that was killed, at most
    /// ([`Builder::inherit_in_flight`](crate::Builder::inherit_in_flight)).
    pub crash_lost: u64,
    /// Calls of the handler outside of upcalls that panicked.
    pub handler_panics: u64,
    /// Times that a call of the handler kept its worker for longer than
    /// [`Limits::handler_timeout`](crate::Limits), as far as was looked: four times in that time.
    pub handler_stalls: u64,
    /// Answers that the handler gives later and has not given yet, now.
    pub handler_pending: usize,
}

/// What sweeps of the flow table found, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SweepStats {
    /// Sweeps.
    pub sweeps: u64,
    /// Of these, those that asked the handler about every flow ([`Look::All`](crate::Look)).
    pub sweeps_whole: u64,
    /// Flows removed because they were not used ([`Builder::flow_idle`](crate::Builder::flow_idle)).
    pub flows_idle: u64,
    /// Flows removed because of their age ([`Builder::flow_hard`](crate::Builder::flow_hard)).
    pub flows_old: u64,
    /// Flows removed because the handler would decide otherwise.
    pub flows_wrong: u64,
    /// Flows, averaged with half the weight on the last sweep, a quarter on the one before, and so on.
    pub flows_average: u64,
    /// Most flows that a sweep ever found.
    pub flows_peak: u64,
    /// How long the last sweep took.
    pub last_took: Duration,
}

impl SweepStats {
    /// One more sweep.
    pub(crate) fn add(&mut self, one: &Self) {
        *self = Self {
            sweeps: self.sweeps + one.sweeps,
            sweeps_whole: self.sweeps_whole + one.sweeps_whole,
            flows_idle: self.flows_idle + one.flows_idle,
            flows_old: self.flows_old + one.flows_old,
            flows_wrong: self.flows_wrong + one.flows_wrong,
            flows_average: u64::midpoint(self.flows_average, one.flows_average),
            flows_peak: self.flows_peak.max(one.flows_peak),
            last_took: one.last_took,
        };
    }
}

impl Stats {
    /// Upcalls that storm shields refused: an estimate, right to a factor of two where a reader reads at
    /// least 10,000 a second, and rough below. The kernel counts them as delivered, so they are
    /// in none of [`Stats::lost`], and no exact count can be had: misses less what was received and lost
    /// would be one, if action upcalls were misses and large packets came up as one.
    pub fn shield_refused(&self) -> u64 {
        self.ledger.shield_refused
    }

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
