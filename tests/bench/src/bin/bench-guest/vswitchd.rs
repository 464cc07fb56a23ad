//! `ovs-vswitchd` with its database, in the namespace of the switch.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use upcall_testkit::{Hosts, NetNs, wait_until};

use crate::contestant::Install;
use crate::flow_life;

/// How long a daemon may take to listen, under emulation.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const BRIDGE: &str = "br0";
/// Where Debian has the daemon; the usual name is a link made when the package is configured.
const DAEMON: &str = "/usr/lib/openvswitch-switch/ovs-vswitchd";

/// A running `ovs-vswitchd`. Dropped, it is killed.
pub(crate) struct Vswitchd {
    switch: NetNs,
    dir: TempDir,
    database: Child,
    daemon: Child,
}

impl Vswitchd {
    /// Starts it with a bridge on all ports of `hosts`, a pair of flows for each two of them, and `more` ports.
    pub(crate) fn start(hosts: &Hosts, more: &[String], install: Install) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let rundir = Rundir { path: dir.path().to_owned(), switch: hosts.switch.clone() };
        let database = rundir.file("conf.db");
        rundir.run("ovsdb-tool", &["create", &database, SCHEMA])?;
        let remote = format!("--remote=punix:{}", rundir.file("db.sock"));
        let database = rundir.spawn("ovsdb-server", &[&database, &remote])?;
        rundir.wait_for("db.sock")?;
        rundir.vsctl(&["--no-wait", "init"])?;
        let socket = format!("unix:{}", rundir.file("db.sock"));
        let control = format!("--unixctl={}", rundir.file("control"));
        let daemon = rundir.spawn(DAEMON, &[&socket, &control])?;
        let this = Self { switch: hosts.switch.clone(), dir, database, daemon };
        let configured =
            rundir.wait_for("control").and_then(|()| rundir.configure(hosts, more, install));
        configured.with_context(|| rundir.log())?;
        Ok(this)
    }

    /// Its version as it says it.
    pub(crate) fn version() -> Result<String> {
        let output = Command::new(DAEMON).arg("--version").output().context("no ovs-vswitchd")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().next().and_then(|line| line.rsplit(' ').next());
        Ok(version.context("ovs-vswitchd without a version")?.to_owned())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// Where it listens for commands.
    pub(crate) fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// Lets it have so many flows, until its next look at how long it takes to read them.
    pub(crate) fn allow_flows(&self, flows: u64) -> Result<()> {
        self.rundir().appctl(&["upcall/set-flow-limit", &flows.to_string()])
    }

    fn rundir(&self) -> Rundir {
        Rundir { path: self.dir.path().to_owned(), switch: self.switch.clone() }
    }

    /// Ends it and takes its datapath away, which it leaves behind by default.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.rundir().appctl(&["exit", "--cleanup"])?;
        let end = || matches!(self.daemon.try_wait(), Ok(Some(_)));
        wait_until("ovs-vswitchd to end", READY_TIMEOUT, end)?;
        Ok(())
    }
}

impl Drop for Vswitchd {
    fn drop(&mut self) {
        for child in [&mut self.daemon, &mut self.database] {
            let _ended_already = child.kill();
            let _nobody_to_tell = child.wait();
        }
    }
}

/// Where the daemons' sockets are, and the namespace they run in.
struct Rundir {
    path: PathBuf,
    switch: NetNs,
}

impl Rundir {
    fn file(&self, name: &str) -> String {
        self.path.join(name).to_string_lossy().into_owned()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).env("OVS_RUNDIR", &self.path);
        command.env("OVS_LOGDIR", &self.path).env("OVS_DBDIR", &self.path);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(program, arguments);
        let output = self
            .switch
            .run(|| command.output())?
            .with_context(|| format!("cannot run {program}"))?;
        ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
        Ok(())
    }

    fn spawn(&self, program: &str, arguments: &[&str]) -> Result<Child> {
        let mut command = self.command(program, arguments);
        command.args(["-vconsole:warn", "-vfile:off", "-vsyslog:off"]).stdout(Stdio::null());
        let name = Path::new(program).file_name().unwrap_or_default();
        let log = File::create(self.path.join(name).with_extension("log"))?;
        command.stderr(log);
        self.switch.run(|| command.spawn())?.with_context(|| format!("cannot start {program}"))
    }

    /// What the daemon has complained about.
    fn log(&self) -> String {
        std::fs::read_to_string(self.file("ovs-vswitchd.log")).unwrap_or_default()
    }

    fn wait_for(&self, socket: &str) -> Result<()> {
        let path = self.file(socket);
        Ok(wait_until(socket, READY_TIMEOUT, || Path::new(&path).exists())?)
    }

    fn vsctl(&self, arguments: &[&str]) -> Result<()> {
        let database = format!("--db=unix:{}", self.file("db.sock"));
        self.run("ovs-vsctl", &[&[database.as_str()], arguments].concat())
    }

    fn appctl(&self, arguments: &[&str]) -> Result<()> {
        let target = self.file("control");
        self.run("ovs-appctl", &[&["-t", target.as_str()], arguments].concat())
    }

    fn configure(&self, hosts: &Hosts, more: &[String], install: Install) -> Result<()> {
        let mut words: Vec<String> = Vec::new();
        let mut say = |text: &str| words.extend(text.split_whitespace().map(str::to_owned));
        say(&format!("add-br {BRIDGE} -- set bridge {BRIDGE} fail_mode=secure"));
        for (index, host) in hosts.iter().enumerate() {
            let (port, number) = (&host.port, index + 1);
            say(&format!("-- add-port {BRIDGE} {port}"));
            say(&format!("-- set interface {port} ofport_request={number}"));
        }
        for port in more {
            say(&format!("-- add-port {BRIDGE} {port}"));
        }
        if install == Install::Never {
            // The limit that a revalidator may not raise again; the running one is set below.
            say("-- set Open_vSwitch . other_config:flow-limit=0");
        }
        if install == Install::Learned {
            let (idle_ms, flows) = (flow_life::IDLE.as_millis(), "other_config:flow-limit=1000000");
            say(&format!("-- set Open_vSwitch . other_config:max-idle={idle_ms} {flows}"));
        }
        self.vsctl(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        if install == Install::Learned {
            self.run("ovs-ofctl", &["add-flow", BRIDGE, "actions=NORMAL"])?;
        } else {
            self.join_pairs(hosts.len())?;
        }
        match install {
            Install::Never => self.appctl(&["upcall/set-flow-limit", "0"]),
            Install::Exact | Install::Learned => self.appctl(&["upcall/disable-megaflows"]),
        }
    }

    fn join_pairs(&self, hosts: usize) -> Result<()> {
        for index in 0..hosts {
            // Ports count from 1: 1 with 2, 3 with 4, and so on.
            let (from, to) = (index + 1, (index ^ 1) + 1);
            self.run("ovs-ofctl", &["add-flow", BRIDGE, &format!("in_port={from},actions={to}")])?;
        }
        Ok(())
    }
}
