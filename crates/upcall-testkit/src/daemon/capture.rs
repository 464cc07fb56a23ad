//! What a daemon says: its log, its statistics, its word that it is ready.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, ErrorKind, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::stats::Stats;

/// Lines of the log that are kept.
const LOG_LINES_MAX: usize = 5_000;

/// How long the reader of notifications may go on after it was told to stop.
const TICK: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Captured(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    log: VecDeque<String>,
    log_lines_dropped: u64,
    stats: Option<Stats>,
    /// The newest of each datapath.
    by_datapath: BTreeMap<String, Stats>,
    ready: bool,
    /// Times that it said it reloads, and that it is done with that.
    reloads: (u64, u64),
    /// Times that it said it is alive.
    alive: u64,
    stopped: bool,
    /// The file-descriptor store of a service manager: name and descriptor.
    stored: Vec<(String, OwnedFd)>,
}

impl State {
    fn push_line(&mut self, line: String) {
        if self.log.len() == LOG_LINES_MAX {
            self.log.pop_front();
            self.log_lines_dropped += 1;
        }
        self.log.push_back(line);
    }
}

impl Captured {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment or push, so a panic elsewhere leaves the state whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state().ready
    }

    pub(super) fn alive(&self) -> u64 {
        self.state().alive
    }

    pub(super) fn reloads(&self) -> (u64, u64) {
        self.state().reloads
    }

    pub(super) fn stop(&self) {
        self.state().stopped = true;
    }

    pub(super) fn stats(&self) -> Option<Stats> {
        self.state().stats.clone()
    }

    pub(super) fn stats_by_datapath(&self) -> BTreeMap<String, Stats> {
        self.state().by_datapath.clone()
    }

    /// Copies of the stored descriptors, with their names.
    pub(super) fn stored(&self) -> std::io::Result<Vec<(String, OwnedFd)>> {
        let copy = |(name, fd): &(String, OwnedFd)| Ok((name.clone(), fd.try_clone()?));
        self.state().stored.iter().map(copy).collect()
    }

    fn push_stats(&self, line: Stats) {
        let mut state = self.state();
        state.by_datapath.insert(line.datapath.clone(), line.clone());
        state.stats = Some(line);
    }

    pub(super) fn find_line(&self, text: &str) -> Option<String> {
        self.state().log.iter().find(|line| line.contains(text)).cloned()
    }

    pub(super) fn log(&self) -> String {
        let state = self.state();
        let mut lines = Vec::with_capacity(state.log.len() + 1);
        if state.log_lines_dropped > 0 {
            lines.push(format!("({} older lines left out)", state.log_lines_dropped));
        }
        lines.extend(state.log.iter().cloned());
        lines.join("\n")
    }

    /// Keeps the lines of standard error.
    pub(super) fn read_log(&self, stderr: Option<impl Read>) {
        for_lines(stderr, |line| self.state().push_line(line));
    }

    /// Keeps the newest statistics of standard output; any other line goes to the log.
    pub(super) fn read_stats(&self, stdout: Option<impl Read>) {
        for_lines(stdout, |line| match serde_json::from_str(&line) {
            Ok(stats) => self.push_stats(stats),
            Err(_) => self.state().push_line(format!("stdout: {line}")),
        });
    }

    /// Reads the messages to the service manager (`sd_notify(3)`), all of them: a full socket would
    /// block the daemon.
    pub(super) fn read_notifications(&self, socket: &UnixDatagram) {
        if let Err(error) = socket.set_read_timeout(Some(TICK)) {
            self.state().push_line(format!("(no notifications: {error})"));
            return;
        }
        loop {
            match receive(socket) {
                Ok((message, fds)) => self.notified(&message, fds),
                Err(error) if is_pause(error.kind()) => {
                    if self.state().stopped {
                        return;
                    }
                }
                Err(error) => {
                    self.state().push_line(format!("(no more notifications: {error})"));
                    return;
                }
            }
        }
    }
}

impl Captured {
    /// Does what a service manager does with a message (`sd_notify(3)`).
    fn notified(&self, message: &[u8], fds: Vec<OwnedFd>) {
        let lines: Vec<_> = message.split(|&byte| byte == b'\n').collect();
        let says = |line: &str| lines.contains(&line.as_bytes());
        let name = lines.iter().find_map(|line| line.strip_prefix(b"FDNAME="));
        let name = name.map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default();
        let mut state = self.state();
        state.ready |= says("READY=1");
        let at = lines.iter().find_map(|line| line.strip_prefix(b"MONOTONIC_USEC="));
        if says("RELOADING=1") && at.is_some_and(|at| at.iter().all(u8::is_ascii_digit)) {
            state.reloads.0 += 1;
        }
        if says("READY=1") {
            state.reloads.1 = state.reloads.0;
        }
        state.alive += u64::from(says("WATCHDOG=1"));
        if says("FDSTOREREMOVE=1") {
            state.stored.retain(|(stored, _)| *stored != name);
        }
        if says("FDSTORE=1") {
            state.stored.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
        }
    }
}

/// A message and the descriptors that came with it.
fn receive(socket: &UnixDatagram) -> std::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let iov = &mut [IoSliceMut::new(&mut message)];
    let received = rustix::net::recvmsg(socket, iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    message.truncate(received.bytes);
    Ok((message, fds))
}

/// Descriptors of one message that are kept.
const FDS_MAX: usize = 16;

fn is_pause(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Calls `work` with each line until the end, whatever its bytes are.
fn for_lines(stream: Option<impl Read>, mut work: impl FnMut(String)) {
    let Some(stream) = stream else { return };
    for line in BufReader::new(stream).split(b'\n') {
        match line {
            Ok(line) => work(String::from_utf8_lossy(&line).trim_end().to_owned()),
            Err(error) => {
                work(format!("(no more output: {error})"));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_statistics_win_and_other_lines_are_log() {
        let captured = Captured::default();
        let text: &[u8] = b"{\"sockets\":1,\"new\":[1]}\nhm\xff\n{\"final\":true,\"sockets\":4}\n";
        captured.read_stats(Some(text));
        let stats = captured.stats().unwrap();
        assert_eq!((stats.final_line, stats.sockets, stats.executed), (true, 4, 0));
        assert_eq!(captured.log(), "stdout: hm\u{fffd}");
    }

    #[test]
    fn the_log_is_bounded_and_says_what_is_missing() {
        let captured = Captured::default();
        let text = "line\n".repeat(LOG_LINES_MAX + 2) + "last";
        captured.read_log(Some(text.as_bytes()));
        let log = captured.log();
        assert!(log.starts_with("(3 older lines left out)\nline\n") && log.ends_with("\nlast"));
        assert_eq!(captured.find_line("las").as_deref(), Some("last"));
    }

    #[test]
    fn ready_is_a_line_of_its_own() {
        let ready = |message: &[u8]| {
            let captured = Captured::default();
            captured.notified(message, Vec::new());
            captured.is_ready()
        };
        assert!(ready(b"READY=1"));
        assert!(ready(b"STATUS=fine\nREADY=1\n"));
        assert!(!ready(b"STATUS=READY=1"));
        assert!(!ready(b"READY=0"));
    }

    #[test]
    fn descriptors_are_stored_and_removed_by_name() {
        let captured = Captured::default();
        let fd = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        captured.notified(b"FDSTORE=1\nFDNAME=a", vec![fd()]);
        captured.notified(b"FDSTORE=1\nFDNAME=b", vec![fd()]);
        assert_eq!(captured.stored().unwrap().len(), 2);
        captured.notified(b"FDSTOREREMOVE=1\nFDNAME=a", vec![]);
        assert_eq!(captured.stored().unwrap().len(), 1);
    }
}
