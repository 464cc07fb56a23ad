//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use upcall::{Dispatch, InstallPolicy};

/// Switches packets that an Open vSwitch kernel datapath has no flow for.
#[derive(Debug, Parser)]
#[command(name = "upcalld", version, after_help = crate::exit::HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Open or create a datapath, add ports, and serve its upcalls until SIGTERM or SIGINT
    #[command(after_help = RUN_HELP)]
    Run(Box<RunArgs>),
    /// Say what this host can do, with the evidence, and why which dispatch mode is selected
    #[command(after_help = crate::probe::HELP)]
    Probe(ProbeArgs),
}

const RUN_HELP: &str = "\
Examples:
  upcalld run --datapath dp0 --port veth0 --port veth1
      a learning switch between two interfaces
  upcalld run --datapath dp0 --port a --port b --handler cross-connect --cross-connect a=b
      a wire between two interfaces
  RUST_LOG=debug upcalld run --config /etc/upcalld.toml --stats 1s
      everything from a file, with a line of counters each second

Interfaces must be up ('ip link set IFACE up'). Flags override the configuration file.
Logs go to standard error (RUST_LOG chooses what), counters to standard output.";

/// Options of `probe`.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// Look at this datapath too: mode, per-CPU table, ports, who serves it
    #[arg(long, value_name = "NAME")]
    pub(crate) datapath: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `run`. `None` means: not given, so the file or the default decides.
#[derive(Debug, Args, Default)]
pub(crate) struct RunArgs {
    /// Configuration file (TOML); config/upcalld.toml explains every key
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Name of the datapath; created if there is none
    #[arg(long, value_name = "NAME")]
    pub(crate) datapath: Option<String>,
    /// Network interface to add as a port; repeat for more
    #[arg(long = "port", value_name = "IFACE")]
    pub(crate) ports: Vec<String>,
    /// How the kernel chooses the socket of an upcall: by CPU (Linux 5.15) or by port [default: auto]
    #[arg(long, value_name = "auto|per-cpu|per-vport")]
    pub(crate) dispatch: Option<Dispatch>,
    /// Worker threads [default: one for each CPU this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) workers: Option<u16>,
    /// What decides about packets [default: learning-switch]
    #[arg(long, value_enum)]
    pub(crate) handler: Option<HandlerKind>,
    /// Two ports to join, for the cross-connect handler; repeat for more
    #[arg(long = "cross-connect", value_name = "A=B")]
    pub(crate) cross_connect: Vec<String>,
    /// Flows to install: with the smallest mask, one without wildcards for each connection (strictly,
    /// for each flow key, which tells more apart), or none [default: wildcard]
    #[arg(long, value_enum)]
    pub(crate) install: Option<InstallKind>,
    /// Leave datapath, ports and flows behind at the end
    #[arg(long)]
    pub(crate) keep: bool,
    /// Take the datapath over even if another process serves it
    #[arg(long)]
    pub(crate) takeover: bool,
    /// At the end leave datapath, flows and upcall sockets to a successor; whoever started us holds
    /// the sockets meanwhile (systemd's file-descriptor store, or a parent that speaks its protocol)
    #[arg(long, conflicts_with = "keep")]
    pub(crate) hand_over: bool,
    /// Upcall sockets of a predecessor, as inherited file descriptors: what is queued in them is
    /// served first. Not needed under systemd, which says by itself what it holds
    #[arg(long, value_name = "FD,FD,...", value_delimiter = ',')]
    pub(crate) adopt: Vec<i32>,
    /// When somebody deletes the datapath: end with an error, or make it anew [default: exit]
    #[arg(long, value_enum)]
    pub(crate) on_deleted: Option<OnDeleted>,
    /// Forget a MAC address that was not seen for this long [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) mac_age: Option<Duration>,
    /// Remove a flow that matched nothing for this long [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) flow_idle: Option<Duration>,
    /// How often flows are checked and addresses aged [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) sweep_interval: Option<Duration>,
    /// Print counters as a line of JSON on standard output this often, and once at the end
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) stats: Option<Duration>,
    /// Form of the log on standard error [default: text]
    #[arg(long, value_enum)]
    pub(crate) log_format: Option<LogFormat>,
}

/// Which handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HandlerKind {
    /// Learns MAC addresses per VLAN, sends to the learned port, floods what it does not know
    #[default]
    LearningSwitch,
    /// Sends every packet to all other ports
    Hub,
    /// Joins ports in pairs
    CrossConnect,
}

/// Which flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum InstallKind {
    /// For all packets that the decision holds for
    #[default]
    Wildcard,
    /// One for each flow key, without wildcards
    Exact,
    /// None: every packet comes up
    Never,
}

impl From<InstallKind> for InstallPolicy {
    fn from(kind: InstallKind) -> Self {
        match kind {
            InstallKind::Wildcard => Self::Wildcard,
            InstallKind::Exact => Self::Exact,
            InstallKind::Never => Self::Never,
        }
    }
}

/// What to do when the datapath was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnDeleted {
    /// End with status 1
    #[default]
    Exit,
    /// Make it anew with its ports
    Recreate,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_humantime() {
        let cli =
            Cli::parse_from(["upcalld", "run", "--mac-age", "250ms", "--dispatch", "per-cpu"]);
        let Command::Run(args) = cli.command else { panic!("not run") };
        assert_eq!(args.mac_age, Some(Duration::from_millis(250)));
        assert_eq!(args.dispatch, Some(Dispatch::PerCpu));
        assert!(Cli::try_parse_from(["upcalld", "run", "--mac-age", "5 parsecs"]).is_err());
        assert!(Cli::try_parse_from(["upcalld", "run", "--workers", "0"]).is_err());
    }
}
