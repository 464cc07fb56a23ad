//! The host: everybody's state, and one step of it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};

use proptest::prelude::*;
use upcall_core::{
    Fence, Gather, InstallLimits, InstallPlan, Lanes, QueueLimits, SourceId, SourceState, Ticket,
    Work,
};

use crate::kernel::Kernel;
use crate::steps::{Answer, Step};

pub(crate) const SOCKETS: usize = 4;
pub(crate) const FLOWS: usize = 5;
pub(crate) const HELPERS: usize = 2;

/// A packet: its flow and its number in it.
pub(crate) type Packet = (usize, u32);

/// A socket and its reader.
pub(crate) struct Socket {
    pub(crate) queue: VecDeque<Packet>,
    pub(crate) state: SourceState,
    /// Answers that are not sent yet.
    pub(crate) batch: Vec<Packet>,
    pub(crate) in_round: bool,
    pub(crate) drained: bool,
    /// Some of what was read may wait for any worker.
    pub(crate) handed_out: bool,
    /// Installs of flows that come by this socket alone.
    pub(crate) plan: InstallPlan,
}

/// A flow as its sender sees it.
#[derive(Default)]
pub(crate) struct Flow {
    pub(crate) socket: usize,
    pub(crate) next: u32,
    /// Sockets that hold packets of it, with how many are unread.
    pub(crate) unread: [u32; SOCKETS],
    /// The newest packet of it that was read, and from where.
    pub(crate) newest_read: Option<(u32, usize)>,
    /// Was one read from the present socket?
    pub(crate) seen_here: bool,
}

#[derive(Default)]
pub(crate) struct Helper {
    pub(crate) work: Work,
    pub(crate) batch: Vec<Packet>,
}

pub(crate) struct Host {
    pub(crate) lanes: Lanes,
    pub(crate) sockets: RefCell<Vec<Socket>>,
    pub(crate) flows: Vec<Flow>,
    pub(crate) helpers: [Helper; HELPERS],
    /// Installs of flows that hopped or waited: the readers', then the helpers'.
    pub(crate) wide: Vec<InstallPlan>,
    pub(crate) kernel: Kernel,
    /// Upcalls that the handler has not answered yet.
    pub(crate) pending: BTreeMap<Packet, Ticket>,
    /// Those that it has: with an install or not, and when that was decided.
    pub(crate) outcomes: BTreeMap<Packet, (bool, u32)>,
    pub(crate) epoch: u32,
    /// What the handler says in this step.
    pub(crate) answer: Answer,
    pub(crate) now_us: Cell<u64>,
    pub(crate) gathers: Cell<u64>,
    pub(crate) unfenced: usize,
    /// Sockets in the order in which they got something since the last look (`ArrivalOrder`).
    pub(crate) arrivals: Vec<usize>,
    /// What the one who looked has still to take out, and for whom.
    pub(crate) taking: Option<(usize, VecDeque<usize>, Gather)>,
    pub(crate) reads: Reads,
    /// When packets were sent up.
    pub(crate) sent: HashMap<Packet, u64>,
    /// Is that told?
    pub(crate) is_timed: bool,
    /// Is there room for all to wait, as long as it takes?
    pub(crate) is_roomy: bool,
    limits: QueueLimits,
}

/// Who reads sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Their readers.
    Own,
    /// Somebody, in the order in which they got something.
    InOrder,
    /// Both: readers have not heard of it yet.
    Both,
}

pub(crate) fn id(socket: usize) -> SourceId {
    SourceId::new(socket as u16 + 1).expect("not 0")
}

pub(crate) fn index(source: SourceId) -> usize {
    usize::from(source.get()) - 1
}

pub(crate) fn hash(flow: usize) -> u64 {
    (flow as u64 + 1) << 32
}

/// The packet of a message.
pub(crate) fn packet_of(message: &[u8]) -> Packet {
    let (words, _) = message.as_chunks::<4>();
    (u32::from_ne_bytes(words[0]) as usize, u32::from_ne_bytes(words[1]))
}

/// No install is forced: what was promised holds without a limit.
pub(crate) fn plan() -> InstallPlan {
    InstallPlan::new(InstallLimits {
        upcalls_max: u16::MAX,
        rounds_max: u8::MAX,
        wait_us_max: u64::MAX,
        recent_us: 100,
        // A step takes a microsecond.
        silence_us: 5,
        pause_us: 3,
        ..InstallLimits::default()
    })
}

impl Socket {
    fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            state: SourceState::default(),
            batch: Vec::new(),
            in_round: false,
            drained: false,
            handed_out: false,
            plan: plan(),
        }
    }
}

impl Host {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        Self {
            lanes: Lanes::new(64, limits),
            sockets: RefCell::new((0..SOCKETS).map(|_| Socket::new()).collect()),
            flows: (0..FLOWS).map(|_| Flow::default()).collect(),
            helpers: Default::default(),
            wide: (0..SOCKETS + HELPERS).map(|_| plan()).collect(),
            kernel: Kernel::default(),
            pending: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            epoch: 0,
            answer: Answer::Execute,
            now_us: Cell::new(1),
            gathers: Cell::new(0),
            unfenced: 0,
            arrivals: Vec::new(),
            taking: None,
            reads: Reads::Own,
            sent: HashMap::new(),
            is_timed: false,
            is_roomy: true,
            limits,
        }
    }

    pub(crate) fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        self.now_us.set(self.now_us.get() + 1);
        self.answer = Answer::Execute;
        match step {
            Step::Arrive { flow } => self.arrive(flow),
            Step::Hop { flow, socket } => self.hop(flow, socket),
            Step::BeginRound { socket } => self.begin_round(socket),
            Step::Read { socket, defer, answer } => {
                self.answer = answer;
                self.read(socket, defer);
            }
            Step::EndRound { socket } => self.end_round(socket),
            Step::Round { socket, answer } => {
                self.answer = answer;
                self.read_empty(socket);
            }
            Step::Take { helper, max } => self.take(helper, max),
            Step::Handle { helper, answer } => {
                self.answer = answer;
                self.handle(helper);
            }
            Step::Answer { which, install } => {
                let owed: Vec<_> = self.pending.keys().copied().collect();
                if !owed.is_empty() {
                    self.answered(owed[which.index(owed.len())], install);
                }
            }
            Step::Settle { who } => self.end_wide(who),
            Step::Learn => self.learn(),
            Step::Expire { flow } => self.kernel.expire(flow),
            Step::Look { by } => self.look(by),
            Step::TakeInOrder => self.take_in_order(),
        }
        self.check_conservation()
    }

    /// All that was read is answered, shed, or in somebody's hands (contract B3).
    fn check_conservation(&self) -> Result<(), TestCaseError> {
        let done = self.kernel.executed.len() + self.kernel.shed;
        prop_assert_eq!(self.kernel.received, done + self.kernel.in_flight.len());
        let sockets = self.sockets.borrow();
        let batches = sockets.iter().map(|socket| &socket.batch);
        let batches = batches.chain(self.helpers.iter().map(|helper| &helper.batch));
        let unsent: Vec<_> = batches.flatten().copied().collect();
        let taken = self.helpers.iter().flat_map(|helper| helper.work.upcalls());
        let taken = taken.map(|upcall| packet_of(&upcall.message));
        let in_hands = taken.filter(|p| self.kernel.in_flight.contains(p) && !unsent.contains(p));
        let held = unsent.len() + in_hands.count() + self.lanes.stats().upcalls as usize;
        prop_assert_eq!(self.kernel.in_flight.len(), held);
        Ok(())
    }

    /// A port is refused only if as many of its upcalls wait as there is still room for (contract F1).
    pub(crate) fn check_refused(&self, flow: usize) {
        let waiting = self.lanes.stats().upcalls as usize;
        let free = self.limits.upcalls_max.saturating_sub(waiting);
        let share = self.kernel.unanswered(flow);
        assert!(share > free, "flow {flow}: shed with {share} in flight, room for {free}");
    }

    pub(crate) fn passed(&self, fence: &Fence) -> bool {
        self.sockets.borrow()[index(fence.source)].state.has_answered(fence.through)
    }

    /// Everybody does what is left to do, as often as it takes.
    pub(crate) fn settle(&mut self) -> Result<(), TestCaseError> {
        if self.reads != Reads::Own {
            self.look(0);
            while self.taking.is_some() {
                self.take_in_order();
            }
        }
        // A fence that only time opens takes 50 microseconds here.
        for _ in 0..200 {
            self.now_us.set(self.now_us.get() + 1);
            self.answer = Answer::Execute;
            for packet in self.pending.keys().copied().collect::<Vec<_>>() {
                self.answered(packet, false);
            }
            for socket in 0..SOCKETS {
                self.read_empty(socket);
            }
            for helper in 0..HELPERS {
                self.take(helper, 4);
                while !self.helpers[helper].work.is_empty() {
                    self.handle(helper);
                }
            }
            (0..SOCKETS + HELPERS).for_each(|who| self.end_wide(who));
            self.check_conservation()?;
        }
        prop_assert!(!self.lanes.any_queued());
        prop_assert_eq!((self.lanes.waiting(), self.kernel.in_flight.len()), (0, 0));
        prop_assert_eq!(self.lanes.stats().lanes_detained, 0);
        let sockets = self.sockets.borrow();
        let plans = sockets.iter().map(|socket| &socket.plan).chain(&self.wide);
        prop_assert!(plans.into_iter().all(InstallPlan::is_empty), "an install is left behind");
        Ok(())
    }

    pub(crate) fn check_order(&self) -> Result<(), TestCaseError> {
        for flow in 0..FLOWS {
            let of = |packets: &[Packet]| -> Vec<u32> {
                packets.iter().filter(|(f, _)| *f == flow).map(|packet| packet.1).collect()
            };
            let executed = of(&self.kernel.executed);
            prop_assert!(executed.is_sorted(), "flow {}: {:?}", flow, executed);
            let mut out = of(&self.kernel.out);
            prop_assert_eq!(out.len(), self.flows[flow].next as usize);
            out.retain(|number| !self.kernel.late.contains(&(flow, *number)));
            prop_assert!(out.is_sorted(), "flow {}, overtaken: {:?}", flow, out);
        }
        Ok(())
    }
}
