//! Our client of the control socket.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use upcall_testkit::daemon::UPCALLD_BIN;

use crate::Lab;

/// Runs `upcalld ctl` against the socket at `path`.
///
/// # Errors
/// When it cannot be run.
pub fn ctl_at(path: &Path, words: &[&str]) -> Result<Output> {
    let program = std::env::var_os(UPCALLD_BIN).context("no UPCALLD_BIN")?;
    let mut command = Command::new(program);
    command.arg("ctl").arg("--control").arg(path).args(words).stdin(Stdio::null());
    Ok(command.output()?)
}

/// What a command answers.
///
/// # Errors
/// When it is refused.
pub fn ctl(lab: &Lab, words: &[&str]) -> Result<String> {
    let output = ctl_at(&lab.daemon.control(), words)?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// What a command answers, as JSON.
///
/// # Errors
/// As [`ctl`], and when it is none.
pub fn ctl_json(lab: &Lab, command: &str) -> Result<serde_json::Value> {
    Ok(serde_json::from_str(&ctl(lab, &["--json", command])?)?)
}
