//! When the messages in a socket came, and whether one like another is among them.
//!
//! The kernel gives a netlink message no time. So an eBPF program in the place of the socket's filter, which
//! sees each message before it is queued, writes the time into a ring that is mapped here. The socket is a
//! queue: the times are in the order of the messages. What is lost for want of room has a time and no message.
//! By a hash of one attribute, the program writes down which message with that hash is the last one as well.

mod program;

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use self::program::{BUCKETS, HEADER, RING};
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
    /// Another program is in its place.
    is_away: AtomicBool,
    /// Some messages may have no time, and so others a wrong one, until the socket is found empty.
    is_unsure: AtomicBool,
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
            is_away: AtomicBool::new(false),
            is_unsure: AtomicBool::new(false),
        })
    }

    /// Puts the program in place of the socket's filter.
    pub(crate) fn attach_to(&self, socket: &Socket) -> io::Result<()> {
        // What was dropped meanwhile has no time.
        self.drops.store(socket.mem_info()?.drops, Ordering::Relaxed);
        sys::attach_bpf(socket.as_fd(), self.program.as_fd())?;
        self.stay();
        Ok(())
    }

    /// It is in its place.
    pub(crate) fn stay(&self) {
        self.is_away.store(false, Ordering::Relaxed);
    }

    /// Another one is about to take its place.
    pub(crate) fn leave(&self) {
        self.is_away.store(true, Ordering::Relaxed);
        self.is_unsure.store(true, Ordering::Relaxed);
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
        // More than came is taken after a time without the program.
        self.taken.store(self.taken().clamp(before.min(written), written), Ordering::Relaxed);
        if !self.is_away.load(Ordering::Relaxed) {
            self.is_unsure.store(false, Ordering::Relaxed);
        }
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
        if self.is_unsure.load(Ordering::Relaxed) || !self.has_room_for(number) {
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
        !self.is_unsure.load(Ordering::Relaxed) && self.written() <= self.answered()
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

    /// The acknowledgement's copy of the header: it begins as an attribute does, with its length.
    const ALIKE: Alike = Alike { at: 20, max: 136 };

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
        let first = |max, value: &[u8]| Alike { at: 0, max }.bucket(value);
        assert_eq!(first(8, &[]), 0);
        assert_eq!(first(u16::MAX, &[200; 136]), first(u16::MAX, &[200; 500]));
        assert_eq!(first(0, &[1, 2]), first(1, &[1, 3]));
        let different: std::collections::HashSet<_> =
            (0..=255).map(|b| first(8, &[b; 8])).collect();
        assert!(different.len() > 200, "{} of 256", different.len());
    }

    #[test]
    fn another_filter_takes_its_place_for_a_while() {
        let Some(socket) = recorded() else { return };
        let pass = crate::FilterInsn { code: 0x06, jt: 0, jf: 0, k: u32::MAX };
        socket.attach_filter(&[pass]).unwrap();
        let empty = |socket: &Socket| while socket.recv(&mut [0; 256]).unwrap().is_some() {};
        for _ in 0..2 {
            socket.send(&NOOP).unwrap();
            assert!(!socket.all_answered());
            assert_eq!(
                (socket.arrival_ns(socket.taken()), socket.oldest_arrival_ns()),
                (None, None)
            );
            empty(&socket);
        }
        socket.send(&NOOP).unwrap();
        socket.detach_filter().unwrap();
        let before = now_ns();
        socket.send(&NOOP).unwrap();
        assert_eq!(socket.oldest_arrival_ns(), None, "there is one that has no time");
        empty(&socket);
        socket.send(&NOOP).unwrap();
        assert!(take(&socket).unwrap() >= before);
    }
}
