//! The lane table: which socket the upcalls of each flow were last read from.
//!
//! One lookup for each upcall, in one cache line, without a lock: the common case is that a flow's
//! upcalls keep coming by the socket they came by before. A flow is known by a seeded hash alone, in
//! buckets of eight words; when all eight are taken by flows that are active, flows share a lane. So
//! the table has one size whatever the number of flows, and too small a table costs parallelism, never
//! order. A lane that was idle for a while is forgotten by whoever needs its place.

use crate::SourceId;
use crate::sync::{AtomicU64, Ordering};

/// Lanes of a bucket: as many words as a cache line has.
#[cfg(not(loom))]
const WAYS: usize = 8;
/// The checker tries every order of every access: the fewer, the further it gets.
#[cfg(loom)]
const WAYS: usize = 2;
/// Microseconds of a tick, as a power of two: 131 ms.
const TICK_SHIFT: u32 = 17;
const TICK_BITS: u32 = 13;
const TICK_MASK: u64 = (1 << TICK_BITS) - 1;
/// Ticks without an upcall after which a lane may be forgotten: no backlog that a reader works on is
/// as old as that.
const IDLE_TICKS: u64 = 16;

/// A lane, for as long as its flow has upcalls on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lane {
    pub(crate) slot: u32,
    pub(crate) tag: u32,
    hopped: bool,
}

impl Lane {
    /// Has the flow changed its socket lately?
    pub fn hopped(self) -> bool {
        self.hopped
    }
}

/// What a reader may do with an upcall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Handle it now: the flow's upcalls come by this socket alone.
    Run,
    /// The flow is new, and what is older of it may be in another socket: ask [`crate::Lanes::place`].
    Doubt,
    /// Ask [`crate::Lanes::place`]: the flow came by another socket before, or upcalls of it wait.
    Wait,
}

/// Where the upcalls of a flow are that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// Some wait in their lane, or are at work out of it.
    Waiting,
    /// None waits; the last was read from this socket, and its reader may have it in its hands.
    ReadFrom(SourceId),
    /// None was read lately.
    Unknown,
}

/// Time as the table counts it; wraps after 18 minutes, which at worst takes an idle lane for an
/// active one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick(u64);

impl Tick {
    /// From a monotonic time in microseconds.
    pub fn of_us(now_us: u64) -> Self {
        Self((now_us >> TICK_SHIFT) & TICK_MASK)
    }

    fn idle_since(self, last: Self) -> bool {
        (self.0.wrapping_sub(last.0) & TICK_MASK) >= IDLE_TICKS
    }
}

/// A lane's word: tag, tick, flags, source; 0 for a lane that was never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(u64);

impl Word {
    const QUEUED: u64 = 1 << 16;
    const HOPPED: u64 = 1 << 17;
    const SHARED: u64 = 1 << 18;
    const TICK_AT: u32 = 32 - TICK_BITS;

    fn new(tag: u32, tick: Tick, flags: u64, source: SourceId) -> Self {
        Self(u64::from(tag) << 32 | tick.0 << Self::TICK_AT | flags | u64::from(source.get()))
    }

    fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn tick(self) -> Tick {
        Tick((self.0 >> Self::TICK_AT) & TICK_MASK)
    }

    /// The socket the lane's last upcall was read from.
    pub(crate) fn source(self) -> Option<SourceId> {
        SourceId::new(self.0 as u16)
    }

    /// Do upcalls of the lane wait, or is one of those that waited at work?
    pub(crate) fn is_queued(self) -> bool {
        self.0 & Self::QUEUED != 0
    }

    /// The same, seen at `tick`, with one more flag.
    fn at(self, tick: Tick, flag: u64) -> Self {
        Self(self.0 & !(TICK_MASK << Self::TICK_AT) | tick.0 << Self::TICK_AT | flag)
    }

    fn is_hopped(self) -> bool {
        self.0 & Self::HOPPED != 0
    }

    /// Flows without a place of their own go here.
    fn is_shared(self) -> bool {
        self.0 & Self::SHARED != 0
    }

    fn is_free(self, now: Tick) -> bool {
        self.0 == 0 || (!self.is_queued() && now.idle_since(self.tick()))
    }
}

#[repr(align(64))]
#[derive(Debug)]
struct Bucket([AtomicU64; WAYS]);

/// See the module.
#[derive(Debug)]
pub struct LaneTable {
    buckets: Box<[Bucket]>,
}

impl LaneTable {
    /// A table of at least `lanes` lanes, 8 bytes each; from 8 to 2^26.
    pub fn new(lanes: usize) -> Self {
        let buckets = lanes.clamp(WAYS, 1 << 26).div_ceil(WAYS).next_power_of_two();
        let bucket = || Bucket(std::array::from_fn(|_| AtomicU64::new(0)));
        Self { buckets: (0..buckets).map(|_| bucket()).collect() }
    }

    /// Lanes there are.
    pub fn capacity(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// An upcall of the flow with this hash was read from `source`: may it be handled at once? If nothing
    /// is known of the flow, `is_first` is asked whether nothing of it can be elsewhere.
    #[inline]
    pub fn claim(
        &self,
        hash: u64,
        source: SourceId,
        now: Tick,
        mut is_first: impl FnMut() -> bool,
    ) -> (Lane, Claim) {
        let tag = (hash >> 32) as u32;
        let bucket = hash as usize & (self.buckets.len() - 1);
        loop {
            let (way, word) = self.find(bucket, tag, now);
            let slot = (bucket * WAYS + way) as u32;
            if word.is_free(now) {
                // A new flow, or one that comes back after a pause: nothing of it that was read is on its way.
                if !is_first() {
                    return (Lane { slot, tag, hopped: false }, Claim::Doubt);
                }
                if self.swap(slot, word, Word::new(tag, now, 0, source)) {
                    return (Lane { slot, tag, hopped: false }, Claim::Run);
                }
                continue;
            }
            let shared = if word.tag() == tag { 0 } else { Word::SHARED };
            let lane = Lane { slot, tag: word.tag(), hopped: word.is_hopped() };
            let waits = word.is_queued() || word.source() != Some(source);
            let tick = if waits { word.tick() } else { now };
            let new = word.at(tick, shared);
            if new == word || self.swap(slot, word, new) {
                return (lane, if waits { Claim::Wait } else { Claim::Run });
            }
        }
    }

    /// The way of a flow: its own, else a free one, else one to share.
    #[inline]
    fn find(&self, bucket: usize, tag: u32, now: Tick) -> (usize, Word) {
        let words = &self.buckets[bucket].0;
        let mut free = None;
        for (way, word) in words.iter().enumerate() {
            let word = Word(word.load(Ordering::SeqCst));
            if word.0 != 0 && word.tag() == tag {
                return (way, word);
            }
            if free.is_none() && word.is_free(now) {
                free = Some((way, word));
            }
        }
        // A flow that shared a lane stays there as long as that is active.
        let way = tag as usize % WAYS;
        let shared = Word(words[way].load(Ordering::SeqCst));
        free.filter(|_| shared.is_free(now) || !shared.is_shared()).unwrap_or((way, shared))
    }

    /// Makes the lane one whose upcalls wait, last read from `source`; gives what it was before, or
    /// `None` if it is another flow's by now. Only under the lock of the queue.
    pub(crate) fn enter(&self, lane: Lane, source: SourceId, now: Tick) -> Option<Word> {
        loop {
            let word = self.word(lane.slot);
            if word.tag() != lane.tag {
                return None;
            }
            let hopped = word.source() != Some(source) || word.is_hopped();
            let kept = word.0 & Word::SHARED;
            let flags = Word::QUEUED | kept | if hopped { Word::HOPPED } else { 0 };
            if self.swap(lane.slot, word, Word::new(lane.tag, now, flags, source)) {
                return Some(word);
            }
        }
    }

    /// Makes the lane one whose upcalls are handled as they are read, the last one from `source`. Only
    /// under the lock of the queue.
    pub(crate) fn leave(&self, slot: u32, source: SourceId) {
        loop {
            let word = self.word(slot);
            let flags = word.0 & (Word::HOPPED | Word::SHARED);
            if self.swap(slot, word, Word::new(word.tag(), word.tick(), flags, source)) {
                return;
            }
        }
    }

    /// Where the upcalls of the flow with this hash are, as far as its lane knows.
    pub(crate) fn whereabouts(&self, hash: u64, now: Tick) -> Whereabouts {
        let (_, word) =
            self.find(hash as usize & (self.buckets.len() - 1), (hash >> 32) as u32, now);
        match word.source() {
            _ if word.is_queued() => Whereabouts::Waiting,
            Some(source) if !word.is_free(now) => Whereabouts::ReadFrom(source),
            _ => Whereabouts::Unknown,
        }
    }

    fn word(&self, slot: u32) -> Word {
        Word(self.at(slot).load(Ordering::SeqCst))
    }

    fn swap(&self, slot: u32, old: Word, new: Word) -> bool {
        self.at(slot).compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn at(&self, slot: u32) -> &AtomicU64 {
        &self.buckets[slot as usize / WAYS].0[slot as usize % WAYS]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const NOW: Tick = Tick(100);
    const LATER: Tick = Tick(100 + IDLE_TICKS);

    fn source(id: u16) -> SourceId {
        SourceId::new(id).expect("not 0")
    }

    fn hash(tag: u32, bucket: u32) -> u64 {
        u64::from(tag) << 32 | u64::from(bucket)
    }

    #[test]
    fn a_flow_that_keeps_its_socket_runs() {
        let table = LaneTable::new(64);
        let (first, claim) = table.claim(hash(7, 3), source(1), NOW, || true);
        assert_eq!(claim, Claim::Run);
        assert_eq!(table.claim(hash(7, 3), source(1), NOW, || true), (first, Claim::Run));
        assert_eq!(table.claim(hash(8, 3), source(2), NOW, || true).1, Claim::Run, "another flow");
    }

    #[test]
    fn a_flow_that_hops_waits_and_is_known_to_hop() {
        let table = LaneTable::new(64);
        table.claim(hash(7, 3), source(1), NOW, || true);
        let (lane, claim) = table.claim(hash(7, 3), source(2), NOW, || true);
        assert_eq!((claim, lane.hopped()), (Claim::Wait, false));
        let before = table.enter(lane, source(2), NOW).unwrap();
        assert_eq!((before.source(), before.is_queued()), (Some(source(1)), false));
        assert_eq!(table.claim(hash(7, 3), source(1), NOW, || true).1, Claim::Wait);
        assert_eq!(
            table.claim(hash(7, 3), source(2), LATER, || true).1,
            Claim::Wait,
            "queued: never idle"
        );
        table.leave(lane.slot, source(2));
        let (lane, claim) = table.claim(hash(7, 3), source(2), NOW, || true);
        assert_eq!((claim, lane.hopped()), (Claim::Run, true));
        let (lane, _) = table.claim(hash(7, 3), source(2), LATER, || true);
        let (again, _) = table.claim(hash(7, 3), source(2), LATER, || true);
        assert!(!again.hopped(), "a pause forgets it: {lane:?}");
    }

    #[test]
    fn an_idle_lane_is_taken_by_another_flow() {
        let table = LaneTable::new(8);
        for tag in 1..=8 {
            assert_eq!(table.claim(hash(tag, 0), source(1), NOW, || true).1, Claim::Run);
        }
        assert_eq!(
            table.claim(hash(9, 0), source(2), NOW, || true).1,
            Claim::Wait,
            "no place: it shares"
        );
        assert_eq!(table.claim(hash(9, 0), source(2), LATER, || true).1, Claim::Run);
        assert_eq!(
            table.claim(hash(1, 0), source(2), LATER, || true).1,
            Claim::Run,
            "back after a pause"
        );
    }

    #[test]
    fn a_flow_that_shares_keeps_its_order_with_the_owner() {
        let table = LaneTable::new(8);
        for tag in 1..=8 {
            table.claim(hash(tag, 0), source(1), NOW, || true);
        }
        let (shared, claim) = table.claim(hash(9, 0), source(1), NOW, || true);
        assert_eq!(claim, Claim::Run);
        let (lane, claim) = table.claim(hash(9, 0), source(2), NOW, || true);
        assert_eq!((lane.slot, lane.tag, claim), (shared.slot, shared.tag, Claim::Wait));
        assert!(table.enter(lane, source(2), NOW).is_some());
    }

    #[test]
    fn a_lane_that_became_anothers_is_not_entered() {
        let table = LaneTable::new(8);
        for tag in 1..=8 {
            table.claim(hash(tag, 0), source(1), NOW, || true);
        }
        let (lane, _) = table.claim(hash(1, 0), source(2), NOW, || true);
        table.claim(hash(9, 0), source(3), LATER, || true);
        assert_eq!(table.enter(lane, source(2), LATER), None);
    }

    #[test]
    fn sizes_are_bounded_and_paid_for_once() {
        assert_eq!(LaneTable::new(0).capacity(), 8);
        assert_eq!(LaneTable::new(1_000).capacity(), 1 << 10);
        assert_eq!(size_of::<Bucket>(), 64);
    }
}
