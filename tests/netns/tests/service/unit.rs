//! Our unit, installed as a package would, on a machine with hosts around it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{SOON, ctl_at};
use ovs_datapath::Control;
use ovs_wire::datapath::Datapath;
use serde_json::Value;
use upcall_testkit::{Hosts, PingPlan, ping, wait_until};

use crate::machine::Machine;

const UNIT: &str = include_str!("../../../../config/upcalld.service");
const USERS: &str = include_str!("../../../../config/upcalld.sysusers");
/// Of the unit.
pub(crate) const NAME: &str = "upcalld.service";
/// Of the datapath that is served.
pub(crate) const DATAPATH: &str = "dp0";
const CONFIG: &str = "/etc/upcalld.toml";
const DROP_INS: &str = "/etc/systemd/system/upcalld.service.d";

/// Three hosts, and a machine in the namespace of the switch. All tests share them: a boot takes an emulated CPU
/// longer than most of them.
struct Lab {
    machine: Machine,
    hosts: Hosts,
}

static LAB: Mutex<Option<&'static Lab>> = Mutex::new(None);

/// The unit, for one test at a time.
pub(crate) struct Service {
    pub(crate) machine: &'static Machine,
    pub(crate) hosts: &'static Hosts,
    /// What the journal has from before is of other tests.
    since: SystemTime,
    /// How long this machine takes to start it.
    pub(crate) started_in: Duration,
    _turn: MutexGuard<'static, Option<&'static Lab>>,
}

/// Puts the unit's files where a package would.
pub(crate) fn install() -> Result<()> {
    fs::write("/usr/lib/systemd/system/upcalld.service", UNIT)?;
    fs::create_dir_all("/usr/lib/sysusers.d")?;
    Ok(fs::write("/usr/lib/sysusers.d/upcalld.conf", USERS)?)
}

/// Writes the configuration.
pub(crate) fn configure(ports: &[&str], more: &str) -> Result<()> {
    let known = format!("datapath = '{DATAPATH}'\nports = {ports:?}\n");
    Ok(fs::write(CONFIG, known + more)?)
}

impl Lab {
    fn boot() -> Result<Self> {
        install()?;
        let hosts = Hosts::new(3)?;
        let machine = Machine::boot(&hosts.switch)?;
        machine.run("systemd-sysusers", &["upcalld.conf"])?;
        Ok(Self { machine, hosts })
    }
}

impl Service {
    /// Starts it with the datapath's name, the ports of the first two hosts and these lines in its
    /// configuration, and with these lines in the unit beside those we ship.
    pub(crate) fn start(config: &str, drop_in: &str) -> Result<Self> {
        let mut service = Self::prepare(config, drop_in)?;
        let begun = Instant::now();
        service.systemctl(&["start", NAME]).with_context(|| service.state())?;
        service.started_in = begun.elapsed();
        Ok(service)
    }

    /// As [`Service::start`], without the last step.
    pub(crate) fn prepare(config: &str, drop_in: &str) -> Result<Self> {
        let mut turn = LAB.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = match *turn {
            Some(lab) => lab,
            None => *turn.insert(Box::leak(Box::new(Lab::boot()?))),
        };
        let (machine, hosts) = (&lab.machine, &lab.hosts);
        let started_in = Duration::ZERO;
        let since = SystemTime::now();
        let mut service = Self { machine, hosts, since, started_in, _turn: turn };
        service.tidy_up().context("tidy up after the test before")?;
        service.since = SystemTime::now();
        configure(&["p0", "p1"], config)?;
        fs::create_dir_all(DROP_INS)?;
        fs::write(format!("{DROP_INS}/test.conf"), format!("[Service]\n{drop_in}"))?;
        service.systemctl(&["daemon-reload"])?;
        Ok(service)
    }

    /// Ends what the test before has left, however it ended.
    fn tidy_up(&self) -> Result<()> {
        self.systemctl(&["stop", NAME])?;
        // Of one that was never started there is nothing to forget.
        let _not_loaded = self.systemctl(&["reset-failed", NAME]);
        let Some(dp) = self.datapath()? else { return Ok(()) };
        let delete = async || Control::open().await?.delete_datapath(&dp).await;
        Ok(self.hosts.switch.block_on(delete)??)
    }

    pub(crate) fn systemctl(&self, words: &[&str]) -> Result<String> {
        self.machine.systemctl(words)
    }

    /// What `systemctl show` tells.
    pub(crate) fn property(&self, name: &str) -> Result<String> {
        self.systemctl(&["show", "--property", name, "--value", NAME])
    }

    /// Waits until a property is this.
    pub(crate) fn wait_property(&self, name: &str, wanted: &str) -> Result<()> {
        let is_so = || self.property(name).is_ok_and(|value| value == wanted);
        wait_until(&format!("{name}={wanted}"), SOON * 3, is_so).with_context(|| self.state())
    }

    /// The daemon's process id, as the guest sees it.
    pub(crate) fn pid(&self) -> Result<u32> {
        let path = format!("/sys/fs/cgroup/system.slice/{NAME}/cgroup.procs");
        let processes =
            fs::read_to_string(self.machine.path(&path)).context("the unit's cgroup")?;
        let mut processes = processes.lines();
        let pid = processes.next().context("there is no process")?.parse()?;
        ensure!(processes.next().is_none(), "there are others, too");
        Ok(pid)
    }

    /// What the daemon logged in this test, and systemd about it.
    pub(crate) fn log(&self) -> String {
        let since = self.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = format!("--since=@{:.6}", since.as_secs_f64());
        let words = ["--unit", NAME, &since, "--output=cat", "--no-pager"];
        self.machine.run("journalctl", &words).unwrap_or_else(|err| format!("no log: {err:#}"))
    }

    /// What there is to tell of a failure.
    pub(crate) fn state(&self) -> String {
        let status = self.machine.output("systemctl", &["status", "--no-pager", NAME]);
        let status = status.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        format!("{}\n{}", status.unwrap_or_default(), self.log())
    }

    /// Sends the daemon a signal, and waits until systemd has put another one in its place.
    pub(crate) fn replaced_after(&self, signal: &str) -> Result<()> {
        let (before, restarts) = (self.pid()?, self.property("NRestarts")?.parse::<u32>()?);
        self.systemctl(&["kill", "--kill-whom=main", "--signal", signal, NAME])?;
        // Without a program for each look, which would keep the daemon's CPU busy.
        let another = || {
            self.pid().is_ok_and(|now| now != before) && UnixStream::connect(self.control()).is_ok()
        };
        wait_until("another daemon", SOON * 3, another).with_context(|| self.state())?;
        self.wait_property("ActiveState", "active")?;
        ensure!(self.property("NRestarts")? == (restarts + 1).to_string(), "{}", self.state());
        Ok(())
    }

    /// The control socket.
    pub(crate) fn control(&self) -> PathBuf {
        self.machine.path(&format!("/run/upcalld/{DATAPATH}.ctl"))
    }

    /// What a command answers, as JSON.
    pub(crate) fn ctl(&self, command: &str) -> Result<Value> {
        let output = ctl_at(&self.control(), &["--json", command])?;
        ensure!(output.status.success(), "{command}: {output:?}\n{}", self.state());
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The kernel's datapath; `None` if there is none.
    pub(crate) fn datapath(&self) -> Result<Option<Datapath>> {
        let find = async || Control::open().await?.datapath(DATAPATH).await;
        Ok(self.hosts.switch.block_on(find)??)
    }

    /// The hosts reach each other.
    pub(crate) fn ensure_switches(&self) -> Result<()> {
        let plan = PingPlan { count: 3, ..PingPlan::default() };
        let pings = ping::ping(&self.hosts[0].ns, self.hosts[1].ip4, &plan)?;
        ensure!(pings.unanswered_after_first() == 0, "{pings:?}\n{}", self.state());
        Ok(())
    }
}
