//! What can be wrong with bytes, said so that a person finds the place.

/// A message, attribute or text that does not follow the ABI.
///
/// Offsets count from the start of the buffer that was handed to the parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The buffer ends before the item does.
    #[error("{what} at byte {offset} needs {need} bytes, but {have} are left")]
    Truncated {
        /// The item.
        what: &'static str,
        /// Where it starts.
        offset: usize,
        /// Bytes it needs.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// An attribute whose payload has a length its type does not allow.
    #[error("{what} at byte {offset} has {have} bytes, expected {need}")]
    Length {
        /// The attribute.
        what: &'static str,
        /// Where its payload starts.
        offset: usize,
        /// Bytes expected.
        need: usize,
        /// Bytes found.
        have: usize,
    },
    /// A value that the ABI does not allow.
    #[error("{what} at byte {offset} {why}")]
    Invalid {
        /// The item.
        what: &'static str,
        /// Where it starts.
        offset: usize,
        /// What is wrong with it, as the end of a sentence.
        why: &'static str,
    },
    /// A required attribute that is not there.
    #[error("{what} is missing")]
    Missing {
        /// The attribute.
        what: &'static str,
    },
    /// An attribute that may occur once and occurs again.
    #[error("{what} occurs a second time at byte {offset}")]
    Duplicate {
        /// The attribute.
        what: &'static str,
        /// Where the second one's payload starts.
        offset: usize,
    },
    /// A value to be written that a 16-bit attribute length cannot describe.
    #[error("attribute {kind} would have {len} bytes; netlink attributes end at {max}", max = crate::build::PAYLOAD_MAX)]
    TooLong {
        /// Attribute type.
        kind: u16,
        /// Its payload's length in bytes.
        len: usize,
    },
}
