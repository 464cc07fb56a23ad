//! The measures: what is sent, what is counted, and what must hold for a figure to be one.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::bed::{self, Bed};
use crate::contestant::{Contestant, Install};
use crate::generator::{Bursts, Ends, giving_way};
use crate::{flow_life, load, memory, order};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measure {
    /// CPU time of the daemon for each upcall, nothing installed
    UpcallCpu,
    /// CPU time of the daemon for each new flow, installed
    FlowCpu,
    /// Round trip of a new flow (two upcalls), nothing installed
    RoundTrip,
    /// Round trip of a new flow (two upcalls), installed
    RoundTripInstalled,
    /// Resident memory and sockets with 10 ports
    #[value(name = "memory-10-ports")]
    Memory10Ports,
    /// Resident memory and sockets with 200 ports
    #[value(name = "memory-200-ports")]
    Memory200Ports,
    /// Resident memory and sockets with 1,000 ports
    #[value(name = "memory-1000-ports")]
    Memory1000Ports,
    /// Resident memory with 100,000 flows
    MemoryFlows,
    /// 198,000 flows at rest, shown, set right and idled out
    FlowLife,
    /// Time until it serves, sockets and memory, on one CPU
    #[value(name = "start-up-1")]
    StartUp1,
    /// On four
    #[value(name = "start-up-4")]
    StartUp4,
    /// On 16
    #[value(name = "start-up-16")]
    StartUp16,
    /// On 64
    #[value(name = "start-up-64")]
    StartUp64,
    /// Upcalls a second from one CPU, best and at 3x overload
    #[value(name = "rate-1-cpu")]
    Rate1Cpu,
    /// Upcalls a second from all CPUs, best and at 3x overload
    RateAllCpus,
    /// Reordered packets of a sender that hops CPUs with each packet
    #[value(name = "hop-1")]
    Hop1,
    /// Every 10 packets
    #[value(name = "hop-10")]
    Hop10,
    /// Every 100 packets
    #[value(name = "hop-100")]
    Hop100,
    /// Reordered packets at flow set-up, bursts of 20
    SetUpBursts,
    /// Reordered packets at flow set-up, 20 packets paced at 4,000/s
    SetUpPaced,
    /// New flows of a quiet port beside a flood on its CPU
    QuietPort,
}

/// Upcalls that arrive together: as many as the contestants answer together.
const BURST: u32 = 64;
/// Longer than any contestant takes for a burst.
pub(crate) const PAUSE: Duration = Duration::from_millis(8);
/// First bursts, which fill caches and grow buffers.
const WARM_UP: u32 = 8;
/// Bursts of a sample.
const BURSTS: u32 = 100;
/// Round trips before those that count, and those.
const ROUND_TRIPS: (u32, u32) = (50, 400);
/// What is deferred until after an answer is done by then.
const SETTLE: Duration = Duration::from_millis(20);

impl Measure {
    /// As on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Is it a measure of this contestant? The floor neither learns nor keeps anything of its ports.
    pub(crate) fn is_of(self, contestant: Contestant) -> bool {
        let daemons = matches!(self, Self::FlowLife | Self::Memory1000Ports);
        !daemons || contestant != Contestant::Floor
    }

    /// One sample: figures by name.
    pub(crate) fn sample(self, contestant: Contestant) -> Result<Value> {
        let figures = match self {
            Self::UpcallCpu => cpu(contestant, Install::Never),
            Self::FlowCpu => cpu(contestant, Install::Exact),
            Self::RoundTrip => round_trip(contestant, Install::Never),
            Self::RoundTripInstalled => round_trip(contestant, Install::Exact),
            Self::Memory10Ports => memory::ports(contestant, 10),
            Self::Memory200Ports => memory::ports(contestant, 200),
            Self::Memory1000Ports => memory::ports(contestant, 1000),
            Self::StartUp1 => memory::start_up(contestant, 1),
            Self::StartUp4 => memory::start_up(contestant, 4),
            Self::StartUp16 => memory::start_up(contestant, 16),
            Self::StartUp64 => memory::start_up(contestant, 64),
            Self::MemoryFlows => memory::flows(contestant),
            Self::FlowLife => flow_life::flow_life(contestant),
            Self::Rate1Cpu => load::rates(contestant, 1),
            Self::RateAllCpus => load::rates(contestant, usize::MAX),
            Self::Hop1 => order::hopping(contestant, 1),
            Self::Hop10 => order::hopping(contestant, 10),
            Self::Hop100 => order::hopping(contestant, 100),
            Self::SetUpBursts => order::set_up(contestant, false),
            Self::SetUpPaced => order::set_up(contestant, true),
            Self::QuietPort => load::quiet_port(contestant),
        };
        figures.with_context(|| format!("{} of {}", self.name(), contestant.name()))
    }
}

fn cpu(contestant: Contestant, install: Install) -> Result<Value> {
    let bed = Bed::new(contestant, install, 2)?;
    let warm_up = Bursts { first: 0, count: WARM_UP, frames: BURST, pause: PAUSE };
    let bursts = Bursts { first: BURST * WARM_UP, count: BURSTS, ..warm_up };
    let start = bed.arrived(1)?;
    warm_up.send(&bed)?;
    bed.wait_arrived(1, start, warm_up.total())?;
    std::thread::sleep(SETTLE);
    let (kernel, usage) = (bed.kernel()?, bed.usage()?);
    bursts.send(&bed)?;
    bed.wait_arrived(1, start, warm_up.total() + bursts.total())?;
    std::thread::sleep(SETTLE);
    let used = bed.usage()?.since(usage);
    let flows = if install == Install::Exact { bursts.total() } else { 0 };
    bed::check(kernel, bed.kernel()?, bursts.total(), flows)?;
    bed.stop()?;
    let each = |value: u64| per(value, bursts.total());
    Ok(json!({
        "cpu_ns": each(used.cpu_ns),
        "user_ns": each(used.user_ns),
        "system_ns": each(used.system_ns),
        "wakeups": each(used.wakeups),
    }))
}

fn round_trip(contestant: Contestant, install: Install) -> Result<Value> {
    let bed = Bed::new(contestant, install, 2)?;
    let mut ends = Ends::open(&bed)?;
    let (warm_up, count) = ROUND_TRIPS;
    let mut rounds = |first: u32, count: u32| {
        giving_way(|| {
            let round = |number| {
                let took = ends.round_trip(first + number);
                std::thread::sleep(SETTLE / 10);
                took
            };
            (0..count).map(round).collect::<Result<Vec<_>>>()
        })
    };
    // Behind the last one, an install may wait for silence.
    rounds(0, warm_up)?;
    std::thread::sleep(SETTLE);
    let (kernel, usage) = (bed.kernel()?, bed.usage()?);
    let mut times = rounds(warm_up, count)?;
    std::thread::sleep(SETTLE);
    let (after, used) = (bed.kernel()?, bed.usage()?.since(usage));
    let upcalls = 2 * u64::from(count);
    let flows = if install == Install::Exact { upcalls } else { 0 };
    bed::check(kernel, after, upcalls, flows)?;
    let (p50, p99) = percentiles(&mut times);
    let mut figures = json!({
        "p50_ns": p50,
        "p99_ns": p99,
        "wakeups": per(used.wakeups, upcalls),
    });
    if install == Install::Exact {
        // The same flows again: what the generator and two hits take.
        let (hit, _) = percentiles(&mut rounds(warm_up, count)?);
        figures["hit_p50_ns"] = hit.into();
    }
    bed.stop()?;
    Ok(figures)
}

fn percentiles(times: &mut [u64]) -> (u64, u64) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

#[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(crate) fn per(sum: u64, count: u64) -> f64 {
    sum as f64 / count as f64
}
