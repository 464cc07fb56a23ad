//! Every counter there is, by name and with what it counts: what `coverage/show` and metrics give.

use std::sync::atomic::{AtomicU64, Ordering};

use upcall::Stats;

use crate::control::Counts;
use crate::handler::Policy;

/// A counter: it only grows, and begins anew with the datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) name: &'static str,
    /// A sentence.
    pub(crate) help: &'static str,
    pub(crate) value: u64,
}

/// Makes a struct of counters whose names have a prefix, and whose comments are their help.
macro_rules! counts {
    (
        $(#[doc = $about:literal])* $struct:ident, $prefix:literal,
        $($(#[doc = $doc:literal])* $name:ident,)+
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Default)]
        pub(crate) struct $struct {
            $($(#[doc = $doc])* $name: std::sync::atomic::AtomicU64,)+
        }

        impl $struct {
            /// Every counter.
            pub(crate) fn readings(&self) -> impl Iterator<Item = $crate::counting::Reading> {
                let load = |counter: &std::sync::atomic::AtomicU64| {
                    counter.load(std::sync::atomic::Ordering::Relaxed)
                };
                [$($crate::counting::Reading {
                    name: concat!($prefix, stringify!($name)),
                    help: concat!($($doc),*).trim_ascii(),
                    value: load(&self.$name),
                },)+].into_iter()
            }
        }
    };
}
pub(crate) use counts;

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A count as people read it, in ratios and rates.
#[expect(clippy::cast_precision_loss, reason = "beyond 2^53 the last digits are of no interest")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// All counters.
pub(crate) fn all(stats: &Stats, policy: &dyn Policy, control: &Counts) -> Vec<Reading> {
    let ledger = stats.ledger.counters();
    let ledger = ledger.map(|(name, help, value)| Reading { name, help, value });
    ledger.chain(control.readings()).chain(others(stats)).chain(policy.readings()).collect()
}

fn others(stats: &Stats) -> [Reading; 23] {
    let (kernel, lost, sweeps) = (&stats.kernel, &stats.lost, &stats.sweeps);
    [
        ("kernel_hit", "Packets that matched a flow in the kernel.", kernel.hit),
        ("kernel_missed", "Packets that matched no flow in the kernel.", kernel.missed),
        ("kernel_lost", "Upcalls that reached no socket; the causes add up to it.", kernel.lost),
        ("lost_full", "Upcalls lost because their socket was full.", lost.full),
        (
            "lost_dead",
            "Upcalls lost because their socket was gone, or they were too large.",
            lost.dead,
        ),
        ("lost_no_socket", "Upcalls lost because there was no socket for them.", lost.no_socket),
        (
            "lost_unclassified",
            "Upcalls lost for another cause than a full socket, on kernels that do not tell which.",
            lost.unclassified,
        ),
        (
            "fence_timeouts",
            "Fences that were given up because they took too long.",
            stats.lanes.fence_timeouts,
        ),
        (
            "crash_lost",
            "Upcalls lost with a predecessor that was killed, at most.",
            stats.crash_lost,
        ),
        (
            "flow_limit_cuts",
            "Times that a slow sweep of the flow table lowered the limit of flows.",
            stats.flow_limit_cuts,
        ),
        ("flow_sweeps", "Sweeps of the flow table.", sweeps.sweeps),
        (
            "flow_sweeps_whole",
            "Sweeps of the flow table that asked about every flow, and not for times alone.",
            sweeps.sweeps_whole,
        ),
        ("flows_removed_idle", "Flows removed because they were not used.", sweeps.flows_idle),
        ("flows_removed_old", "Flows removed because of their age.", sweeps.flows_old),
        (
            "flows_removed_wrong",
            "Flows removed because what they did had become wrong.",
            sweeps.flows_wrong,
        ),
        (
            "flows_gone_packets",
            "Packets that flows had matched which were removed.",
            stats.flows_gone.packets,
        ),
        (
            "flows_gone_bytes",
            "Bytes that flows had matched which were removed.",
            stats.flows_gone.bytes,
        ),
        (
            "flow_counts_forgotten",
            "Flows that count from 0 when they come back: more were removed than are remembered.",
            stats.flow_counts_forgotten,
        ),
        (
            "funnels",
            "Times that the upcalls of all CPUs were sent to one socket, because flows hopped.",
            stats.funnels,
        ),
        (
            "repairs",
            "Times that features or table were set right after somebody changed them.",
            stats.repairs,
        ),
        (
            "ports_vanished",
            "Times that a port that was asked for lost its interface.",
            stats.ports_vanished,
        ),
        (
            "handler_panics",
            "Calls of the handler outside of upcalls that panicked.",
            stats.handler_panics,
        ),
        (
            "handler_stalls",
            "Times that a call of the handler kept its worker for longer than it may.",
            stats.handler_stalls,
        ),
    ]
    .map(|(name, help, value)| Reading { name, help, value })
}

/// Resident memory of this process.
pub(crate) fn resident_kb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_memory_is_known() {
        assert!(resident_kb().is_some_and(|kb| kb > 100));
    }
}
