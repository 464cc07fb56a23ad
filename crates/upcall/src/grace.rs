//! When sockets that the kernel was told to forget get nothing any more.

use std::time::Duration;

use rustix::thread::{MembarrierCommand, membarrier};

/// How long to wait where the kernel cannot be asked. An upcall cannot be preempted, so microseconds
/// would do, were CPUs not emulated here and there.
const GRACE: Duration = Duration::from_millis(20);

/// Waits until no CPU is in the middle of an upcall that found its socket before now.
///
/// The kernel swaps tables and port ids without waiting for readers (`ovs_dp_set_upcall_portids`,
/// `ovs_vport_set_upcall_portids`), and an upcall is a read-side section of RCU from its lookup to its
/// place in the socket's queue. A global memory barrier waits for these: it is `synchronize_rcu`
/// (`kernel/sched/membarrier.c`), which refuses on hosts with `nohz_full` CPUs alone.
pub(crate) async fn upcalls_under_way() {
    let waited = tokio::task::spawn_blocking(|| membarrier(MembarrierCommand::Global)).await;
    if !matches!(waited, Ok(Ok(()))) {
        tracing::debug!(?waited, grace = ?GRACE, "no grace period to wait for; waiting for a while");
        tokio::time::sleep(GRACE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_wait_ends() {
        let wait = tokio::time::timeout(Duration::from_secs(10), upcalls_under_way());
        wait.await.expect("a grace period ends");
    }
}
