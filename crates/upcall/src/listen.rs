//! The other face of a dispatcher: flows are accepted, and their upcalls received and answered one by
//! one, as connections and requests are.
//!
//! It is a handler that answers later ([`Verdict::later`]): one upcall of a flow is out at a time, the
//! next waits in its lane until it is answered. So a flow has no queue of its own here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::Stream;
use ovs_wire::action::ActionBuf;
use ovs_wire::mask::MatchFields;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::{Error, Handler, Limits, Look, OwnedUpcall, Ports, Upcall, Verdict};

/// New flows, as their first packets come up. Ends when the dispatcher has stopped.
///
/// At most [`Limits::accept_max`](crate::Limits) flows wait to be accepted, and at most
/// [`Limits::accepted_max`](crate::Limits) are followed; upcalls of more are shed and counted
/// ([`LedgerSnapshot::shed_listener_full`](crate::LedgerSnapshot)). So are all of new flows once this is
/// dropped.
#[derive(Debug)]
pub struct Listener {
    flows: mpsc::Receiver<Flow>,
}

impl Listener {
    /// The next new flow; `None` when the dispatcher has stopped. May be cancelled.
    pub async fn accept(&mut self) -> Option<Flow> {
        self.flows.recv().await
    }
}

impl Stream for Listener {
    type Item = Flow;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Flow>> {
        self.flows.poll_recv(cx)
    }
}

/// The upcalls of one flow ([`LaneBy`](crate::LaneBy)), in order. Ends when the flow had none for
/// [`Builder::flow_idle`](crate::Builder::flow_idle), or the dispatcher has stopped; if more come later,
/// that is a new flow. So it is when this is dropped.
#[derive(Debug)]
pub struct Flow {
    id: u64,
    /// Boxed: a channel has room for many from the start, and most flows have none.
    upcalls: mpsc::Receiver<Box<FlowUpcall>>,
}

impl Flow {
    /// What its upcalls have in common: [`Upcall::flow`].
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its next upcall, which comes when the one before is answered; `None` when there are no more. May
    /// be cancelled.
    pub async fn recv(&mut self) -> Option<FlowUpcall> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<FlowUpcall>> {
        loop {
            let next = ready!(self.upcalls.poll_recv(cx));
            // One that nobody took in time is shed by now.
            if next.as_ref().is_none_or(|upcall| upcall.is_awaited()) {
                return Poll::Ready(next.map(|upcall| *upcall));
            }
        }
    }
}

impl Stream for Flow {
    type Item = FlowUpcall;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FlowUpcall>> {
        self.poll_recv(cx)
    }
}

/// An upcall to be answered within [`Limits::handler_timeout`](crate::Limits). Dropped without an answer
/// it drops the packet, which is counted
/// ([`LedgerSnapshot::dropped`](crate::LedgerSnapshot)).
#[derive(Debug)]
#[must_use = "an upcall that is not answered drops its packet"]
pub struct FlowUpcall {
    upcall: OwnedUpcall,
    verdict: Verdict,
    /// Taken when it is answered.
    answer: Option<oneshot::Sender<Verdict>>,
}

impl FlowUpcall {
    /// Is the dispatcher still waiting for the answer?
    pub fn is_awaited(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| !answer.is_closed())
    }

    /// The datapath's ports when the packet came up.
    pub fn ports(&self) -> &Ports {
        self.verdict.ports()
    }

    /// Answers as a handler does, with all that a [`Verdict`] can say.
    ///
    /// # Errors
    ///
    /// [`Error::AnsweredTooLate`] when the dispatcher no longer waits: the upcall is shed by now.
    pub fn answer(mut self, say: impl FnOnce(&mut Verdict)) -> Result<(), Error> {
        say(&mut self.verdict);
        self.send().map_err(|_| Error::AnsweredTooLate)
    }

    /// Gives the packet back with these actions.
    ///
    /// # Errors
    ///
    /// As [`FlowUpcall::answer`].
    pub fn execute(self, actions: &ActionBuf) -> Result<(), Error> {
        self.answer(|verdict| {
            verdict.actions().extend(actions.actions());
        })
    }

    /// Gives the packet back with these actions, and installs a flow that does the same with all packets
    /// that agree with this one in `fields` ([`Verdict::install`]).
    ///
    /// # Errors
    ///
    /// As [`FlowUpcall::answer`].
    pub fn install(self, fields: MatchFields, actions: &ActionBuf) -> Result<(), Error> {
        self.answer(|verdict| {
            verdict.actions().extend(actions.actions());
            verdict.install(fields);
        })
    }

    /// Drops the packet, as dropping this does.
    ///
    /// # Errors
    ///
    /// As [`FlowUpcall::answer`].
    pub fn discard(self) -> Result<(), Error> {
        self.answer(|_| {})
    }

    fn send(&mut self) -> Result<(), Verdict> {
        let nothing = self.verdict.fresh();
        let verdict = std::mem::replace(&mut self.verdict, nothing);
        self.answer.take().map_or(Ok(()), |answer| answer.send(verdict))
    }
}

impl std::ops::Deref for FlowUpcall {
    type Target = OwnedUpcall;

    fn deref(&self) -> &OwnedUpcall {
        &self.upcall
    }
}

impl Drop for FlowUpcall {
    fn drop(&mut self) {
        self.verdict.clear();
        // Nobody waits for one that timed out.
        let _ = self.send();
    }
}

/// The handler behind a listener.
#[derive(Debug)]
pub(crate) struct Exchange {
    flows: Mutex<HashMap<u64, Followed>>,
    accept: mpsc::Sender<Flow>,
    accepted_max: usize,
    idle: Duration,
}

/// A flow that was offered to the listener.
#[derive(Debug)]
struct Followed {
    upcalls: mpsc::Sender<Box<FlowUpcall>>,
    last: Instant,
}

impl Followed {
    fn offer(&mut self, upcall: Box<FlowUpcall>) -> Result<(), TrySendError<Box<FlowUpcall>>> {
        self.upcalls.try_send(upcall)?;
        self.last = Instant::now();
        Ok(())
    }
}

impl Exchange {
    pub(crate) fn new(limits: &Limits, idle: Duration) -> (Self, Listener) {
        let (accept, flows) = mpsc::channel(limits.accept_max.max(1));
        let accepted_max = limits.accepted_max;
        (Self { flows: Mutex::default(), accept, accepted_max, idle }, Listener { flows })
    }

    /// Brings an upcall to its flow, or as a new one to the listener. `false` if there is no room: then
    /// nothing is kept of it.
    fn bring(&self, upcall: Box<FlowUpcall>) -> bool {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, is_full) = (upcall.flow(), flows.len() >= self.accepted_max);
        let mut entry = flows.entry(id);
        let upcall = match &mut entry {
            Entry::Occupied(known) => match known.get_mut().offer(upcall) {
                Ok(()) => return true,
                Err(TrySendError::Full(_)) => return false,
                // Whoever had the flow let go of it.
                Err(TrySendError::Closed(upcall)) => upcall,
            },
            Entry::Vacant(_) if is_full => return false,
            Entry::Vacant(_) => upcall,
        };
        let Ok(place) = self.accept.try_reserve() else { return false };
        let (upcalls, received) = mpsc::channel(1);
        let mut followed = Followed { upcalls, last: Instant::now() };
        if followed.offer(upcall).is_err() {
            return false;
        }
        place.send(Flow { id, upcalls: received });
        entry.insert_entry(followed);
        true
    }
}

impl Handler for Exchange {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        let (to, answer) = oneshot::channel();
        let offered =
            FlowUpcall { upcall: upcall.into(), verdict: verdict.fresh(), answer: Some(to) };
        if self.bring(Box::new(offered)) {
            verdict.later(|nothing| async { answer.await.unwrap_or(nothing) });
        } else {
            verdict.refuse();
        }
    }

    fn begin_sweep(&self) -> Look {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let is_live =
            |flow: &Followed| flow.last.elapsed() < self.idle && !flow.upcalls.is_closed();
        flows.retain(|_, flow| is_live(flow));
        // Nobody is asked about flows.
        Look::Times
    }
}
