//! The list of figures.

use super::catalogue::{Bounds, Clock, Figure, Unit};

const NONE: Bounds = Bounds { peer: None, floor: None, value: None };

const fn to_peer(ratio: f64) -> Bounds {
    Bounds { peer: Some(ratio), ..NONE }
}

const fn within(peer: f64, floor: f64) -> Bounds {
    Bounds { peer: Some(peer), floor: Some(floor), ..NONE }
}

const fn value(value: f64) -> Bounds {
    Bounds { value: Some(value), ..NONE }
}

const fn by_instructions(
    measure: &'static str,
    key: &'static str,
    title: &'static str,
    unit: Unit,
    bounds: Bounds,
) -> Figure {
    Figure { measure, key, title, clock: Clock::Instructions, unit, bounds, gate: false }
}

const fn in_parallel(
    measure: &'static str,
    key: &'static str,
    title: &'static str,
    unit: Unit,
    bounds: Bounds,
) -> Figure {
    let figure = by_instructions(measure, key, title, unit, bounds);
    Figure { clock: Clock::Parallel, ..figure }
}

const fn by_size(
    measure: &'static str,
    key: &'static str,
    title: &'static str,
    unit: Unit,
) -> Figure {
    Figure { clock: Clock::Sizes, ..by_instructions(measure, key, title, unit, NONE) }
}

impl Figure {
    const fn gated(self) -> Self {
        Self { gate: true, ..self }
    }
}

/// All figures, in the order they are shown. Of wake-ups one upcall at a time, a hundredth is for timers.
pub(crate) const FIGURES: &[Figure] = &[
    by_instructions(
        "upcall-cpu",
        "cpu_ns",
        "CPU per upcall, none installed",
        Unit::Instructions,
        within(0.45, 1.2),
    )
    .gated(),
    by_instructions(
        "upcall-cpu",
        "wakeups",
        "wake-ups, bursts of 64",
        Unit::PerUpcall,
        value(0.04),
    ),
    by_instructions(
        "flow-cpu",
        "cpu_ns",
        "CPU per new flow, installed",
        Unit::Instructions,
        within(0.62, 1.2),
    )
    .gated(),
    by_instructions(
        "round-trip",
        "p50_ns",
        "round trip of a new flow, none installed, p50",
        Unit::Instructions,
        to_peer(0.6),
    )
    .gated(),
    by_instructions(
        "round-trip",
        "p99_ns",
        "round trip of a new flow, none installed, p99",
        Unit::Instructions,
        to_peer(0.6),
    ),
    by_instructions(
        "round-trip",
        "wakeups",
        "wake-ups, one upcall at a time",
        Unit::PerUpcall,
        value(1.01),
    ),
    by_instructions(
        "round-trip-installed",
        "p50_ns",
        "round trip of a new flow, installed, p50",
        Unit::Instructions,
        to_peer(0.65),
    )
    .gated(),
    by_instructions(
        "round-trip-installed",
        "p99_ns",
        "round trip of a new flow, installed, p99",
        Unit::Instructions,
        to_peer(0.65),
    ),
    by_instructions(
        "round-trip-installed",
        "hit_p50_ns",
        "of which generator and two hits, p50",
        Unit::Instructions,
        NONE,
    ),
    by_instructions(
        "memory-10-ports",
        "resident_mb",
        "resident memory, 10 ports",
        Unit::Mebibytes,
        to_peer(1.0),
    ),
    by_instructions("memory-10-ports", "sockets", "sockets, 10 ports", Unit::Count, to_peer(1.0)),
    by_instructions(
        "memory-200-ports",
        "resident_mb",
        "resident memory, 200 ports",
        Unit::Mebibytes,
        to_peer(1.0),
    ),
    by_instructions(
        "memory-1000-ports",
        "resident_mb",
        "resident memory, 1,000 ports",
        Unit::Mebibytes,
        to_peer(1.0),
    ),
    by_instructions("memory-1000-ports", "sockets", "sockets, 1,000 ports", Unit::Count, NONE),
    by_instructions(
        "memory-flows",
        "resident_mb",
        "resident memory, 100,000 flows",
        Unit::Mebibytes,
        to_peer(1.0),
    ),
    by_instructions(
        "flow-life",
        "flows",
        "198,000 flows of a switch, of which held",
        Unit::Count,
        NONE,
    ),
    by_instructions(
        "flow-life",
        "rest_percent",
        "of one CPU while they rest",
        Unit::Percent,
        to_peer(1.0),
    ),
    by_instructions(
        "flow-life",
        "shown_ns",
        "dpctl/dump-flows, time per flow",
        Unit::Instructions,
        to_peer(1.0),
    ),
    by_instructions(
        "flow-life",
        "moved_ns",
        "a station moves: time until its flows are right",
        Unit::Instructions,
        to_peer(1.0),
    ),
    by_instructions(
        "flow-life",
        "idled_cpu_ns",
        "CPU per flow until all have idled out",
        Unit::Instructions,
        to_peer(1.0),
    ),
    in_parallel(
        "rate-1-cpu",
        "best_per_s",
        "upcalls a second, one CPU receiving",
        Unit::PerSecond,
        to_peer(2.2),
    ),
    in_parallel(
        "rate-1-cpu",
        "overload_share",
        "of which is left at 3x overload",
        Unit::Share,
        value(0.9),
    ),
    in_parallel(
        "rate-all-cpus",
        "best_per_s",
        "upcalls a second, all CPUs receiving",
        Unit::PerSecond,
        to_peer(2.2),
    ),
    in_parallel(
        "rate-all-cpus",
        "overload_share",
        "of which is left at 3x overload",
        Unit::Share,
        value(0.9),
    ),
    in_parallel(
        "hop-1",
        "reordered_percent",
        "reordered, sender hops CPU every packet",
        Unit::Percent,
        value(0.1),
    ),
    in_parallel(
        "hop-10",
        "reordered_percent",
        "reordered, every 10 packets",
        Unit::Percent,
        value(0.0),
    ),
    in_parallel(
        "hop-100",
        "reordered_percent",
        "reordered, every 100 packets",
        Unit::Percent,
        value(0.0),
    ),
    in_parallel(
        "set-up-bursts",
        "reordered_percent",
        "reordered at set-up, bursts of 20",
        Unit::Percent,
        value(0.0),
    ),
    in_parallel(
        "set-up-paced",
        "reordered_percent",
        "reordered at set-up, paced at 4,000/s",
        Unit::Percent,
        to_peer(0.05),
    ),
    in_parallel(
        "quiet-port",
        "lost_percent",
        "quiet port beside a flood, lost",
        Unit::Percent,
        value(0.0),
    ),
    in_parallel(
        "quiet-port",
        "slower",
        "quiet port beside a flood, p50 to unloaded",
        Unit::Times,
        value(10.0),
    ),
    by_size("start-up-1", "start_ms", "1 CPU: time until it serves", Unit::Milliseconds),
    by_size("start-up-1", "sockets", "1 CPU: sockets", Unit::Count),
    by_size("start-up-1", "resident_mb", "1 CPU: resident memory", Unit::Mebibytes),
    by_size("start-up-4", "start_ms", "4 CPUs: time until it serves", Unit::Milliseconds),
    by_size("start-up-4", "sockets", "4 CPUs: sockets", Unit::Count),
    by_size("start-up-4", "resident_mb", "4 CPUs: resident memory", Unit::Mebibytes),
    by_size("start-up-16", "start_ms", "16 CPUs: time until it serves", Unit::Milliseconds),
    by_size("start-up-16", "sockets", "16 CPUs: sockets", Unit::Count),
    by_size("start-up-16", "resident_mb", "16 CPUs: resident memory", Unit::Mebibytes),
    by_size("start-up-64", "start_ms", "64 CPUs: time until it serves", Unit::Milliseconds),
    by_size("start-up-64", "sockets", "64 CPUs: sockets", Unit::Count),
    by_size("start-up-64", "resident_mb", "64 CPUs: resident memory", Unit::Mebibytes),
];
