//! Bytes to messages of the Open vSwitch generic-netlink families, and back.
//!
//! It refuses to do I/O, to hold a socket, to read a clock and to use `unsafe`; nothing is allocated
//! to parse an upcall, a flow key or an action list, and everything is built into a caller's buffer.
//!
//! Three kinds of message need three kinds of care:
//!
//! * *Control messages* (controller, datapath, vport) are rare and read into owned structs. Their
//!   attribute tables come from the kernel's own YAML specification through `netlink-bindings`.
//! * *Upcalls, keys and actions* are the hot path and must not lose an attribute this crate has never
//!   heard of, so they are read by this crate's own iterators, which keep unknown attributes as bytes.
//! * *Requests* are written by [`build`], which refuses what does not fit a 16-bit attribute length
//!   (generated code truncates it silently).
//!
//! Layout facts are those of `include/uapi/linux/openvswitch.h` and `net/openvswitch/*.c` of the
//! kernel; each item names its own.

pub mod action;
pub mod attr;
pub mod build;
pub mod datapath;
pub mod error;
pub mod family;
pub mod filter;
pub mod flow;
pub mod key;
pub mod mask;
pub mod nl;
pub mod packet;
pub mod text;
pub mod vport;

pub use action::{Action, ActionBuf, Actions};
pub use attr::{Attr, Attrs};
pub use build::AttrBuilder;
pub use error::WireError;
pub use key::{FlowKey, KeyAttr, KeySummary, MacAddr, VlanTci};
pub use mask::MatchFields;
