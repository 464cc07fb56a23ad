//! Keeps a datapath as it was set up: nobody owns one in the kernel, so anybody may change it.
//!
//! Ports come and go by other hands, and one `ovs-dpctl show` switches the dispatch mode. Every change
//! is seen as a notification that names the socket it was asked for by.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use ovs_datapath::{Control, Event, Events, Object, live_port_ids, socket_owner};
use ovs_wire::datapath::{self, Datapath};
use ovs_wire::vport::Vport;
use tokio::time::Instant;

use crate::delivery::Delivery;
use crate::shared::Shared;
use crate::{Failure, Port, Ports};

/// Repairs in a row without a pause: someone who works against us must not keep a CPU busy.
const REPAIRS_IN_A_ROW: u32 = 20;
/// The pause, and the time after which a repair is not in a row with the one before.
const REPAIR_PAUSE: Duration = Duration::from_millis(100);

/// Follows what others do to the datapath.
pub(crate) struct Keeper {
    pub(crate) control: Control,
    pub(crate) dp: Datapath,
    pub(crate) shared: Arc<Shared>,
    pub(crate) delivery: Arc<Delivery>,
}

impl Keeper {
    pub(crate) async fn run(self, mut events: Events) {
        let (mut last, mut in_a_row) = (Instant::now(), 0);
        while let Some(event) = events.next().await {
            match &event.object {
                Object::Datapath(dp) if dp.ifindex != self.dp.ifindex => {}
                Object::Datapath(_) if event.cmd == datapath::cmd::DEL => {
                    return self.datapath_deleted(&event);
                }
                Object::Datapath(_) if event.by_port_id == self.control.port_id() => {}
                Object::Datapath(_) => {
                    in_a_row = if last.elapsed() < REPAIR_PAUSE { in_a_row + 1 } else { 0 };
                    if in_a_row > REPAIRS_IN_A_ROW {
                        tokio::time::sleep(REPAIR_PAUSE).await;
                    }
                    self.repair(event.by_port_id).await;
                    last = Instant::now();
                }
                Object::Vport(port) if port.dp_ifindex != self.dp.ifindex => {}
                Object::Vport(_) if event.by_port_id == self.control.port_id() => {}
                Object::Vport(_) => self.follow().await,
                Object::Lost => {
                    self.repair(0).await;
                    self.follow().await;
                }
            }
        }
    }

    fn datapath_deleted(&self, event: &Event) {
        let name = self.dp.name.clone();
        self.shared.fail(Failure::DatapathDeleted { name, by: describe(event.by_port_id) });
    }

    /// Sets features and table right if they are not. Kernels from 5.15 to 6.0 do not tell the table,
    /// so there it is set again after every change that somebody else made.
    async fn repair(&self, by_port_id: u32) {
        let now = match self.control.datapath(&self.dp.name).await {
            Ok(Some(now)) => now,
            Ok(None) => return,
            Err(err) => return tracing::warn!(%err, "cannot look at the datapath"),
        };
        let wrong = !self.delivery.agrees(&now);
        if wrong {
            // Counted and told before the repair, which is what others can see.
            self.shared.repairs.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                by = describe(by_port_id),
                features = format!("{:#x}", now.features.bits()),
                mode = %self.delivery.mode(),
                "somebody changed the dispatch mode or the per-CPU table; setting it right"
            );
        }
        if (wrong || now.per_cpu_pids.is_none())
            && let Err(err) = self.delivery.assert(&self.control, &now).await
        {
            tracing::warn!(%err, "cannot set the dispatch mode right");
        }
    }

    async fn follow(&self) {
        let vports = match self.control.vports(self.dp.ifindex).await {
            Ok(vports) => vports,
            Err(err) => return tracing::warn!(%err, "cannot list the ports"),
        };
        if let Err(err) = self.delivery.follow(&self.control, self.dp.ifindex, &vports).await {
            tracing::warn!(%err, "cannot give a port its upcall socket");
        }
        let ports = to_ports(vports);
        let before = self.shared.ports.load_full();
        if *before != ports {
            log_changes(&before, &ports);
            self.shared.set_ports(ports);
            self.shared.sweep_now.notify_one();
        }
    }
}

/// The kernel's ports as handlers see them.
pub(crate) fn to_ports(vports: Vec<Vport>) -> Ports {
    Ports::new(vports.into_iter().map(|v| Port { number: v.port_no, name: v.name }).collect())
}

fn log_changes(before: &Ports, after: &Ports) {
    for port in before.iter().filter(|p| after.by_number(p.number) != Some(p)) {
        tracing::info!(port = port.number, name = port.name, "port gone");
    }
    for port in after.iter().filter(|p| before.by_number(p.number) != Some(p)) {
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
