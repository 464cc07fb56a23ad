//! How many upcalls a process had in its hands: for the one that comes after a crash.
//!
//! What a worker took out of a socket and had not answered when its process was killed is lost, and
//! nobody else can know of it: the kernel counts it as delivered. So each worker keeps two counts in
//! memory that outlives the process, like the sockets do: what it took, and what became of it. Beside them is
//! what the process made of datapath and ports (`made.rs`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use netlink_io::SharedWords;
use upcall_core::Ledger;

use crate::made;

/// First word of a record of this layout.
const MAGIC: u64 = u64::from_le_bytes(*b"upcalls\x02");
/// Words of a worker's slot: a cache line, so that workers do not disturb each other.
const SLOT_WORDS: usize = 8;
/// Workers at a time: twice as many as the daemon allows, because a reshape has the old and the new.
const SLOTS: usize = 2048;
/// The header takes the first slot's place.
const SLOTS_END: usize = (1 + SLOTS) * SLOT_WORDS;
const WORDS: usize = SLOTS_END + made::WORDS;
/// What of a slot is used.
const TAKEN: usize = 0;
const DONE: usize = 1;

/// The record of a process' upcalls in flight and of what it made, to be kept with its sockets
/// ([`Dispatcher::in_flight`](crate::Dispatcher::in_flight)) and read by its successor
/// ([`Builder::inherit_in_flight`](crate::Builder::inherit_in_flight)).
///
/// 136 KiB of address space, of which a page is used for every 64 workers, and one or two for ports.
#[derive(Debug)]
pub struct InFlight {
    words: SharedWords,
    /// Slots that no worker has, the next one last.
    free: Mutex<Vec<usize>>,
}

impl InFlight {
    pub(crate) fn create() -> io::Result<Self> {
        let words = SharedWords::create("upcalls-in-flight", WORDS)?;
        words.words()[0].store(MAGIC, Relaxed);
        Ok(Self { words, free: Mutex::new((1..=SLOTS).rev().collect()) })
    }

    /// Takes a predecessor's record that the process inherited as descriptor `fd`, which belongs to the
    /// result from then on.
    ///
    /// # Errors
    ///
    /// When `fd` is not open or no such record; it is then left alone. When the record is of another
    /// version, with the descriptor closed.
    pub fn inherit(fd: RawFd) -> io::Result<Self> {
        let words = SharedWords::inherit(fd, WORDS)?;
        if words.words()[0].load(Relaxed) != MAGIC {
            let what = "it is a record of upcalls in flight of another version";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(Self { words, free: Mutex::default() })
    }

    /// A number that no other record on this host has while this one is there.
    ///
    /// # Errors
    ///
    /// What the kernel says of the descriptor.
    pub fn id(&self) -> io::Result<u64> {
        self.words.id()
    }

    /// Upcalls taken from sockets that nothing is known to have become of. While workers work: those
    /// that they have in their hands. Once they were killed: what was lost with them, at most. It counts
    /// up to one too many for each worker that was about to take one, and up to a batch too many for
    /// one that was killed between handing answers to the kernel and saying so.
    pub fn count(&self) -> u64 {
        let sum = |at: usize| {
            let slots = self.words.words()[..SLOTS_END].chunks_exact(SLOT_WORDS).skip(1);
            slots.fold(0u64, |sum, slot: &[AtomicU64]| sum.wrapping_add(slot[at].load(Relaxed)))
        };
        // A worker may complete what another one took, so that only the sums mean something. What was
        // done is read first: later it would be more than what was taken.
        let done = sum(DONE);
        sum(TAKEN).wrapping_sub(done).cast_signed().max(0).cast_unsigned()
    }

    /// Where it says what was made.
    pub(crate) fn made(&self) -> &[AtomicU64] {
        &self.words.words()[SLOTS_END..]
    }

    /// A slot for a worker, until it is dropped.
    ///
    /// # Errors
    ///
    /// When 2,048 workers have theirs.
    pub(crate) fn slot(self: &Arc<Self>) -> io::Result<Slot> {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let number = free().ok_or_else(|| io::Error::other("2,048 workers are the most"))?;
        let mut slot = Slot { record: self.clone(), number, base: [0; 2] };
        slot.base = [slot.load(TAKEN), slot.load(DONE)];
        Ok(slot)
    }
}

impl AsFd for InFlight {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }
}

/// Where one worker says what it has in its hands.
#[derive(Debug)]
pub(crate) struct Slot {
    record: Arc<InFlight>,
    number: usize,
    /// What the slot's last owner left: it may have completed what others took, so it must stay.
    base: [u64; 2],
}

impl Slot {
    /// To be said before each receive: what it takes out of the socket is in flight, even if the
    /// process does not live to see it.
    #[inline]
    pub(crate) fn about_to_take(&self, ledger: &Ledger) {
        self.store(TAKEN, ledger.received.get() + 1);
    }

    /// To be said when answers were handed to the kernel.
    pub(crate) fn done(&self, ledger: &Ledger) {
        let became = [&ledger.completed, &ledger.shed, &ledger.malformed, &ledger.foreign];
        self.store(DONE, became.iter().map(|count| count.get()).sum());
    }

    /// To be said at the end of a round: nothing is about to be taken.
    pub(crate) fn at_rest(&self, ledger: &Ledger) {
        self.store(TAKEN, ledger.received.get());
        self.done(ledger);
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        &self.record.words.words()[self.number * SLOT_WORDS + at]
    }

    fn load(&self, at: usize) -> u64 {
        self.word(at).load(Relaxed)
    }

    #[inline]
    fn store(&self, at: usize, count: u64) {
        self.word(at).store(self.base[at].wrapping_add(count), Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.record.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    fn successor(record: &InFlight) -> io::Result<InFlight> {
        InFlight::inherit(record.as_fd().try_clone_to_owned()?.into_raw_fd())
    }

    #[test]
    fn a_successor_reads_what_was_in_flight() {
        let record = Arc::new(InFlight::create().unwrap());
        let (slots, ledgers) = (
            [record.slot().unwrap(), record.slot().unwrap()],
            [Ledger::default(), Ledger::default()],
        );
        ledgers[0].received.add(9);
        slots[0].about_to_take(&ledgers[0]);
        assert_eq!(successor(&record).unwrap().count(), 10);
        slots[0].at_rest(&ledgers[0]);
        // The second worker helped: it completes what the first one took.
        ledgers[1].completed.add(4);
        ledgers[1].shed.add(1);
        slots[1].done(&ledgers[1]);
        assert_eq!(successor(&record).unwrap().count(), 4);
        ledgers[1].completed.add(5);
        slots[1].done(&ledgers[1]);
        assert_eq!(record.count(), 0, "never less than none");
    }

    #[test]
    fn a_slot_goes_on_from_where_its_last_owner_was() {
        let record = Arc::new(InFlight::create().unwrap());
        let (first, ledger) = (record.slot().unwrap(), Ledger::default());
        ledger.received.add(5);
        first.at_rest(&ledger);
        drop(first);
        let (second, ledger) = (record.slot().unwrap(), Ledger::default());
        ledger.completed.add(2);
        second.at_rest(&ledger);
        assert_eq!(record.count(), 3);
    }

    #[test]
    fn slots_are_as_many_as_is_said() {
        let record = Arc::new(InFlight::create().unwrap());
        let mut slots: Vec<_> = (0..SLOTS).map(|_| record.slot().unwrap()).collect();
        assert_eq!(record.slot().unwrap_err().to_string(), "2,048 workers are the most");
        slots.pop();
        assert!(record.slot().is_ok());
    }

    #[test]
    fn another_version_is_refused() {
        let words = SharedWords::create("test", WORDS).unwrap();
        let fd = words.as_fd().try_clone_to_owned().unwrap().into_raw_fd();
        assert!(InFlight::inherit(fd).unwrap_err().to_string().contains("another version"));
    }
}
