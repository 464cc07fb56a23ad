//! The engine on the thread that reads: upcalls out of memory, and out of a socket.

use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use criterion::Criterion;
use upcall::bench::Reader;
use upcall::{Handler, InstallLimits, InstallPolicy, Limits, MatchFields, Socket, Upcall, Verdict};

use crate::kernel::{Answers, Kernel};
use crate::message::{IDS, burst, miss};
use crate::{BURST, Group, timed};

/// Flows that come up again and again where none is installed.
const FLOWS: u32 = 1_000 * BURST;

/// Sends everything to port 2.
#[derive(Clone, Copy)]
pub(crate) struct Forward;

impl Handler for Forward {
    fn upcall(&self, _: &Upcall<'_>, verdict: &mut Verdict) {
        verdict.output(2).install(MatchFields::IN_PORT | MatchFields::ETH_SRC);
    }
}

/// What comes up in a burst, and what is made of it.
#[derive(Clone, Copy)]
enum Case {
    /// Packets of as many flows, of which none is installed.
    NoneInstalled,
    /// The first packets of as many flows, each of which is installed.
    ExactFlows,
    /// Packets of one new flow: one is decided about, the others are answered from the plan.
    OneFlow,
}

impl Case {
    const ALL: [Self; 3] = [Self::NoneInstalled, Self::ExactFlows, Self::OneFlow];

    fn name(self) -> &'static str {
        match self {
            Self::NoneInstalled => "none installed",
            Self::ExactFlows => "each a new flow, installed",
            Self::OneFlow => "all of one new flow, installed",
        }
    }

    fn install(self) -> InstallPolicy {
        match self {
            Self::NoneInstalled => InstallPolicy::Never,
            Self::ExactFlows | Self::OneFlow => InstallPolicy::Exact,
        }
    }

    /// Datagrams of burst `number`.
    fn burst(self, number: u32) -> Vec<Vec<u8>> {
        match self {
            Self::NoneInstalled => burst(number * BURST % FLOWS),
            Self::ExactFlows => burst(number * BURST),
            Self::OneFlow => vec![miss(number); BURST as usize],
        }
    }

    fn puts(self) -> u32 {
        match self {
            Self::NoneInstalled => 0,
            Self::ExactFlows => BURST,
            Self::OneFlow => 1,
        }
    }
}

pub(crate) fn all(criterion: &mut Criterion) {
    for from in [From::Memory, From::Socket] {
        let mut group = Group::new(criterion, from.name());
        for case in Case::ALL {
            let Some(mut bed) = Bed::new(case, from) else { return };
            bed.tell_allocations(&group);
            group.bench_timed(case.name(), BURST, || bed.burst().0);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Memory,
    Socket,
}

impl From {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "engine, from memory",
            Self::Socket => "engine, from a socket",
        }
    }
}

struct Bed {
    case: Case,
    kernel: Kernel,
    reader: Reader,
    /// `None`: the reader is given what it reads.
    socket: Option<Arc<Socket>>,
    bursts: u32,
}

/// As many flows as there may be; of those that were installed few are remembered, so that it is soon warm.
pub(crate) fn limits() -> Limits {
    // What it costs is to be measured, not how long an install waits.
    let recent_max = BURST as usize;
    let install = InstallLimits { recent_max, silence_us: 0, ..InstallLimits::default() };
    Limits { flows_max: u64::MAX >> 1, install, ..Limits::default() }
}

impl Bed {
    fn new(case: Case, from: From) -> Option<Self> {
        let kernel = Kernel::new_or_skip(from.name())?;
        let socket = || Arc::new(kernel.socket().expect("a socket"));
        let (socket, tx) = ((from == From::Socket).then(socket), socket());
        let sockets = (socket.clone(), tx);
        let reader = Reader::new((IDS, limits()), (Forward, case.install()), sockets);
        Some(Self { case, kernel, reader: reader.expect("a reader"), socket, bursts: 0 })
    }

    /// A burst is sent, read and answered: how long the last two took, and how many times they allocated.
    fn burst(&mut self) -> (Duration, u64) {
        let datagrams = self.case.burst(self.bursts);
        self.bursts += 1;
        if let Some(socket) = &self.socket {
            self.kernel.send(socket, &datagrams);
        }
        let (reader, mut took) = (&mut self.reader, Duration::ZERO);
        let made = measure(|| {
            took = timed(|| match &self.socket {
                Some(_) => reader.read_empty().expect("it is read"),
                None => reader.read(&datagrams).expect("it is read"),
            });
        });
        let answers = Answers { executes: BURST, puts: self.case.puts() };
        assert_eq!(self.kernel.answers(), answers);
        (took, made.count_total)
    }

    /// Once its buffers have grown.
    fn tell_allocations(&mut self, group: &Group<'_>) {
        (0..3 * BURST).for_each(|_| _ = self.burst());
        group.tell_allocations(self.case.name(), self.burst().1);
    }
}
