//! How many upcalls of one port are taken in: a token bucket for each port and class (contract F1, F2).
//!
//! A bucket is one word, the time at which it would be full again (the generic cell rate algorithm of
//! ITU-T I.371), so that all workers share it without a lock. What a port has beyond its rate is
//! refused as it is read; the buckets of other ports know nothing of it.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;

use crate::Class;
use crate::queue::CLASSES;

/// Port numbers there are (`DP_MAX_PORTS`, `net/openvswitch/datapath.h`); the last one stands for
/// packets without a port.
const PORTS: usize = if cfg!(miri) { 1 << 8 } else { 1 << 16 };

/// So many a second, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Upcalls a second.
    pub per_second: NonZeroU32,
    /// Upcalls at once. Time is looked at once a round of up to 64, so less than that is a sharper bound
    /// than it seems.
    pub burst: NonZeroU32,
}

impl FromStr for Rate {
    type Err = String;

    /// Reads `RATE` or `RATE:BURST`; a burst that is not given is a tenth of a second, at least 64.
    fn from_str(text: &str) -> Result<Self, String> {
        let (rate, burst) = text.split_once(':').map_or((text, None), |(r, b)| (r, Some(b)));
        let number = |part: &str| part.trim().parse::<NonZeroU32>().ok();
        let per_second = number(rate);
        let burst = match burst {
            Some(burst) => number(burst),
            None => per_second.and_then(|rate| NonZeroU32::new((rate.get() / 10).max(64))),
        };
        per_second.zip(burst).map(|(per_second, burst)| Self { per_second, burst }).ok_or_else(|| {
            format!("'{text}' is no rate: write upcalls a second, as 5000, or with a burst, as 5000:500")
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.per_second, self.burst)
    }
}

/// A token bucket: one word, the time at which it would be full again, which threads share without a
/// lock.
#[derive(Debug)]
pub struct TokenBucket {
    size: Size,
    full_at_ns: AtomicU64,
}

impl TokenBucket {
    /// A full one.
    pub fn new(rate: Rate) -> Self {
        Self { size: Size::new(rate), full_at_ns: AtomicU64::new(0) }
    }

    /// Takes a token, if there is one at this time.
    pub fn take(&self, now_ns: u64) -> bool {
        self.bucket().take(now_ns)
    }

    fn bucket(&self) -> Bucket<'_> {
        Bucket { size: &self.size, full_at_ns: &self.full_at_ns }
    }
}

/// What the tokens of a bucket are worth in time.
#[derive(Debug)]
struct Size {
    rate: Rate,
    /// Nanoseconds that one token is worth, and that a bucket holds beside that.
    each_ns: u64,
    slack_ns: u64,
}

impl Size {
    fn new(rate: Rate) -> Self {
        let each_ns = 1_000_000_000 / u64::from(rate.per_second.get());
        Self { rate, each_ns, slack_ns: each_ns * u64::from(rate.burst.get() - 1) }
    }

    /// When a bucket is full that was to be at `full_at_ns`, less a token; `None` if it has none left.
    fn charged(&self, full_at_ns: u64, now_ns: u64) -> Option<u64> {
        let full_at_ns = full_at_ns.max(now_ns);
        (full_at_ns - now_ns <= self.slack_ns).then_some(full_at_ns + self.each_ns)
    }
}

/// A bucket, wherever it is kept.
#[derive(Debug, Clone, Copy)]
struct Bucket<'a> {
    size: &'a Size,
    full_at_ns: &'a AtomicU64,
}

impl Bucket<'_> {
    fn has(self, now_ns: u64) -> bool {
        self.size.charged(self.full_at_ns.load(Ordering::Relaxed), now_ns).is_some()
    }

    fn take(self, now_ns: u64) -> bool {
        let charge = |full_at_ns| self.size.charged(full_at_ns, now_ns);
        self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge).is_ok()
    }
}

/// What each port may have taken in; `None` is as much as comes. The default bounds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortRates {
    /// Upcalls of all classes together.
    pub all: Option<Rate>,
    /// Packets that no flow matched.
    pub miss: Option<Rate>,
    /// Packets that a flow sent up.
    pub action: Option<Rate>,
    /// Samples.
    pub sample: Option<Rate>,
}

impl PortRates {
    fn by_class(self) -> [Option<Rate>; CLASSES] {
        [self.miss, self.action, self.sample]
    }
}

/// The buckets of all ports: 512 KiB for each rate that bounds all of them, and a few words for a port
/// with rates of its own.
#[derive(Debug, Default)]
pub struct Police {
    shared: Bounds<Buckets>,
    own: HashMap<u32, Arc<Bounds<TokenBucket>>>,
}

/// What bounds a port, in all and by class.
#[derive(Debug)]
struct Bounds<B> {
    all: Option<Arc<B>>,
    by_class: [Option<Arc<B>>; CLASSES],
}

impl<B> Default for Bounds<B> {
    fn default() -> Self {
        Self { all: None, by_class: Default::default() }
    }
}

impl Police {
    /// Has each port bounded by `rates`, but those of `own` by theirs. What was so before keeps its
    /// tokens. `None` if nothing is bounded.
    pub fn new(
        rates: PortRates,
        own: impl Iterator<Item = (u32, PortRates)>,
        before: Option<&Self>,
    ) -> Option<Self> {
        let shared = Bounds::new(rates, before.map(|before| &before.shared));
        let bounds = |(port, rates)| {
            let before = before.and_then(|before| before.own.get(&port));
            (port, Arc::new(Bounds::new(rates, before.map(|bounds| &**bounds))))
        };
        let own: HashMap<_, _> = own.map(bounds).collect();
        let any = shared.any() || own.values().any(|bounds| bounds.any());
        any.then(|| Self { shared, own })
    }

    /// May an upcall of this port and class be taken in? If so, it is charged. An upcall that the port
    /// has no rate for takes nothing from its class.
    pub fn admit(&self, port: u32, class: Class, now_us: u64) -> bool {
        let now = now_us * 1_000;
        match self.own.get(&port) {
            Some(own) => own.admit(class, now, TokenBucket::bucket),
            None => self.shared.admit(class, now, |buckets| buckets.bucket(port)),
        }
    }
}

impl<B: Bounding> Bounds<B> {
    fn new(rates: PortRates, before: Option<&Self>) -> Self {
        let keep = |rate: Option<Rate>, before: Option<&Arc<B>>| {
            let rate = rate?;
            let same = before.filter(|before| before.rate() == rate);
            Some(same.cloned().unwrap_or_else(|| Arc::new(B::full(rate))))
        };
        let all = keep(rates.all, before.and_then(|before| before.all.as_ref()));
        let rates = rates.by_class();
        let by_class = std::array::from_fn(|class| {
            keep(rates[class], before.and_then(|before| before.by_class[class].as_ref()))
        });
        Self { all, by_class }
    }

    fn any(&self) -> bool {
        self.all.is_some() || self.by_class.iter().any(Option::is_some)
    }

    fn admit<'a>(&'a self, class: Class, now: u64, bucket: impl Fn(&'a B) -> Bucket<'a>) -> bool {
        let of_class = self.by_class[class as usize].as_deref().map(&bucket);
        if of_class.is_some_and(|bucket| !bucket.has(now)) {
            return false;
        }
        // Another worker may have taken the last of the class since: then it is the one's to refuse.
        self.all.as_deref().is_none_or(|all| bucket(all).take(now))
            && of_class.is_none_or(|bucket| bucket.take(now))
    }
}

/// One bucket, or many of a size.
trait Bounding {
    /// None of them with less than it can hold.
    fn full(rate: Rate) -> Self;
    fn rate(&self) -> Rate;
}

impl Bounding for TokenBucket {
    fn full(rate: Rate) -> Self {
        Self::new(rate)
    }

    fn rate(&self) -> Rate {
        self.size.rate
    }
}

/// A bucket for each port.
#[derive(Debug)]
struct Buckets {
    size: Size,
    /// When each is full, in nanoseconds.
    ports: Box<[AtomicU64]>,
}

impl Buckets {
    fn bucket(&self, port: u32) -> Bucket<'_> {
        Bucket { size: &self.size, full_at_ns: &self.ports[port as usize % PORTS] }
    }
}

impl Bounding for Buckets {
    fn full(rate: Rate) -> Self {
        Self { size: Size::new(rate), ports: (0..PORTS).map(|_| AtomicU64::new(0)).collect() }
    }

    fn rate(&self) -> Rate {
        self.size.rate
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(text: &str) -> Rate {
        text.parse().expect("a rate")
    }

    /// All ports alike.
    fn police(rates: PortRates) -> Option<Police> {
        Police::new(rates, std::iter::empty(), None)
    }

    #[test]
    fn rates_are_written_with_or_without_a_burst() {
        assert_eq!(rate("5000:7").to_string(), "5000:7");
        assert_eq!((rate("5000").burst.get(), rate("10").burst.get()), (500, 64));
        for text in ["", "0", "5:0", "5:", ":5", "5/s", "-1", "99999999999"] {
            let err = text.parse::<Rate>().unwrap_err();
            assert!(err.contains("is no rate") && err.contains("5000:500"), "{err}");
        }
    }

    #[test]
    fn nothing_bounded_is_nothing_to_ask() {
        assert!(police(PortRates::default()).is_none());
        let nothing = [(1, PortRates::default())].into_iter();
        assert!(Police::new(PortRates::default(), nothing, None).is_none());
    }

    #[test]
    fn a_class_and_a_port_are_bounded_apart() {
        let rates = PortRates {
            all: Some(rate("1000:3")),
            sample: Some(rate("1000:1")),
            ..PortRates::default()
        };
        let police = police(rates).unwrap();
        let admit = |port, class| police.admit(port, class, 0);
        assert!(admit(1, Class::Sample) && !admit(1, Class::Sample));
        assert!(admit(1, Class::Miss) && admit(1, Class::Action), "a sample too many took nothing");
        assert!(!admit(1, Class::Miss));
        assert!(admit(2, Class::Miss), "another port");
        assert!(!police.admit(1, Class::Miss, 999) && police.admit(1, Class::Miss, 1_000));
        assert!(admit(u32::MAX, Class::Miss), "no port");
    }

    #[test]
    fn a_port_with_rates_of_its_own_leaves_the_others_their_tokens() {
        let miss = |text: Option<&str>| PortRates { miss: text.map(rate), ..PortRates::default() };
        let all = miss(Some("1:2"));
        let before = police(all).unwrap();
        let admit = |police: &Police, port| police.admit(port, Class::Miss, 0);
        assert!(admit(&before, 1) && admit(&before, 1) && !admit(&before, 1));
        assert!(admit(&before, 2));
        let own = [(1, miss(Some("1:1"))), (3, miss(None))].into_iter();
        let with_own = Police::new(all, own.clone(), Some(&before)).unwrap();
        assert!(
            admit(&with_own, 1) && !admit(&with_own, 1),
            "a new rate begins with a full bucket"
        );
        assert!(admit(&with_own, 2) && !admit(&with_own, 2), "what it had before counts");
        assert!((0..9).all(|_| admit(&with_own, 3)), "a port that is not bounded");
        let again = Police::new(miss(None), own, Some(&with_own)).unwrap();
        assert!(!admit(&again, 1) && admit(&again, 2), "the port's own tokens count as well");
        let back = Police::new(all, std::iter::empty(), Some(&with_own)).unwrap();
        assert!(!admit(&back, 1), "as it was left");
    }

    proptest! {
        /// Whenever upcalls come: no stretch of time has more than the burst and what the rate makes of
        /// it, and none is refused that leaves both in bounds.
        #[test]
        fn no_stretch_of_time_has_more_than_burst_and_rate(
            gaps_us in prop::collection::vec(prop_oneof![Just(0), 0..2_000u64], 1..200),
            burst in 1..8u32,
        ) {
            let text = format!("1000:{burst}");
            let police = police(PortRates { all: Some(rate(&text)), ..Default::default() }).unwrap();
            // A token is worth a millisecond.
            let full_us = u64::from(burst) * 1_000;
            let (mut now_us, mut tokens_us) = (0, full_us);
            for gap_us in gaps_us {
                now_us += gap_us;
                tokens_us = (tokens_us + gap_us).min(full_us);
                let admitted = police.admit(7, Class::Miss, now_us);
                prop_assert_eq!(admitted, tokens_us >= 1_000, "{} us of tokens", tokens_us);
                tokens_us -= u64::from(admitted) * 1_000;
            }
        }
    }
}
