//! Upcalls that are answered later, at the head of their lane.
#![allow(missing_docs, reason = "a test binary")]

use std::collections::HashMap;

use proptest::prelude::*;
use upcall_core::{Claim, Class, Lanes, Late, Placed, QueueLimits, SourceId, Tick, Ticket, Work};

const FLOWS: u32 = 4;
const HELPERS: usize = 2;

type Packet = (u32, u32);

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The reader reads a packet of this flow, and finds that it is answered later.
    Read {
        flow: u32,
        later: bool,
        defer: bool,
    },
    Take {
        helper: usize,
        max: usize,
    },
    /// A helper handles its next upcall.
    Handle {
        helper: usize,
        later: bool,
    },
    Answer {
        which: prop::sample::Index,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (helper, flag) = (0..HELPERS, any::<bool>());
    let step = prop_oneof![
        4 => (0..FLOWS, flag, prop::bool::weighted(0.2))
            .prop_map(|(flow, later, defer)| Step::Read { flow, later, defer }),
        2 => (helper.clone(), 1..5usize).prop_map(|(helper, max)| Step::Take { helper, max }),
        4 => (helper, any::<bool>()).prop_map(|(helper, later)| Step::Handle { helper, later }),
        2 => any::<prop::sample::Index>().prop_map(|which| Step::Answer { which }),
    ];
    prop::collection::vec(step, 1..300)
}

struct Host {
    lanes: Lanes,
    next: HashMap<u32, u32>,
    helpers: [Work; HELPERS],
    pending: HashMap<Ticket, Packet>,
    asked: Vec<Packet>,
    done: Vec<Packet>,
    shed: Vec<Packet>,
}

impl Host {
    fn new(upcalls_max: usize) -> Self {
        let limits = QueueLimits { upcalls_max, ..QueueLimits::default() };
        Self {
            lanes: Lanes::new(64, limits),
            next: HashMap::new(),
            helpers: Default::default(),
            pending: HashMap::new(),
            asked: Vec::new(),
            done: Vec::new(),
            shed: Vec::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Read { flow, later, defer } => self.read(flow, later, defer),
            Step::Take { helper, max } => self.take(helper, max),
            Step::Handle { helper, later } => self.handle(helper, later),
            Step::Answer { which } => {
                let mut tickets: Vec<_> = self.pending.keys().copied().collect();
                tickets.sort_by_key(|ticket| self.pending[ticket]);
                if !tickets.is_empty() {
                    self.answer(tickets[which.index(tickets.len())]);
                }
            }
        }
    }

    fn read(&mut self, flow: u32, later: bool, defer: bool) {
        let number = self.next.entry(flow).or_default();
        let packet = (flow, *number);
        *number += 1;
        let source = SourceId::new(1).expect("not 0");
        let message = [packet.0, packet.1].map(u32::to_ne_bytes).concat();
        let arrival = Late {
            message: &message,
            flow: u64::from(flow + 1) << 32,
            source,
            read: 1,
            sent_ns: None,
            port: flow,
            class: Class::Miss,
            ahead: false,
            gather: None,
            in_doubt: false,
            defer,
        };
        let (_, claim) = self.lanes.claim(arrival.flow, source, Tick::of_us(1), || true);
        if claim == Claim::Wait || defer {
            match self.lanes.place(&arrival, || 1, |_| unreachable!("no flow hops")) {
                Placed::Run => {}
                Placed::Waits => return,
                Placed::Shed(_) => return self.shed.push(packet),
                Placed::Unfenced => panic!("there is one socket"),
            }
        }
        self.asked.push(packet);
        match later.then(|| self.lanes.detain(&arrival, || 1)) {
            None => self.done.push(packet),
            Some(Ok(ticket)) => assert_eq!(self.pending.insert(ticket, packet), None),
            Some(Err(_)) => self.shed.push(packet),
        }
    }

    fn take(&mut self, helper: usize, max: usize) {
        let work = &mut self.helpers[helper];
        if work.is_empty() && self.lanes.open_fences(1, |_| true) {
            self.lanes.take(max, work);
        }
    }

    fn handle(&mut self, helper: usize, later: bool) {
        let work = &mut self.helpers[helper];
        let Some(upcall) = work.current() else { return self.lanes.finish(work) };
        let (words, _) = upcall.message.as_chunks::<4>();
        let packet = (u32::from_ne_bytes(words[0]), u32::from_ne_bytes(words[1]));
        if upcall.answered().is_some() {
            self.done.push(packet);
            return work.handled();
        }
        self.asked.push(packet);
        if later {
            let ticket = self.lanes.detain_taken(work).expect("it has a next one");
            assert_eq!(self.pending.insert(ticket, packet), None);
        } else {
            self.done.push(packet);
            work.handled();
        }
    }

    fn answer(&mut self, ticket: Ticket) {
        self.pending.remove(&ticket);
        assert!(self.lanes.answered(ticket));
        assert!(!self.lanes.answered(ticket), "once");
    }

    fn settle(&mut self) {
        let tickets: Vec<_> = self.pending.keys().copied().collect();
        for ticket in tickets {
            self.answer(ticket);
        }
        for _ in 0..1_000 {
            for helper in 0..HELPERS {
                self.take(helper, 3);
                self.handle(helper, false);
            }
        }
    }

    /// One upcall of a flow at a time: it is answered before the next is asked about.
    fn check_one_at_a_time(&self) -> Result<(), TestCaseError> {
        for flow in 0..FLOWS {
            let of = |packets: &[Packet]| packets.iter().filter(|(f, _)| *f == flow).count();
            let shed_asked =
                self.shed.iter().filter(|packet| packet.0 == flow && self.asked.contains(packet));
            let open = of(&self.asked) - of(&self.done) - shed_asked.count();
            prop_assert!(open <= 1, "flow {}: {} at a time", flow, open);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let read: u32 = self.next.values().sum();
        prop_assert_eq!(read as usize, self.done.len() + self.shed.len(), "conservation");
        prop_assert!(!self.lanes.any_queued());
        let stats = self.lanes.stats();
        prop_assert_eq!(
            (stats.upcalls, stats.bytes, stats.lanes, stats.lanes_detained),
            (0, 0, 0, 0)
        );
        for flow in 0..FLOWS {
            for packets in [&self.asked, &self.done] {
                let of: Vec<_> = packets.iter().filter(|(f, _)| *f == flow).collect();
                prop_assert!(of.is_sorted(), "{:?}", of);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 400 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_lane_is_detained_until_its_answer_is_there(steps in steps(), room in 2..100usize) {
        let mut host = Host::new(room);
        for step in steps {
            host.step(step);
            host.check_one_at_a_time()?;
        }
        host.settle();
        host.check()?;
    }
}
