//! Keeps workers where they belong while CPUs, affinity and cpuset change.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ovs_datapath::Hotplug;
use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;

use crate::Shape;
use crate::delivery::Delivery;
use crate::reshape::Reshaper;

/// How often it is looked: a system call for each worker and one more. The kernel tells of CPUs that come and go; of a change of affinity or of
/// `cpuset.cpus.effective` it does not: of the files of a cpuset, `cpuset.cpus.partition` alone can be
/// watched (`kernel/cgroup/cpuset.c`).
const LOOK: Duration = Duration::from_millis(500);

/// Follows the CPUs of the host.
pub(crate) struct CpuKeeper {
    pub(crate) reshaper: Reshaper,
    pub(crate) delivery: Arc<Mutex<Arc<Delivery>>>,
}

impl CpuKeeper {
    /// Works until it is aborted.
    pub(crate) async fn run(self) {
        let mut hotplug = Hotplug::listen()
            .inspect_err(|err| tracing::debug!(%err, "no word of CPUs that come and go"))
            .ok();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                heard = hear(hotplug.as_mut()) => if let Err(err) = heard {
                    tracing::debug!(%err, "no more word of CPUs that come and go");
                    hotplug = None;
                },
            }
            self.look().await;
        }
    }

    async fn look(&self) {
        let mut delivery = self.delivery.lock().await;
        match delivery.follow_cpus() {
            Ok(None) => {}
            Ok(Some(shape)) => self.grow(&mut delivery, shape).await,
            Err(err) => tracing::warn!(%err, "cannot follow the CPUs; trying again"),
        }
    }

    /// More workers, for CPUs that came.
    async fn grow(&self, delivery: &mut Arc<Delivery>, shape: Shape) {
        // The datapath is somebody else's: leave it alone.
        if self.reshaper.shared.taken_over.load(Ordering::Relaxed) {
            return;
        }
        let before = delivery.worker_count();
        match self.reshaper.replace(delivery, shape).await {
            Ok(()) => tracing::info!(
                before,
                workers = delivery.worker_count(),
                "there are CPUs for more workers"
            ),
            Err(err) => tracing::warn!(%err, workers = before, "cannot start more workers"),
        }
    }
}

async fn hear(hotplug: Option<&mut Hotplug>) -> std::io::Result<()> {
    match hotplug {
        Some(hotplug) => hotplug.changed().await,
        None => std::future::pending().await,
    }
}
