//! When the messages in a socket came, and whether one like another is among them.
//!
//! The kernel gives a netlink message no time. So an eBPF program in the place of the socket's filter, which
//! sees each message before it is queued, writes the time into a ring that is mapped here. The socket is a
//! queue: the times are in the order of the messages. What is lost for want of room has a time and no message.
//! By a hash of one attribute, the program writes down which message with that hash is the last one as well. And it
//! refuses a part of some messages, as it is told there: those leave nothing.

mod program;

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use self::program::{BUCKETS, HEADER, RING, SHARES_AT, SHARES_MAX};
use crate::Socket;
use crate::sys::{self, Mapping};

pub use self::program::Alike;

/// The times at which messages came to a socket, and how many of these were taken out and answered.
#[derive(Debug)]
pub(crate) struct Arrivals {
    program: OwnedFd,
    ring: Mapping,
    /// Messages that were taken out: the number of the next one. Changed by whoever takes, one at a time.
    taken: AtomicU64,
    /// Those that were taken out when whoever reads had last answered all of them.
    answered: AtomicU64,
    /// What was written when the socket was last found empty.
    drained_at: AtomicU64,
    /// Messages that the kernel had dropped for want of room when some were last found missing; wraps.
    drops: AtomicU32,
}

impl Arrivals {
    /// Loads the program. It is to be attached to a socket that is empty.
    pub(crate) fn new(alike: Alike) -> io::Result<Self> {
        let words = HEADER + RING as usize + BUCKETS;
        let map = sys::bpf_memory(words * size_of::<u64>())?;
        let program = program::write(map.as_raw_fd().cast_unsigned(), alike);
        let program = sys::bpf_socket_filter(&program)?;
        let ring = Mapping::new(map.as_fd(), words)?;
        Ok(Self {
            program,
            ring,
            taken: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            drained_at: AtomicU64::new(0),
            drops: AtomicU32::new(0),
        })
    }

    /// Puts the program in place of the socket's filter.
    pub(crate) fn attach_to(&self, socket: &Socket) -> io::Result<()> {
        // What was dropped before has no time.
        self.drops.store(socket.mem_info()?.drops, Ordering::Relaxed);
        sys::attach_bpf(socket.as_fd(), self.program.as_fd())
    }

    /// Lets in so many of 2^32 messages with each of these words, from now on, and all others.
    pub(crate) fn sample(&self, shares: impl Iterator<Item = (u32, u32)>) {
        // Never 0: that ends the list.
        let share = |(word, admit): (u32, u32)| u64::from(word) << 32 | u64::from((!admit).max(1));
        let shares = shares.map(share).chain(std::iter::repeat(0));
        for (word, share) in self.ring.words()[SHARES_AT..][..SHARES_MAX].iter().zip(shares) {
            word.store(share, Ordering::Relaxed);
        }
    }

    /// Messages that came so far.
    fn written(&self) -> u64 {
        self.ring.words()[0].load(Ordering::Acquire)
    }

    /// A message was taken out.
    #[inline]
    pub(crate) fn take(&self) {
        self.taken.store(self.taken() + 1, Ordering::Relaxed);
    }

    /// Messages that were taken out.
    #[inline]
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// All that was taken out is answered.
    #[inline]
    pub(crate) fn answer_all(&self) {
        self.answered.store(self.taken(), Ordering::Release);
    }

    /// Messages that were taken out and answered.
    pub(crate) fn answered(&self) -> u64 {
        // What is older than it was answered by now.
        self.answered.load(Ordering::Acquire)
    }

    /// There was none. What came before the last time that there was none is gone by now, taken or lost; what
    /// came since may not be queued yet: `true` if something did.
    pub(crate) fn drained(&self) -> bool {
        let written = self.written();
        let before = self.drained_at.swap(written, Ordering::Relaxed);
        self.taken.store(self.taken().max(before), Ordering::Relaxed);
        self.taken() < written
    }

    /// There was none, and the kernel has dropped so many so far: those are not to come.
    pub(crate) fn dropped(&self, drops: u32) {
        let lost = drops.wrapping_sub(self.drops.swap(drops, Ordering::Relaxed));
        let missing = self.written().saturating_sub(self.taken());
        self.taken.store(self.taken() + u64::from(lost).min(missing), Ordering::Relaxed);
    }

    /// When the message came before which so many were taken out; `None` if that is not known.
    pub(crate) fn time_of(&self, number: u64) -> Option<u64> {
        if !self.has_room_for(number) {
            return None;
        }
        let at = |number: u64| {
            self.ring.words()[HEADER + (number % RING) as usize].load(Ordering::Relaxed)
        };
        // One that is queued already may not have got its time yet, but the one before has.
        let time = at(number).max(number.checked_sub(1).map_or(0, at));
        (time > 0 && self.has_room_for(number)).then_some(time)
    }

    /// Is the time of this message in the ring? The oldest may be in the middle of becoming the newest.
    fn has_room_for(&self, number: u64) -> bool {
        self.written().checked_sub(number).is_some_and(|newer| (1..RING - 1).contains(&newer))
    }

    /// Is it known that all messages that came are answered?
    pub(crate) fn all_answered(&self) -> bool {
        self.written() <= self.answered()
    }

    /// Messages that came so far, counted from 1: the last one with this hash of its attribute, or the last of all, if
    /// it is not answered. No answer where it would be one for most.
    pub(crate) fn last_unanswered(&self, bucket: Option<usize>) -> Option<u64> {
        let (written, answered) = (self.written(), self.answered());
        let last = match bucket {
            Some(_) if written.saturating_sub(answered) > BUCKETS as u64 / 4 => return None,
            Some(bucket) => {
                let words = &self.ring.words()[HEADER + RING as usize..];
                words[bucket % BUCKETS].load(Ordering::Relaxed)
            }
            None => written,
        };
        (last > answered).then_some(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NLMSG_NOOP` with `NLM_F_ACK`: the kernel acknowledges it.
    const NOOP: [u8; 16] = [16, 0, 0, 0, 0x10, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0];

    /// The acknowledgement's copy of the header: it begins as an attribute does, with its length. Nested in it is one
    /// of the type that the flags are, with the number.
    const ALIKE: Alike = Alike { at: 20, max: 136, word: 5 };

    fn bucket(number: u32) -> usize {
        ALIKE.bucket(&noop(number)[4..])
    }

    /// [`NOOP`] with a sequence number.
    fn noop(number: u32) -> [u8; 16] {
        let mut noop = NOOP;
        noop[8..12].copy_from_slice(&number.to_ne_bytes());
        noop
    }

    fn recorded() -> Option<Socket> {
        let socket = Socket::open().unwrap();
        match socket.record_arrivals(ALIKE) {
            Ok(()) => Some(socket),
            Err(err) => {
                assert_eq!(err.kind(), io::ErrorKind::PermissionDenied, "{err}");
                eprintln!("skipped: this process may not load eBPF programs");
                None
            }
        }
    }

    fn may_hold(socket: &Socket, bucket: usize) -> bool {
        socket.last_unanswered(Some(bucket)).is_some()
    }

    fn now_ns() -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
    }

    fn take(socket: &Socket) -> Option<u64> {
        let number = socket.taken();
        socket.recv(&mut [0; 256]).unwrap().map(|_| socket.arrival_ns(number).unwrap())
    }

    #[test]
    fn each_message_has_the_time_at_which_it_came() {
        let Some(socket) = recorded() else { return };
        socket.set_recv_buffer(8 << 20).unwrap();
        // More than the ring holds, in turns that it holds.
        for turn in 0..9 {
            let mut times = vec![now_ns()];
            for _ in 0..RING / 5 {
                socket.send(&NOOP).unwrap();
                times.push(now_ns());
            }
            assert!(socket.oldest_arrival_ns().is_some_and(|ns| ns >= times[0] && ns <= times[1]));
            for window in times.windows(2) {
                let came = take(&socket).unwrap();
                assert!(
                    came >= window[0] && came <= window[1],
                    "turn {turn}: {came} in {window:?}"
                );
            }
            assert_eq!((socket.oldest_arrival_ns(), take(&socket)), (None, None));
        }
    }

    #[test]
    fn what_is_too_old_is_not_known() {
        let Some(socket) = recorded() else { return };
        socket.set_recv_buffer(16 << 20).unwrap();
        (0..RING / 2).for_each(|_| socket.send(&NOOP).unwrap());
        assert!(may_hold(&socket, ALIKE.bucket(&NOOP[4..])));
        (0..RING / 2).for_each(|_| socket.send(&NOOP).unwrap());
        assert_eq!(socket.mem_info().unwrap().drops, 0);
        assert_eq!((socket.arrival_ns(1), socket.oldest_arrival_ns()), (None, None));
        assert!(socket.arrival_ns(2).is_some() && socket.arrival_ns(RING).is_none());
        assert!(!may_hold(&socket, ALIKE.bucket(&NOOP[4..])), "nothing is told of so many");
        assert_eq!(socket.last_unanswered(None), Some(RING));
    }

    #[test]
    fn what_was_lost_is_made_up_for_when_the_socket_is_found_empty() {
        let Some(socket) = recorded() else { return };
        socket.set_recv_buffer(4096).unwrap();
        for _ in 0..2 {
            let before = now_ns();
            (0..100).for_each(|_| socket.send(&NOOP).unwrap());
            assert!(socket.mem_info().unwrap().drops > 0);
            assert!(take(&socket).unwrap() >= before);
            while take(&socket).is_some() {}
            assert_eq!(socket.oldest_arrival_ns(), None);
        }
    }

    #[test]
    fn one_that_is_like_another_is_found_until_it_is_answered() {
        let Some(socket) = recorded() else { return };
        let numbers = 1..=100;
        assert!(numbers.clone().all(|number| !may_hold(&socket, bucket(number))));
        numbers.clone().for_each(|number| socket.send(&noop(number)).unwrap());
        for number in numbers {
            assert!(may_hold(&socket, bucket(number)), "{number} is there");
            take(&socket).unwrap();
            assert!(may_hold(&socket, bucket(number)), "{number} is in somebody's hands");
            assert!(socket.oldest_unanswered_ns().is_some());
            assert_eq!(socket.last_unanswered(Some(bucket(number))), Some(number.into()));
            socket.answer_all();
        }
        assert!(!may_hold(&socket, bucket(100)) && socket.oldest_unanswered_ns().is_none());
        socket.send(&noop(100)).unwrap();
        let taken_for_it = (200..1200).filter(|number| may_hold(&socket, bucket(*number))).count();
        assert!(may_hold(&socket, bucket(100)) && taken_for_it < 10, "{taken_for_it} of 1,000");
    }

    #[test]
    fn only_the_first_bytes_make_messages_alike() {
        let first = |max, value: &[u8]| Alike { at: 0, max, word: 0 }.bucket(value);
        assert_eq!(first(8, &[]), 0);
        assert_eq!(first(u16::MAX, &[200; 136]), first(u16::MAX, &[200; 500]));
        assert_eq!(first(0, &[1, 2]), first(1, &[1, 3]));
        let different: std::collections::HashSet<_> =
            (0..=255).map(|b| first(8, &[b; 8])).collect();
        assert!(different.len() > 200, "{} of 256", different.len());
    }

    #[test]
    fn what_is_refused_leaves_nothing_and_all_else_is_let_in() {
        let Some(socket) = recorded() else { return };
        let came = || {
            (0..10).for_each(|number| socket.send(&noop(number)).unwrap());
            let came = std::iter::from_fn(|| take(&socket)).count();
            socket.answer_all();
            assert!(socket.all_answered());
            came
        };
        assert_eq!(came(), 10);
        assert!(socket.sample([(3, 0), (7, 0), (99, 0)].into_iter()));
        assert_eq!(came(), 8);
        // The eighth is the last one that has room.
        assert!(socket.sample((0..9).map(|word| (word, 0))));
        assert_eq!(came(), 2);
        assert!(socket.sample([(0, u32::MAX)].into_iter()));
        assert_eq!(came(), 10);
        assert!(socket.sample(std::iter::empty()));
        assert_eq!(came(), 10);
    }

    #[test]
    fn the_share_is_what_was_asked_for() {
        let Some(socket) = recorded() else { return };
        socket.set_recv_buffer(4 << 20).unwrap();
        socket.sample([(1, 1 << 30)].into_iter());
        (0..1_000).for_each(|_| socket.send(&noop(1)).unwrap());
        let came = std::iter::from_fn(|| take(&socket)).count();
        // A quarter; the bounds are six standard deviations off.
        assert!((168..=332).contains(&came), "{came} of 1,000");
    }

    #[test]
    fn a_word_is_looked_for_up_to_the_end_of_the_attribute() {
        // Before the copy of the header there is an error of 0: an attribute without anything in it.
        let at = |at, word| Alike { at, max: 8, word };
        for (alike, refused) in [(at(20, 5), true), (at(20, 4), false), (at(16, 5), false)] {
            let socket = Socket::open().unwrap();
            if socket.record_arrivals(alike).is_err() {
                return eprintln!("skipped: this process may not load eBPF programs");
            }
            socket.sample([(9, 0)].into_iter());
            socket.send(&noop(9)).unwrap();
            assert_eq!(take(&socket).is_none(), refused, "{alike:?}");
        }
    }
}
