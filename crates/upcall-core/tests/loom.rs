//! Lanes between threads, in every order of every access that the memory model allows (contract O1, O2).
//!
//! A host of two sockets, read as the driver reads them: the reading is numbered, then the datagram is
//! taken, then the lane is claimed; what was answered is sent before the lane may be another's. Run by
//! `cargo xtask loom`.
#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test binary")]

use std::cell::OnceCell;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use upcall_core::Placed;
use upcall_core::{
    Claim, Class, Fence, Gather, Lanes, Late, QueueLimits, SourceId, SourceState, Tick, Ticket,
    Work,
};

const FLOW: u64 = 7 << 32;

/// A socket: what is in it, under the lock that is held while something is taken.
struct Socket {
    unread: Mutex<Vec<u8>>,
    /// How much that is, for those who look without the lock.
    len: AtomicUsize,
    state: SourceState,
}

impl Socket {
    fn new(unread: &[u8]) -> Self {
        Self {
            unread: Mutex::new(unread.to_vec()),
            len: AtomicUsize::new(unread.len()),
            state: SourceState::default(),
        }
    }

    fn push(&self, packet: u8) {
        self.unread.lock().unwrap().push(packet);
        self.len.fetch_add(1, Ordering::Release);
    }

    /// Numbers a reading, and takes the first packet if there is one.
    fn take(&self, unread: &mut Vec<u8>) -> Option<(u8, u64)> {
        let read = self.state.begin_read();
        let packet = (!unread.is_empty()).then(|| unread.remove(0))?;
        self.len.fetch_sub(1, Ordering::Release);
        Some((packet, read))
    }
}

struct Host {
    lanes: Lanes,
    sockets: [Socket; 2],
    /// Is an upcall of the flow at its handler, or does that owe an answer to one?
    handling: AtomicBool,
    sent: Mutex<Vec<u8>>,
}

fn id(socket: usize) -> SourceId {
    SourceId::new(socket as u16 + 1).expect("not 0")
}

fn late(message: &[u8], from: usize, read: u64) -> Late<'_> {
    Late {
        message,
        flow: FLOW,
        source: id(from),
        read,
        sent_ns: None,
        port: 1,
        class: Class::Miss,
        ahead: false,
        gather: None,
        in_doubt: false,
        defer: false,
    }
}

impl Host {
    /// A host whose flow came by the first socket up to now, with these packets in the sockets.
    fn new(unread: [&[u8]; 2]) -> Arc<Self> {
        let host = Self::without_flow(unread);
        assert_eq!(host.lanes.claim(FLOW, id(0), Tick::of_us(0), || true).1, Claim::Run);
        host
    }

    fn without_flow(unread: [&[u8]; 2]) -> Arc<Self> {
        let limits = QueueLimits { fence_us: u64::MAX, ..QueueLimits::default() };
        Arc::new(Self {
            lanes: Lanes::new(1, limits),
            sockets: unread.map(Socket::new),
            handling: AtomicBool::new(false),
            sent: Mutex::default(),
        })
    }

    /// A round of a reader: the socket is read empty, then the answers are sent, then it helps.
    fn round(&self, at: usize) {
        let socket = &self.sockets[at];
        let take = || socket.take(&mut socket.unread.lock().unwrap());
        while let Some((packet, read)) = take() {
            self.packet(packet, at, read);
        }
        socket.state.answer_all();
        self.help();
    }

    fn packet(&self, packet: u8, at: usize, read: u64) {
        let is_first = || self.sockets[1 - at].len.load(Ordering::Acquire) == 0;
        let claim = self.lanes.claim(FLOW, id(at), Tick::of_us(0), is_first).1;
        let looked = OnceCell::new();
        let in_doubt = claim == Claim::Doubt;
        if claim == Claim::Run
            || self.place((packet, in_doubt), (at, at), read, None, &looked) == Placed::Run
        {
            self.handle(packet);
        }
        if let Some(mut gather) = looked.into_inner()
            && gather.hold.is_some()
        {
            for from in [at, 1 - at] {
                self.take_all(at, from, &mut gather);
            }
        }
    }

    fn place(
        &self,
        (packet, in_doubt): (u8, bool),
        (by, from): (usize, usize),
        read: u64,
        gather: Option<&Gather>,
        looked: &OnceCell<Gather>,
    ) -> Placed {
        let message = &[packet];
        let arrival = Late {
            ahead: by != from,
            gather,
            in_doubt,
            defer: gather.is_some(),
            ..late(message, from, read)
        };
        let look = |_| gather.unwrap_or_else(|| looked.get_or_init(|| self.gather(by)));
        self.lanes.place(&arrival, || 0, look)
    }

    fn gather(&self, by: usize) -> Gather {
        let (own, other) = (&self.sockets[by], &self.sockets[1 - by]);
        let unread = other.len.load(Ordering::Acquire) > 0;
        let fence = |at: usize, through| Fence { source: id(at), through };
        let busy = if unread {
            Some(fence(1 - by, Fence::OPEN))
        } else {
            (!other.state.is_idle()).then(|| fence(1 - by, other.state.reads()))
        };
        Gather {
            id: by as u64 + 1,
            busy: busy.into_iter().collect(),
            hold: unread.then(|| fence(by, own.state.reads())),
            ordered: false,
            older: false,
        }
    }

    fn take_all(&self, by: usize, from: usize, gather: &mut Gather) {
        let socket = &self.sockets[from];
        let mut unread = socket.unread.lock().unwrap();
        let through = socket.state.reads();
        self.lanes.narrow(gather, Fence { source: id(from), through });
        let was_idle = socket.state.is_idle();
        while !unread.is_empty()
            && let Some((packet, read)) = socket.take(&mut unread)
        {
            let placed =
                self.place((packet, false), (by, from), read, Some(gather), &OnceCell::new());
            assert_eq!(placed, Placed::Waits);
        }
        if was_idle {
            socket.state.answer_all();
        }
    }

    fn handle(&self, packet: u8) {
        assert!(!self.handling.swap(true, Ordering::SeqCst), "two at a time");
        self.sent.lock().unwrap().push(packet);
        self.handling.store(false, Ordering::SeqCst);
    }

    /// The reader of the first socket reads a packet to which the handler owes the answer then.
    fn detain(&self, packet: u8) -> Ticket {
        let state = &self.sockets[0].state;
        let read = state.begin_read();
        assert_eq!(self.lanes.claim(FLOW, id(0), Tick::of_us(0), || true).1, Claim::Run);
        assert!(!self.handling.swap(true, Ordering::SeqCst), "two at a time");
        let ticket = self.lanes.detain(&late(&[packet], 0, read), || 0).unwrap();
        state.answer_all();
        ticket
    }

    /// The handler gives the answer that it owes, or will never give it: a lane knows no difference.
    fn answer(&self, ticket: Ticket) {
        assert!(self.lanes.answered(ticket), "the upcall is gone");
        self.help();
    }

    /// What the handler owed is sent.
    fn handle_answered(&self, packet: u8) {
        assert!(self.handling.load(Ordering::SeqCst), "nothing was owed");
        self.sent.lock().unwrap().push(packet);
        self.handling.store(false, Ordering::SeqCst);
    }

    /// A helper finds that the handler answers the next upcall of what it took later.
    fn help_and_detain(&self) -> Option<Ticket> {
        let mut work = Work::default();
        if self.lanes.any_queued() && self.lanes.open_fences(0, |_| true) {
            self.lanes.take(1, &mut work);
        }
        work.current()?;
        assert!(!self.handling.swap(true, Ordering::SeqCst), "two at a time");
        let ticket = self.lanes.detain_taken(&mut work);
        self.lanes.finish(&mut work);
        ticket
    }

    /// Handles what waits and may run now. `true` if there was something.
    fn help(&self) -> bool {
        let passed = |fence: &Fence| {
            let socket = &self.sockets[usize::from(fence.source.get()) - 1];
            socket.state.has_answered(fence.through)
        };
        let mut work = Work::default();
        if self.lanes.any_queued() && self.lanes.open_fences(0, passed) {
            self.lanes.take(1, &mut work);
        }
        let helped = !work.is_empty();
        while let Some(upcall) = work.current() {
            match upcall.answered() {
                Some(_) => self.handle_answered(upcall.message[0]),
                None => self.handle(upcall.message[0]),
            }
            work.handled();
        }
        if helped {
            self.lanes.finish(&mut work);
        }
        helped
    }

    /// All is read and answered: whatever waits can be handled, and then nothing waits.
    fn end(&self) -> Vec<u8> {
        while self.help() {}
        assert!(!self.lanes.any_queued(), "a lane is left behind: {:?}", self.lanes.stats());
        assert_eq!(self.lanes.waiting(), 0);
        std::mem::take(&mut self.sent.lock().unwrap())
    }
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(check);
}

/// The older packet is in the socket that the flow came by, the newer one in the other.
#[test]
fn a_flow_that_hops_is_handled_one_at_a_time_and_in_order() {
    model(|| {
        let host = Host::new([&[1], &[2]]);
        let other = host.clone();
        let reader = thread::spawn(move || other.round(0));
        host.round(1);
        reader.join().unwrap();
        assert_eq!(host.end(), [1, 2]);
    });
}

/// The flow hops and is back before anybody has looked: no order is known, and still it is one at a
/// time, and nothing is lost.
#[test]
fn a_flow_that_hops_back_is_handled_one_at_a_time() {
    model(|| {
        let host = Host::new([&[], &[1]]);
        let other = host.clone();
        let reader = thread::spawn(move || {
            other.sockets[0].push(2);
            other.round(0);
        });
        host.round(1);
        reader.join().unwrap();
        let mut sent = host.end();
        sent.sort_unstable();
        assert_eq!(sent, [1, 2]);
    });
}

/// A flow that is new hopped before anybody has looked, and both readers look at once: what both take at a
/// time has no order to be seen, and still it is one at a time, and nothing is lost.
#[test]
fn a_new_flow_that_hopped_unseen_is_handled_one_at_a_time() {
    model(|| {
        let host = Host::without_flow([&[1], &[2]]);
        let other = host.clone();
        let reader = thread::spawn(move || other.round(0));
        host.round(1);
        reader.join().unwrap();
        let mut sent = host.end();
        sent.sort_unstable();
        assert_eq!(sent, [1, 2]);
    });
}

/// A helper is done with a lane while its reader brings more: nothing stays behind.
#[test]
fn what_is_brought_while_a_helper_ends_is_handled() {
    model(|| {
        let host = Host::new([&[2], &[]]);
        let gather = Gather::default();
        let read = host.sockets[0].state.begin_read();
        let placed = host.place((1, false), (0, 0), read, Some(&gather), &OnceCell::new());
        assert_eq!(placed, Placed::Waits);
        host.sockets[0].state.answer_all();
        let other = host.clone();
        let helper = thread::spawn(move || other.help());
        host.round(0);
        helper.join().unwrap();
        assert_eq!(host.end(), [1, 2]);
    });
}

/// Two helpers and a lane with two upcalls: one at a time, in order.
#[test]
fn helpers_do_not_share_a_lane() {
    model(|| {
        let host = Host::new([&[], &[]]);
        let gather = Gather::default();
        for packet in [1, 2] {
            let read = host.sockets[0].state.begin_read();
            host.place((packet, false), (0, 0), read, Some(&gather), &OnceCell::new());
        }
        host.sockets[0].state.answer_all();
        let other = host.clone();
        let helper = thread::spawn(move || other.help());
        host.help();
        helper.join().unwrap();
        assert_eq!(host.end(), [1, 2]);
    });
}

/// The handler answers while the reader brings the flow's next packet, and helps.
#[test]
fn what_is_brought_while_the_handler_answers_comes_after_it() {
    model(|| {
        let host = Host::new([&[2], &[]]);
        let ticket = host.detain(1);
        let other = host.clone();
        let oracle = thread::spawn(move || other.answer(ticket));
        host.round(0);
        oracle.join().unwrap();
        assert_eq!(host.end(), [1, 2]);
    });
}

/// One helper finds that its upcall is answered later, and is answered at once; another one helps.
#[test]
fn a_helper_that_puts_an_upcall_back_keeps_its_place() {
    model(|| {
        let host = Host::new([&[], &[]]);
        let gather = Gather::default();
        for packet in [1, 2] {
            let read = host.sockets[0].state.begin_read();
            host.place((packet, false), (0, 0), read, Some(&gather), &OnceCell::new());
        }
        host.sockets[0].state.answer_all();
        let other = host.clone();
        let helper = thread::spawn(move || other.help_and_detain().map(|t| other.answer(t)));
        host.help();
        helper.join().unwrap();
        assert_eq!(host.end(), [1, 2]);
    });
}

/// The shape changes while the handler owes an answer: the socket that the packet came by is read empty
/// and gone, and the flow's next packet comes by a new one.
#[test]
fn a_flow_that_comes_by_a_new_socket_waits_for_the_answer() {
    model(|| {
        let host = Host::new([&[], &[2]]);
        let ticket = host.detain(1);
        let other = host.clone();
        let oracle = thread::spawn(move || other.answer(ticket));
        host.round(1);
        oracle.join().unwrap();
        assert_eq!(host.end(), [1, 2]);
    });
}
