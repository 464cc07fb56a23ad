//! Keeps a datapath as it was set up: nobody owns one in the kernel, so anybody may change it.
//!
//! Ports come and go by other hands, and one `ovs-dpctl show` switches the dispatch mode. Every change
//! is seen as a notification that names the socket it was asked for by.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use ovs_datapath::{Control, Event, Events, Object, live_port_ids, socket_owner};
use ovs_wire::datapath::{self, Datapath};
use ovs_wire::vport::Vport;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::delivery::Delivery;
use crate::shared::Shared;
use crate::{Error, Failure, Port, Ports};

/// Repairs in a row without a pause: someone who works against us must not keep a CPU busy.
const REPAIRS_IN_A_ROW: u32 = 20;
/// The pause, and the time after which a repair is not in a row with the one before.
const REPAIR_PAUSE: Duration = Duration::from_millis(100);

/// How soon a port that could not be served is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Ports that change at once past which they are logged as a number.
const PORT_LINES_MAX: usize = 16;

/// What events ask for.
#[derive(Default)]
struct Work {
    /// Look at features and table, which the socket with this port id changed.
    repair: Option<u32>,
    /// Look at the ports.
    follow: bool,
    /// The datapath is gone.
    ended: Option<Failure>,
}

/// Follows what others do to the datapath.
pub(crate) struct Keeper {
    pub(crate) control: Control,
    pub(crate) dp: Datapath,
    pub(crate) shared: Arc<Shared>,
    /// Locked while the delivery is looked at or changed, so that no two do it at once.
    pub(crate) delivery: Arc<Mutex<Arc<Delivery>>>,
}

impl Keeper {
    /// Works until the datapath is no longer ours.
    pub(crate) async fn run(self, mut events: Events) {
        let (mut last, mut in_a_row) = (Instant::now(), 0);
        let mut retry = tokio::time::interval(RETRY);
        let mut behind = false;
        loop {
            let work = tokio::select! {
                event = events.next() => match event {
                    Some(first) => self.gather(first, &mut events),
                    None => return,
                },
                _ = retry.tick(), if behind => Work { follow: true, ..Work::default() },
            };
            if let Some(failure) = work.ended {
                self.shared.fail(failure);
                return std::future::pending().await;
            }
            if let Some(by_port_id) = work.repair {
                in_a_row = if last.elapsed() < REPAIR_PAUSE { in_a_row + 1 } else { 0 };
                if in_a_row > REPAIRS_IN_A_ROW {
                    tokio::time::sleep(REPAIR_PAUSE).await;
                }
                self.repair(by_port_id).await;
                last = Instant::now();
            }
            if work.follow {
                behind = self.follow().await.is_err();
            }
        }
    }

    /// What an event, and those that are there already, ask for: a thousand ports that are added are
    /// listed once.
    fn gather(&self, first: Event, events: &mut Events) -> Work {
        let mut work = Work::default();
        let mut next = Some(first);
        while let Some(event) = next {
            self.note(&event, &mut work);
            next = events.next().now_or_never().flatten();
        }
        work
    }

    fn note(&self, event: &Event, work: &mut Work) {
        let by_us = event.by_port_id == self.control.port_id();
        match &event.object {
            Object::Datapath(dp) if dp.ifindex == self.dp.ifindex => {
                if event.cmd == datapath::cmd::DEL {
                    work.ended = Some(self.datapath_deleted(event));
                } else if !by_us {
                    work.repair = Some(event.by_port_id);
                }
            }
            Object::Vport(port) if port.dp_ifindex == self.dp.ifindex => work.follow |= !by_us,
            Object::Datapath(_) | Object::Vport(_) => {}
            Object::Lost => {
                work.repair = Some(0);
                work.follow = true;
            }
        }
    }

    fn datapath_deleted(&self, event: &Event) -> Failure {
        let name = self.dp.name.clone();
        Failure::DatapathDeleted { name, by: describe(event.by_port_id) }
    }

    /// A socket that lives, is not ours, and that this datapath's upcalls are sent to: somebody serves
    /// it. To take it back would be to fight.
    fn taken_over_by(&self, delivery: &Delivery, targets: &[u32]) -> bool {
        let foreign = |id: &&u32| **id != 0 && !delivery.has(**id);
        let mut foreign = targets.iter().filter(foreign).peekable();
        if foreign.peek().is_none() {
            return false;
        }
        let Ok(live) = live_port_ids() else { return false };
        let Some(taker) = foreign.find(|id| live.contains_key(id)) else { return false };
        self.shared.taken_over.store(true, Ordering::Relaxed);
        let name = self.dp.name.clone();
        self.shared.fail(Failure::TakenOver { name, by: describe(*taker) });
        true
    }

    /// Sets features and table right if they are not. Kernels from 5.15 to 6.0 do not tell the table,
    /// so there it is set again after every change that somebody else made.
    async fn repair(&self, by_port_id: u32) {
        let delivery = self.delivery.lock().await;
        let now = match self.control.datapath(&self.dp.name).await {
            Ok(Some(now)) => now,
            Ok(None) => return,
            Err(err) => return tracing::warn!(%err, "cannot look at the datapath"),
        };
        let wrong = !delivery.agrees(&now);
        if wrong && self.taken_over_by(&delivery, now.per_cpu_pids.as_deref().unwrap_or_default()) {
            return;
        }
        if wrong {
            // Counted and told before the repair, which is what others can see.
            self.shared.repairs.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                by = describe(by_port_id),
                features = format!("{:#x}", now.features.bits()),
                mode = %delivery.mode(),
                "somebody changed the dispatch mode or the per-CPU table; setting it right"
            );
        }
        if (wrong || now.per_cpu_pids.is_none())
            && let Err(err) = delivery.assert(&self.control, &now).await
        {
            tracing::warn!(%err, "cannot set the dispatch mode right");
        }
    }

    /// # Errors
    ///
    /// When a port could not be served: to be tried again.
    async fn follow(&self) -> Result<(), ()> {
        let delivery = self.delivery.lock().await;
        let warn = |err: Error| tracing::warn!(%err, "cannot follow the ports; trying again");
        let vports = self.control.vports(self.dp.ifindex).await.map_err(|e| warn(e.into()))?;
        let targets: Vec<u32> = vports.iter().flat_map(|p| &p.upcall_pids).copied().collect();
        if self.taken_over_by(&delivery, &targets) {
            return Ok(());
        }
        let vports = delivery.follow(&self.control, self.dp.ifindex).await.map_err(warn)?;
        let ports = to_ports(vports);
        let before = self.shared.ports.load_full();
        if *before != ports {
            log_changes(&before, &ports);
            self.shared.set_ports(ports);
            self.shared.revalidate();
        }
        Ok(())
    }
}

/// The kernel's ports as handlers see them.
pub(crate) fn to_ports(vports: Vec<Vport>) -> Ports {
    Ports::new(vports.into_iter().map(|v| Port { number: v.port_no, name: v.name }).collect())
}

fn log_changes(before: &Ports, after: &Ports) {
    let missing = |from: &Ports, of: &Ports| -> Vec<Port> {
        of.iter().filter(|p| from.by_number(p.number) != Some(p)).cloned().collect()
    };
    let (gone, added) = (missing(after, before), missing(before, after));
    if gone.len() + added.len() > PORT_LINES_MAX {
        return tracing::info!(gone = gone.len(), added = added.len(), "ports changed");
    }
    for port in gone {
        tracing::info!(port = port.number, name = port.name, "port gone");
    }
    for port in added {
        tracing::info!(port = port.number, name = port.name, "port added");
    }
}

/// The process behind a port id, as far as it can be found.
fn describe(port_id: u32) -> String {
    if port_id == 0 {
        return "the kernel".to_owned();
    }
    live_port_ids().ok().and_then(|live| socket_owner(*live.get(&port_id)?)).map_or_else(
        || format!("another process (netlink port id {port_id})"),
        |owner| format!("{} (pid {})", owner.command, owner.pid),
    )
}
