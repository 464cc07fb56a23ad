//! What an embedder implements, and what it is given.

use std::sync::Arc;
use std::time::Duration;

use ovs_wire::MacAddr;
use ovs_wire::action::{ActionBuf, Actions};
use ovs_wire::key::KeySummary;
use ovs_wire::mask::MatchFields;
use ovs_wire::packet::{self, UpcallKind};

use crate::Ports;
use crate::deferred::Later;
use crate::sources::Sent;

/// Decides what happens to packets that the kernel has no flow for.
///
/// Called from several threads at once, one for each worker; for the upcalls of one socket from one
/// thread, in order. A call should take microseconds: while it runs, nothing else is read from the
/// sockets of its worker. A call that panics costs its own packet.
///
/// A handler that has to wait for something answers later ([`Verdict::later`]).
pub trait Handler: Send + Sync + 'static {
    /// Decides about one upcall. A verdict that is left alone drops the packet.
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict);

    /// The datapath's ports, when the dispatcher starts and whenever they change.
    fn ports_changed(&self, _ports: &Ports) {}

    /// A sweep of the flow table begins: the time to age what the handler has learned. Says what the sweep
    /// is to look at; by default at everything.
    fn begin_sweep(&self) -> Look {
        Look::All
    }

    /// Would the handler still decide as this flow does? Asked for every flow, also for flows found on the
    /// datapath that the dispatcher did not install, at every sweep that [looks at all](Look::All). The first
    /// sweep asks twice, and minds the second answer.
    fn revalidate(&self, _flow: &FlowView<'_>, _ports: &Ports) -> Fate {
        Fate::Keep
    }
}

impl<H: Handler + ?Sized> Handler for Arc<H> {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        (**self).upcall(upcall, verdict);
    }

    fn ports_changed(&self, ports: &Ports) {
        (**self).ports_changed(ports);
    }

    fn begin_sweep(&self) -> Look {
        (**self).begin_sweep()
    }

    fn revalidate(&self, flow: &FlowView<'_>, ports: &Ports) -> Fate {
        (**self).revalidate(flow, ports)
    }
}

/// An upcall, borrowed for the length of a handler's call.
#[derive(Debug, Clone, Copy)]
pub struct Upcall<'a> {
    pub(crate) wire: &'a packet::Upcall<'a>,
    pub(crate) key: &'a KeySummary,
    /// The hash of its flow.
    pub(crate) flow: u64,
    /// The port id of the socket it came by.
    pub(crate) port_id: u32,
    pub(crate) sent: Sent<'a>,
}

impl<'a> Upcall<'a> {
    /// Why the packet came up.
    pub fn kind(&self) -> UpcallKind {
        self.wire.kind
    }

    /// The flow key's fields that most handlers look at.
    pub fn key(&self) -> &'a KeySummary {
        self.key
    }

    /// Port the packet came in by; `None` for one that was executed without a port.
    pub fn in_port(&self) -> Option<u32> {
        self.key.in_port
    }

    /// The packet from its Ethernet header on; VLAN tags are in it.
    pub fn packet(&self) -> &'a [u8] {
        self.wire.packet
    }

    /// Was the packet cut before it came up? Then it must not be given back.
    pub fn is_truncated(&self) -> bool {
        self.wire.is_truncated()
    }

    /// The cookie of the userspace action, for [`UpcallKind::Action`].
    pub fn userdata(&self) -> Option<&'a [u8]> {
        self.wire.userdata
    }

    /// Upcalls with the same one are kept in order ([`crate::LaneBy`]): a hash, seeded anew by each
    /// dispatcher.
    pub fn flow(&self) -> u64 {
        self.flow
    }

    /// The netlink port id of the socket it was sent to: in per-CPU mode
    /// [`Assignment::table`](crate::Assignment) tells the CPU by it.
    pub fn socket_port_id(&self) -> u32 {
        self.port_id
    }

    /// When the kernel sent it up, in nanoseconds of `CLOCK_MONOTONIC`; `None` where that is not told
    /// ([`Stats::arrival_times`](crate::Stats)). Calls are in this order for one flow alone: of two flows
    /// that say different things about one station, it tells which is the later word.
    pub fn sent_ns(&self) -> Option<u64> {
        match self.sent {
            Sent::To(socket, taken) => socket.sent_ns(taken),
            Sent::At(ns) => ns,
        }
    }

    /// All parts of the message, encoded.
    pub fn wire(&self) -> &'a packet::Upcall<'a> {
        self.wire
    }
}

/// What is to be done with a packet and with the packets like it.
#[derive(Debug)]
pub struct Verdict {
    pub(crate) actions: ActionBuf,
    pub(crate) install: Option<MatchFields>,
    pub(crate) revalidate: bool,
    /// An address whose flows are wrong.
    pub(crate) moved: Option<MacAddr>,
    pub(crate) later: Option<Later>,
    /// There is no room for it where it is decided: it is shed.
    pub(crate) refused: bool,
    pub(crate) ports: Arc<Ports>,
}

impl Verdict {
    pub(crate) fn new() -> Self {
        Self {
            actions: ActionBuf::with_capacity(512),
            install: None,
            revalidate: false,
            moved: None,
            later: None,
            refused: false,
            ports: Arc::default(),
        }
    }

    /// An empty verdict about the same ports.
    pub(crate) fn fresh(&self) -> Self {
        Self {
            actions: ActionBuf::with_capacity(0),
            install: None,
            revalidate: false,
            moved: None,
            later: None,
            refused: false,
            ports: self.ports.clone(),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.actions.clear();
        self.install = None;
        self.revalidate = false;
        self.moved = None;
        self.later = None;
        self.refused = false;
    }

    pub(crate) fn refuse(&mut self) {
        self.refused = true;
    }

    /// The datapath's ports, not older than the batch the upcall came with.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Sends the packet out of a port.
    pub fn output(&mut self, port: u32) -> &mut Self {
        self.actions.output(port);
        self
    }

    /// Sends the packet out of every port but `except`.
    pub fn flood(&mut self, except: Option<u32>) -> &mut Self {
        for port in &*self.ports {
            if Some(port.number) != except {
                self.actions.output(port.number);
            }
        }
        self
    }

    /// The action list, for all other actions.
    pub fn actions(&mut self) -> &mut ActionBuf {
        &mut self.actions
    }

    /// Installs a flow with the verdict's actions for all packets that agree with this one in
    /// `fields`: those that the decision depended on, no more. Without actions the flow drops.
    ///
    /// Until the flow is with the kernel, the upcalls that it would match are answered with it
    /// ([`crate::Builder::answer_from_plan`]).
    ///
    /// The dispatcher's [`crate::InstallPolicy`] may override it; action upcalls install nothing.
    pub fn install(&mut self, fields: MatchFields) -> &mut Self {
        self.install = Some(fields);
        self
    }

    /// Asks for a sweep now: this upcall taught the handler something that makes flows wrong.
    pub fn revalidate(&mut self) -> &mut Self {
        self.revalidate = true;
        self
    }

    /// Says that an Ethernet address is not where it was: the flows of packets from it or to it are deleted, at
    /// the next sweep, which is now. A few others may be as well (1 in 30,000); the rest is not looked at. One
    /// address for each verdict.
    ///
    /// A flow is known by the packet that it was installed for, whether or not it matches addresses.
    pub fn moved(&mut self, address: MacAddr) -> &mut Self {
        self.moved = Some(address);
        self
    }

    /// Answers later: `answer` gets an empty verdict to fill in, and the future gives it back. What this
    /// verdict says otherwise is void.
    ///
    /// Until then later upcalls of the flow wait, and other flows go on. The future runs on the runtime
    /// that the dispatcher was started on. It is dropped, and the upcall shed and counted, when it takes
    /// longer than [`Limits::handler_timeout`](crate::Limits), when it panics, or when the dispatcher
    /// stops; no more than [`Limits::pending_max`](crate::Limits) are waited for. Upcalls that waited
    /// behind it are asked about one by one when it is their turn: what it learned, the handler should
    /// remember. If the ports changed meanwhile, the answer is good for the one packet alone.
    ///
    /// ```
    /// # use std::{sync::Arc, time::Duration};
    /// # use upcall::{Handler, MatchFields, Upcall, Verdict};
    /// # struct Oracle;
    /// # impl Oracle {
    /// #     async fn ask(&self, _port: Option<u32>) -> u32 { 1 }
    /// # }
    /// struct Policy(Arc<Oracle>);
    ///
    /// impl Handler for Policy {
    ///     fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
    ///         let (oracle, in_port) = (self.0.clone(), upcall.in_port());
    ///         verdict.later(|mut verdict| async move {
    ///             let port = oracle.ask(in_port).await;
    ///             verdict.output(port).install(MatchFields::IN_PORT);
    ///             verdict
    ///         });
    ///     }
    /// }
    /// ```
    pub fn later<F>(&mut self, answer: impl FnOnce(Verdict) -> F)
    where
        F: Future<Output = Verdict> + Send + 'static,
    {
        self.later = Some(Later::new(answer(self.fresh())));
    }
}

/// A flow on the datapath.
#[derive(Debug, Clone, Copy)]
pub struct FlowView<'a> {
    /// Its key's fields. Which of them it matches, the mask says.
    pub key: &'a KeySummary,
    /// Its mask, encoded; empty if it matches exactly.
    pub mask: &'a [u8],
    /// What it does.
    pub actions: Actions<'a>,
    /// Packets it has matched.
    pub packets: u64,
    /// Time since it last matched a packet, or since it was first seen if it never has.
    pub idle: Duration,
}

/// What a sweep of the flow table looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Look {
    /// Every flow as a whole: the handler is asked about each ([`Handler::revalidate`]).
    #[default]
    All,
    /// Counters and times alone, by which flows idle out: a part of the work. Right as long as nothing has
    /// changed that the handler decided by, but for addresses that [moved](Verdict::moved). When ports have
    /// changed or a verdict asked for a sweep ([`Verdict::revalidate`]), the dispatcher looks at everything
    /// nevertheless, at the next sweep too, and so it does once in ten sweeps.
    Times,
}

/// Keep a flow?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Yes, until it idles out.
    Keep,
    /// No: the next packet comes up.
    Delete,
}
