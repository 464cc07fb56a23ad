//! `upcalld ctl`: the client.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::frame::Reply;
use super::{server, usual_directory, usual_path};
use crate::cli::CtlArgs;
use crate::exit::Exit;

/// Appended to `upcalld ctl --help`.
pub(crate) const HELP: &str = "\
Examples:
  upcalld ctl list-commands
      what can be asked
  upcalld ctl --datapath dp0 fdb/show
      which station is behind which port of one datapath; 'upcalld ctl fdb/show dp0' as well
  upcalld ctl --json loss/show | jq .kernel_lost
      one number, for a script
  upcalld ctl vlog/set upcall:dbg
      log more of one module
  upcalld ctl dpctl/dump-flows -m filter=tcp,nw_dst=10.0.0.0/8,in_port=veth0
      flows that such packets may use, with all fields
  upcalld ctl port/quota veth0 miss 5000:500
      bound one port (all, miss, action, sample, or waiting places; 'none' lifts it) until it leaves or
      a reload puts back what the file says; 'port/quota' alone shows what is bounded and what was shed
  ovs-appctl -t /run/upcalld/dp0.ctl dpctl/show
      the same with the peer's client

Exit status: 0 with an answer; 1 when no daemon answers; 2 when it refuses the command.";

/// The daemon gives up first, and says so.
const BEHIND_SERVER: Duration = Duration::from_secs(5);
/// A reload that takes longer than this is explained.
const SOON: Duration = Duration::from_secs(5);
/// Longest reply that is read.
const REPLY_BYTES_MAX: u64 = 64 << 20;

/// Which daemon is asked.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The daemon's control socket [default: /run/upcalld/DATAPATH.ctl]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The datapath that is meant, and the daemon that serves it [default: the one there is]
    #[arg(long, value_name = "NAME")]
    datapath: Option<String>,
    /// How long to wait for an answer [default: 35s; of 'reload' 5m 5s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

impl Target {
    /// Connects to it.
    ///
    /// # Errors
    ///
    /// [`Exit::Other`] when nobody listens, [`Exit::Usage`] when it is not clear which is meant.
    pub(crate) fn connect(&self) -> Result<Client, Exit> {
        self.connect_for("")
    }

    /// The same, to ask this command.
    fn connect_for(&self, command: &str) -> Result<Client, Exit> {
        let path = match (&self.control, &self.datapath) {
            (Some(path), _) => path.clone(),
            (None, Some(datapath)) => usual_path(datapath),
            (None, None) => only_one(&usual_directory())?,
        };
        let timeout = self.timeout.unwrap_or(server::answer_limit(command) + BEHIND_SERVER);
        let mut client = Client::connect(&path, timeout).map_err(Exit::Other)?;
        if let Some(datapath) = &self.datapath {
            client.ask("set-options", &["--datapath".into(), datapath.clone()])?;
        }
        Ok(client)
    }
}

/// Asks and prints.
pub(crate) fn run(args: &CtlArgs) -> Result<(), Exit> {
    let (command, arguments) = args.words.split_first().expect("the command line asks for one");
    let mut client = args.target.connect_for(command)?;
    if args.json {
        client.ask("set-options", &["--format".into(), "json".into()])?;
    }
    let waiting = (command == "reload").then(tell_that_it_takes_time);
    let result = client.ask(command, arguments)?;
    drop(waiting);
    let mut out = result.as_str().map_or_else(|| result.to_string(), str::to_owned);
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    // That nobody reads it any more ('| head') is no failure.
    let _nobody_reads = std::io::stdout().write_all(out.as_bytes());
    Ok(())
}

/// Says what a reload waits for, unless it is answered soon: until what is given is dropped.
fn tell_that_it_takes_time() -> mpsc::SyncSender<()> {
    let (answered, waiting) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        if waiting.recv_timeout(SOON) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!(
                "upcalld: waiting until the sockets that are replaced are read empty; the daemon's log \
                 tells of it, and packets go on meanwhile"
            );
        }
    });
    answered
}

/// The socket of the one daemon there is, whatever links lead to it.
fn only_one(directory: &Path) -> Result<PathBuf, Exit> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let is_socket = |path: &PathBuf| path.extension().is_some_and(|e| e == "ctl");
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(is_socket).collect();
    found.sort();
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    match found.iter().map(real).collect::<BTreeSet<_>>().len() {
        1 => Ok(real(&found[0])),
        0 => Err(Exit::Other(format!(
            "no control socket in {}: is upcalld running? --control PATH names another one",
            directory.display()
        ))),
        _ => {
            let names: Vec<_> =
                found.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
            Err(Exit::Usage(format!("name one with --datapath: {}", names.join(", "))))
        }
    }
}

/// A connection.
pub(crate) struct Client {
    stream: UnixStream,
    shown: String,
    timeout: Duration,
    deadline: Instant,
    next_id: u64,
}

impl Client {
    fn connect(path: &Path, timeout: Duration) -> Result<Self, String> {
        let shown = path.display().to_string();
        let stream = UnixStream::connect(path).map_err(|err| match err.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                format!("{shown}: nobody listens there any more: upcalld has ended")
            }
            _ => format!("cannot connect to {shown}: {err}"),
        })?;
        Ok(Self { stream, shown, timeout, deadline: Instant::now() + timeout, next_id: 0 })
    }

    /// The time for an answer begins anew.
    pub(crate) fn renew(&mut self) {
        self.deadline = Instant::now() + self.timeout;
    }

    /// What a command answers.
    ///
    /// # Errors
    ///
    /// [`Exit::Other`] when there is no answer in time, [`Exit::Usage`] when it is refused.
    pub(crate) fn ask(&mut self, command: &str, arguments: &[String]) -> Result<Value, Exit> {
        let lost = |err: std::io::Error| Exit::Other(format!("{}: no answer: {err}", self.shown));
        let request = json!({ "method": command, "params": arguments, "id": self.next_id });
        self.next_id += 1;
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left = Some(left.max(Duration::from_millis(1)));
        self.stream.set_read_timeout(left).map_err(lost)?;
        self.stream.set_write_timeout(left).map_err(lost)?;
        // A daemon that has no room says so and closes, which can come before all is written.
        let written = self.stream.write_all(request.to_string().as_bytes());
        let bounded = (&self.stream).take(REPLY_BYTES_MAX);
        let mut replies = serde_json::Deserializer::from_reader(std::io::BufReader::new(bounded))
            .into_iter::<Reply>();
        let Some(reply) = replies.next() else {
            written.map_err(lost)?;
            return Err(lost(std::io::ErrorKind::UnexpectedEof.into()));
        };
        let reply = reply.map_err(|err| lost(err.into()))?;
        match reply.error {
            Value::Null => Ok(reply.result),
            Value::String(error) => Err(Exit::Usage(format!("{}: {error}", self.shown))),
            other => Err(Exit::Usage(format!("{}: {other}", self.shown))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_daemon_there_is_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let none = only_one(directory.path()).unwrap_err().to_string();
        assert!(none.contains("is upcalld running?"), "{none}");
        std::fs::write(directory.path().join("dp0.ctl"), "").unwrap();
        std::fs::write(directory.path().join("other"), "").unwrap();
        std::os::unix::fs::symlink("dp0.ctl", directory.path().join("a.ctl")).unwrap();
        assert!(only_one(directory.path()).unwrap().ends_with("dp0.ctl"));
        std::fs::remove_file(directory.path().join("a.ctl")).unwrap();
        std::fs::write(directory.path().join("dp1.ctl"), "").unwrap();
        let many = only_one(directory.path()).unwrap_err().to_string();
        assert!(many.contains("dp0, dp1"), "{many}");
    }

    #[test]
    fn a_reload_may_take_longer_and_the_daemon_gives_up_first() {
        let limits = ["reload", "probe"].map(server::answer_limit);
        assert!(limits[0] >= Duration::from_mins(5) && limits[1] == Duration::from_secs(30));
        let answered = tell_that_it_takes_time();
        answered.send(()).expect("somebody waits");
    }

    #[test]
    fn who_does_not_listen_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ctl");
        let err = Client::connect(&path, Duration::from_secs(1)).err().unwrap();
        assert!(err.contains("cannot connect to") && err.contains("ctl"), "{err}");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let err = Client::connect(&path, Duration::from_secs(1)).err().unwrap();
        assert!(err.contains("upcalld has ended"), "{err}");
    }
}
