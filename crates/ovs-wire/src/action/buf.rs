//! An owned action list that is filled again and again.

use crate::action::{Action, Actions, kind};
use crate::key::VlanTci;
use crate::{AttrBuilder, WireError};

/// Tag protocol id of an 802.1Q tag.
const TPID_8021Q: u16 = 0x8100;

/// An action list under construction, encoded. [`ActionBuf::clear`] keeps the capacity, so that a
/// buffer that is reused does not allocate. An empty one drops the packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ActionBuf(Vec<u8>);

impl ActionBuf {
    /// An empty list, without memory.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// An empty list with room for `bytes` bytes: an output takes 8.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Appends an output to `port`.
    pub fn output(&mut self, port: u32) -> &mut Self {
        AttrBuilder::new(&mut self.0).u32(kind::OUTPUT, port);
        self
    }

    /// Appends the push of an 802.1Q tag. The kernel requires [`VlanTci::PRESENT`]; it is added.
    pub fn push_vlan(&mut self, tci: VlanTci) -> &mut Self {
        let tci = VlanTci(tci.0 | VlanTci::PRESENT);
        Action::PushVlan { tpid: TPID_8021Q, tci }.write(&mut AttrBuilder::new(&mut self.0));
        self
    }

    /// Appends the removal of the outermost VLAN tag.
    pub fn pop_vlan(&mut self) -> &mut Self {
        AttrBuilder::new(&mut self.0).flag(kind::POP_VLAN);
        self
    }

    /// Appends any action. On an error (a value that a 16-bit length cannot describe) the list is as
    /// it was.
    pub fn push(&mut self, action: &Action<'_>) -> Result<&mut Self, WireError> {
        let len = self.0.len();
        let mut b = AttrBuilder::new(&mut self.0);
        action.write(&mut b);
        let done = b.finish();
        if let Err(err) = done {
            self.0.truncate(len);
            return Err(err);
        }
        Ok(self)
    }

    /// Appends encoded actions, such as those of a flow that was dumped.
    pub fn extend(&mut self, actions: Actions<'_>) -> &mut Self {
        AttrBuilder::new(&mut self.0).raw(actions.as_bytes());
        self
    }

    /// The list, to be iterated or printed.
    pub fn actions(&self) -> Actions<'_> {
        Actions::new(&self.0)
    }

    /// The encoded actions: the payload of an ACTIONS attribute.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there is no action: the packet is dropped.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes all actions and keeps the memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
