//! A guard around the real `upcalld` binary: started inside a namespace, ready when the call returns,
//! stopped or killed with the value, its log at hand when something goes wrong.

mod capture;
mod stats;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::netns::NetNs;
use crate::wait::{wait_for, wait_until};

use capture::Captured;
pub use rustix::process::Signal;
pub use stats::{Quantiles, ShedPort, Stats};

/// The variable that names the binary to test.
pub const UPCALLD_BIN: &str = "UPCALLD_BIN";

/// Name of the control socket in the daemon's directory.
const CONTROL: &str = "ctl";

/// How long a daemon may take to be ready: much, because a guest kernel may be emulated.
pub const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a daemon may take to end after SIGTERM before it counts as hung.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// How to start an upcalld; ends with [`UpcalldBuilder::start`] or [`UpcalldBuilder::spawn`].
#[derive(Clone, Debug)]
pub struct UpcalldBuilder {
    launcher: Vec<OsString>,
    program: Option<PathBuf>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    /// With the datapath, where that is said.
    adopted: Vec<(Option<String>, Arc<OwnedFd>)>,
    control: bool,
}

impl UpcalldBuilder {
    fn new() -> Self {
        Self {
            launcher: Vec::new(),
            program: std::env::var_os(UPCALLD_BIN).map(PathBuf::from),
            arguments: vec!["run".into()],
            environment: Vec::new(),
            adopted: Vec::new(),
            control: true,
        }
    }

    /// The binary. Default: what the variable `UPCALLD_BIN` names.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// For a program that has no control socket.
    #[must_use]
    pub fn without_control(mut self) -> Self {
        self.control = false;
        self
    }

    /// A program with arguments that starts the binary: `["strace", "-f"]`.
    #[must_use]
    pub fn launcher<S: Into<OsString>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.launcher = words.into_iter().map(Into::into).collect();
        self
    }

    /// Adds a port by the name of its link.
    #[must_use]
    pub fn port(self, link: &str) -> Self {
        self.option("--port", link)
    }

    /// Adds several ports.
    #[must_use]
    pub fn ports<'a>(self, links: impl IntoIterator<Item = &'a str>) -> Self {
        links.into_iter().fold(self, Self::port)
    }

    /// `auto`, `per-cpu` or `per-vport`.
    #[must_use]
    pub fn dispatch(self, mode: &str) -> Self {
        self.option("--dispatch", mode)
    }

    /// `learning-switch`, `hub` or `cross-connect`.
    #[must_use]
    pub fn handler(self, handler: &str) -> Self {
        self.option("--handler", handler)
    }

    /// `wildcard`, `exact` or `never`.
    #[must_use]
    pub fn install(self, install: &str) -> Self {
        self.option("--install", install)
    }

    /// Asks for a line of statistics each `interval`, and one at the end.
    #[must_use]
    pub fn stats(self, interval: Duration) -> Self {
        self.option("--stats", &humantime::format_duration(interval).to_string())
    }

    /// Adds an option with its value.
    #[must_use]
    pub fn option(self, name: &str, value: &str) -> Self {
        self.arg(name).arg(value)
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Gives the daemon the upcall sockets that another one stored ([`Upcalld::stored_sockets`]).
    #[must_use]
    pub fn adopt(mut self, sockets: Vec<OwnedFd>) -> Self {
        self.adopted = sockets.into_iter().map(|fd| (None, Arc::new(fd))).collect();
        self
    }

    /// As [`UpcalldBuilder::adopt`] for several datapaths: what another daemon stored, with the names
    /// ([`Upcalld::stored`]).
    #[must_use]
    pub fn adopt_stored(mut self, stored: Vec<(String, OwnedFd)>) -> Self {
        let owner = |name: String| {
            let name = name.strip_prefix("upcall-").and_then(|name| name.split_once('/'));
            name.map(|(datapath, _)| datapath.to_owned())
        };
        self.adopted = stored.into_iter().map(|(name, fd)| (owner(name), Arc::new(fd))).collect();
        self
    }

    /// Sets a variable of the daemon's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts the daemon in `ns` and waits until it says that it is ready (for [`READY_TIMEOUT`]).
    ///
    /// # Errors
    /// [`Error::Daemon`] with its log when it ends or stays silent instead.
    pub fn start(&self, ns: &NetNs) -> Result<Upcalld> {
        let mut daemon = self.spawn(ns)?;
        daemon.wait_ready(READY_TIMEOUT)?;
        Ok(daemon)
    }

    /// Starts the daemon in `ns` and does not wait: for tests in which it is to fail.
    ///
    /// # Errors
    /// [`Error::Invalid`] when no binary is named, [`Error::System`] when it cannot be executed.
    pub fn spawn(&self, ns: &NetNs) -> Result<Upcalld> {
        let directory = tempfile::Builder::new().prefix("upcall-testkit").tempdir();
        let directory = directory.map_err(Error::system("make a temporary directory"))?;
        let path = directory.path().join("notify");
        let notify = UnixDatagram::bind(&path).map_err(Error::system("bind a notify socket"))?;
        let mut command = self.command()?;
        command.env("NOTIFY_SOCKET", &path).env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Daemons of several namespaces would meet in the usual directory.
        if self.control && !self.arguments.iter().any(|argument| argument == "--control") {
            command.arg("--control").arg(directory.path().join(CONTROL));
        }
        // A group of its own: Ctrl-C at a terminal reaches the guard, which then stops the daemon.
        command.process_group(0);
        let inherited = self.inheritable()?;
        if !inherited.is_empty() {
            let number = |(datapath, fd): &(Option<String>, OwnedFd)| {
                let owner = datapath.as_ref().map_or_else(String::new, |name| format!("{name}="));
                format!("{owner}{}", fd.as_raw_fd())
            };
            let numbers: Vec<_> = inherited.iter().map(number).collect();
            command.args(["--adopt", &numbers.join(",")]);
        }
        // A child starts in the namespace of the thread that forks it.
        let child = ns
            .run(|| command.spawn())?
            .map_err(Error::system(format!("execute {}", command.get_program().display())))?;
        Upcalld::watch(child, notify, directory)
    }

    /// Copies of the adopted sockets that a child gets: not closed on exec, so they are made as late
    /// and dropped as soon as can be.
    fn inheritable(&self) -> Result<Vec<(Option<String>, OwnedFd)>> {
        let copy = |(datapath, fd): &(Option<String>, Arc<OwnedFd>)| {
            Ok((datapath.clone(), rustix::io::dup(fd)?))
        };
        let copies = self.adopted.iter().map(copy).collect::<rustix::io::Result<Vec<_>>>();
        copies.map_err(Error::system("copy a socket"))
    }

    fn command(&self) -> Result<Command> {
        let program = self.program.clone().ok_or_else(|| {
            Error::Invalid(format!("no upcalld to start: set {UPCALLD_BIN} to its path"))
        })?;
        let mut words = self.launcher.iter().cloned().chain([program.into_os_string()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }
}

/// How a daemon ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit status.
    pub status: ExitStatus,
    /// The statistics it printed last; `final_line` is set if that was on its way out.
    pub stats: Option<Stats>,
    /// The same for each datapath, by name.
    pub stats_by_datapath: BTreeMap<String, Stats>,
    /// The newest lines of its standard error.
    pub log: String,
}

/// A running upcalld. Dropped, it is killed; dropped by a panic, its log goes to standard error too.
pub struct Upcalld {
    child: Child,
    pid: Pid,
    captured: Arc<Captured>,
    readers: Vec<JoinHandle<()>>,
    directory: TempDir,
}

impl fmt::Debug for Upcalld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upcalld(process {})", self.child.id())
    }
}

impl Upcalld {
    /// An upcalld for the datapath of this name.
    pub fn builder(datapath: &str) -> UpcalldBuilder {
        UpcalldBuilder::new().option("--datapath", datapath)
    }

    /// An upcalld for the datapaths that a configuration file names.
    pub fn of_file(path: &Path) -> UpcalldBuilder {
        UpcalldBuilder::new().arg("--config").arg(path)
    }

    fn watch(mut child: Child, notify: UnixDatagram, directory: TempDir) -> Result<Self> {
        let captured = Arc::new(Captured::default());
        let pid = Pid::from_child(&child);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut daemon = Self { child, pid, captured, readers: Vec::new(), directory };
        daemon.read("notify", move |captured| captured.read_notifications(&notify))?;
        daemon.read("stderr", move |captured| captured.read_log(stderr))?;
        daemon.read("stdout", move |captured| captured.read_stats(stdout))?;
        Ok(daemon)
    }

    fn read(&mut self, name: &str, work: impl FnOnce(&Captured) + Send + 'static) -> Result<()> {
        let captured = Arc::clone(&self.captured);
        let reader = thread::Builder::new()
            .name(format!("upcalld-{name}"))
            .spawn(move || work(&captured))
            .map_err(Error::system("start a thread"))?;
        self.readers.push(reader);
        Ok(())
    }

    /// Waits until the daemon says READY to its service manager.
    ///
    /// # Errors
    /// [`Error::Daemon`] with its log when it ends first, or stays silent for `timeout`.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        let captured = Arc::clone(&self.captured);
        let child = &mut self.child;
        let ended = wait_for("READY", timeout, || match (captured.is_ready(), child.try_wait()) {
            (true, _) => Some(None),
            (false, Ok(status)) => status.map(Some),
            (false, Err(_)) => None,
        });
        match ended {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                self.join_readers();
                Err(self.failed(format!("ended with {status} before it was ready")))
            }
            Err(_) => {
                let waited = humantime::format_duration(timeout);
                Err(self.failed(format!("was not ready after {waited}")))
            }
        }
    }

    /// The upcall sockets that the daemon keeps with its service manager, which is this guard.
    ///
    /// # Errors
    /// [`Error::System`] when they cannot be copied.
    pub fn stored_sockets(&self) -> Result<Vec<OwnedFd>> {
        Ok(self.stored()?.into_iter().map(|(_, fd)| fd).collect())
    }

    /// The same with the names they have in the store.
    ///
    /// # Errors
    /// [`Error::System`] when they cannot be copied.
    pub fn stored(&self) -> Result<Vec<(String, OwnedFd)>> {
        self.captured.stored().map_err(Error::system("copy the stored sockets"))
    }

    /// How often it told its service manager that it is alive (`WATCHDOG=1`).
    pub fn alive(&self) -> u64 {
        self.captured.alive()
    }

    /// How often it told its service manager that it reloads its configuration (`RELOADING=1`, with
    /// the time), and how many of these it has ended (`READY=1`).
    pub fn reloads(&self) -> (u64, u64) {
        self.captured.reloads()
    }

    /// Its control socket, unless the test placed it elsewhere.
    pub fn control(&self) -> PathBuf {
        self.directory.path().join(CONTROL)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process runs still.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The newest lines of its standard error (5,000 are kept).
    pub fn log(&self) -> String {
        self.captured.log()
    }

    /// Waits for a line of the log that contains `text`, and returns that line.
    ///
    /// # Errors
    /// [`Error::Daemon`] with the log.
    pub fn wait_log(&self, text: &str, timeout: Duration) -> Result<String> {
        let find = || self.captured.find_line(text);
        wait_for(text, timeout, find)
            .map_err(|error| self.failed(format!("did not log it: {error}")))
    }

    /// The statistics it printed last; needs [`UpcalldBuilder::stats`].
    pub fn stats(&self) -> Option<Stats> {
        self.captured.stats()
    }

    /// As [`Upcalld::stats`], of one datapath.
    pub fn stats_of(&self, datapath: &str) -> Option<Stats> {
        self.captured.stats_by_datapath().remove(datapath)
    }

    /// Waits for statistics that satisfy `wanted`. They are as old as the interval at most.
    ///
    /// # Errors
    /// [`Error::Daemon`] that names `what`, with the last statistics and the log.
    pub fn wait_stats(
        &self,
        what: &str,
        timeout: Duration,
        wanted: impl Fn(&Stats) -> bool,
    ) -> Result<Stats> {
        let probe = || self.stats().filter(|stats| wanted(stats));
        wait_for(what, timeout, probe)
            .map_err(|error| self.failed(format!("printed {:?} last: {error}", self.stats())))
    }

    /// Sends a signal, and does not wait.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).map_err(Error::system("signal upcalld"))
    }

    /// Sends SIGTERM and waits for the end, at most [`STOP_TIMEOUT`].
    ///
    /// # Errors
    /// [`Error::Daemon`] with the log when it is still running then (it is killed).
    pub fn stop(self) -> Result<Exit> {
        self.signal(Signal::TERM)?;
        self.wait_exit(STOP_TIMEOUT)
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// [`Error::Daemon`] with the log when it is still running after `timeout` (it is killed).
    pub fn wait_exit(mut self, timeout: Duration) -> Result<Exit> {
        if wait_until("the end", timeout, || !self.is_running()).is_err() {
            let waited = humantime::format_duration(timeout);
            return Err(self.failed(format!("was still running after {waited}")));
        }
        let status = self.child.wait().map_err(Error::system("wait for upcalld"))?;
        self.join_readers();
        let stats_by_datapath = self.captured.stats_by_datapath();
        Ok(Exit { status, stats: self.stats(), stats_by_datapath, log: self.log() })
    }

    fn failed(&self, what: String) -> Error {
        Error::Daemon { what, log: self.log() }
    }

    /// Waits for the threads that read; the process has ended, so they do.
    fn join_readers(&mut self) {
        self.captured.stop();
        for reader in self.readers.drain(..) {
            if reader.join().is_err() {
                eprintln!("a thread that read upcalld's output panicked");
            }
        }
    }
}

impl Drop for Upcalld {
    fn drop(&mut self) {
        if self.is_running() {
            let killed = self.child.kill().and_then(|()| self.child.wait());
            if let Err(error) = killed {
                eprintln!("cannot kill upcalld: {error}");
            }
        }
        self.join_readers();
        if thread::panicking() {
            eprintln!("--- upcalld's log ---\n{}\n--- end of log ---", self.log());
        }
    }
}
