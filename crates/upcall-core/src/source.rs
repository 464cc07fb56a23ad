//! What readers tell each other of the sockets they read.

use crate::sync::{AtomicU64, Ordering, model_fence};

/// Names a receive socket among those of a dispatcher. Ids are given anew to later sockets, so a
/// [`crate::LaneTable`] may know one that is gone: that costs a fence, never order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(u16);

impl SourceId {
    /// `None` for 0, which is no source.
    pub fn new(id: u16) -> Option<Self> {
        (id != 0).then_some(Self(id))
    }

    /// As a number, from 1.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// Something that an upcall waits for: a socket that may hold older packets of its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The socket.
    pub source: SourceId,
    /// The last of its readings that may have brought older packets; [`Fence::OPEN`] if it is not known
    /// yet.
    pub through: u64,
}

impl Fence {
    /// Any reading may bring older packets: there is something in the socket.
    pub const OPEN: u64 = u64::MAX;

    /// Takes the place of the open fence for the same socket, if there is one.
    pub(crate) fn replace_in(self, fences: &mut [Self]) {
        let open = Self { through: Self::OPEN, ..self };
        fences.iter_mut().filter(|fence| **fence == open).for_each(|fence| *fence = self);
    }
}

/// How far the reading of a socket is. Its reader numbers its readings, before it looks for a datagram,
/// and says which it has answered, once a round. Others look when a flow hops from one socket to
/// another. On a cache line of its own, so that nobody pays for a neighbour.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct SourceState {
    reads: AtomicU64,
    answered: AtomicU64,
}

impl SourceState {
    /// The reader is about to take a datagram; gives the number of this reading.
    #[inline]
    pub fn begin_read(&self) -> u64 {
        let read = self.reads.load(Ordering::Relaxed) + 1;
        // Sequentially consistent with the lane words: either a reader that takes over a lane sees this
        // reading, or this one sees that the lane was taken over.
        self.reads.store(read, Ordering::SeqCst);
        model_fence();
        read
    }

    /// Readings begun so far.
    pub fn reads(&self) -> u64 {
        model_fence();
        self.reads.load(Ordering::SeqCst)
    }

    /// The reader's answers to all that it has read are sent, or it waits in a lane.
    pub fn answer_all(&self) {
        self.answered.store(self.reads.load(Ordering::Relaxed), Ordering::SeqCst);
    }

    /// Is everything that was read answered?
    pub fn is_idle(&self) -> bool {
        self.has_answered(self.reads())
    }

    /// Is everything answered up to the reading of this number?
    pub fn has_answered(&self, read: u64) -> bool {
        self.answered.load(Ordering::SeqCst) >= read
    }
}
