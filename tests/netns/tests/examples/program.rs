//! An example of the library, as a process.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

use anyhow::{Context as _, Result, ensure};
use netns_tests::SOON;
use rustix::process::{Pid, Signal, kill_process};
use upcall_testkit::Hosts;

/// Lines that may wait to be read: an example says less than that.
const LINES_MAX: usize = 64;

/// The command that runs an example.
pub(crate) fn command(name: &str) -> Result<Command> {
    let dir = std::env::var_os("UPCALL_EXAMPLES")
        .context("no examples to run: 'cargo xtask test' builds them and sets UPCALL_EXAMPLES")?;
    Ok(Command::new(PathBuf::from(dir).join(name)))
}

/// A running example; killed when dropped.
pub(crate) struct Program {
    child: Child,
    /// Of its standard output.
    lines: Receiver<String>,
}

impl Program {
    /// Starts an example on the ports of `hosts`, and waits until it says that it is ready.
    pub(crate) fn start<S: AsRef<OsStr>>(name: &str, hosts: &Hosts, options: &[S]) -> Result<Self> {
        let mut command = command(name)?;
        command.args(options).args(hosts.ports()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = hosts.switch.run(|| command.spawn())?.with_context(|| name.to_owned())?;
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let (to, lines) = sync_channel(LINES_MAX);
        // Ends with the process.
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| to.send(line))
        });
        let program = Self { child, lines };
        let first = program.line()?;
        ensure!(first.starts_with("ready: "), "{name} said: {first}");
        Ok(program)
    }

    fn line(&self) -> Result<String> {
        self.lines.recv_timeout(SOON).context("it says nothing")
    }

    /// Ends it, and gives what it counted.
    pub(crate) fn stop(mut self) -> Result<Counted> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let last = self.line()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status} after: {last}");
        let rest = self.lines.iter().collect();
        let numbers: Vec<u64> = last.split([' ', ';']).flat_map(str::parse).collect();
        let [received, completed, shed, later, installed] = numbers[..] else {
            anyhow::bail!("five counters in: {last}");
        };
        ensure!(received == completed + shed, "{last}");
        Ok(Counted { received, shed, later, installed, rest })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let killed = self.child.kill().and_then(|()| self.child.wait());
            if let Err(err) = killed {
                eprintln!("cannot kill an example: {err}");
            }
        }
    }
}

/// What an example says at its end.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) received: u64,
    pub(crate) shed: u64,
    pub(crate) later: u64,
    pub(crate) installed: u64,
    /// What it says behind the counters.
    pub(crate) rest: Vec<String>,
}
