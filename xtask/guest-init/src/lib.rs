//! What host and guest say to each other: the library half of `guest-init`, compiled into both, so
//! that neither can drift from the other.
//!
//! It refuses I/O: bytes in, values out.

pub mod protocol;
