//! Keys and actions as text: what `ovs-dpctl dump-flows` prints, and back.
//!
//! ```
//! use ovs_wire::{Actions, FlowKey, text};
//!
//! let (mut key, mut mask) = (Vec::new(), Vec::new());
//! let line = "recirc_id(0),in_port(2),eth(),eth_type(0x0800),ipv4(proto=17,frag=no),udp(dst=53)";
//! text::parse_key(line, &mut key, &mut mask)?;
//! let (key, mask) = (FlowKey::new(&key), FlowKey::new(&mask));
//! assert_eq!(text::format_key(key, Some(mask)).to_string(), line);
//!
//! let mut actions = Vec::new();
//! text::parse_actions("1,push_vlan(vid=5,pcp=0),2", &mut actions)?;
//! assert_eq!(text::format_actions(Actions::new(&actions)).to_string(), "1,push_vlan(vid=5,pcp=0),2");
//! # Ok::<(), text::TextError>(())
//! ```
//!
//! With a mask, fields that are not matched are left out, and partly matched ones are `value/mask`
//! ([`KeyText::whole`] leaves none out). Without one every field is printed. What has no text form of its own (an unknown attribute, a
//! length that is wrong for its type) is `key31(00 01/ff ff)` or `action31(00 01)`, and parses back.
//!
//! Where the peer's text would lose something, ours says more: `drop(REASON)` for the drop action
//! unless `drop` is unambiguous, more digits in `sample=` where one does not suffice, `eventmask=` in
//! `ct`, `tun_flags=` in `add_mpls`, `userdata(HEX)` whatever program wrote it. Options of tunnels and
//! NSH are printed as bytes.

mod action_read;
mod action_write;
mod ct_read;
mod ct_write;
mod cursor;
mod forms;
mod key_read;
mod key_write;
#[cfg(test)]
mod tests;
mod tunnel;

use std::fmt;

use crate::action::Actions;
use crate::key::FlowKey;

/// The text of a key without attributes.
const EMPTY: &str = "<empty>";

/// Text that is no key or action list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}, column {column}: expected {expected}, found {found}")]
pub struct TextError {
    /// What was being read: `flow key` or `actions`.
    pub what: &'static str,
    /// Byte column, counted from 1.
    pub column: usize,
    /// What would have been right there.
    pub expected: String,
    /// What is there, cut short.
    pub found: String,
}

/// The text of a key. [`fmt::Display`] prints it.
#[derive(Debug, Clone, Copy)]
pub struct KeyText<'a> {
    key: FlowKey<'a>,
    mask: Option<FlowKey<'a>>,
    how: How<'a>,
}

/// The text of an action list. [`fmt::Display`] prints it.
#[derive(Debug, Clone, Copy)]
pub struct ActionsText<'a> {
    actions: Actions<'a>,
    how: How<'a>,
}

/// How keys and actions are written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct How<'a> {
    /// Nests around what is written.
    depth: usize,
    /// Are fields written that are not matched?
    all: bool,
    /// Names that ports are written by, sorted by number.
    names: &'a [(u32, String)],
}

impl<'a> How<'a> {
    fn deeper(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }

    fn port(self, number: u32) -> PortText<'a> {
        let at = self.names.binary_search_by_key(&number, |(number, _)| *number).ok();
        PortText(number, at.map(|at| self.names[at].1.as_str()))
    }
}

/// A port's name, or its number.
struct PortText<'a>(u32, Option<&'a str>);

impl fmt::Display for PortText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// The text of a key, and of the mask on it.
pub fn format_key<'a>(key: FlowKey<'a>, mask: Option<FlowKey<'a>>) -> KeyText<'a> {
    KeyText { key, mask, how: How::default() }
}

impl<'a> KeyText<'a> {
    /// With the fields that are not matched, as `value/0`; as `ovs-dpctl -m` does.
    #[must_use]
    pub fn whole(mut self) -> Self {
        self.how.all = true;
        self
    }

    /// With ports by name where there is one; `names` are sorted by number.
    #[must_use]
    pub fn names(mut self, names: &'a [(u32, String)]) -> Self {
        self.how.names = names;
        self
    }
}

impl<'a> ActionsText<'a> {
    /// With ports by name where there is one; `names` are sorted by number.
    #[must_use]
    pub fn names(mut self, names: &'a [(u32, String)]) -> Self {
        self.how.names = names;
        self
    }
}

/// The text of an action list; `drop` if it is empty.
pub fn format_actions(actions: Actions<'_>) -> ActionsText<'_> {
    ActionsText { actions, how: How::default() }
}

/// Appends the attributes that `text` describes to `key` and `mask`, whose lengths must be multiples
/// of 4. A field without a mask of its own is matched whole. On an error both are as they were.
pub fn parse_key(text: &str, key: &mut Vec<u8>, mask: &mut Vec<u8>) -> Result<(), TextError> {
    let (key_len, mask_len) = (key.len(), mask.len());
    let done = key_read::read_text(text, key, mask);
    if done.is_err() {
        key.truncate(key_len);
        mask.truncate(mask_len);
    }
    done
}

/// Appends the actions that `text` describes to `actions`, whose length must be a multiple of 4. On
/// an error it is as it was.
pub fn parse_actions(text: &str, actions: &mut Vec<u8>) -> Result<(), TextError> {
    let len = actions.len();
    let done = action_read::read_text(text, actions);
    if done.is_err() {
        actions.truncate(len);
    }
    done
}

impl fmt::Display for KeyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.as_bytes().is_empty() {
            return f.write_str(EMPTY);
        }
        key_write::write_key(
            f,
            self.key.as_bytes(),
            self.mask.map(|mask| mask.as_bytes()),
            self.how,
        )
    }
}

impl fmt::Display for ActionsText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        action_write::write_actions(f, self.actions, self.how)
    }
}

/// Bytes as pairs of digits.
pub(crate) struct HexBytes<'a>(pub(crate) &'a [u8], pub(crate) &'static str);

impl fmt::Display for HexBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if i > 0 { self.1 } else { "" })?;
        }
        Ok(())
    }
}

/// A number as C prints it with `%#x`: zero has no prefix.
pub(crate) struct CHex<T>(pub(crate) T);

impl<T: Copy + Into<u128>> fmt::Display for CHex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value: u128 = self.0.into();
        if value == 0 { f.write_str("0") } else { write!(f, "{value:#x}") }
    }
}

/// Writes separators between the parts of a list.
pub(crate) struct Comma(bool);

impl Comma {
    pub(crate) fn new() -> Self {
        Self(false)
    }

    /// Whether nothing has been written.
    pub(crate) fn is_first(&self) -> bool {
        !self.0
    }

    /// Writes a comma, but not before the first part.
    pub(crate) fn put(&mut self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if std::mem::replace(&mut self.0, true) { f.write_str(",") } else { Ok(()) }
    }
}
