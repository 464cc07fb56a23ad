//! Keeps a datapath as it was set up: nobody owns one in the kernel, so anybody may change it.
//!
//! Ports come and go by other hands, and one `ovs-dpctl show` switches the dispatch mode. Every change
//! is seen as a notification that names the socket it was asked for by.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use ovs_datapath::{
    Control, Event, Events, LinkEvent, LinkEvents, Links, Object, live_port_ids, socket_owner,
};
use ovs_wire::datapath::{self, Datapath};
use ovs_wire::vport::{self, Vport};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use crate::delivery::Delivery;
use crate::members::Members;
use crate::recruit::Recruiter;
use crate::shared::Shared;
use crate::{Error, Failure, OnPortGone, Port, Ports};

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
    /// Look whether interfaces that are waited for are there.
    restore: bool,
    /// Numbers of ports that somebody took out.
    removed: Vec<u32>,
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
    pub(crate) links: Links,
    pub(crate) members: Arc<Members>,
    pub(crate) on_port_gone: OnPortGone,
    pub(crate) known: Known,
}

/// What the keeper remembers between events.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Names of the ports' devices at the last look, by interface index.
    devices: HashMap<u32, String>,
    /// Numbers of ports that somebody took out since then.
    removed: Vec<u32>,
}

impl Keeper {
    /// Works until the datapath is no longer ours.
    pub(crate) async fn run(
        mut self,
        mut events: Events,
        mut links: LinkEvents,
        mut asked: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        let (mut last, mut in_a_row) = (Instant::now(), 0);
        let mut retry = tokio::time::interval(RETRY);
        let mut behind = self.follow(self.members.any_pattern()).await.is_err();
        loop {
            let work = tokio::select! {
                event = events.next() => match event {
                    Some(first) => self.gather(first, &mut events),
                    None => return,
                },
                event = links.recv() => self.gather_links(event, &mut links),
                Some(done) = asked.recv() => {
                    behind = self.follow(true).await.is_err();
                    let _nobody_waits = done.send(());
                    continue;
                }
                _ = retry.tick(), if behind => {
                    Work { follow: true, restore: true, ..Work::default() }
                }
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
            self.known.removed.extend(work.removed);
            if work.follow || work.restore {
                behind = self.follow(work.restore).await.is_err();
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
            Object::Vport(port) if port.dp_ifindex == self.dp.ifindex => {
                work.follow |= !by_us;
                // The kernel takes a port out by itself when its interface vanishes.
                if event.cmd == vport::cmd::DEL && event.by_port_id != 0 {
                    work.removed.push(port.port_no);
                }
            }
            Object::Datapath(_) | Object::Vport(_) => {}
            Object::Lost => {
                work.repair = Some(0);
                work.follow = true;
            }
        }
    }

    /// The same for what happened to interfaces.
    fn gather_links(&self, first: LinkEvent, events: &mut LinkEvents) -> Work {
        let mut work = Work::default();
        let mut next = Some(first);
        while let Some(event) = next {
            self.note_link(&event, &mut work);
            next = events.recv().now_or_never();
        }
        work
    }

    fn note_link(&self, event: &LinkEvent, work: &mut Work) {
        match event {
            LinkEvent::Changed(link) => {
                let known = self.known.devices.get(&link.ifindex);
                let free = link.controller.is_none();
                work.follow |= known.is_some_and(|name| *name != link.name);
                work.restore |= free && self.members.awaits(&link.name)
                    || known.is_none() && self.members.wants(link);
            }
            // The kernel says of the port too that it is gone.
            LinkEvent::Gone(_) => {}
            LinkEvent::Lost => (work.follow, work.restore) = (true, true),
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
    async fn follow(&mut self, restore: bool) -> Result<(), ()> {
        let delivery = self.delivery.clone().lock_owned().await;
        let warn = |err: Error| tracing::warn!(%err, "cannot follow the ports; trying again");
        let vports = self.control.vports(self.dp.ifindex).await.map_err(|e| warn(e.into()))?;
        let targets: Vec<u32> = vports.iter().flat_map(|p| &p.upcall_pids).copied().collect();
        if self.taken_over_by(&delivery, &targets) {
            return Ok(());
        }
        let mut vports = delivery.follow(&self.control, self.dp.ifindex).await.map_err(warn)?;
        let vanished = self.members.compare(&vports, &std::mem::take(&mut self.known.removed));
        for name in &vanished {
            self.vanished(name);
        }
        let strays = self.members.strays();
        let mut all = true;
        if restore || !vanished.is_empty() || !strays.is_empty() {
            all = self.recruit(&delivery, &vports, &strays).await.map_err(warn)?;
            vports = delivery.follow(&self.control, self.dp.ifindex).await.map_err(warn)?;
            self.members.compare(&vports, &[]);
        }
        self.publish(vports);
        if all { Ok(()) } else { Err(()) }
    }

    /// Takes out what no pattern matches any more, and takes in what is waited for or matched now.
    /// `false` if that is to be tried again.
    async fn recruit(
        &self,
        delivery: &Delivery,
        ports: &[Vport],
        strays: &[u32],
    ) -> Result<bool, Error> {
        let Self { control, links, dp, members, .. } = self;
        let recruiter = Recruiter { control, links, dp, delivery, members };
        for port_no in strays {
            tracing::info!(
                port = port_no,
                "a port that no pattern matches any more; taking it out"
            );
            recruiter.dismiss(*port_no).await?;
        }
        recruiter.by_name().await?;
        recruiter.by_pattern(ports).await
    }

    fn publish(&mut self, vports: Vec<Vport>) {
        let named = vports.iter().filter_map(|port| Some((port.ifindex?, port.name.clone())));
        let devices = named.collect();
        let before = std::mem::replace(&mut self.known.devices, devices);
        let renamed = log_renames(&before, &vports);
        let (ports, before) = (to_ports(vports, &self.members), self.shared.ports.load_full());
        if *before != ports {
            log_changes(&before, &ports, &renamed);
            self.shared.set_ports(ports);
            self.shared.revalidate();
        }
    }

    fn vanished(&self, name: &str) {
        self.shared.ports_vanished.fetch_add(1, Ordering::Relaxed);
        match self.on_port_gone {
            OnPortGone::Wait => {
                tracing::warn!(port = name, "interface gone; waiting for one of that name");
            }
            OnPortGone::Fail => {
                let (name, datapath) = (name.to_owned(), self.dp.name.clone());
                self.shared.fail(Failure::PortGone { name, datapath });
            }
        }
    }
}

/// The kernel's ports as handlers see them.
pub(crate) fn to_ports(vports: Vec<Vport>, members: &Members) -> Ports {
    let ports = vports.into_iter().map(|v| Port { number: v.port_no, name: v.name });
    Ports::new(ports.collect()).with_names(members.numbers())
}

/// Logs the ports whose devices have another name than before; gives their numbers.
fn log_renames(before: &HashMap<u32, String>, after: &[Vport]) -> Vec<u32> {
    let mut numbers = Vec::new();
    for port in after {
        let was = port.ifindex.and_then(|ifindex| before.get(&ifindex));
        if let Some(was) = was.filter(|was| **was != port.name) {
            tracing::info!(port = port.port_no, "port {was} is now called {}", port.name);
            numbers.push(port.port_no);
        }
    }
    numbers
}

fn log_changes(before: &Ports, after: &Ports, renamed: &[u32]) {
    let missing = |from: &Ports, of: &Ports| -> Vec<Port> {
        let changed =
            |p: &&Port| from.by_number(p.number) != Some(p) && !renamed.contains(&p.number);
        of.iter().filter(changed).cloned().collect()
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
