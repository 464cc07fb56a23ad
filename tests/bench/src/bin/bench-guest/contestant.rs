//! Who is measured, and how each is started so that all of them do the same.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use upcall_testkit::{Hosts, Upcalld, UpcalldBuilder};

use crate::flow_life;
use crate::vswitchd::Vswitchd;

/// Who answers upcalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Contestant {
    /// This product
    Upcalld,
    /// Open vSwitch's own daemon
    OvsVswitchd,
    /// A raw loop without order, fairness or checks
    Floor,
}

/// Which flows are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Install {
    /// None: every packet comes up.
    Never,
    /// One without wildcards for each flow.
    Exact,
    /// As `Exact`, of a switch that learns addresses; each is kept for [`flow_life::IDLE`].
    Learned,
}

impl Contestant {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Upcalld => "upcalld",
            Self::OvsVswitchd => "ovs-vswitchd",
            Self::Floor => "floor",
        }
    }

    /// Starts it on the ports of `hosts`, which are joined in pairs: 0 with 1, 2 with 3, and so on; or all of
    /// them, by a switch that learns.
    /// `more` are ports beside them, joined with none.
    pub(crate) fn start(self, hosts: &Hosts, more: &[String], install: Install) -> Result<Running> {
        let with_more = |builder: UpcalldBuilder| builder.ports(more.iter().map(String::as_str));
        match self {
            Self::Upcalld if install == Install::Learned => switch(hosts),
            Self::Upcalld => {
                ours(hosts, install, "/bin/upcalld", |b| with_more(b).handler("cross-connect"))
            }
            Self::Floor => {
                ensure!(install != Install::Learned, "the floor learns nothing");
                ours(hosts, install, "/bin/bench-floor", |b| with_more(b).without_control())
            }
            Self::OvsVswitchd => Vswitchd::start(hosts, more, install).map(Running::Peer),
        }
        .with_context(|| format!("cannot start {}", self.name()))
    }
}

fn switch(hosts: &Hosts) -> Result<Running> {
    let builder = Upcalld::builder("dp0").program(Path::new("/bin/upcalld"));
    let builder = builder.ports(hosts.ports()).handler("learning-switch").install("exact");
    let idle = format!("{}s", flow_life::IDLE.as_secs());
    let builder = builder.option("--flow-idle", &idle).env("RUST_LOG", "warn");
    Ok(Running::Ours(builder.start(&hosts.switch)?))
}

fn ours(
    hosts: &Hosts,
    install: Install,
    program: &str,
    configure: impl FnOnce(UpcalldBuilder) -> UpcalldBuilder,
) -> Result<Running> {
    let install = if install == Install::Never { "never" } else { "exact" };
    let mut builder = configure(Upcalld::builder("dp0").program(Path::new(program)))
        .ports(hosts.ports())
        .install(install)
        .env("RUST_LOG", "warn");
    for pair in hosts.chunks_exact(2) {
        let pair = format!("{}={}", pair[0].port, pair[1].port);
        builder = builder.option("--cross-connect", &pair);
    }
    Ok(Running::Ours(builder.start(&hosts.switch)?))
}

/// A contestant that serves a datapath.
pub(crate) enum Running {
    Ours(Upcalld),
    Peer(Vswitchd),
}

impl Running {
    /// Process id of the daemon.
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Ours(daemon) => daemon.pid(),
            Self::Peer(daemon) => daemon.pid(),
        }
    }

    /// Its datapath in the kernel.
    pub(crate) fn datapath(&self) -> &'static str {
        match self {
            Self::Ours(_) => "dp0",
            Self::Peer(_) => "ovs-system",
        }
    }

    /// Lets it have so many flows, until it thinks better of it.
    pub(crate) fn allow_flows(&self, flows: u64) -> Result<()> {
        match self {
            Self::Ours(_) => Ok(()),
            Self::Peer(daemon) => daemon.allow_flows(flows),
        }
    }

    /// What it answers to a command of its control socket; asked by the same program for all.
    pub(crate) fn appctl(&self, words: &[&str]) -> Result<String> {
        let target = match self {
            Self::Ours(daemon) => daemon.control(),
            Self::Peer(daemon) => daemon.control(),
        };
        let asked = Command::new("ovs-appctl").arg("-t").arg(target).args(words).output();
        let asked = asked.context("cannot run ovs-appctl")?;
        ensure!(asked.status.success(), "ovs-appctl {words:?}: {asked:?}");
        Ok(String::from_utf8_lossy(&asked.stdout).into_owned())
    }

    pub(crate) fn stop(self) -> Result<()> {
        match self {
            Self::Ours(daemon) => {
                let exit = daemon.stop()?;
                ensure!(exit.status.success(), "it ended with {}:\n{}", exit.status, exit.log);
                Ok(())
            }
            Self::Peer(daemon) => daemon.stop(),
        }
    }
}
