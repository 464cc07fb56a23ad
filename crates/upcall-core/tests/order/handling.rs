//! What becomes of upcalls that were read: lanes, the handler, installs, as the driver does it.

use std::cell::OnceCell;

use upcall_core::{
    Claim, Class, Gather, Late, Observed, Placed, Tick, Ticket, Wanted, Whereabouts,
};

use crate::host::{Host, Packet, SOCKETS, Socket, hash, id, packet_of};
use crate::steps::Answer;

/// A packet's reading: by whose reader, from which socket.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) by: usize,
    pub(crate) from: usize,
    pub(crate) read: u64,
    pub(crate) defer: bool,
    /// When it was sent, if that is told.
    pub(crate) sent_ns: Option<u64>,
    /// Is the flow new, and is something older in other sockets?
    pub(crate) in_doubt: bool,
}

/// Who handles an upcall, and whose plan its install goes to.
#[derive(Clone, Copy)]
enum Hands {
    Reader { by: usize, wide: bool },
    Helper(usize),
}

fn is_unread(sockets: &[Socket], flow: usize) -> bool {
    sockets.iter().flat_map(|socket| &socket.queue).any(|packet| packet.0 == flow)
}

fn message((flow, number): Packet) -> Vec<u8> {
    [flow as u32, number].map(u32::to_ne_bytes).concat()
}

fn late<'a>(
    message: &'a [u8],
    flow: usize,
    reading: Reading,
    gather: Option<&'a Gather>,
) -> Late<'a> {
    let Reading { by, from, read, defer, sent_ns, in_doubt } = reading;
    Late {
        message,
        flow: hash(flow),
        source: id(from),
        read,
        sent_ns,
        port: flow as u32,
        class: Class::Miss,
        ahead: by != from,
        gather,
        in_doubt,
        defer,
    }
}

impl Host {
    pub(crate) fn packet(&mut self, packet: Packet, mut reading: Reading) {
        self.unread(packet, reading.from);
        let now = Tick::of_us(self.now_us.get());
        let is_first = || self.is_oldest(reading);
        let (lane, claim) = self.lanes.claim(hash(packet.0), id(reading.from), now, is_first);
        reading.in_doubt = claim == Claim::Doubt;
        if claim == Claim::Run && !reading.defer {
            return self.decide_as_read(packet, reading, lane.hopped());
        }
        if let Some(gather) = self.place(packet, reading, None) {
            self.read_all(reading.by, gather);
        }
    }

    /// Gives the gather that it makes, if the flow hopped.
    pub(crate) fn place(
        &mut self,
        packet: Packet,
        reading: Reading,
        gather: Option<&Gather>,
    ) -> Option<Gather> {
        // What is brought to the queue is behind what was answered.
        self.send(Hands::Reader { by: reading.by, wide: false });
        let message = message(packet);
        let arrival = late(&message, packet.0, reading, gather);
        let now_us = || {
            self.now_us.set(self.now_us.get() + 1);
            self.now_us.get()
        };
        let looked = OnceCell::new();
        let look = |before: Option<_>| {
            let hopped_from = before.filter(|before| *before != id(reading.from));
            let older = || self.older(reading).filter(|_| hopped_from.is_none());
            let look = || older().unwrap_or_else(|| self.gather(reading.by));
            gather.unwrap_or_else(|| looked.get_or_init(look))
        };
        let placed = self.lanes.place(&arrival, now_us, look);
        match placed {
            Placed::Unfenced | Placed::Run => {
                self.unfenced += usize::from(placed == Placed::Unfenced);
                self.decide_as_read(packet, reading, true);
            }
            Placed::Waits => {}
            Placed::Shed(_) => self.shed(packet),
        }
        looked.into_inner().filter(|gather| !gather.older)
    }

    fn decide_as_read(&mut self, packet: Packet, reading: Reading, wide: bool) {
        let hands = Hands::Reader { by: reading.by, wide };
        if self.decide(packet, hands) {
            return;
        }
        let message = message(packet);
        let detained =
            self.lanes.detain(&late(&message, packet.0, reading, None), || self.now_us.get());
        match detained {
            Ok(ticket) => self.owe(packet, ticket),
            Err(_) => self.shed(packet),
        }
    }

    fn shed(&mut self, packet: Packet) {
        self.check_refused(packet.0);
        self.kernel.shed(packet);
    }

    fn owe(&mut self, packet: Packet, ticket: Ticket) {
        assert_eq!(self.pending.insert(packet, ticket), None);
    }

    /// Answers from the plan, or as the handler says; `false` if it answers later.
    fn decide(&mut self, packet: Packet, hands: Hands) -> bool {
        self.check_one_at_a_time(packet);
        let flow = hash(packet.0);
        let is_planned = self.plan(hands, |plan, _| {
            plan.touch(flow);
            plan.waiting(flow).is_some()
        });
        if !is_planned && self.answer == Answer::Later {
            // Another worker may carry the answer out: what was answered here comes before.
            self.send(hands);
            return false;
        }
        self.carry_out(packet, hands, !is_planned && self.answer == Answer::Install);
        true
    }

    /// The handler is not asked while it owes an answer to an earlier packet of the flow, and packets
    /// come to it in order.
    fn check_one_at_a_time(&self, (flow, number): Packet) {
        if self.is_roomy {
            let owed = self.pending.keys().find(|packet| packet.0 == flow);
            assert_eq!(owed, None, "asked about {number} of flow {flow}");
            let later = self
                .kernel
                .executed
                .iter()
                .find(|packet| **packet > (flow, number) && packet.0 == flow);
            assert_eq!(later, None, "asked about {number} of flow {flow}");
        }
    }

    fn carry_out(&mut self, packet: Packet, hands: Hands, install: bool) {
        match hands {
            Hands::Reader { by, .. } => self.sockets.borrow_mut()[by].batch.push(packet),
            Hands::Helper(helper) => self.helpers[helper].batch.push(packet),
        }
        if install {
            let flow = hash(packet.0);
            let write = |buf: &mut Vec<u8>| {
                buf.push(packet.0 as u8);
                Ok::<(), ()>(())
            };
            let wanted = Wanted { flow, lane: flow, alike: packet.0 };
            self.plan(hands, |plan, now_us| plan.offer(wanted, now_us, write).expect("room"));
        }
    }

    fn plan<T>(
        &mut self,
        hands: Hands,
        work: impl FnOnce(&mut upcall_core::InstallPlan, u64) -> T,
    ) -> T {
        let now_us = self.now_us.get();
        match hands {
            Hands::Reader { by, wide: false } => {
                work(&mut self.sockets.borrow_mut()[by].plan, now_us)
            }
            Hands::Reader { by, .. } => work(&mut self.wide[by], now_us),
            Hands::Helper(helper) => work(&mut self.wide[SOCKETS + helper], now_us),
        }
    }

    fn send(&mut self, hands: Hands) {
        let batch = match hands {
            Hands::Reader { by, .. } => std::mem::take(&mut self.sockets.borrow_mut()[by].batch),
            Hands::Helper(helper) => std::mem::take(&mut self.helpers[helper].batch),
        };
        for packet in batch {
            self.kernel.execute(packet);
        }
    }

    /// Ends a round of a socket's reader: its answers are sent, then the installs that are due.
    pub(crate) fn end_round(&mut self, at: usize) {
        if !self.sockets.borrow()[at].in_round {
            return;
        }
        self.send(Hands::Reader { by: at, wide: false });
        let mut due = Vec::new();
        let mut sockets = self.sockets.borrow_mut();
        sockets[at].handed_out &= self.lanes.any_queued();
        let answered = sockets[at].drained && !sockets[at].handed_out;
        let mut plan = std::mem::replace(&mut sockets[at].plan, crate::host::plan());
        let waits = |flow| match self.whereabouts(flow) {
            Whereabouts::Waiting => true,
            Whereabouts::ReadFrom(last) => {
                last != id(at) && !sockets[crate::host::index(last)].state.is_idle()
            }
            Whereabouts::Unknown => false,
        };
        let seen = Observed { now_us: self.now_us.get(), drained: answered, busy: true };
        let is_unread = |flow| self.is_timed && is_unread(&sockets, flow);
        plan.end_round(seen, waits, is_unread, |message, _| due.push(message[0]));
        sockets[at].plan = plan;
        sockets[at].state.answer_all();
        sockets[at].in_round = false;
        drop(sockets);
        self.put(&due);
    }

    fn whereabouts(&self, flow: u64) -> Whereabouts {
        self.lanes.whereabouts(flow, Tick::of_us(self.now_us.get()))
    }

    /// Sends the installs of one worker that may go now, whatever socket their flow's packets come by. A
    /// worker does that when it is at nothing else.
    pub(crate) fn end_wide(&mut self, who: usize) {
        let sockets = self.sockets.borrow();
        let is_busy = match who.checked_sub(SOCKETS) {
            None => sockets[who].in_round,
            Some(helper) => self.helpers[helper].work.current().is_some(),
        };
        if is_busy {
            return;
        }
        let idle = sockets.iter().all(|socket| socket.queue.is_empty() && socket.state.is_idle());
        drop(sockets);
        let answered = idle && !self.lanes.any_queued();
        let mut plan = std::mem::replace(&mut self.wide[who], crate::host::plan());
        let mut due = Vec::new();
        let waits = |flow| self.whereabouts(flow) == Whereabouts::Waiting;
        let seen = Observed { now_us: self.now_us.get(), drained: answered, busy: true };
        let is_unread = |flow| self.is_timed && is_unread(&self.sockets.borrow(), flow);
        plan.end_round(seen, waits, is_unread, |message, _| due.push(message[0]));
        self.wide[who] = plan;
        self.put(&due);
    }

    /// Installs flows: behind all of their upcalls that were read (contract O3).
    fn put(&mut self, due: &[u8]) {
        for flow in due.iter().map(|flow| usize::from(*flow)) {
            if self.is_roomy {
                let unanswered = self.kernel.unanswered(flow);
                assert_eq!(unanswered, 0, "flow {flow} is installed before its packets");
            }
            let sockets = self.sockets.borrow();
            let told = self.is_timed && is_unread(&sockets, flow);
            assert!(!told, "flow {flow} is installed while packets of it are unread");
            let unread = sockets.iter().flat_map(|socket| &socket.queue);
            self.kernel.put(flow, unread.copied().filter(|packet| packet.0 == flow));
        }
    }

    pub(crate) fn learn(&mut self) {
        self.epoch += 1;
        let mut sockets = self.sockets.borrow_mut();
        let plans = sockets.iter_mut().map(|socket| &mut socket.plan).chain(&mut self.wide);
        plans.for_each(upcall_core::InstallPlan::clear);
    }

    pub(crate) fn take(&mut self, helper: usize, max: usize) {
        if self.helpers[helper].work.is_empty()
            && self.lanes.any_queued()
            && self.lanes.open_fences(self.now_us.get(), |fence| self.passed(fence))
        {
            self.lanes.take(max, &mut self.helpers[helper].work);
        }
    }

    pub(crate) fn handle(&mut self, helper: usize) {
        let hands = Hands::Helper(helper);
        let Some(upcall) = self.helpers[helper].work.current() else {
            self.end_wide(SOCKETS + helper);
            self.send(hands);
            return self.lanes.finish(&mut self.helpers[helper].work);
        };
        let packet = packet_of(&upcall.message);
        if upcall.answered().is_some() {
            let (install, epoch) = self.outcomes.remove(&packet).expect("it was answered once");
            self.carry_out(packet, hands, install && epoch == self.epoch);
        } else if !self.decide(packet, hands) {
            let ticket = self.lanes.detain_taken(&mut self.helpers[helper].work);
            return self.owe(packet, ticket.expect("it has a next one"));
        }
        self.helpers[helper].work.handled();
    }

    /// The handler gives an answer that it owed.
    pub(crate) fn answered(&mut self, packet: Packet, install: bool) {
        let ticket = self.pending.remove(&packet).expect("it is owed");
        self.outcomes.insert(packet, (install, self.epoch));
        assert!(self.lanes.answered(ticket), "{packet:?} is gone");
    }
}
