//! What the kernel tells of a running daemon: descriptors, memory, how often its workers slept.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Worker threads are named so.
const WORKER_PREFIX: &str = "upcall-";

/// A process by its id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    fn path(self, entry: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{entry}", self.0))
    }

    /// Open file descriptors.
    pub(crate) fn descriptors(self) -> Result<Vec<i32>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(self.path("fd"))? {
            numbers.push(entry?.file_name().to_string_lossy().parse()?);
        }
        Ok(numbers)
    }

    /// Memory of the process that is in RAM, in KiB.
    pub(crate) fn resident_kib(self) -> Result<u64> {
        field(&fs::read_to_string(self.path("status"))?, "VmRSS:")
    }

    /// The part of it that is its own, and not of its program.
    pub(crate) fn own_kib(self) -> Result<u64> {
        field(&fs::read_to_string(self.path("status"))?, "RssAnon:")
    }

    /// Kernel memory that messages may fill in all its netlink sockets together, in KiB.
    pub(crate) fn socket_memory_max_kib(self) -> Result<u64> {
        let pid = Pid::from_raw(self.0.cast_signed()).context("a process id")?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let mut bytes = 0;
        for number in self.descriptors()? {
            let copied = pidfd_getfd(&process, number, PidfdGetfdFlags::empty());
            // One that was closed since it was listed holds nothing.
            bytes += copied.ok().and_then(|copy| receive_buffer_bytes(&copy)).unwrap_or(0);
        }
        Ok(bytes as u64 >> 10)
    }

    /// How often its workers went to sleep of their own accord, in all: as often as they were woken.
    pub(crate) fn worker_sleeps(self) -> Result<u64> {
        let mut sleeps = 0;
        for task in self.workers()? {
            sleeps += field(&fs::read_to_string(task.join("status"))?, "voluntary_ctxt_switches:")?;
        }
        Ok(sleeps)
    }

    /// Do all its workers sleep?
    pub(crate) fn workers_sleep(self) -> Result<bool> {
        let mut all = true;
        for task in self.workers()? {
            let status = fs::read_to_string(task.join("status"))?;
            all &= status.lines().any(|line| line.starts_with("State:\tS"));
        }
        Ok(all)
    }

    fn workers(self) -> Result<Vec<PathBuf>> {
        let mut workers = Vec::new();
        for task in fs::read_dir(self.path("task"))? {
            let task = task?.path();
            if fs::read_to_string(task.join("comm"))?.starts_with(WORKER_PREFIX) {
                workers.push(task);
            }
        }
        Ok(workers)
    }
}

/// What a netlink socket may hold; `None` if it is something else.
fn receive_buffer_bytes(fd: &OwnedFd) -> Option<usize> {
    let family = sockopt::socket_domain(fd).ok()?;
    (family == AddressFamily::NETLINK).then(|| sockopt::socket_recv_buffer_size(fd).ok())?
}

/// The number behind a name in `/proc/PID/status`.
fn field(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next());
    Ok(word.with_context(|| format!("no {name} in {status}"))?.parse()?)
}
