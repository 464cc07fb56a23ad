//! Load: upcalls a second, what is left of them under overload, and a quiet port beside a flood.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ovs_features::cpu;
use serde_json::{Value, json};
use upcall_testkit::SegmentSender;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::{Pace, Plan, RawFlows, Receiver};

use crate::bed::{self, Bed, PAYLOAD_BYTES, set_flow};
use crate::contestant::{Contestant, Install};
use crate::measure::per;
use crate::order::stamped;

/// How long a rate is offered.
const STEP: Duration = Duration::from_millis(400);
/// Frames that are sent at once, as one packet of so many segments: making upcalls must cost the sender less
/// than any contestant takes for them.
const CLUMP: usize = 16;
/// First rate of each sender, a second; by how much the next one is higher; and the rates that are tried
/// around the best of these, how often: the host is at times half as fast for a step or two.
const FIRST_RATE: u64 = 2000;
const NEXT_RATE: (u64, u64) = (3, 2);
const CLOSER: [(u64, u64); 4] = [(4, 5), (9, 10), (10, 9), (5, 4)];
const CLOSER_ROUNDS: usize = 3;
/// Steps at most: beyond any contestant's rate.
const STEPS_MAX: usize = 16;
/// Overload, as a multiple of the best rate; and a flood beside a quiet port.
const OVERLOAD: u64 = 3;
const FLOOD: u64 = 2;
/// How often it is offered, each time right behind the rate that was best: the host may have become slower, or
/// that best have been luck.
const OVERLOADS: usize = 3;
/// New flows of the quiet port, and their rate.
const QUIET_FLOWS: u32 = 200;
const QUIET_RATE: u32 = 100;
/// A receive buffer of 8 MiB holds 9,362 small upcalls (6.12): time for a flood to fill it.
const OVERLOADED_WITHIN: Duration = Duration::from_secs(10);
/// What is queued is handled or lost by then.
const SETTLE: Duration = Duration::from_millis(500);

/// What was sent and what arrived, a second.
#[derive(Debug, Clone, Copy, Default)]
struct Offer {
    asked: u64,
    sent: u64,
    arrived: u64,
}

impl Offer {
    fn or_more(self, other: Self) -> Self {
        if other.arrived > self.arrived { other } else { self }
    }
}

/// Sends from host `2 * pair` on a CPU.
struct Source {
    sender: SegmentSender,
    pair: usize,
    cpu: usize,
}

impl Source {
    fn open(bed: &Bed, pair: usize, cpu: usize) -> Result<Self> {
        let sender = SegmentSender::open(&bed.hosts[2 * pair].ns, HOST_LINK)?;
        Ok(Self { sender, pair, cpu })
    }
}

/// Upcalls answered a second while a sender on each of `cpus` offers more and more, the best of them;
/// and what is left when three times as much is offered, the median.
pub(crate) fn rates(contestant: Contestant, cpus: usize) -> Result<Value> {
    let pairs = cpus.min(std::thread::available_parallelism()?.get());
    let bed = Bed::new(contestant, Install::Never, 2 * pairs)?;
    let sources = (0..pairs).map(|at| Source::open(&bed, at, at)).collect::<Result<Vec<_>>>()?;
    let best = best_rate(&bed, &sources)?;
    let overload = best.arrived * OVERLOAD;
    let mut left = Vec::new();
    for _ in 0..OVERLOADS {
        let (at_best, at_overload) =
            (offer(&bed, &sources, best.asked)?, offer(&bed, &sources, overload)?);
        left.push((
            per(at_overload.arrived, at_best.arrived),
            per(at_overload.sent, at_best.arrived),
        ));
    }
    bed.stop()?;
    left.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (share, sent) = left[OVERLOADS / 2];
    Ok(json!({
        "best_per_s": best.arrived,
        "best_sent_per_s": best.sent,
        "overload_share": share,
        "overload_sent": sent,
    }))
}

/// Offers more and more, and what is around the best of these.
fn best_rate(bed: &Bed, sources: &[Source]) -> Result<Offer> {
    let mut best = Offer::default();
    let mut asked = FIRST_RATE * sources.len() as u64;
    for _ in 0..STEPS_MAX {
        let done = offer(bed, sources, asked)?;
        best = best.or_more(done);
        // Beyond the overload that is measured last: it will not get better.
        if done.arrived * OVERLOAD < asked {
            break;
        }
        asked = asked * NEXT_RATE.0 / NEXT_RATE.1;
    }
    let around = best.asked;
    for (times, part) in [CLOSER; CLOSER_ROUNDS].into_iter().flatten() {
        best = best.or_more(offer(bed, sources, around * times / part)?);
    }
    Ok(best)
}

/// Offers `asked` packets a second from the sources together.
fn offer(bed: &Bed, sources: &[Source], asked: u64) -> Result<Offer> {
    let count =
        || -> Result<u64> { sources.iter().map(|from| bed.arrived(2 * from.pair + 1)).sum() };
    let before = count()?;
    let begun = Instant::now();
    let sent: u64 = std::thread::scope(|scope| {
        let each = asked / sources.len() as u64;
        let work = |source| move || send_at(source, each, || begun.elapsed() < STEP);
        let threads: Vec<_> = sources.iter().map(|source| scope.spawn(work(source))).collect();
        let join = |thread: ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).sum::<Result<u64>>()
    })?;
    let (took_ms, arrived) = (begun.elapsed().as_millis().max(1) as u64, count()? - before);
    // What is queued still does not count, and must not disturb the next step.
    std::thread::sleep(SETTLE);
    Ok(Offer { asked, sent: sent * 1000 / took_ms, arrived: arrived * 1000 / took_ms })
}

/// Sends packets of ever new flows, while `goes_on`; gives how many frames.
fn send_at(from: &Source, rate: u64, goes_on: impl Fn() -> bool) -> Result<u64> {
    cpu::pin_to(from.cpu)?;
    let mut clump = bed::segments(2 * from.pair, CLUMP)?;
    let begun = Instant::now();
    let mut sent = 0;
    while goes_on() {
        let due = begun + Duration::from_nanos(sent * 1_000_000_000 / rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        set_flow(&mut clump, (sent / CLUMP as u64) as u32);
        from.sender.send(&clump, PAYLOAD_BYTES as u16)?;
        sent += CLUMP as u64;
    }
    Ok(sent)
}

/// New flows at a modest rate from one port, while another port on the same CPU sends twice what the contestant
/// can do.
pub(crate) fn quiet_port(contestant: Contestant) -> Result<Value> {
    let bed = Bed::new(contestant, Install::Never, 4)?;
    let flooding = Source::open(&bed, 1, 0)?;
    let alone = quiet(&bed, 0)?;
    let best = best_rate(&bed, std::slice::from_ref(&flooding))?;
    let before = bed.arrived(3)?;
    let stop = AtomicBool::new(false);
    let goes_on = || !stop.load(Ordering::Relaxed);
    let loaded = std::thread::scope(|scope| {
        let flood = scope.spawn(|| send_at(&flooding, best.arrived * FLOOD, goes_on));
        let loaded = wait_overload(&bed).and_then(|()| quiet(&bed, QUIET_FLOWS));
        stop.store(true, Ordering::Relaxed);
        let sent = flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        ensure!(sent > 0, "no flood");
        anyhow::Ok((loaded?, sent))
    });
    let (loaded, flooded) = loaded?;
    std::thread::sleep(SETTLE);
    let arrived = bed.arrived(3)? - before;
    bed.stop()?;
    Ok(json!({
        "lost_percent": loaded.0,
        "slower": loaded.1 / alone.1,
        "alone_us": alone.1 / 1000.0,
        "loaded_us": loaded.1 / 1000.0,
        "best_per_s": best.arrived,
        "flood_lost_percent": 100.0 * per(flooded.saturating_sub(arrived), flooded),
    }))
}

/// Waits until the flood is more than the contestant can do: the kernel loses upcalls, for want of room or by a
/// filter. Who keeps up for that long is measured as it is.
fn wait_overload(bed: &Bed) -> Result<()> {
    let (begun, lost) = (Instant::now(), bed.kernel()?.lost);
    while begun.elapsed() < OVERLOADED_WITHIN && bed.kernel()?.lost == lost {
        std::thread::sleep(SETTLE / 5);
    }
    Ok(())
}

/// Sends the quiet port's flows; gives the share that was lost in percent, and the median time of the
/// others in nanoseconds.
fn quiet(bed: &Bed, first: u32) -> Result<(f64, f64)> {
    let receiver = Receiver::raw(&bed.hosts[1].ns, HOST_LINK)?;
    let mut outlet = RawFlows::new(&bed.links[0], stamped);
    let plan =
        Plan { pace: Pace::PerSecond(QUIET_RATE), cpus: vec![0], ..Plan::new(QUIET_FLOWS, 1) };
    let sent = plan.flows_from(first).send(&mut outlet)?;
    std::thread::sleep(SETTLE);
    let tally = receiver.stop()?;
    let mut times: Vec<u64> = tally.flows().map(|(_, flow)| flow.first_latency_ns).collect();
    times.sort_unstable();
    let lost = 100.0 * per(sent.packets - times.len() as u64, sent.packets);
    Ok((lost, per(times.get(times.len() / 2).copied().unwrap_or(u64::MAX), 1)))
}
