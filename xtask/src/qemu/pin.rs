//! Keeps the emulator's threads on CPUs of the host.

use crate::cmd::{self, say};
use anyhow::Result;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long QEMU may take to start its threads.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Keeps the thread of guest CPU n of the QEMU process `pid` on host CPU n (modulo their number).
pub(super) fn cpus(pid: u32, count: u32) -> Result<()> {
    let host = std::thread::available_parallelism()?.get();
    let begun = Instant::now();
    let mut threads = cpu_threads(pid);
    while threads.len() < count as usize && begun.elapsed() < START_LIMIT {
        sleep(Duration::from_millis(10));
        threads = cpu_threads(pid);
    }
    if threads.len() < count as usize {
        // It has ended, and says itself why.
        say!("QEMU has {} CPU threads of {count}: they are not pinned", threads.len());
        return Ok(());
    }
    for (number, thread) in threads {
        let cpu = (number % host).to_string();
        cmd::output(Command::new("taskset").args(["--pid", "--cpu-list", &cpu, &thread]))?;
    }
    Ok(())
}

/// Number and thread id of each guest CPU: QEMU calls their threads `CPU n/TCG`.
fn cpu_threads(pid: u32) -> Vec<(usize, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let read = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let number = name.trim().strip_prefix("CPU ")?.split('/').next()?.parse().ok()?;
        Some((number, task.file_name().to_string_lossy().into_owned()))
    };
    tasks.filter_map(read).collect()
}
