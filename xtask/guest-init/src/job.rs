//! One job: its process, its output, its end, and nothing of it left for the next one.

use crate::Port;
use guest_init::protocol::{Frame, Job};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// As `timeout(1)` has it.
const STATUS_TIME_LIMIT: i32 = 124;
/// As a shell has them.
const STATUS_NOT_EXECUTABLE: i32 = 126;
const STATUS_NOT_FOUND: i32 = 127;
const CHUNK_BYTES: usize = 16 * 1024;

/// Runs to the end and gives the exit status as a shell would.
pub(crate) fn run(job: &Job, port: &Port) -> i32 {
    let mut child = match spawn(job) {
        Ok(child) => child,
        Err((status, text)) => {
            port.send(&Frame::Note(text));
            return status;
        }
    };
    let readers = [
        child.stdout.take().map(|pipe| forward(pipe, port.clone(), Frame::Stdout)),
        child.stderr.take().map(|pipe| forward(pipe, port.clone(), Frame::Stderr)),
    ];
    let late = Arc::new(AtomicBool::new(false));
    let (ended, alarm) = sync_channel::<()>(1);
    let watch = (job.limit_s > 0).then(|| {
        let (late, limit) = (late.clone(), Duration::from_secs(u64::from(job.limit_s)));
        thread::spawn(move || {
            if alarm.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                late.store(true, Ordering::Relaxed);
                kill_all();
            }
        })
    });
    let status = wait_for(&child);
    drop(ended);
    if let Some(watch) = watch {
        let _ = watch.join();
    }
    // Orphans hold the pipes open and would disturb the next job.
    kill_all();
    for reader in readers.into_iter().flatten() {
        let _ = reader.join();
    }
    reap_rest();
    if late.load(Ordering::Relaxed) {
        port.send(&Frame::Note(format!("time limit of {} s: killed", job.limit_s)));
        return STATUS_TIME_LIMIT;
    }
    status
}

fn spawn(job: &Job) -> Result<Child, (i32, String)> {
    let [program, args @ ..] = job.argv.as_slice() else {
        return Err((STATUS_NOT_FOUND, "a job without a program".to_owned()));
    };
    Command::new(program)
        .args(args)
        .env_clear()
        .envs(job.env.iter().map(|(key, value)| (key, value)))
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            let missing = e.kind() == std::io::ErrorKind::NotFound;
            let status = if missing { STATUS_NOT_FOUND } else { STATUS_NOT_EXECUTABLE };
            let hint = if missing && Path::new(program).exists() {
                " (it is there, its loader is not: build it static, or take Debian's libraries)"
            } else {
                ""
            };
            (status, format!("{program}: {e}{hint}"))
        })
}

fn forward<P: Read + Send + 'static>(
    mut pipe: P,
    port: Port,
    frame: fn(Vec<u8>) -> Frame,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            port.send(&frame(buffer[..length].to_vec()));
        }
    })
}

/// Waits for any child, since orphans become ours too, until it is this one.
fn wait_for(child: &Child) -> i32 {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get().cast_unsigned() == child.id() => {
                return code(status);
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return STATUS_NOT_FOUND,
        }
    }
}

fn code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => STATUS_NOT_FOUND,
    }
}

/// `kill(-1)`: every process but PID 1 itself.
fn kill_all() {
    let _ = kill_process_group(Pid::INIT, Signal::KILL);
}

fn reap_rest() {
    while let Ok(Some(_)) = wait(WaitOptions::empty()) {}
}
