//! The shield on a socket that is imitated: arrivals at given rates, a filter that admits what the
//! shield says, a bounded queue, and a reader of limited speed.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const BUFFER: u32 = 4 << 20;
const UPCALL: u32 = 896;
/// Upcalls of a round at most.
const ROUND: usize = 64;
/// Of these, in one piece of time.
const CHUNK: usize = 4;

/// A port that sends up so many upcalls a second while the time is in this range.
#[derive(Debug, Clone)]
struct Source {
    port: u32,
    per_s: f64,
    active_us: std::ops::Range<u64>,
    /// Upcalls owed.
    due: f64,
}

fn source(port: u32, per_s: u32, active_us: std::ops::Range<u64>) -> Source {
    Source { port, per_s: f64::from(per_s), active_us, due: 0.0 }
}

#[derive(Default)]
struct Count {
    sent: u64,
    lost: u64,
    refused: u64,
    /// Time in the queue in microseconds, over those read.
    wait_sum_us: u64,
    read: u64,
}

struct Model {
    now_us: u64,
    read_per_s: f64,
    /// How long the reader has the CPU, and how long others have it then.
    turns_us: (u64, u64),
    sources: Vec<Source>,
    queue: VecDeque<(u32, u64)>,
    shield: Option<StormShield>,
    shares: Vec<(u32, u32)>,
    tally: PortTally,
    counts: std::collections::BTreeMap<u32, Count>,
    named: std::collections::BTreeSet<u32>,
    told: u64,
    seed: u32,
}

impl Model {
    fn new(read_per_s: u32, shielded: bool, sources: Vec<Source>) -> Self {
        Self {
            now_us: 0,
            read_per_s: f64::from(read_per_s),
            turns_us: (1, 0),
            sources,
            queue: VecDeque::new(),
            shield: shielded.then(StormShield::default),
            shares: Vec::new(),
            tally: PortTally::default(),
            counts: std::collections::BTreeMap::new(),
            named: std::collections::BTreeSet::new(),
            told: 0,
            seed: 1,
        }
    }

    /// What the kernel draws.
    fn random(&mut self) -> u32 {
        self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.seed ^ self.seed >> 15
    }

    fn arrive(&mut self, passed_us: u64) {
        let (mut coming, mut seed) = (Vec::new(), self.random());
        for source in &mut self.sources {
            if source.active_us.contains(&self.now_us) {
                source.due += source.per_s * passed_us as f64 / 1e6;
            }
            while source.due >= 1.0 {
                source.due -= 1.0;
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                coming.push((seed >> 8, source.port));
            }
        }
        // In any order within the step.
        coming.sort_unstable();
        for (_, port) in coming {
            self.deliver(port);
        }
    }

    fn deliver(&mut self, port: u32) {
        let drawn = self.random();
        let refused =
            self.shares.iter().any(|(limited, admit)| *limited == port && drawn >= *admit);
        let full = self.queue.len() * UPCALL as usize > BUFFER as usize;
        let count = self.counts.entry(port).or_default();
        count.sent += 1;
        if refused {
            count.refused += 1;
        } else if full {
            count.lost += 1;
        } else {
            self.queue.push_back((port, self.now_us));
        }
    }

    /// One round of the reader, or a pause if there is nothing to read.
    fn step(&mut self) {
        let mut read = 0;
        while read < ROUND && !self.queue.is_empty() {
            read += self.read(CHUNK);
        }
        if read == 0 {
            self.pass(50);
        }
        self.settle(read < ROUND);
    }

    /// Reads up to so many upcalls, while others arrive.
    fn read(&mut self, most: usize) -> usize {
        let read = self.queue.len().min(most);
        for _ in 0..read {
            let (port, since_us) = self.queue.pop_front().unwrap();
            self.tally.count(port);
            let count = self.counts.entry(port).or_default();
            count.wait_sum_us += self.now_us - since_us;
            count.read += 1;
        }
        self.pass(to_count(read as f64 / self.read_per_s * 1e6).max(1));
        read
    }

    /// Nobody reads.
    fn arrive_and_pass(&mut self, us: u64) {
        self.arrive(us);
        self.now_us += us;
    }

    fn pass(&mut self, us: u64) {
        self.arrive(us);
        self.now_us += us;
        let (ours_us, others_us) = self.turns_us;
        if self.now_us % (ours_us + others_us) >= ours_us {
            // In steps, as what arrives in one comes at one time.
            let rest_us = ours_us + others_us - self.now_us % (ours_us + others_us);
            (0..rest_us).step_by(100).for_each(|_| self.arrive(100));
            self.now_us += rest_us;
        }
    }

    fn settle(&mut self, drained: bool) {
        let queued_bytes = self.queue.len() as u32 * UPCALL;
        let now = Backlog { queued_bytes, buffer_bytes: BUFFER };
        let Some(shield) = &mut self.shield else { return };
        if shield.round(self.now_us, &mut self.tally, (!drained && queued_bytes > 0).then_some(now))
        {
            self.shares = shield.shares().collect();
            shield.attached(now);
        }
        self.named.extend(shield.ports());
        self.told += shield.take_refused();
    }

    fn run_until(&mut self, us: u64) {
        while self.now_us < us {
            self.step();
        }
    }

    fn of(&self, port: u32) -> &Count {
        &self.counts[&port]
    }
}

const SECOND: u64 = 1_000_000;

#[test]
#[cfg_attr(miri, ignore = "nothing of the shield would be interpreted")]
fn without_it_a_quiet_port_loses() {
    let sources = vec![source(1, 40_000, 0..5 * SECOND), source(2, 100, 0..5 * SECOND)];
    let mut model = Model::new(20_000, false, sources);
    model.run_until(5 * SECOND);
    assert!(model.of(2).lost > 100, "{} lost", model.of(2).lost);
}

#[test]
fn a_port_alone_may_fill_half_the_buffer_in_a_burst() {
    let burst = BUFFER / UPCALL / 2;
    let mut model = Model::new(20_000, true, vec![source(1, burst * 100, 0..10_000)]);
    model.run_until(SECOND);
    assert_eq!((model.of(1).refused, model.of(1).lost), (0, 0));
}

#[test]
#[cfg_attr(miri, ignore = "a hundred thousand upcalls of a model would take it half an hour")]
fn several_that_flood_get_the_same() {
    let flood = |port, rate| source(port, rate, 0..4 * SECOND);
    let sources = vec![flood(1, 100_000), flood(2, 40_000), flood(3, 200_000), flood(4, 100)];
    let mut model = Model::new(20_000, true, sources);
    if cfg!(miri) {
        // A million upcalls would take it half an hour.
        model.run_until(SECOND / 10);
        return assert!(!model.named.contains(&4));
    }
    model.run_until(2 * SECOND);
    let before: Vec<u64> = (1..=3).map(|port| model.of(port).read).collect();
    model.run_until(4 * SECOND);
    let read: Vec<u64> =
        (1..=3).map(|port| model.of(port).read - before[port as usize - 1]).collect();
    let (min, max) = (read.iter().min().unwrap(), read.iter().max().unwrap());
    assert!(*max < *min * 3 / 2, "{read:?}");
    assert!(read.iter().sum::<u64>() > 36_000, "nine tenths of what could be read: {read:?}");
    // Ports are named one after the other, and meanwhile this is 17 times what can be read.
    assert!(model.of(4).lost < 20 && model.of(4).refused == 0, "{} lost", model.of(4).lost);
    assert!(!model.named.contains(&4));
}

/// A reader that comes back finds a second's upcalls and is hardly faster than they come: the buffer has room, and
/// nothing is refused for the sake of a shorter queue.
#[test]
#[cfg_attr(miri, ignore = "ten thousand upcalls would take it minutes")]
fn a_backlog_that_the_buffer_has_room_for_costs_nothing() {
    let sources = vec![source(1, 1_000, 0..4 * SECOND), source(2, 100, 0..4 * SECOND)];
    let mut model = Model::new(1_110, true, sources);
    (0..100).for_each(|_| model.arrive_and_pass(10_000));
    model.run_until(4 * SECOND);
    assert_eq!((model.of(1).refused, model.of(1).lost), (0, 0));
    assert!(model.named.is_empty());
}

/// A reader whose CPU is the flood's as well has turns, and between them only others send.
#[test]
#[cfg_attr(miri, ignore = "hundreds of thousands of upcalls would take it half an hour")]
fn a_reader_that_shares_its_cpu_is_kept_busy() {
    for (per_s, turns_us, flood) in [
        (24_000, (4_000, 12_000), 30_000),
        (24_000, (3_000, 9_000), 12_000),
        (8_000, (4_000, 4_000), 90_000),
    ] {
        let sources = vec![source(1, flood, SECOND..6 * SECOND), source(2, 100, 0..6 * SECOND)];
        let mut model = Model { turns_us, ..Model::new(per_s, true, sources) };
        model.run_until(2 * SECOND);
        let before = model.of(1).read + model.of(2).read;
        model.run_until(6 * SECOND);
        let read = model.of(1).read + model.of(2).read - before;
        let could = 4 * u64::from(per_s) * turns_us.0 / (turns_us.0 + turns_us.1);
        assert!(10 * read > 8 * could, "{read} of {could} read: {turns_us:?} {flood}");
        assert_eq!((model.of(2).lost, model.of(2).refused), (0, 0), "{turns_us:?} {flood}");
        assert!(!model.named.contains(&2));
    }
}

/// Of the reader, upcalls a second; and times that of the flood.
const RATE_MAX: u32 = 40_000;
const TIMES_MAX: u32 = 20;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 12 }))]

    /// A quiet port loses nothing and is never named, and waits no longer than the buffer is long, mostly
    /// far less; the flood is cut down to what can be read, with nine tenths of the reader's time used at
    /// least; what is told of refusals is right to a factor of two, as a sample of one upcall in twenty is;
    /// and it ends. A reader of less than 10,000 a second sees too few of a flood for that factor.
    #[test]
    #[cfg_attr(miri, ignore = "a hundred thousand upcalls of a model would take it half an hour")]
    fn a_flood_costs_itself_alone(
        read_per_s in 10_000..RATE_MAX,
        times in 2..TIMES_MAX,
        quiet in 10..200u32,
        flooder in 1..9u32,
        other in 9..70u32,
    ) {
        let flood = source(flooder, read_per_s * times, SECOND..4 * SECOND);
        let sources = vec![flood, source(other, quiet, 0..5 * SECOND)];
        let mut model = Model::new(read_per_s, true, sources);
        model.run_until(2 * SECOND);
        prop_assert!(model.shield.as_ref().unwrap().is_up());
        let read = model.of(flooder).read;
        let (waited, seen) = (model.of(other).wait_sum_us, model.of(other).read);
        model.run_until(4 * SECOND);
        let read = model.of(flooder).read - read;
        let could = u64::from(2 * read_per_s);
        prop_assert!(10 * read > 9 * could, "{} of {} read", read, could);
        let mean_us = (model.of(other).wait_sum_us - waited) / (model.of(other).read - seen);
        let buffer_us = u64::from(BUFFER / UPCALL) * SECOND / u64::from(read_per_s);
        prop_assert!(mean_us < buffer_us, "{} us of {}", mean_us, buffer_us);
        model.run_until(5 * SECOND);
        prop_assert!(!model.shield.as_ref().unwrap().is_up(), "it is gone a second after");
        prop_assert!(model.shares.is_empty());
        prop_assert_eq!((model.of(other).lost, model.of(other).refused), (0, 0));
        prop_assert!(!model.named.contains(&other));
        let (told, refused) = (model.told, model.of(flooder).refused);
        prop_assert!((refused / 2..refused * 2).contains(&told), "told {} of {}", told, refused);
    }

    /// Whatever it is told, it names no port with less than its fair share, and ends.
    #[test]
    fn any_readings_name_none_but_the_loud(
        rounds in proptest::collection::vec(
            (0..30_000u64, proptest::option::of(0..=BUFFER), 0..64u32), 1..200,
        ),
    ) {
        let (mut shield, mut tally, mut now) = (StormShield::default(), PortTally::default(), 0);
        for (passed, queued, loud) in rounds {
            now += passed;
            // Port 2 has a third of what is read, its fair share with one more to come.
            (0..loud).for_each(|_| [1, 1, 2].iter().for_each(|&port| tally.count(port)));
            let backlog = queued.map(|queued_bytes| Backlog { queued_bytes, buffer_bytes: BUFFER });
            if shield.round(now, &mut tally, backlog) {
                let queued_bytes = queued.unwrap_or(0);
                shield.attached(Backlog { queued_bytes, buffer_bytes: BUFFER });
            }
            prop_assert!(shield.ports().all(|port| port == 1));
            prop_assert!(shield.shares().all(|(port, _)| port == 1));
        }
        // Nothing more comes: a second and a half is enough to rise from the smallest share.
        for _ in 0..200 {
            now += 10_000;
            if shield.round(now, &mut tally, None) {
                shield.attached(Backlog { queued_bytes: 0, buffer_bytes: BUFFER });
                if !shield.is_up() {
                    break;
                }
            }
        }
        prop_assert!(!shield.is_up());
        prop_assert!(shield.is_at_rest(), "a pause is no part of what the next flood is measured by");
    }
}
