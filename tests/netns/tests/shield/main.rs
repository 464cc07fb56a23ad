//! The storm shield: a socket filter that takes a flood's upcalls before they take room.
#![allow(missing_docs, reason = "a test binary")]

mod filter;
mod storm;
