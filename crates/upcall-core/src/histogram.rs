//! How long things take: histograms of fixed size, written by one thread without a lock.
//!
//! Buckets are log-linear: each power of two is cut into equal parts, so that a quantile is right within
//! an eighth whatever its size.

use crate::Counter;

/// Parts that a power of two is cut into, as a power of two: 8.
const PART_BITS: u32 = 3;
const PARTS: usize = 1 << PART_BITS;
/// Longer than 2^36 nanoseconds, 69 s, counts as that.
const RANGE_BITS: u32 = 36;
const BUCKETS: usize = (RANGE_BITS - PART_BITS + 1) as usize * PARTS;

/// Durations in nanoseconds, 2,200 bytes whatever their number. One thread writes, any may read.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[Counter; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new(std::array::from_fn(|_| Counter::default())) }
    }
}

impl Histogram {
    /// Counts a duration; from the one thread that owns the histogram.
    pub fn record(&self, ns: u64) {
        self.buckets[bucket(ns)].add(1);
    }

    /// Reads it; from any thread.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let counts: Vec<u64> = self.buckets.iter().map(Counter::get).collect();
        let used = counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        HistogramSnapshot { counts: counts[..used].to_vec() }
    }
}

/// The bucket of a duration. Below 8 ns each has its own.
fn bucket(ns: u64) -> usize {
    let ns = ns.min((1 << RANGE_BITS) - 1);
    let Some(exponent) = ns.checked_ilog2().filter(|exponent| *exponent >= PART_BITS) else {
        return ns as usize;
    };
    let shift = exponent - PART_BITS;
    (shift as usize + 1) * PARTS + (ns >> shift) as usize - PARTS
}

/// The least duration that is beyond a bucket.
fn end(bucket: usize) -> u64 {
    match (bucket / PARTS).checked_sub(1) {
        None => bucket as u64 + 1,
        Some(shift) => ((bucket % PARTS + PARTS + 1) as u64) << shift,
    }
}

/// A reading of one or more [`Histogram`]s, added up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HistogramSnapshot {
    /// Without the empty buckets at the end.
    counts: Vec<u64>,
}

impl HistogramSnapshot {
    /// Durations counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The duration in nanoseconds that so many of a thousand do not exceed, rounded up by at most an
    /// eighth. `None` if there is none.
    pub fn quantile(&self, per_mille: u64) -> Option<u64> {
        let rank = (self.count() * per_mille.min(1_000)).div_ceil(1_000).max(1);
        self.cumulative().find(|(_, count)| *count >= rank).map(|(le_ns, _)| le_ns)
    }

    /// For each bucket that is not empty, its longest duration in nanoseconds, and the durations that do
    /// not exceed that.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.scan(0, |sum, (bucket, count)| {
            *sum += count;
            Some((end(bucket) - 1, *sum))
        })
    }
}

impl std::ops::AddAssign<&Self> for HistogramSnapshot {
    fn add_assign(&mut self, other: &Self) {
        self.counts.resize(self.counts.len().max(other.counts.len()), 0);
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_on_each_other() {
        for at in 0..BUCKETS - 1 {
            assert_eq!(bucket(end(at)), at + 1);
            assert_eq!(bucket(end(at) - 1), at);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_has_no_quantile() {
        let nothing = Histogram::default().snapshot();
        assert_eq!((nothing.quantile(500), nothing.count()), (None, 0));
    }

    proptest! {
        /// Whatever is recorded, by whichever thread: a quantile is the sorted list's, or up to an eighth
        /// more.
        #[test]
        fn a_quantile_is_right_within_an_eighth(
            mut all in prop::collection::vec(
                prop_oneof![0..100u64, 0..1_000_000u64, 0..1u64 << RANGE_BITS], 1..200,
            ),
            per_mille in 0..=1_000u64,
            split in any::<prop::sample::Index>(),
        ) {
            let (ours, others) = all.split_at(split.index(all.len()));
            let (a, b) = (Histogram::default(), Histogram::default());
            for ns in ours {
                a.record(*ns);
            }
            for ns in others {
                b.record(*ns);
            }
            let mut sum = a.snapshot();
            sum += &b.snapshot();
            all.sort_unstable();
            prop_assert_eq!(sum.count(), all.len() as u64);
            let rank = (all.len() * per_mille as usize).div_ceil(1_000).max(1);
            let (real, told) = (all[rank - 1], sum.quantile(per_mille).unwrap());
            prop_assert!(told >= real && told - real <= real / 8, "{told} for {real}");
            prop_assert_eq!(sum.cumulative().last().map(|(_, count)| count), Some(sum.count()));
        }
    }
}
