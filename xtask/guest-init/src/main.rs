//! PID 1 of a test guest: mounts what a program expects, loads the modules of the plan, runs its
//! jobs one after the other and reports output and exit status in frames over a virtio port.
//!
//! It refuses to know what it runs: no libtest, no Open vSwitch, no policy beyond the plan. It has
//! no `unsafe` and needs no libc of the guest, so that one static file serves every kernel.

mod job;
mod machine;

use guest_init::protocol::{Frame, PLAN_PATH, PORT_PATH, Plan};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the host may take to stop the machine after the last frame.
const FAREWELL: Duration = Duration::from_secs(10);
/// How long the port may take to appear after the modules are in.
const PORT_WAIT: Duration = Duration::from_secs(5);

/// The way to the host, shared by the two threads that forward a job's output.
#[derive(Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn open() -> Result<Self, String> {
        let deadline = Instant::now() + PORT_WAIT;
        loop {
            match OpenOptions::new().write(true).open(PORT_PATH) {
                Ok(file) => return Ok(Self(Arc::new(Mutex::new(file)))),
                Err(e) if Instant::now() > deadline => return Err(format!("{PORT_PATH}: {e}")),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn send(&self, frame: &Frame) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = file.write_all(&frame.encode()) {
            eprintln!("guest-init: {PORT_PATH}: {e}");
        }
    }
}

fn main() {
    if std::process::id() != 1 {
        eprintln!("guest-init: runs as PID 1 of a test guest only (cargo xtask vm)");
        std::process::exit(2);
    }
    if let Err(e) = work() {
        // No port to say it on: the console log is what the host has.
        eprintln!("guest-init: {e}");
    }
    machine::stop();
}

/// An error here is one that could not be sent as a frame.
fn work() -> Result<(), String> {
    machine::mount_all().map_err(|e| e.to_string())?;
    let plan = std::fs::read(PLAN_PATH)
        .map_err(|e| format!("{PLAN_PATH}: {e}"))
        .and_then(|bytes| Plan::decode(&bytes).map_err(|e| e.to_string()))?;
    let (notes, failure) = machine::load(&plan.modules);
    let port = Port::open()?;
    for note in notes.into_iter().chain(machine::settle(&plan.sysctls)) {
        port.send(&Frame::Note(note));
    }
    if let Some(failure) = failure {
        port.send(&Frame::Failed(failure));
    } else {
        port.send(&Frame::Ready(machine::release()));
        for (index, job) in plan.jobs.iter().enumerate() {
            port.send(&Frame::Start(index as u32));
            let status = job::run(job, &port);
            port.send(&Frame::Exit(status));
        }
    }
    port.send(&Frame::Done);
    // The host ends the machine now; restarting by ourselves could overtake the last bytes.
    std::thread::sleep(FAREWELL);
    Ok(())
}
