//! What this kernel and datapath can do, with the evidence, and the choice of the dispatch mode that
//! follows from it.
//!
//! It refuses to guess: an answer is *available*, *unavailable* or *undetermined*, and each carries
//! what was asked and what the kernel said. It holds no sockets and receives nothing.

pub mod cpu;
mod dispatch;
mod finding;

pub use dispatch::{DispatchMode, Wanted, choose, enable_per_cpu, enable_per_vport, survey};
pub use finding::{Decision, Finding, Support};

/// Release of the running kernel, as `uname -r` prints it.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
