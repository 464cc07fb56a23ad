//! Who is refused and who comes first, with more than can be handled and helpers that take their time
//! (contract F1, F2, B1, B3), checked after every step of any order of steps.
#![cfg(not(loom))]
#![allow(missing_docs, reason = "a test binary")]

use std::collections::VecDeque;

use proptest::prelude::*;
use upcall_core::{Class, Gather, Lanes, Late, Placed, QueueLimits, Refusal, SourceId, Tick, Work};

const PORTS: usize = 4;
const CLASSES: [Class; 3] = [Class::Miss, Class::Action, Class::Sample];
/// Two of each port and class.
const FLOWS: usize = PORTS * CLASSES.len() * 2;
const HELPERS: usize = 3;
/// Upcalls that a port may have handled before the next port's turn.
const QUANTUM: usize = 8;

#[derive(Debug, Clone, Copy)]
enum Step {
    Arrive { flow: usize, count: u8 },
    Take { helper: usize, max: usize },
    Finish { helper: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let helper = 0..HELPERS;
    let step = prop_oneof![
        5 => (0..FLOWS, 1..12u8).prop_map(|(flow, count)| Step::Arrive { flow, count }),
        3 => (helper.clone(), 1..9usize).prop_map(|(helper, max)| Step::Take { helper, max }),
        2 => helper.prop_map(|helper| Step::Finish { helper }),
    ];
    prop::collection::vec(step, 1..300)
}

fn port(flow: usize) -> usize {
    flow % PORTS
}

fn class(flow: usize) -> Class {
    CLASSES[flow / PORTS % CLASSES.len()]
}

#[derive(Default)]
struct Flow {
    waiting: VecDeque<u32>,
    next: u32,
    /// Is a helper at it?
    running: bool,
}

struct Host {
    lanes: Lanes,
    limits: QueueLimits,
    /// Of port 0, which has its own.
    own_max: usize,
    flows: Vec<Flow>,
    helpers: [Work; HELPERS],
    /// Upcalls of its class that other ports were served, since a port had something that could be.
    passed_over: [[usize; CLASSES.len()]; PORTS],
    arrived: usize,
    run: usize,
    shed: usize,
    done: usize,
}

impl Host {
    fn new(limits: QueueLimits, own_max: usize) -> Self {
        let lanes = Lanes::new(1024, limits);
        lanes.set_port_upcalls_max(limits.port_upcalls_max, [(0, own_max)].into_iter());
        Self {
            lanes,
            limits,
            own_max,
            flows: (0..FLOWS).map(|_| Flow::default()).collect(),
            helpers: Default::default(),
            passed_over: Default::default(),
            arrived: 0,
            run: 0,
            shed: 0,
            done: 0,
        }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Arrive { flow, count } => (0..count).try_for_each(|_| self.arrive(flow))?,
            Step::Take { helper, max } => self.take(helper, max)?,
            Step::Finish { helper } => self.finish(helper),
        }
        self.check()
    }

    /// An upcall comes that is to be handled by whoever has time.
    fn arrive(&mut self, flow: usize) -> Result<(), TestCaseError> {
        let source = SourceId::new(1).expect("not 0");
        // A lane of its own: tag and bucket differ.
        let hash = (flow as u64 + 1) << 32 | flow as u64;
        let number = self.flows[flow].next;
        let message = [flow as u32, number].map(u32::to_ne_bytes).concat();
        let arrival = Late {
            message: &message,
            flow: hash,
            source,
            read: 1,
            sent_ns: None,
            port: port(flow) as u32,
            class: class(flow),
            ahead: false,
            gather: None,
            in_doubt: false,
            defer: true,
        };
        self.lanes.claim(hash, source, Tick::of_us(0), || true);
        let nothing = Gather::default();
        let placed = self.lanes.place(&arrival, || 0, |_| &nothing);
        self.arrived += 1;
        self.flows[flow].next += 1;
        self.judge(flow, placed)?;
        match placed {
            Placed::Waits => self.flows[flow].waiting.push_back(number),
            Placed::Shed(_) => self.shed += 1,
            Placed::Run | Placed::Unfenced => self.run += 1,
        }
        Ok(())
    }

    /// F1: is an upcall refused for what its own port has, and for nothing else?
    fn judge(&self, flow: usize, placed: Placed) -> Result<(), TestCaseError> {
        let used = self.waiting_of(port(flow));
        let all: usize = (0..PORTS).map(|port| self.waiting_of(port)).sum();
        let share = (self.limits.upcalls_max - all) >> (class(flow) as u32);
        let (full, over) = (used >= share, used >= self.max_of(port(flow)));
        let is_idle = self.flows[flow].waiting.is_empty() && !self.flows[flow].running;
        let expected = match (over, full) {
            (false, false) => Placed::Waits,
            // The reader handles it at once: nothing of its flow is before it.
            _ if is_idle => Placed::Run,
            (true, _) => Placed::Shed(Refusal::Quota),
            (false, true) => Placed::Shed(Refusal::NoRoom),
        };
        prop_assert_eq!(placed, expected, "flow {} with {} of {}", flow, used, share);
        Ok(())
    }

    fn waiting_of(&self, of: usize) -> usize {
        let flows = self.flows.iter().enumerate();
        flows.filter(|(flow, _)| port(*flow) == of).map(|(_, flow)| flow.waiting.len()).sum()
    }

    /// Could an upcall of this port and class be taken?
    fn is_ready(&self, of: usize, in_class: Class) -> bool {
        (0..FLOWS).any(|flow| {
            port(flow) == of
                && class(flow) == in_class
                && !self.flows[flow].running
                && !self.flows[flow].waiting.is_empty()
        })
    }

    fn take(&mut self, helper: usize, max: usize) -> Result<(), TestCaseError> {
        if !self.helpers[helper].is_empty() || !self.lanes.open_fences(0, |_| true) {
            return Ok(());
        }
        let ready = CLASSES.map(|class| (0..PORTS).map(|p| self.is_ready(p, class)).collect());
        let mut work = std::mem::take(&mut self.helpers[helper]);
        self.lanes.take(max, &mut work);
        prop_assert!(!work.is_empty() && work.len() <= max, "{} of {}", work.len(), max);
        let taken: Vec<_> = work.upcalls().map(|upcall| read(&upcall.message)).collect();
        self.helpers[helper] = work;
        for (flow, number) in &taken {
            prop_assert_eq!(self.flows[*flow].waiting.pop_front(), Some(*number), "order");
        }
        for flow in 0..FLOWS {
            if taken.iter().any(|(of, _)| *of == flow) {
                prop_assert!(!self.flows[flow].running, "two are at flow {}", flow);
                self.flows[flow].running = true;
            }
        }
        self.share(&taken, &ready)
    }

    /// F2: what is left is not of a class before those that were taken. F1: nobody is passed over for
    /// longer than a turn of all others takes.
    fn share(
        &mut self,
        taken: &[(usize, u32)],
        ready: &[Vec<bool>; CLASSES.len()],
    ) -> Result<(), TestCaseError> {
        let last = taken.iter().map(|(flow, _)| class(*flow)).max().unwrap_or_default();
        for (of, in_class) in (0..PORTS).flat_map(|port| CLASSES.map(|class| (port, class))) {
            prop_assert!(in_class >= last || !self.is_ready(of, in_class), "{:?}", in_class);
            let of_class = taken.iter().filter(|(flow, _)| class(*flow) == in_class);
            let all = of_class.clone().count();
            let mine = of_class.filter(|(flow, _)| port(*flow) == of).count();
            let passed_over = &mut self.passed_over[of][in_class as usize];
            if mine == 0 && ready[in_class as usize][of] {
                *passed_over += all;
            } else {
                *passed_over = 0;
            }
            prop_assert!(*passed_over <= (PORTS - 1) * QUANTUM, "port {} of {:?}", of, in_class);
        }
        Ok(())
    }

    fn finish(&mut self, helper: usize) {
        self.done += self.helpers[helper].len();
        for upcall in self.helpers[helper].upcalls() {
            self.flows[read(&upcall.message).0].running = false;
        }
        if !self.helpers[helper].is_empty() {
            self.lanes.finish(&mut self.helpers[helper]);
        }
    }

    /// B3 and B1, whatever is in flight.
    fn check(&self) -> Result<(), TestCaseError> {
        let waiting: usize = self.flows.iter().map(|flow| flow.waiting.len()).sum();
        let at_work: usize = self.helpers.iter().map(Work::len).sum();
        prop_assert_eq!(self.arrived, self.run + self.shed + self.done + at_work + waiting);
        prop_assert_eq!(self.lanes.waiting(), waiting);
        prop_assert_eq!(self.lanes.stats().upcalls as usize, waiting);
        prop_assert!(waiting <= self.limits.upcalls_max);
        for port in 0..PORTS {
            prop_assert!(self.waiting_of(port) <= self.max_of(port));
        }
        Ok(())
    }

    fn max_of(&self, port: usize) -> usize {
        if port == 0 { self.own_max } else { self.limits.port_upcalls_max }
    }
}

fn read(message: &[u8]) -> (usize, u32) {
    let (words, _) = message.as_chunks::<4>();
    (u32::from_ne_bytes(words[0]) as usize, u32::from_ne_bytes(words[1]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 400 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ports_and_classes_get_their_due_at_every_step(
        steps in steps(),
        upcalls_max in 0..120usize,
        port_upcalls_max in prop_oneof![Just(usize::MAX), 1..40usize],
        own_max in prop_oneof![Just(usize::MAX), 0..40usize],
    ) {
        let limits = QueueLimits { upcalls_max, port_upcalls_max, ..QueueLimits::default() };
        let mut host = Host::new(limits, own_max);
        for step in steps {
            host.step(step)?;
        }
        for helper in 0..HELPERS {
            host.finish(helper);
        }
        while host.lanes.any_queued() {
            host.step(Step::Take { helper: 0, max: 4 })?;
            host.step(Step::Finish { helper: 0 })?;
        }
        prop_assert_eq!(host.arrived, host.run + host.shed + host.done);
    }
}
