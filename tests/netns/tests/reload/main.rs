//! A configuration that changes while the daemon switches: what it applies, what that costs, and what
//! it refuses.
#![allow(missing_docs, reason = "a test binary")]

mod applied;
mod by_hand;
mod refused;

use std::fs;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use netns_tests::Lab;
use tempfile::NamedTempFile;
use upcall_testkit::daemon::UPCALLD_BIN;
use upcall_testkit::{Hosts, UpcalldBuilder};

/// A daemon with a configuration file that the test writes.
struct Configured {
    lab: Lab,
    file: NamedTempFile,
}

impl Configured {
    /// On the ports `p0` and `p1`, whatever other hosts there are.
    fn start(
        hosts: Hosts,
        text: &str,
        configure: impl FnOnce(UpcalldBuilder) -> UpcalldBuilder,
    ) -> Result<Self> {
        let file = NamedTempFile::new()?;
        fs::write(file.path(), text)?;
        let path = file.path().to_str().context("a path in UTF-8")?.to_owned();
        let builder = upcall_testkit::Upcalld::builder(netns_tests::DATAPATH);
        let builder = builder.stats(std::time::Duration::from_millis(20)).option("--config", &path);
        let daemon = configure(builder).start(&hosts.switch)?;
        Ok(Self { lab: Lab { hosts, daemon }, file })
    }

    fn write(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.file.path(), text)?)
    }

    /// Runs `upcalld ctl`.
    fn ctl(&self, words: &[&str]) -> Result<Output> {
        let program = std::env::var_os(UPCALLD_BIN).context("no UPCALLD_BIN")?;
        let mut command = Command::new(program);
        command.arg("ctl").arg("--control").arg(self.lab.daemon.control()).args(words);
        Ok(command.stdin(Stdio::null()).output()?)
    }

    /// What a command answers.
    fn ask(&self, words: &[&str]) -> Result<String> {
        let output = self.ctl(words)?;
        ensure!(output.status.success(), "{words:?}: {output:?}\n{}", self.lab.daemon.log());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Writes this configuration and has it applied; what has changed.
    fn reload(&self, text: &str) -> Result<String> {
        self.write(text)?;
        self.ask(&["reload"])
    }
}
