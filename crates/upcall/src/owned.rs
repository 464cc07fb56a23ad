//! An upcall to keep.

use ovs_wire::key::KeySummary;
use ovs_wire::packet::UpcallKind;

use crate::Upcall;

/// An upcall with what a handler needs of it copied, to be kept for longer than its call.
#[derive(Debug, Clone)]
pub struct OwnedUpcall {
    kind: UpcallKind,
    key: KeySummary,
    flow: u64,
    port_id: u32,
    sent_ns: Option<u64>,
    is_truncated: bool,
    key_bytes: Box<[u8]>,
    packet: Box<[u8]>,
    userdata: Option<Box<[u8]>>,
}

impl OwnedUpcall {
    /// Why the packet came up.
    pub fn kind(&self) -> UpcallKind {
        self.kind
    }

    /// The flow key's fields that most handlers look at.
    pub fn key(&self) -> &KeySummary {
        &self.key
    }

    /// The flow key, encoded.
    pub fn key_bytes(&self) -> &[u8] {
        &self.key_bytes
    }

    /// See [`Upcall::flow`].
    pub fn flow(&self) -> u64 {
        self.flow
    }

    /// See [`Upcall::socket_port_id`].
    pub fn socket_port_id(&self) -> u32 {
        self.port_id
    }

    /// See [`Upcall::sent_ns`].
    pub fn sent_ns(&self) -> Option<u64> {
        self.sent_ns
    }

    /// Port the packet came in by; `None` for one that was executed without a port.
    pub fn in_port(&self) -> Option<u32> {
        self.key.in_port
    }

    /// The packet from its Ethernet header on; VLAN tags are in it.
    pub fn packet(&self) -> &[u8] {
        &self.packet
    }

    /// Was the packet cut before it came up? Then it must not be given back.
    pub fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// The cookie of the userspace action, for [`UpcallKind::Action`].
    pub fn userdata(&self) -> Option<&[u8]> {
        self.userdata.as_deref()
    }
}

impl From<&Upcall<'_>> for OwnedUpcall {
    fn from(upcall: &Upcall<'_>) -> Self {
        Self {
            kind: upcall.kind(),
            key: *upcall.key(),
            flow: upcall.flow(),
            port_id: upcall.socket_port_id(),
            sent_ns: upcall.sent_ns(),
            is_truncated: upcall.is_truncated(),
            key_bytes: upcall.wire().key.into(),
            packet: upcall.packet().into(),
            userdata: upcall.userdata().map(Into::into),
        }
    }
}
