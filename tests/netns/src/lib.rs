//! What the tests on a real kernel share: which kernel it is, a datapath whose upcalls the test reads
//! itself ([`Bench`]), and hosts around a running `upcalld` ([`Lab`]).
//! It refuses to stand in for the kernel or for the daemon: without the module, or without the binary
//! that `UPCALLD_BIN` names, a test fails. It holds no test, no expectation about the product but the
//! ledger's, and no sleep.
//!
//! A feature that a kernel does not have is checked too: that the kernel refuses it the way the ABI
//! says. `SKIP-OK` is for what cannot be asked at all.

mod bench;
mod ctl;
mod fabric;
mod lab;
pub mod traffic;

use std::io::Write as _;
use std::time::Duration;

pub use bench::{Bench, Got, bench, bench_with};
pub use ctl::{ctl, ctl_at, ctl_json};
pub use fabric::Fabric;
pub use lab::{DATAPATH, FlowText, Lab, balanced, datapaths, flows_of};

/// What a test returns.
pub type TestResult = anyhow::Result<()>;

/// How long anything may take that a kernel or the daemon does at once: much, because a guest may be
/// emulated on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Is the running kernel of this version or newer?
pub fn since(major: u32, minor: u32) -> bool {
    let release = ovs_features::kernel_release();
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let running = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    running >= (major, minor)
}

/// Does this kernel dispatch by CPU?
pub fn has_per_cpu() -> bool {
    since(5, 15)
}

/// The dispatch modes that this kernel has, as the command line names them.
pub fn modes() -> &'static [&'static str] {
    if has_per_cpu() { &["per-cpu", "per-vport"] } else { &["per-vport"] }
}

/// Reports, past the capture of libtest, that this guest or kernel lacks by design what `test` is
/// about.
pub fn skip_ok(test: &str, reason: &str) {
    tell(&format!("SKIP-OK {test}: {reason}"));
}

/// Prints a line past the capture of libtest: figures of a test that passes are for people.
pub fn tell(line: &str) {
    // Without a standard error there is nobody to tell.
    let _nobody = writeln!(std::io::stderr(), "{line}");
}

/// The Ethernet address of an invented station; no host has it.
pub fn station(number: u8) -> [u8; 6] {
    [0x02, 0x50, 0, 0, 0, number]
}
