//! Packets on their way into sockets and out of them: by their reader, because a flow hopped, or in the
//! order in which the sockets got something.

use std::collections::VecDeque;

use upcall_core::{Fence, Gather};

use crate::handling::Reading;
use crate::host::{Host, Packet, Reads, SOCKETS, id};

impl Host {
    pub(crate) fn arrive(&mut self, flow: usize) {
        let state = &mut self.flows[flow];
        let packet = (flow, state.next);
        state.next += 1;
        if self.kernel.forward(packet) {
            return;
        }
        self.sent.insert(packet, self.sent.len() as u64);
        self.sockets.borrow_mut()[state.socket].queue.push_back(packet);
        state.unread[state.socket] += 1;
        if !self.arrivals.contains(&state.socket) {
            self.arrivals.push(state.socket);
        }
    }

    /// A flow may hop once a packet of it was read where it is, and back to a socket only when that
    /// holds none of it any more: what hops faster than anybody looks has no order to be seen. While
    /// sockets are read in order, it is enough that the socket got nothing since the last look, and that
    /// nobody is about to take out of it what was there then. Where it is told when packets were sent, it is
    /// enough that it does not come back to the socket that the newest one read is from before the rest is read.
    pub(crate) fn hop(&mut self, flow: usize, socket: usize) {
        let state = &mut self.flows[flow];
        let is_taken = |(_, order, _): &(_, VecDeque<_>, _)| order.contains(&socket);
        let is_fresh =
            !self.arrivals.contains(&socket) && !self.taking.as_ref().is_some_and(is_taken);
        let is_back = state.newest_read.is_some_and(|(_, from)| from == socket)
            && state.unread.iter().any(|unread| *unread > 0);
        let may_hop = match self.reads {
            Reads::Own if self.is_timed => !is_back,
            Reads::Own => state.seen_here,
            Reads::InOrder => is_fresh,
            Reads::Both => state.seen_here && is_fresh,
        };
        if may_hop && state.unread[socket] == 0 {
            state.seen_here &= state.socket == socket;
            state.socket = socket;
        }
    }

    pub(crate) fn begin_round(&mut self, socket: usize) {
        let mut sockets = self.sockets.borrow_mut();
        let socket = &mut sockets[socket];
        if !socket.in_round {
            socket.in_round = true;
            socket.drained = false;
        }
    }

    pub(crate) fn read(&mut self, at: usize, defer: bool) {
        let mut sockets = self.sockets.borrow_mut();
        let socket = &mut sockets[at];
        if !socket.in_round || socket.drained {
            return;
        }
        let read = socket.state.begin_read();
        let Some(packet) = socket.queue.pop_front() else {
            socket.drained = true;
            return;
        };
        drop(sockets);
        self.packet(packet, Reading { defer, ..self.reading(packet, at, at, read) });
    }

    /// A whole round, in which the socket is read empty.
    pub(crate) fn read_empty(&mut self, at: usize) {
        self.begin_round(at);
        while !self.sockets.borrow()[at].drained {
            self.read(at, false);
        }
        self.end_round(at);
    }

    fn reading(&self, packet: Packet, by: usize, from: usize, read: u64) -> Reading {
        let sent_ns = self.is_timed.then(|| self.sent[&packet]);
        Reading { by, from, read, defer: true, sent_ns, in_doubt: false }
    }

    /// Is nothing in other sockets that is known to be older?
    pub(crate) fn is_oldest(&self, reading: Reading) -> bool {
        let Some(sent_ns) = reading.sent_ns else { return true };
        let sockets = self.sockets.borrow();
        let oldest = |at: usize| sockets[at].queue.front().map(|packet| self.sent[packet]);
        (0..SOCKETS).all(|at| at == reading.by || oldest(at).is_none_or(|first| first > sent_ns))
    }

    /// Looks at all sockets, for the reader of `by`.
    pub(crate) fn gather(&self, by: usize) -> Gather {
        self.gathers.set(self.gathers.get() + 1);
        let sockets = self.sockets.borrow();
        let unread = |at: &usize| !sockets[*at].queue.is_empty();
        let is_busy = |at: &usize| unread(at) || !sockets[*at].state.is_idle();
        let fence = |at: usize| Fence { source: id(at), through: sockets[at].state.reads() };
        let open = |at: usize| Fence { through: Fence::OPEN, ..fence(at) };
        let others = || (0..SOCKETS).filter(|at| *at != by);
        let busy = others().filter(is_busy);
        Gather {
            id: self.gathers.get(),
            busy: busy.map(|at| if unread(&at) { open(at) } else { fence(at) }).collect(),
            hold: others().any(|at| unread(&at)).then(|| fence(by)),
            ordered: false,
            older: false,
        }
    }

    /// What may be older than this upcall in other sockets, or their readers' hands, if it is known when it was sent.
    pub(crate) fn older(&self, reading: Reading) -> Option<Gather> {
        let sent_ns = reading.sent_ns?;
        self.gathers.set(self.gathers.get() + 1);
        let sockets = self.sockets.borrow();
        let fence = |at: usize| {
            let socket = &sockets[at];
            let older = socket.queue.iter().filter(|packet| self.sent[*packet] < sent_ns).count();
            let through = socket.state.reads() + older as u64;
            (older > 0 || !socket.state.is_idle()).then(|| Fence { source: id(at), through })
        };
        let busy = (0..SOCKETS).filter(|at| *at != reading.from).filter_map(fence).collect();
        Some(Gather { id: self.gathers.get(), busy, older: true, ..Gather::default() })
    }

    /// The reader of `by` takes what is in the sockets, its own first.
    pub(crate) fn read_all(&mut self, by: usize, mut gather: Gather) {
        for from in std::iter::once(by).chain((0..SOCKETS).filter(|from| *from != by)) {
            let through = self.sockets.borrow()[from].state.reads();
            self.lanes.narrow(&mut gather, Fence { source: id(from), through });
            let was_idle = self.sockets.borrow()[from].state.is_idle();
            loop {
                let mut sockets = self.sockets.borrow_mut();
                let Some(packet) = sockets[from].queue.pop_front() else { break };
                let read = sockets[from].state.begin_read();
                drop(sockets);
                self.unread(packet, from);
                let reading = self.reading(packet, by, from, read);
                self.place(packet, reading, Some(&gather));
            }
            if was_idle {
                self.sockets.borrow()[from].state.answer_all();
            }
        }
    }

    pub(crate) fn look(&mut self, by: usize) {
        if self.taking.is_some() {
            return;
        }
        self.gathers.set(self.gathers.get() + 1);
        let gather = self.ordered_gather(self.gathers.get());
        let sockets = self.sockets.borrow();
        let arrivals = std::mem::take(&mut self.arrivals);
        let order: VecDeque<_> =
            arrivals.into_iter().filter(|at| !sockets[*at].queue.is_empty()).collect();
        drop(sockets);
        self.taking = (!order.is_empty()).then_some((by, order, gather));
    }

    /// With what readers have in their hands now.
    fn ordered_gather(&self, gather: u64) -> Gather {
        let sockets = self.sockets.borrow();
        let busy = (0..SOCKETS).filter(|at| !sockets[*at].state.is_idle());
        let fence = |at: usize| Fence { source: id(at), through: sockets[at].state.reads() };
        Gather {
            id: gather,
            busy: busy.map(fence).collect(),
            hold: None,
            ordered: true,
            older: false,
        }
    }

    pub(crate) fn take_in_order(&mut self) {
        let Some((by, mut order, gather)) = self.taking.take() else { return };
        let gather = self.ordered_gather(gather.id);
        let Some(&from) = order.front() else { return self.look(by) };
        let mut sockets = self.sockets.borrow_mut();
        let was_idle = sockets[from].state.is_idle();
        if let Some(packet) = sockets[from].queue.pop_front() {
            let read = sockets[from].state.begin_read();
            drop(sockets);
            self.unread(packet, from);
            let reading = self.reading(packet, by, from, read);
            self.place(packet, reading, Some(&gather));
            if was_idle {
                self.sockets.borrow()[from].state.answer_all();
            }
        } else {
            drop(sockets);
            order.pop_front();
        }
        self.taking = Some((by, order, gather));
        if self.taking.as_ref().is_some_and(|(_, order, _)| order.is_empty()) {
            self.taking = None;
            self.look(by);
        }
    }

    /// A packet is taken out of a socket.
    pub(crate) fn unread(&mut self, packet: Packet, from: usize) {
        self.kernel.read(packet);
        let state = &mut self.flows[packet.0];
        state.unread[from] -= 1;
        state.seen_here |= state.socket == from;
        if state.newest_read.is_none_or(|(newest, _)| packet.1 > newest) {
            state.newest_read = Some((packet.1, from));
        }
    }
}
