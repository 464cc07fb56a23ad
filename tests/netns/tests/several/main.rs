//! Several datapaths in one process: each switches by itself, and what is of the process is there once.
#![allow(missing_docs, reason = "a test binary")]

mod apart;
mod asked;
mod changed;
mod refused;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns_tests::{balanced, ctl_at, datapaths};
use ovs_datapath::Control;
use tempfile::NamedTempFile;
use upcall_testkit::daemon::UPCALLD_BIN;
use upcall_testkit::{Hosts, PingPlan, Upcalld, UpcalldBuilder, ping};

/// Two switches with two hosts each: `p0` and `p1`, `p2` and `p3`.
const TWO: &str =
    "stats = '20ms'\n[datapath.dp0]\nports = ['p0', 'p1']\n[datapath.dp1]\nports = ['p2', 'p3']\n";

/// A daemon with a configuration file that the test writes.
struct Several {
    hosts: Hosts,
    daemon: Upcalld,
    file: NamedTempFile,
}

impl Several {
    fn start(hosts: Hosts, text: &str) -> Result<Self> {
        Self::start_with(hosts, text, |builder| builder)
    }

    fn start_with(
        hosts: Hosts,
        text: &str,
        configure: impl FnOnce(UpcalldBuilder) -> UpcalldBuilder,
    ) -> Result<Self> {
        let file = written(text)?;
        let daemon = configure(Upcalld::of_file(file.path())).start(&hosts.switch)?;
        Ok(Self { hosts, daemon, file })
    }

    fn ctl(&self, words: &[&str]) -> Result<Output> {
        ctl_at(&self.daemon.control(), words)
    }

    /// What a command answers.
    fn ask(&self, words: &[&str]) -> Result<String> {
        let output = self.ctl(words)?;
        ensure!(output.status.success(), "{words:?}: {output:?}\n{}", self.daemon.log());
        Ok(String::from_utf8(output.stdout)?)
    }

    fn ask_json(&self, words: &[&str]) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.ask(&[&["--json"], words].concat())?)?)
    }

    /// Why a command is refused.
    fn refusal(&self, words: &[&str]) -> Result<String> {
        let output = self.ctl(words)?;
        ensure!(output.status.code() == Some(2), "{words:?}: {output:?}");
        Ok(String::from_utf8(output.stderr)?)
    }

    /// Writes this configuration and has it applied; what has changed.
    fn reload(&self, text: &str) -> Result<String> {
        fs::write(self.file.path(), text)?;
        self.ask(&["reload"])
    }

    /// Pings between two hosts, of which none may be lost.
    fn pings(&self, from: usize, to: usize) -> Result<()> {
        let plan = PingPlan { timeout: netns_tests::SOON, ..PingPlan::default() };
        let report = ping::ping(&self.hosts[from].ns, self.hosts[to].ip4, &plan)?;
        ensure!(report.answered == report.sent, "{report:?}\n{}", self.daemon.log());
        Ok(())
    }

    /// Stops it; every upcall of each datapath is accounted for, and nothing is left.
    fn finish(self) -> Result<()> {
        let names: Vec<_> = datapaths(&self.hosts.switch)?;
        let exit = self.daemon.stop()?;
        ensure!(exit.status.success(), "it ended with {}\n{}", exit.status, exit.log);
        for name in names {
            let stats =
                exit.stats_by_datapath.get(&name).with_context(|| format!("none of {name}"))?;
            balanced(stats).with_context(|| exit.log.clone())?;
        }
        let left = datapaths(&self.hosts.switch)?;
        ensure!(left.is_empty(), "it left {left:?}\n{}", exit.log);
        Ok(())
    }
}

fn written(text: &str) -> Result<NamedTempFile> {
    let file = NamedTempFile::new()?;
    fs::write(file.path(), text)?;
    Ok(file)
}

/// Deletes a datapath, as a tool of somebody else does.
fn delete(hosts: &Hosts, name: &str) -> Result<()> {
    hosts.switch.block_on(async || {
        let control = Control::open().await?;
        let dp = control.datapath(name).await?.context("no such datapath")?;
        control.delete_datapath(&dp).await.map_err(anyhow::Error::from)
    })?
}

/// Upcalls of a datapath that no socket took, since it is there.
fn kernel_lost(hosts: &Hosts, name: &str) -> Result<u64> {
    hosts.switch.block_on(async || {
        let dp = Control::open().await?.datapath(name).await?.context("no such datapath")?;
        Ok(dp.stats.lost)
    })?
}

/// Runs a command of `upcalld` that asks a daemon.
fn upcalld(control: &Path, command: &str, words: &[&str]) -> Result<String> {
    let program = std::env::var_os(UPCALLD_BIN).context("no UPCALLD_BIN")?;
    let mut upcalld = Command::new(program);
    upcalld.arg(command).arg("--control").arg(control).args(words).stdin(Stdio::null());
    let output = upcalld.output()?;
    ensure!(output.status.success(), "{command} {words:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// How long a change of everything may take under load.
const LATER: Duration = Duration::from_secs(30);
