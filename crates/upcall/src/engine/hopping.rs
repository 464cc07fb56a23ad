//! Reading while flows hop between sockets.
//!
//! Readers wake in any order. So for a while after each hop all sockets are read by whoever wakes, one reader at
//! a time: the oldest upcall first, where the kernel tells when it sent them. Where it does not, in the order in
//! which the sockets got something to read ([`ArrivalOrder`]): then a flow that comes back to a socket that still
//! holds older packets of it cannot be put in order.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink_io::ArrivalOrder;

use super::{DATAGRAM_MAX, DEFERRED_MAX, Engine};
use crate::sources::{Registered, Registry};

/// How long after a hop sockets are read in order, in microseconds. It costs an `epoll_wait` and a copy
/// of each upcall, no spinning.
const HOPPING_US: u64 = 100_000;

/// How long hops change nothing after there was too much to read in order, in microseconds: time for the
/// storm shield, which counts what readers read by themselves, to say whether it is a flood.
const REST_US: u64 = 2_000_000;

/// Whether flows hop, and the order of arrival while they do.
#[derive(Debug, Default)]
pub(crate) struct Hopping {
    /// Sockets are read in order until then; 0 if they are not.
    until_us: AtomicU64,
    /// Hops change nothing before: there was too much to read.
    not_before_us: AtomicU64,
    /// Held by the one who reads.
    order: Mutex<Option<Order>>,
}

#[derive(Debug)]
struct Order {
    sockets: Vec<Arc<Registered>>,
    arrivals: ArrivalOrder,
}

impl Order {
    fn of(sockets: Vec<Arc<Registered>>) -> io::Result<Self> {
        let arrivals = ArrivalOrder::new(sockets.iter().filter_map(|entry| entry.socket()))?;
        Ok(Self { sockets, arrivals })
    }
}

impl Hopping {
    /// A flow hopped.
    pub(crate) fn hopped(&self, now_us: u64) {
        if now_us >= self.not_before_us.load(Ordering::Relaxed) {
            self.until_us.store(now_us + HOPPING_US, Ordering::Relaxed);
        }
    }

    /// Are sockets read in order now? Notices when it is over.
    fn is_on(&self, now_us: impl FnOnce() -> u64) -> bool {
        let until = self.until_us.load(Ordering::Relaxed);
        if until == 0 {
            return false;
        }
        let on = now_us() < until;
        if !on {
            self.end(&mut self.lock());
        }
        on
    }

    fn lock(&self) -> MutexGuard<'_, Option<Order>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, order: &mut Option<Order>) {
        self.until_us.store(0, Ordering::Relaxed);
        *order = None;
    }

    /// There is more than one reader can take: each is to read its own socket for a while.
    fn overloaded(&self, order: &mut Option<Order>, now_us: u64) {
        self.not_before_us.store(now_us + REST_US, Ordering::Relaxed);
        self.end(order);
    }
}

impl Engine {
    /// Are sockets to be read in the order of arrival?
    pub(crate) fn reads_in_order(&self) -> bool {
        self.shared.hopping.is_on(|| self.shared.now_us())
    }

    /// Takes what is in the sockets that flows hop between, in the order of arrival, and handles what may
    /// be handled, so that no timer is set for what waits a moment only. `false` if there is more than can
    /// be taken so: then each reader reads its own socket again.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell the order; nothing was read then.
    pub(crate) fn read_in_order(&mut self) -> io::Result<bool> {
        let all = self.take_all_in_order();
        while self.help() {}
        all
    }

    fn take_all_in_order(&mut self) -> io::Result<bool> {
        self.begin();
        self.look_up();
        let shared = self.shared.clone();
        let mut order = shared.hopping.lock();
        let mut left = DEFERRED_MAX;
        // What comes meanwhile comes after what was told before: until there is nothing.
        loop {
            let order = order_of(&mut order, &shared.sources)?;
            self.take_by_time(&order.sockets, &mut left);
            if left == 0 || !self.take_in_order(order, &mut left)? {
                break;
            }
        }
        if left == 0 {
            shared.hopping.overloaded(&mut order, shared.now_us());
        }
        self.read_us = (self.now_us, shared.now_us());
        Ok(left > 0)
    }

    /// Takes the oldest of all datagrams, one after the other, up to `left`, as far as it is known when they
    /// came: the order in which they were sent.
    fn take_by_time(&mut self, sockets: &[Arc<Registered>], left: &mut usize) {
        let gather = self.shared.sources.ordered_gather();
        let mut buf = std::mem::take(&mut self.gather_buf);
        buf.resize(DATAGRAM_MAX, 0);
        // What was lost for want of room has a time as well.
        let mut empty = Vec::new();
        while let Some((at, until_ns)) = Registry::oldest(sockets, &empty) {
            let entry = &sockets[at];
            // Nothing that comes to another meanwhile is older.
            while *left > 0 && entry.oldest_ns().is_some_and(|sent_ns| sent_ns <= until_ns) {
                let mut one = 1;
                self.take_out(entry, entry.hold_off(), &gather, &mut one, &mut buf);
                if one == 1 {
                    empty.push(entry.id);
                    break;
                }
                *left -= 1;
                // What was not queued yet may be by now.
                empty.clear();
            }
            if *left == 0 {
                break;
            }
        }
        self.gather_buf = buf;
        self.flush();
    }

    /// One look; `false` if there was nothing. With nothing `left` not all was taken.
    fn take_in_order(&mut self, order: &mut Order, left: &mut usize) -> io::Result<bool> {
        let Order { sockets, arrivals } = order;
        let gather = self.shared.sources.ordered_gather();
        let mut buf = std::mem::take(&mut self.gather_buf);
        buf.resize(DATAGRAM_MAX, 0);
        let mut any = false;
        for at in arrivals.look()? {
            let Some(entry) = sockets.get(at) else { continue };
            any = true;
            // Where it is known when, that comes in its turn.
            if entry.oldest_ns().is_none()
                && *left > 0
                && !self.take_out(entry, entry.hold_off(), &gather, left, &mut buf)
            {
                *left = 0;
            }
        }
        self.gather_buf = buf;
        self.flush();
        Ok(any)
    }
}

/// The order of the sockets that there are now.
fn order_of<'a>(order: &'a mut Option<Order>, registry: &Registry) -> io::Result<&'a mut Order> {
    let sockets = registry.hopped_between();
    order.take_if(|order| {
        !order.sockets.iter().map(Arc::as_ptr).eq(sockets.iter().map(Arc::as_ptr))
    });
    match order {
        Some(order) => Ok(order),
        None => Ok(order.insert(Order::of(sockets)?)),
    }
}
