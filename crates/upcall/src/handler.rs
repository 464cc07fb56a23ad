//! What an embedder implements, and what it is given.

use std::sync::Arc;
use std::time::Duration;

use ovs_wire::action::{ActionBuf, Actions};
use ovs_wire::key::KeySummary;
use ovs_wire::mask::MatchFields;
use ovs_wire::packet::{self, UpcallKind};

use crate::Ports;

/// Decides what happens to packets that the kernel has no flow for.
///
/// Called from several threads at once, one for each worker; for the upcalls of one socket from one
/// thread, in order. A call should take microseconds: while it runs, nothing else is read from the
/// sockets of its worker. A call that panics costs its own packet.
pub trait Handler: Send + Sync + 'static {
    /// Decides about one upcall. A verdict that is left alone drops the packet.
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict);

    /// The datapath's ports, when the dispatcher starts and whenever they change.
    fn ports_changed(&self, _ports: &Ports) {}

    /// A sweep of the flow table begins: the time to age what the handler has learned.
    fn begin_sweep(&self) {}

    /// Would the handler still decide as this flow does? Asked for every flow at every sweep, also
    /// for flows found on the datapath that the dispatcher did not install.
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

    fn begin_sweep(&self) {
        (**self).begin_sweep();
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
    pub(crate) ports: Arc<Ports>,
}

impl Verdict {
    pub(crate) fn new() -> Self {
        Self {
            actions: ActionBuf::with_capacity(512),
            install: None,
            revalidate: false,
            ports: Arc::default(),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.actions.clear();
        self.install = None;
        self.revalidate = false;
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

/// Keep a flow?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Yes, until it idles out.
    Keep,
    /// No: the next packet comes up.
    Delete,
}
