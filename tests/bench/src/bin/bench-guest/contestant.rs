//! Who is measured, and how each is started so that all of them do the same.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use upcall_testkit::{Hosts, Upcalld, UpcalldBuilder};

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
}

impl Contestant {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Upcalld => "upcalld",
            Self::OvsVswitchd => "ovs-vswitchd",
            Self::Floor => "floor",
        }
    }

    /// Starts it on the ports of `hosts`, which are joined in pairs: 0 with 1, 2 with 3, and so on.
    pub(crate) fn start(self, hosts: &Hosts, install: Install) -> Result<Running> {
        match self {
            Self::Upcalld => ours(hosts, install, "/bin/upcalld", |b| b.handler("cross-connect")),
            Self::Floor => {
                ours(hosts, install, "/bin/bench-floor", UpcalldBuilder::without_control)
            }
            Self::OvsVswitchd => Vswitchd::start(hosts, install).map(Running::Peer),
        }
        .with_context(|| format!("cannot start {}", self.name()))
    }
}

fn ours(
    hosts: &Hosts,
    install: Install,
    program: &str,
    configure: impl FnOnce(upcall_testkit::UpcalldBuilder) -> upcall_testkit::UpcalldBuilder,
) -> Result<Running> {
    let install = match install {
        Install::Never => "never",
        Install::Exact => "exact",
    };
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

    pub(crate) fn stop(self) -> Result<()> {
        match self {
            Self::Ours(daemon) => {
                let exit = daemon.stop()?;
                anyhow::ensure!(
                    exit.status.success(),
                    "it ended with {}:\n{}",
                    exit.status,
                    exit.log
                );
                Ok(())
            }
            Self::Peer(daemon) => daemon.stop(),
        }
    }
}
