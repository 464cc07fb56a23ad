//! When the upcalls of all CPUs are to come by one socket: the funnel.
//!
//! Without times, two sockets tell nothing of which of their messages is the older one, but one keeps the order in
//! which all CPUs sent. So while flows hop between CPUs, and as long as one reader can read it all, their
//! upcalls come by one socket. Hops cannot be seen there: after a while the CPUs get their own sockets back,
//! and if flows still hop, the next time is longer.

/// So many hops within [`HOPS_US`] are not by chance: a thread that moves to another CPU hops once. Behind a
/// funnel, one is enough.
const HOPS_MIN: u32 = 2;
/// The time in which hops are counted, in microseconds.
const HOPS_US: u64 = 1_000_000;
/// How long the funnel stays at first, in microseconds; twice as long each time that flows hop again soon.
const STAY_US: u64 = 5_000_000;
const STAY_US_MAX: u64 = 80_000_000;
/// How long there is none after one that could not be read fast enough, in microseconds; twice as long each
/// time that this happens again soon.
const REST_US: u64 = 2_000_000;
const REST_US_MAX: u64 = 64_000_000;
/// A share of the receive buffer: more than that waiting, and one reader is not enough.
const BEHIND_PART: u64 = 8;

/// Decides when to put all CPUs' upcalls into one socket, and when to end that; the time is passed in.
#[derive(Debug, Clone, Default)]
pub struct Funnel {
    /// Hops since `counted_since_us`.
    hops: u32,
    counted_since_us: u64,
    /// While it is up: until when. 0 while it is not.
    until_us: u64,
    /// No hop counts before.
    not_before_us: u64,
    /// When it ended last, and why.
    ended_us: u64,
    stay_us: u64,
    rest_us: u64,
}

impl Funnel {
    /// A flow came to another socket than before. `true` if the funnel is wanted.
    pub fn hopped(&mut self, now_us: u64) -> bool {
        if self.is_up() || now_us < self.not_before_us {
            return false;
        }
        if now_us.saturating_sub(self.counted_since_us) > HOPS_US {
            (self.counted_since_us, self.hops) = (now_us, 0);
        }
        self.hops += 1;
        self.hops >= HOPS_MIN || self.is_again(now_us)
    }

    /// Was it up a moment ago?
    fn is_again(&self, now_us: u64) -> bool {
        self.stay_us > 0 && now_us.saturating_sub(self.ended_us) <= HOPS_US
    }

    /// It is up from now on; gives how long it stays, in microseconds.
    pub fn up(&mut self, now_us: u64) -> u64 {
        self.stay_us =
            if self.is_again(now_us) { (self.stay_us * 2).min(STAY_US_MAX) } else { STAY_US };
        self.until_us = now_us + self.stay_us;
        self.hops = 0;
        self.stay_us
    }

    /// Is it up?
    pub fn is_up(&self) -> bool {
        self.until_us > 0
    }

    /// So much of its socket's buffer is filled when a round of reading ends: is it too much for one reader?
    pub fn is_behind(&self, queued_bytes: u64, buffer_bytes: u64) -> bool {
        self.is_up() && queued_bytes * BEHIND_PART > buffer_bytes
    }

    /// It is down from now on: its time is over, or it was `behind`, or it could not be put up.
    pub fn down(&mut self, now_us: u64, behind: bool) {
        if behind {
            let again = self.rest_us > 0 && now_us.saturating_sub(self.not_before_us) <= REST_US;
            self.rest_us = if again { (self.rest_us * 2).min(REST_US_MAX) } else { REST_US };
            self.not_before_us = now_us + self.rest_us;
        }
        (self.until_us, self.ended_us) = (0, now_us);
        (self.counted_since_us, self.hops) = (now_us, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    /// Hops every so often until the funnel is wanted; gives when.
    fn hop_until_wanted(funnel: &mut Funnel, from_us: u64, every_us: u64) -> Option<u64> {
        let hops = (from_us..from_us + 100 * HOPS_US).step_by(every_us as usize);
        let mut hops = hops.take(100_000);
        hops.find(|now_us| funnel.hopped(*now_us))
    }

    #[test]
    fn flows_that_hop_now_and_then_do_not_want_it() {
        let mut funnel = Funnel::default();
        assert_eq!(hop_until_wanted(&mut funnel, MS, HOPS_US + MS), None);
        assert_eq!(hop_until_wanted(&mut Funnel::default(), MS, MS), Some(MS + MS));
    }

    #[test]
    fn it_stays_longer_each_time_that_flows_hop_on() {
        let (mut funnel, mut now_us, mut stays) = (Funnel::default(), MS, Vec::new());
        for _ in 0..8 {
            now_us = hop_until_wanted(&mut funnel, now_us, MS).unwrap();
            let stay_us = funnel.up(now_us);
            assert!(funnel.is_up() && !funnel.hopped(now_us + MS), "not twice");
            stays.push(stay_us / STAY_US);
            now_us += stay_us;
            funnel.down(now_us, false);
            assert!(funnel.clone().hopped(now_us + MS), "one is enough now");
        }
        assert_eq!(stays, [1, 2, 4, 8, 16, 16, 16, 16]);
        now_us = hop_until_wanted(&mut funnel, now_us + 2 * HOPS_US, MS).unwrap();
        assert_eq!(funnel.up(now_us), STAY_US, "there was peace for a while");
    }

    #[test]
    fn one_reader_that_falls_behind_ends_it_for_a_while() {
        let mut funnel = Funnel::default();
        assert!(!funnel.is_behind(900, 1000), "it is not up");
        let (mut now_us, mut rests) = (MS, Vec::new());
        for _ in 0..3 {
            now_us = hop_until_wanted(&mut funnel, now_us, MS).unwrap();
            funnel.up(now_us);
            assert!(!funnel.is_behind(125, 1000) && funnel.is_behind(126, 1000));
            funnel.down(now_us, true);
            let from_us = now_us;
            now_us = hop_until_wanted(&mut funnel, now_us, MS).unwrap();
            rests.push((now_us - from_us) / REST_US);
        }
        assert_eq!(rests, [1, 2, 4]);
    }
}
