//! What this machine can do by itself.

use crate::cmd::{self, say};
use std::path::Path;
use std::process::Command;

/// Whether tests can use the running kernel: root, and openvswitch in it. A module that is there but
/// not loaded is loaded, as the kernel itself would for the first request.
pub(crate) fn can_switch() -> bool {
    if !cmd::is_root() {
        return false;
    }
    let loaded = || Path::new("/sys/module/openvswitch").exists();
    if loaded() {
        return true;
    }
    let Some(modprobe) = cmd::find("modprobe") else { return false };
    let try_with =
        |args: &[&str]| cmd::output(Command::new(&modprobe).args(args).arg("openvswitch")).is_ok();
    if !try_with(&["--dry-run", "--quiet"]) {
        return false;
    }
    say!("loading openvswitch into the running kernel");
    try_with(&["--quiet"]) && loaded()
}
