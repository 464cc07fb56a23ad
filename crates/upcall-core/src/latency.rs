//! Where the time of an upcall goes, and which upcalls are measured: a clock costs as much as a good part
//! of an upcall does.

use crate::{Histogram, HistogramSnapshot};

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Histograms of one worker, by stage of an upcall's way.
        #[derive(Debug, Default)]
        pub struct Latency {
            $($(#[$doc])* pub $name: Histogram,)+
        }

        /// A reading of one or more [`Latency`]s, added up. Which upcalls are measured, each stage says.
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        pub struct LatencySnapshot {
            $($(#[$doc])* pub $name: HistogramSnapshot,)+
        }

        impl Latency {
            /// Reads every histogram.
            pub fn snapshot(&self) -> LatencySnapshot {
                LatencySnapshot { $($name: self.$name.snapshot(),)+ }
            }
        }

        impl LatencySnapshot {
            /// The stages by name, in the order of an upcall's way.
            pub fn stages(&self) -> impl Iterator<Item = (&'static str, &HistogramSnapshot)> {
                [$((stringify!($name), &self.$name),)+].into_iter()
            }
        }

        impl std::ops::AddAssign<&Self> for LatencySnapshot {
            fn add_assign(&mut self, other: &Self) {
                $(self.$name += &other.$name;)+
            }
        }
    };
}

stages! {
    /// What is known of an upcall's wait in its socket, to the beginning of the round that read it: from when
    /// the kernel sent it, where sockets record that; else from the wake-up that said there was something, or from the
    /// end of the round that left it there, and it was sent before that. Of the first upcall of a round, for one
    /// wake-up in 16, and for every round on a socket that the one before did not read empty.
    queued_socket,
    /// In the queue of lanes, from its reading to its turn. Of all that waited there.
    queued_lane,
    /// The handler's call. Of one upcall in 61, and the first one after 10 ms without one.
    decide,
    /// From the handler's verdict to when the kernel has carried out the batch with the packet. Of the
    /// same upcalls; of one if a batch has several.
    execute,
    /// From the beginning of the round that planned an install to when the kernel has carried out the
    /// batch with it. Of the first install of a batch, of one batch with installs in 16.
    install,
}

/// Chooses what is measured: one event of so many, and the first one when there was none for a while, so
/// that there are figures with little to do as well.
#[derive(Debug)]
pub struct Sampler {
    every: u32,
    until: u32,
    /// Was one taken since the time was last told?
    taken: bool,
    last_us: u64,
}

/// Microseconds without a measurement after which the next event is measured.
const PAUSE_US: u64 = 10_000;

impl Sampler {
    /// One of `every`, from the first on.
    pub fn new(every: u32) -> Self {
        Self { every, until: 1, taken: false, last_us: 0 }
    }

    /// The time as of now, from a clock that was read anyway.
    pub fn at(&mut self, now_us: u64) {
        if std::mem::take(&mut self.taken) {
            self.last_us = now_us;
        } else if now_us.saturating_sub(self.last_us) >= PAUSE_US {
            self.until = 1;
        }
    }

    /// Is this event one to measure?
    #[inline]
    pub fn take(&mut self) -> bool {
        self.until -= 1;
        if self.until > 0 {
            return false;
        }
        (self.until, self.taken) = (self.every, true);
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_of_so_many_is_taken_and_the_first_after_a_pause() {
        let mut sampler = Sampler::new(4);
        let mut taken = |count| (0..count).filter(|_| sampler.take()).collect::<Vec<u32>>();
        assert_eq!(taken(9), [0, 4, 8]);
        for (now_us, is_taken) in
            [(5, false), (PAUSE_US + 4, false), (PAUSE_US + 5, true), (2 * PAUSE_US, false)]
        {
            sampler.at(now_us);
            assert_eq!(sampler.take(), is_taken, "at {now_us}");
            sampler.until = 4;
        }
    }

    #[test]
    fn readings_add_up_by_stage() {
        let (a, b) = (Latency::default(), Latency::default());
        a.decide.record(5);
        b.decide.record(7);
        b.install.record(1);
        let mut sum = a.snapshot();
        sum += &b.snapshot();
        let counts: Vec<_> = sum.stages().map(|(name, all)| (name, all.count())).collect();
        let expected = [("queued_socket", 0), ("queued_lane", 0), ("decide", 2), ("execute", 0)];
        assert_eq!(counts[..4], expected);
        assert_eq!(counts[4], ("install", 1));
    }
}
