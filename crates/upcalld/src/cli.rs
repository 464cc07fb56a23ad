//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use upcall::{Dispatch, InstallPolicy, OnPortGone, Placement, Rate};

use crate::control::Place;
use crate::metrics::Address;

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
    /// Say how each datapath delivers its upcalls now: mode, sockets, CPU or port -> port id ->
    /// process -> worker, and why
    #[command(after_help = crate::dispatch_mode::HELP)]
    DispatchMode(DispatchModeArgs),
    /// Ask or steer a running daemon: 'upcalld ctl list-commands' says what there is
    #[command(after_help = crate::control::client::HELP)]
    Ctl(CtlArgs),
    /// Watch a running daemon: rates, losses by cause, latencies, workers, ports, flows
    #[command(after_help = crate::top::HELP)]
    Top(crate::top::TopArgs),
    /// Follow the upcalls of a running daemon that match a filter, as lines or as a capture
    #[command(after_help = crate::trace::client::HELP)]
    Trace(crate::trace::client::TraceArgs),
    /// Say everything that is wrong with a configuration file
    #[command(after_help = crate::config::check::HELP)]
    CheckConfig {
        /// The file
        file: PathBuf,
    },
    /// Write manual pages into a directory, one for each command
    #[command(hide = true)]
    Man {
        /// Where to
        directory: PathBuf,
    },
    /// Print completions for a shell
    #[command(hide = true)]
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
}

const RUN_HELP: &str = "\
Examples:
  upcalld run --datapath dp0 --port veth0 --port veth1
      a learning switch between two interfaces
  upcalld run --datapath dp0 --port a --port b --handler cross-connect --cross-connect a=b
      a wire between two interfaces
  upcalld run --datapath dp0 --port veth0 --port veth1 --workers 2 --placement 2-5
      two workers, one for the upcalls of CPUs 2 and 3 and one for those of 4 and 5
  upcalld run --datapath dp0 --port 'veth*'
      every interface of such a name, as containers start and stop
  upcalld run --config /etc/upcalld.toml --log debug --stats 1s
      everything from a file, several datapaths as well, with a line of counters each second

Interfaces must be up ('ip link set IFACE up'). Flags override the configuration file. SIGHUP, or
'upcalld ctl reload', reads the file again and applies what can change, or nothing and says why.
Logs go to standard error, counters to standard output.";

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

/// Options of `dispatch-mode`.
#[derive(Debug, Args)]
pub(crate) struct DispatchModeArgs {
    /// This datapath alone [default: all of this network namespace]
    #[arg(long, value_name = "NAME")]
    pub(crate) datapath: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `ctl`.
#[derive(Debug, Args)]
pub(crate) struct CtlArgs {
    #[command(flatten)]
    pub(crate) target: crate::control::client::Target,
    /// Print JSON, also where the answer is text
    #[arg(long)]
    pub(crate) json: bool,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub(crate) words: Vec<String>,
}

/// Options of `run`. `None` means: not given, so the file or the default decides.
#[derive(Debug, Args, Default)]
pub(crate) struct RunArgs {
    /// Configuration file (TOML); config/upcalld.toml explains every key
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Name of the datapath; created if there is none. With tables of several in the file: the one of them
    /// to serve [default: all]
    #[arg(long, value_name = "NAME")]
    pub(crate) datapath: Option<String>,
    /// Network interface to add as a port, or a pattern ('veth*') that names all that match, as they come
    /// and go; repeat for more
    #[arg(long = "port", value_name = "IFACE")]
    pub(crate) ports: Vec<String>,
    /// How the kernel chooses the socket of an upcall: by CPU (Linux 5.15) or by port [default: auto]
    #[arg(long, value_name = "auto|per-cpu|per-vport")]
    pub(crate) dispatch: Option<Dispatch>,
    /// Worker threads [default: one for each CPU that --placement lets them run on, at most 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) workers: Option<u16>,
    /// CPUs that workers run on: each on those whose upcalls it reads, floating, or on these alone.
    /// The first two stay off isolated and tickless CPUs; all follow hotplug, taskset and cpusets
    /// [default: near-cpu]
    #[arg(long, value_name = "near-cpu|housekeeping|LIST")]
    pub(crate) placement: Option<Placement>,
    /// Kernel memory that the receive buffers of all upcall sockets together may take: bytes, or with
    /// K, M, G for powers of 1024 [default: no limit beside that of each socket]
    #[arg(long, value_name = "SIZE", value_parser = crate::settings::parse_size)]
    pub(crate) recv_buffer_total: Option<usize>,
    /// Have the kernel refuse most upcalls of a port that floods the socket of a CPU, so that the other
    /// ports lose none; off: they share the losses [default: on]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    pub(crate) storm_shield: Option<OnOff>,
    /// Have the kernel tell when it sent each upcall, by an eBPF program on each CPU's socket, which keeps the
    /// order of flows that hop between CPUs; left out where that is not permitted (no 'bpf' capability)
    /// [default: on]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    pub(crate) arrival_times: Option<OnOff>,
    /// Where it is not known when upcalls were sent: have those of all CPUs go by one socket while flows hop
    /// between CPUs, as long as one worker can read it all [default: on]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    pub(crate) funnel: Option<OnOff>,
    /// Upcalls a second that each port may have taken in, and at once (default: a tenth of a second's, at
    /// least 64); more are shed [default: no limit]
    #[arg(long, value_name = "RATE[:BURST]")]
    pub(crate) port_rate: Option<Rate>,
    /// The same for packets that no flow matched
    #[arg(long, value_name = "RATE[:BURST]")]
    pub(crate) miss_rate: Option<Rate>,
    /// The same for packets that a flow's userspace action sent up
    #[arg(long, value_name = "RATE[:BURST]")]
    pub(crate) action_rate: Option<Rate>,
    /// The same for samples
    #[arg(long, value_name = "RATE[:BURST]")]
    pub(crate) sample_rate: Option<Rate>,
    /// Upcalls of one port that may wait for their turn [default: what is left of the room for all]
    #[arg(long, value_name = "N")]
    pub(crate) port_queue_max: Option<usize>,
    /// Packets that a flow sent up are samples if the userdata of its action begins with these bytes, in
    /// hexadecimal: they come last [default: none is]
    #[arg(long, value_name = "HEX", value_parser = crate::settings::parse_hex)]
    pub(crate) sample_userdata: Option<std::sync::Arc<[u8]>>,
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
    /// Answer packets of a flow that is about to be installed as the one that asked for it, without
    /// deciding about each [default: on]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    pub(crate) answer_from_plan: Option<OnOff>,
    /// Leave datapath, ports and flows behind at the end
    #[arg(long)]
    pub(crate) keep: bool,
    /// Take the datapath over even if another process serves it
    #[arg(long)]
    pub(crate) takeover: bool,
    /// Leave datapath, flows and upcall sockets to a successor after SIGUSR2 and after a crash; whoever
    /// started us holds the sockets meanwhile (systemd's file-descriptor store, or a parent that speaks its
    /// protocol). SIGTERM and SIGINT end it for good, with all that it and its predecessors made
    #[arg(long, conflicts_with = "keep")]
    pub(crate) hand_over: bool,
    /// What a predecessor stored, as inherited file descriptors: its upcall sockets, whose queued upcalls
    /// are served first, and its record of upcalls in flight, which tells what was lost in a crash. With
    /// several datapaths NAME=FD says whose. Not needed under systemd, which says by itself what it holds
    #[arg(long, value_name = "[NAME=]FD,...", value_delimiter = ',')]
    pub(crate) adopt: Vec<crate::settings::Adopted>,
    /// When somebody deletes the datapath: end with an error, or make it anew [default: exit]
    #[arg(long, value_enum)]
    pub(crate) on_deleted: Option<OnDeleted>,
    /// When the interface of a port vanishes: wait for one of that name and make it the port again, or
    /// end with an error [default: wait]
    #[arg(long, value_enum)]
    pub(crate) on_port_gone: Option<PortGone>,
    /// Forget a MAC address that was not seen for this long [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) mac_age: Option<Duration>,
    /// Broadcasts a second that the learning switch forwards of each port, and at once (default: a tenth of
    /// a second's, at least 64); more are dropped [default: no limit]
    #[arg(long, value_name = "RATE[:BURST]")]
    pub(crate) broadcast_rate: Option<Rate>,
    /// The same for packets to other groups
    #[arg(long, value_name = "RATE[:BURST]")]
    pub(crate) multicast_rate: Option<Rate>,
    /// The same for packets to addresses that are not known
    #[arg(long, value_name = "RATE[:BURST]")]
    pub(crate) unknown_rate: Option<Rate>,
    /// Remove a flow that matched nothing for this long [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) flow_idle: Option<Duration>,
    /// Remove a flow at latest this long after it was installed, although it is used [default: never]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) flow_hard: Option<Duration>,
    /// How often flows are checked and addresses aged [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) sweep_interval: Option<Duration>,
    /// Print counters and latencies as a line of JSON on standard output this often, and once at the end
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) stats: Option<Duration>,
    /// Where to listen for 'upcalld ctl' and 'ovs-appctl -t PATH', or none
    /// [default: /run/upcalld/DATAPATH.ctl, if it can be made]
    #[arg(long, value_name = "PATH|none")]
    pub(crate) control: Option<Place>,
    /// A group, by name or number, whose members may use the control socket as well
    /// [default: root and the daemon's own user alone]
    #[arg(long, value_name = "GROUP")]
    pub(crate) control_group: Option<String>,
    /// A file for the process id, locked, and beside it a link to the control socket: 'ovs-appctl -t upcalld'
    /// finds /run/openvswitch/upcalld.pid by the name [default: none]
    #[arg(long, value_name = "PATH")]
    pub(crate) pidfile: Option<PathBuf>,
    /// A file that reports of panics are appended to, beside standard error; 1 MiB at most [default: none]
    #[arg(long, value_name = "PATH")]
    pub(crate) crash_report: Option<PathBuf>,
    /// Where to serve metrics, health and readiness over HTTP: a port of the loopback address, another
    /// address, or a socket's path [default: none]
    #[arg(long, value_name = "PORT|ADDRESS:PORT|PATH|none")]
    pub(crate) metrics: Option<Address>,
    /// What is logged: a level (error, warn, info, debug, trace), and others by module
    /// [default: info, and warn for netlink-proto]
    #[arg(long, value_name = "LEVEL[,MODULE=LEVEL]...", env = "RUST_LOG", hide_env_values = true)]
    pub(crate) log: Option<String>,
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

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnOff {
    /// Yes
    On,
    /// No
    Off,
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

/// What to do when the interface of a port vanished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PortGone {
    /// Wait for an interface of that name
    #[default]
    Wait,
    /// End with status 1
    Exit,
}

impl From<PortGone> for OnPortGone {
    fn from(policy: PortGone) -> Self {
        match policy {
            PortGone::Wait => Self::Wait,
            PortGone::Exit => Self::Fail,
        }
    }
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

    #[test]
    fn a_placement_is_a_policy_or_a_list_of_cpus() {
        let placement = |text| {
            let cli = Cli::try_parse_from(["upcalld", "run", "--placement", text])?;
            let Command::Run(args) = cli.command else { panic!("not run") };
            Ok::<_, clap::Error>(args.placement)
        };
        assert_eq!(placement("housekeeping").unwrap(), Some(Placement::Housekeeping));
        assert_eq!(placement("2-3,8").unwrap(), Some(Placement::List(vec![2, 3, 8])));
        let err = placement("near").unwrap_err().to_string();
        assert!(err.contains("near-cpu, housekeeping or a list of CPUs"), "{err}");
    }
}
