//! The storm shield of one socket: what `upcall-core` decides, attached to the socket.
//!
//! Sockets of CPUs have one, as many ports share them. A socket of a port has none: whoever floods it
//! is alone there.

use std::cell::RefCell;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use netlink_io::{FilterInsn, Socket};
use ovs_wire::filter::{PortShare, sample_ports};
use upcall_core::{Backlog, Ledger, PortTally, StormShield};

use crate::shared::Shared;

/// How often a shield is looked at while nothing comes up.
const IDLE_CHECK: Duration = Duration::from_millis(20);

/// Watches one socket, and shields it.
pub(crate) struct Shield {
    socket: Arc<Socket>,
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    storm: StormShield,
    tally: PortTally,
    /// Ports that are named in the log as shielded against.
    ports: Vec<u32>,
    started: Instant,
}

impl Shield {
    pub(crate) fn new(socket: Arc<Socket>, shared: Arc<Shared>, ledger: Arc<Ledger>) -> Self {
        let (storm, tally) = (StormShield::default(), PortTally::default());
        Self { socket, shared, ledger, storm, tally, ports: Vec::new(), started: Instant::now() }
    }

    /// Where upcalls are counted as they are read.
    pub(crate) fn tally(&mut self) -> &mut PortTally {
        &mut self.tally
    }

    /// A round of reading is over. While a shield is up, somebody must look after it, even if nothing
    /// comes up any more: [`watch`].
    pub(crate) fn after_round(this: &Rc<RefCell<Self>>, drained: bool) {
        let mut shield = this.borrow_mut();
        if drained && shield.storm.is_at_rest() {
            return;
        }
        let was_up = shield.storm.is_up();
        shield.look(drained);
        if !was_up && shield.storm.is_up() {
            tokio::task::spawn_local(watch(Rc::downgrade(this)));
        }
    }

    fn look(&mut self, drained: bool) {
        let backlog = match (!drained).then(|| self.backlog()).transpose() {
            Ok(backlog) => backlog.filter(|backlog| backlog.queued_bytes > 0),
            Err(err) => return self.give_up(&err),
        };
        let now_us = self.started.elapsed().as_micros() as u64;
        let changed = self.storm.round(now_us, &mut self.tally, backlog);
        self.ledger.shield_refused.add(self.storm.take_refused());
        if changed {
            tracing::debug!(port_id = self.socket.port_id(), storm = ?self.storm, "shares set");
            match self.attach() {
                Ok(backlog) => self.storm.attached(backlog),
                Err(err) => self.give_up(&err),
            }
            self.tell();
        }
    }

    fn backlog(&self) -> io::Result<Backlog> {
        let info = self.socket.mem_info()?;
        Ok(Backlog { queued_bytes: info.queued_bytes, buffer_bytes: info.recv_buffer_bytes })
    }

    /// Makes the kernel refuse what is not to be admitted; gives what is queued by then.
    fn attach(&self) -> io::Result<Backlog> {
        if self.socket.sample(self.storm.shares()) {
            return self.backlog();
        }
        let share = |(port, admit)| PortShare { port, admit };
        let shares: Vec<_> = self.storm.shares().map(share).collect();
        if shares.is_empty() {
            self.socket.detach_filter()?;
            return self.backlog();
        }
        let program: Vec<_> = sample_ports(&shares)
            .iter()
            .map(|i| FilterInsn { code: i.code, jt: i.jt, jf: i.jf, k: i.k })
            .collect();
        self.socket.attach_filter(&program)?;
        self.backlog()
    }

    /// Says in the log which ports are shielded against from now on, and which no more.
    fn tell(&mut self) {
        let now: Vec<u32> = self.storm.ports().collect();
        let (ports, port_id) = (self.shared.ports.load(), self.socket.port_id());
        let name = |number| ports.by_number(number).map_or("?", |port| port.name.as_str());
        for &port in now.iter().filter(|port| !self.ports.contains(port)) {
            let why = "it floods an upcall socket: most of its upcalls are refused for now";
            tracing::warn!(port = name(port), number = port, port_id, why, "storm shield up");
        }
        for &port in self.ports.iter().filter(|port| !now.contains(port)) {
            tracing::info!(port = name(port), number = port, port_id, "storm shield down");
        }
        self.shared.shields.change(self.ports.len(), now.len());
        self.ports = now;
    }

    /// Works without a shield until the next flood.
    fn give_up(&mut self, err: &io::Error) {
        tracing::warn!(port_id = self.socket.port_id(), %err, "cannot shield an upcall socket");
        self.take_down();
    }

    fn take_down(&mut self) {
        self.storm = StormShield::default();
        let _ = self.attach();
        self.tell();
    }
}

impl Drop for Shield {
    /// A successor may get the socket: it must not find a filter that it knows nothing of.
    fn drop(&mut self) {
        if self.storm.is_up() {
            self.take_down();
        }
    }
}

/// Looks after a shield until it is down: after a flood there may be no upcall that would.
async fn watch(shield: Weak<RefCell<Shield>>) {
    loop {
        tokio::time::sleep(IDLE_CHECK).await;
        let Some(shield) = shield.upgrade() else { return };
        let mut shield = shield.borrow_mut();
        // With something queued, the next round does it.
        if shield.backlog().is_ok_and(|backlog| backlog.queued_bytes == 0) {
            shield.look(true);
        }
        if !shield.storm.is_up() {
            return;
        }
    }
}

/// Shields that are up now, over all sockets of a dispatcher.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    sockets: AtomicUsize,
    ports: AtomicUsize,
}

impl Gauges {
    /// Is a shield up?
    pub(crate) fn any_up(&self) -> bool {
        self.sockets.load(Ordering::Relaxed) > 0
    }

    /// A socket is shielded against `now` ports that was against `before`.
    fn change(&self, before: usize, now: usize) {
        let step = |gauge: &AtomicUsize, before, now| {
            gauge.fetch_add(now, Ordering::Relaxed);
            gauge.fetch_sub(before, Ordering::Relaxed);
        };
        step(&self.ports, before, now);
        step(&self.sockets, usize::from(before > 0), usize::from(now > 0));
    }

    /// Sockets that are shielded, and pairs of a socket and a port that it is shielded against.
    pub(crate) fn read(&self) -> (usize, usize) {
        (self.sockets.load(Ordering::Relaxed), self.ports.load(Ordering::Relaxed))
    }
}
