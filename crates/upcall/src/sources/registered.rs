//! One socket, and who takes what is in it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink_io::{Datagram, Socket};
use upcall_core::{Fence, SourceId, SourceState};

use super::Carries;

/// A socket that is read, as long as its reader holds this.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) id: SourceId,
    pub(crate) state: SourceState,
    /// `None` in tests of the engine, which make their datagrams up.
    pub(super) socket: Option<Arc<Socket>>,
    pub(super) carries: Carries,
    /// Held while a datagram is taken, by the reader or by one that a flow hopped to.
    taking: Mutex<()>,
}

impl Registered {
    pub(super) fn new(id: SourceId, socket: Option<Arc<Socket>>, carries: Carries) -> Self {
        Self { id, state: SourceState::default(), socket, carries, taking: Mutex::default() }
    }

    /// The socket's port id, echoed in EXECUTE; 0 if there is no socket.
    pub(crate) fn port_id(&self) -> u32 {
        self.socket.as_ref().map_or(0, |socket| socket.port_id())
    }

    /// What is read; `None` in tests of the engine.
    pub(crate) fn socket(&self) -> Option<&Socket> {
        self.socket.as_deref()
    }

    /// Takes the next datagram, with the number of this reading.
    #[inline]
    pub(crate) fn take(
        &self,
        recv: impl FnOnce() -> io::Result<Option<Datagram>>,
    ) -> (Taken, io::Result<Option<Datagram>>) {
        let _held = self.hold();
        let taken = self.begin();
        (taken, recv())
    }

    /// The next reading; held off.
    fn begin(&self) -> Taken {
        let number = self.socket.as_ref().map_or(0, |socket| socket.taken());
        Taken { read: self.state.begin_read(), number }
    }

    /// Is it known when the kernel sent what is in it?
    pub(crate) fn tells_times(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.records_arrivals())
    }

    /// When the kernel sent what was taken so, in nanoseconds, if that is known.
    pub(crate) fn sent_ns(&self, taken: Taken) -> Option<u64> {
        self.socket.as_ref()?.arrival_ns(taken.number)
    }

    /// The reader's answers to all that it has read are sent, or it waits in a lane.
    pub(crate) fn answer_all(&self) {
        self.state.answer_all();
        if let Some(socket) = &self.socket {
            socket.answer_all();
        }
    }

    /// Is something not answered that is like this, or anything at all?
    pub(super) fn may_hold(&self, alike: Option<usize>) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.last_unanswered(alike).is_some())
    }

    /// Is it a socket beside `by`'s that flows may hop to?
    pub(super) fn is_rival_of(&self, by: &Self) -> bool {
        self.carries == Carries::AnyFlow && self.id != by.id
    }

    /// Is it one with something older than this that is not answered?
    pub(super) fn holds_older(&self, by: &Self, sent_ns: u64) -> bool {
        self.is_rival_of(by)
            && self.oldest_unanswered_ns().is_some_and(|oldest_ns| oldest_ns < sent_ns)
    }

    /// The reading that takes the last of what [`Registered::may_hold`] tells of, or a later one: its reader may read
    /// meanwhile.
    pub(super) fn last_reading(&self, alike: Option<usize>) -> Option<Fence> {
        let socket = self.socket.as_ref()?;
        // Until then it is not empty, so that each reading takes one. How many were taken is asked before how often it
        // was read: the other way, what was read in between would be taken for two.
        let before = socket.last_unanswered(alike)?.saturating_sub(socket.taken());
        Some(Fence { source: self.id, through: self.state.reads() + before })
    }

    /// Is all answered up to the reading of this number, or all that came? What was lost has no reading.
    pub(super) fn has_answered(&self, read: u64) -> bool {
        self.state.has_answered(read)
            || self.state.is_idle() && self.socket.as_ref().is_some_and(|s| s.all_answered())
    }

    /// When the kernel sent the first of what is there, likewise.
    pub(crate) fn oldest_ns(&self) -> Option<u64> {
        self.socket.as_ref()?.oldest_arrival_ns()
    }

    /// When the kernel sent the first of what is there or in somebody's hands, likewise.
    fn oldest_unanswered_ns(&self) -> Option<u64> {
        self.socket.as_ref()?.oldest_unanswered_ns()
    }

    /// Holds the reader off, to take what is in the socket in its stead.
    pub(crate) fn hold_off(&self) -> HeldOff<'_> {
        HeldOff { _held: self.hold(), entry: self }
    }

    fn hold(&self) -> MutexGuard<'_, ()> {
        self.taking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reading of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Its number among all readings, those that found nothing as well.
    pub(crate) read: u64,
    /// Its number among the datagrams, for [`Socket::arrival_ns`].
    number: u64,
}

/// When the kernel sent an upcall.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sent<'a> {
    /// As this socket tells of what was taken out of it so; asked only if somebody wants to know.
    To(&'a Registered, Taken),
    /// Then, in nanoseconds, if it is known.
    At(Option<u64>),
}

/// See [`Registered::hold_off`].
pub(crate) struct HeldOff<'a> {
    _held: MutexGuard<'a, ()>,
    entry: &'a Registered,
}

impl HeldOff<'_> {
    /// What the reader itself may have in its hands.
    pub(crate) fn read_before(&self) -> Fence {
        Fence { source: self.entry.id, through: self.entry.state.reads() }
    }

    /// The same, if it has anything.
    pub(crate) fn in_hand(&self) -> Option<Fence> {
        (!self.entry.state.is_idle()).then(|| self.read_before())
    }

    /// Takes what is in the socket now, as long as `each` wants more: it gets each datagram with the
    /// number of its reading. What it makes of them counts as answered. `false` if `each` wanted no more.
    pub(crate) fn take_all(
        self,
        buf: &mut [u8],
        mut each: impl FnMut(Taken, Datagram, &[u8]) -> bool,
    ) -> bool {
        let Registered { socket: Some(socket), state, .. } = self.entry else { return true };
        let was_idle = state.is_idle();
        let (mut all, mut number) = (true, socket.taken());
        // What cannot be read here, the reader will find out.
        while all && let Ok(Some(datagram)) = socket.recv(buf) {
            let read = state.begin_read();
            all = each(Taken { read, number }, datagram, buf);
            number = socket.taken();
        }
        // If not, the reader says so at the end of its round, for these as well.
        if was_idle {
            self.entry.answer_all();
        }
        all
    }
}
