//! The sockets that upcalls are read from, as the lanes see them.

mod registered;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use netlink_io::Socket;
use upcall_core::{Fence, Gather, SourceId};

pub(crate) use self::registered::{HeldOff, Registered, Sent, Taken};
use crate::engine::ALIKE;

/// Which flows may come by a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carries {
    /// Those of one port: a flow stays with it.
    OnePort,
    /// Any: its packets follow the CPU that handles them, or it is another's that we took over.
    AnyFlow,
}

/// Every socket that is read. Looked at when a flow hops; a reader holds its own entry.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    entries: ArcSwap<Vec<Arc<Registered>>>,
    /// The id given last; held while entries change.
    last_id: Mutex<u16>,
    gathers: AtomicU64,
    /// Is it told of any socket what comes to it?
    tells: AtomicBool,
}

impl Registry {
    /// Adds a socket, under an id that has not been used for as long as possible.
    ///
    /// # Errors
    ///
    /// When 65,535 sockets are read already.
    pub(crate) fn add(
        &self,
        socket: Option<Arc<Socket>>,
        carries: Carries,
    ) -> io::Result<Arc<Registered>> {
        let mut last_id = self.last_id.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::clone(&self.entries.load());
        if entries.len() >= usize::from(u16::MAX) {
            return Err(io::Error::other("65,535 upcall sockets are the most there can be"));
        }
        let (at, id) = loop {
            *last_id = last_id.wrapping_add(1);
            let Some(id) = SourceId::new(*last_id) else { continue };
            if let Err(at) = entries.binary_search_by_key(&id, |entry| entry.id) {
                break (at, id);
            }
        };
        if socket.as_ref().is_some_and(|socket| socket.records_arrivals()) {
            self.tells.store(true, Ordering::Relaxed);
        }
        let entry = Arc::new(Registered::new(id, socket, carries));
        entries.insert(at, entry.clone());
        self.entries.store(Arc::new(entries));
        Ok(entry)
    }

    /// Removes a socket that is no longer read.
    pub(crate) fn remove(&self, id: SourceId) {
        let _held = self.last_id.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::clone(&self.entries.load());
        entries.retain(|entry| entry.id != id);
        self.entries.store(Arc::new(entries));
    }

    pub(crate) fn get(&self, id: SourceId) -> Option<Arc<Registered>> {
        let entries = self.entries.load();
        let at = entries.binary_search_by_key(&id, |entry| entry.id).ok()?;
        Some(entries[at].clone())
    }

    /// Is everything that was sent up until now read and answered?
    pub(crate) fn all_answered(&self) -> bool {
        let entries = self.entries.load();
        let idle = |(entry, unread): (&Arc<Registered>, bool)| !unread && entry.state.is_idle();
        with_unread(&entries).all(idle)
    }

    /// Looks at the sockets that may hold packets of a flow that hopped to `by`, from `before` if that
    /// is known. Gives those that have something to take out, too.
    pub(crate) fn gather(
        &self,
        by: &Registered,
        before: Option<SourceId>,
    ) -> (Gather, Vec<Arc<Registered>>) {
        let entries = self.entries.load();
        let may_hold = |entry: &&Arc<Registered>| {
            entry.carries == Carries::AnyFlow || Some(entry.id) == before
        };
        let rivals: Vec<_> =
            entries.iter().filter(may_hold).filter(|entry| entry.id != by.id).cloned().collect();
        let unread: Vec<_> =
            with_unread(&rivals).filter(|(_, unread)| *unread).map(|(e, _)| e.clone()).collect();
        // Whether it is idle is asked after the sockets: what was taken out of one before that has a
        // number by now.
        let read = |e: &Registered| Fence { source: e.id, through: e.state.reads() };
        // Until it is taken out of there, its own reader may do so.
        let open = |e: &Registered| Fence { source: e.id, through: Fence::OPEN };
        let is_read =
            |e: &&Arc<Registered>| !e.state.is_idle() && !unread.iter().any(|u| u.id == e.id);
        let busy = rivals.iter().filter(is_read).map(|e| read(e));
        let gather = Gather {
            id: self.next_gather(),
            busy: busy.chain(unread.iter().map(|e| open(e))).collect(),
            hold: (!unread.is_empty()).then(|| read(by)),
            ..Gather::default()
        };
        (gather, unread)
    }

    /// Is anything not answered in a socket that flows of `by`'s may hop to, or in its reader's hands, as far as that is
    /// told?
    pub(crate) fn others_hold(&self, by: &Registered) -> bool {
        if by.carries == Carries::OnePort || !self.tells.load(Ordering::Relaxed) {
            return false;
        }
        let entries = self.entries.load();
        let mut rivals = entries.iter().filter(|entry| entry.is_rival_of(by));
        rivals.any(|entry| entry.may_hold(None))
    }

    /// Can nothing of a flow be in the other sockets, or in the hands of their readers, and older than
    /// what was taken so out of `by`'s?
    /// `key` is that of all its packets, if they have one.
    pub(crate) fn is_first(&self, by: &Registered, taken: Taken, key: Option<&[u8]>) -> bool {
        if by.carries == Carries::OnePort {
            return true;
        }
        let Some(sent_ns) = by.sent_ns(taken) else { return true };
        let entries = self.entries.load();
        let mut older = entries.iter().filter(|entry| entry.holds_older(by, sent_ns)).peekable();
        if older.peek().is_none() {
            return true;
        }
        let alike = key.map(|key| ALIKE.bucket(key));
        !older.any(|entry| entry.may_hold(alike))
    }

    /// What an upcall that was taken so out of `by`'s waits for in the other sockets: the readings that bring what may
    /// be an older packet of its flow, of which each has this `key`, if it has one. Takes nothing out, however much is
    /// there. `None` where it is not known when upcalls were sent.
    pub(crate) fn older(
        &self,
        by: &Registered,
        taken: Taken,
        key: Option<&[u8]>,
    ) -> Option<Gather> {
        let sent_ns = by.sent_ns(taken)?;
        let entries = self.entries.load();
        let mut older = entries.iter().filter(|entry| entry.holds_older(by, sent_ns)).peekable();
        if older.peek().is_none() {
            return Some(Gather { older: true, ..Gather::default() });
        }
        let alike = key.map(|key| ALIKE.bucket(key));
        let busy = older.filter_map(|entry| entry.last_reading(alike)).collect();
        Some(Gather { id: self.next_gather(), busy, older: true, ..Gather::default() })
    }

    fn next_gather(&self) -> u64 {
        self.gathers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What upcalls that are like one with this key have in common, where it is told what comes.
    pub(crate) fn alike(&self, key: &[u8]) -> usize {
        if self.tells.load(Ordering::Relaxed) { ALIKE.bucket(key) } else { 0 }
    }

    /// May something be in a socket or in its reader's hands that is like this ([`Registry::alike`])? `false` where that is not told.
    pub(crate) fn may_hold(&self, alike: usize) -> bool {
        self.tells.load(Ordering::Relaxed)
            && self.entries.load().iter().any(|entry| entry.may_hold(Some(alike)))
    }

    /// Which of the sockets, but those of `but`, has the oldest datagram, as far as that is known, and up to which
    /// time no other has any.
    pub(crate) fn oldest(sockets: &[Arc<Registered>], but: &[SourceId]) -> Option<(usize, u64)> {
        let (mut oldest, mut others_ns) = (None, u64::MAX);
        for (at, entry) in sockets.iter().enumerate().filter(|(_, e)| !but.contains(&e.id)) {
            let Some(sent_ns) = entry.oldest_ns() else { continue };
            match oldest {
                Some((_, oldest_ns)) if oldest_ns <= sent_ns => others_ns = others_ns.min(sent_ns),
                _ => others_ns = oldest.replace((at, sent_ns)).map_or(others_ns, |(_, ns)| ns),
            }
        }
        oldest.map(|(at, _)| (at, others_ns))
    }

    /// The sockets that flows may hop between.
    pub(crate) fn hopped_between(&self) -> Vec<Arc<Registered>> {
        let entries = self.entries.load();
        entries.iter().filter(|entry| entry.carries == Carries::AnyFlow).cloned().collect()
    }

    /// A gather that brings what it finds in the order of its arrival.
    pub(crate) fn ordered_gather(&self) -> Gather {
        Gather { id: self.next_gather(), ordered: true, ..Gather::default() }
    }

    /// The same, for an upcall that it takes out of `from` now. That waits for what the sockets' own readers
    /// have in their hands: they may have been at it when they were to leave it to others, and read on. `own` is
    /// what the one of `from` had before.
    pub(crate) fn at_once(&self, gather: &Gather, from: SourceId, own: Option<Fence>) -> Gather {
        let entries = self.entries.load();
        let busy = entries.iter().filter(|entry| entry.id != from && !entry.state.is_idle());
        let busy = busy.map(|e| Fence { source: e.id, through: e.state.reads() });
        let busy = busy.chain(own).collect();
        Gather { id: gather.id, busy, ordered: true, ..Gather::default() }
    }

    /// Has all been read and answered that the fence waits for? What is gone was read empty before.
    pub(crate) fn passed(&self, fence: &Fence) -> bool {
        self.get(fence.source).is_none_or(|entry| entry.has_answered(fence.through))
    }
}

/// Sockets with whether they have something to receive, in one system call.
fn with_unread(entries: &[Arc<Registered>]) -> impl Iterator<Item = (&Arc<Registered>, bool)> {
    let sockets = entries.iter().filter_map(|entry| entry.socket.as_deref());
    // If the kernel does not tell, nothing can be waited for.
    let mut unread = netlink_io::readable(sockets).unwrap_or_default().into_iter();
    entries.iter().map(move |entry| (entry, entry.socket.is_some() && unread.next() == Some(true)))
}

#[cfg(test)]
mod tests {
    use netlink_io::Alike;

    use super::*;

    /// Of an acknowledgement, the copy of a header, without the number in it: as if that were an attribute.
    const ACK: Alike = Alike { at: 20, max: KEY.len() as u16, word: 0 };
    const KEY: [u8; 4] = [0x10, 0, 5, 0];

    #[test]
    fn an_id_comes_back_only_when_all_others_were_used() {
        let registry = Registry::default();
        let first = registry.add(None, Carries::AnyFlow).unwrap();
        registry.remove(first.id);
        for _ in 0..1_000 {
            let entry = registry.add(None, Carries::AnyFlow).unwrap();
            assert_ne!(entry.id, first.id);
            registry.remove(entry.id);
        }
        *registry.last_id.lock().unwrap() = u16::MAX;
        assert_eq!(registry.add(None, Carries::AnyFlow).unwrap().id, first.id);
    }

    /// `NLMSG_NOOP` with `NLM_F_ACK`: the kernel acknowledges it.
    const NOOP: [u8; 16] = [16, 0, 0, 0, 0x10, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0];

    fn socket(registry: &Registry, carries: Carries) -> (Arc<Socket>, Arc<Registered>) {
        let socket = Arc::new(Socket::open().unwrap());
        let entry = registry.add(Some(socket.clone()), carries).unwrap();
        (socket, entry)
    }

    fn ids(unread: &[Arc<Registered>]) -> Vec<SourceId> {
        unread.iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn a_ports_flows_are_looked_for_where_they_were_before_and_where_any_may_be() {
        let registry = Registry::default();
        let ports: Vec<_> = (0..3).map(|_| socket(&registry, Carries::OnePort)).collect();
        let spare = socket(&registry, Carries::AnyFlow);
        for (socket, _) in ports.iter().chain([&spare]) {
            socket.send(&NOOP).unwrap();
        }
        let (_, unread) = registry.gather(&ports[0].1, Some(ports[1].1.id));
        assert_eq!(ids(&unread), [ports[1].1.id, spare.1.id]);
        let (_, unread) = registry.gather(&ports[0].1, Some(ports[0].1.id));
        assert_eq!(ids(&unread), [spare.1.id]);
    }

    #[test]
    fn a_gather_tells_who_is_busy_and_who_has_something() {
        let registry = Registry::default();
        let (_, by) = socket(&registry, Carries::AnyFlow);
        let (full, unread) = socket(&registry, Carries::AnyFlow);
        let (_, reading) = socket(&registry, Carries::AnyFlow);
        let (gather, none) = registry.gather(&by, None);
        assert_eq!((gather.busy, gather.hold, none.len()), (vec![], None, 0));
        full.send(&NOOP).unwrap();
        reading.state.begin_read();
        by.state.begin_read();
        let (gather, some) = registry.gather(&by, None);
        let fence = Fence { source: reading.id, through: 1 };
        assert_eq!(gather.busy, [fence, Fence { source: unread.id, through: Fence::OPEN }]);
        assert_eq!(
            (gather.hold, ids(&some)),
            (Some(Fence { source: by.id, through: 1 }), vec![unread.id])
        );
        assert!(!registry.passed(&fence) && !registry.all_answered());
        reading.state.answer_all();
        assert!(registry.passed(&fence));
        registry.remove(by.id);
        assert!(registry.passed(&Fence { source: by.id, through: 1 }), "what is gone is empty");
    }

    #[test]
    fn what_is_oldest_is_known_by_its_time() {
        let registry = Registry::default();
        let sockets = [(); 3].map(|()| socket(&registry, Carries::AnyFlow));
        let recorded = sockets.iter().try_for_each(|(socket, _)| socket.record_arrivals(ACK));
        if let Err(err) = recorded {
            assert_eq!(err.kind(), io::ErrorKind::PermissionDenied, "{err}");
            return eprintln!("skipped: this process may not load eBPF programs");
        }
        let send = |at: &[usize]| at.iter().try_for_each(|at| sockets[*at].0.send(&NOOP)).unwrap();
        send(&[1, 0, 1, 2]);
        let entries = registry.hopped_between();
        let mut buf = [0; 256];
        let mut take = |at: usize| {
            let (taken, datagram) = entries[at].take(|| sockets[at].0.recv(&mut buf));
            assert!(datagram.unwrap().is_some());
            taken
        };
        let is_first = |at: usize, taken| registry.is_first(&entries[at], taken, Some(&KEY));
        let mut taken_first = |at| is_first(at, take(at));
        assert_eq!([taken_first(1), taken_first(1), taken_first(2)], [true, false, false]);
        let taken = take(0);
        assert!(!is_first(0, taken), "what is older is in another reader's hands");
        entries[1].answer_all();
        assert!(is_first(0, taken));
        for entry in &entries {
            entry.answer_all();
        }
        send(&[2, 0, 2]);
        let (at, until_ns) = Registry::oldest(&entries, &[]).unwrap();
        assert_eq!((at, entries[0].oldest_ns()), (2, Some(until_ns)));
        assert_eq!(Registry::oldest(&entries, &[entries[2].id]), Some((0, u64::MAX)));
        assert_eq!(Registry::oldest(&entries[1..2], &[]), None);
    }

    #[test]
    fn a_new_flow_waits_for_the_reading_that_brings_the_last_that_is_like_it() {
        let registry = Registry::default();
        let sockets = [(); 2].map(|()| socket(&registry, Carries::AnyFlow));
        if sockets.iter().any(|(socket, _)| socket.record_arrivals(ACK).is_err()) {
            return eprintln!("skipped: this process may not load eBPF programs");
        }
        // With NLM_F_ECHO: of another flow.
        let other = |at: usize| if at == 6 { 5 | 8 } else { NOOP[at] };
        let other: [u8; 16] = std::array::from_fn(other);
        let [(_, rival), (_, by)] = &sockets;
        let mut buf = [0; 256];
        let mut take = |at: usize| {
            let (socket, entry) = &sockets[at];
            let (taken, datagram) = entry.take(|| socket.recv(&mut buf));
            (taken, datagram.unwrap().is_some())
        };
        // The first reading finds nothing.
        assert!(!take(0).1);
        for noop in [&other, &NOOP, &NOOP, &other] {
            sockets[0].0.send(noop).unwrap();
        }
        sockets[1].0.send(&NOOP).unwrap();
        let (taken, _) = take(1);
        let busy = |key: Option<&[u8]>| registry.older(by, taken, key).unwrap().busy;
        let fence = |through| Fence { source: rival.id, through };
        assert_eq!(busy(Some(&KEY)), [fence(4)]);
        assert_eq!(busy(None), [fence(5)]);
        for is_passed in [false, false, true] {
            take(0);
            assert!(!registry.passed(&fence(4)) || is_passed, "it is in somebody's hands");
            rival.answer_all();
            assert_eq!(registry.passed(&fence(4)), is_passed);
        }
        assert_eq!((busy(Some(&KEY)), busy(None)), (vec![], vec![fence(5)]));
        take(0);
        rival.answer_all();
        assert!(registry.passed(&fence(6)), "what was lost has no reading");
    }

    #[test]
    fn what_is_taken_in_order_waits_for_what_readers_have_in_hand_now() {
        let registry = Registry::default();
        let [from, idle, late] = [(); 3].map(|()| socket(&registry, Carries::AnyFlow).1);
        let gather = registry.ordered_gather();
        assert_eq!((gather.busy.len(), from.clone().hold_off().in_hand()), (0, None));
        // They had not heard that sockets are read in order, and read on.
        late.state.begin_read();
        from.state.begin_read();
        let in_hand = from.hold_off().in_hand();
        let now = registry.at_once(&gather, from.id, in_hand);
        let fence = |source| Fence { source, through: 1 };
        assert_eq!((now.id, now.busy), (gather.id, vec![fence(late.id), fence(from.id)]));
        assert!(registry.passed(&Fence { source: idle.id, through: 0 }));
    }

    #[test]
    fn what_another_takes_is_answered_unless_the_reader_is_at_it() {
        let registry = Registry::default();
        let (socket, entry) = socket(&registry, Carries::AnyFlow);
        let mut buf = [0; 256];
        let mut take_all = |before: u64, expected: &[u64]| {
            let held = entry.hold_off();
            assert_eq!(held.read_before(), Fence { source: entry.id, through: before });
            let mut reads = Vec::new();
            assert!(held.take_all(&mut buf, |read, _, _| {
                reads.push(read.read);
                true
            }));
            assert_eq!(reads, expected);
        };
        (0..2).for_each(|_| socket.send(&NOOP).unwrap());
        take_all(0, &[1, 2]);
        assert!(entry.state.is_idle());
        entry.state.begin_read();
        socket.send(&NOOP).unwrap();
        take_all(3, &[4]);
        assert!(!entry.state.is_idle());
    }
}
