//! A guest from end to end: what goes in, the boot, and a verdict from frames and console.

use crate::cmd::say;
use crate::debian::Choice;
use crate::initramfs::Archive;
use crate::kernels::Kernel;
use crate::qemu::{Accel, End, Machine};
use crate::{build, console};
use anyhow::{Context, Result, bail};
use guest_init::protocol::{Frame, Job, Module, PLAN_PATH, Plan};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How the machine is made.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) smp: u32,
    pub(crate) memory_mb: u32,
    pub(crate) accel: Accel,
    pub(crate) limit: Duration,
    /// More of the kernel's command line.
    pub(crate) append: String,
}

/// A guest to boot.
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) shape: Shape,
    /// Files of this machine and their paths in the guest.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// An archive with a distribution's programs.
    pub(crate) debian: Option<PathBuf>,
    pub(crate) jobs: Vec<Job>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Report {
    /// Exit status of each job that ended.
    pub(crate) statuses: Vec<i32>,
    pub(crate) booted_in: Duration,
    pub(crate) took: Duration,
}

/// Where the library's examples are in a guest.
pub(crate) const EXAMPLES: &str = "/examples";

/// Tells a job that the guest's CPUs take turns, so that what is parallel cannot be measured.
const TURNS_VAR: &str = "UPCALL_TEST_CPUS_TAKE_TURNS";

/// Variables of this machine that jobs get: what is logged, and how long the test of moving stations runs.
const PASSED_ON: [&str; 2] = ["RUST_LOG", "UPCALL_MOVES_SECONDS"];

/// A job's environment: nothing of this machine but what was asked for.
pub(crate) fn environment(debian: Option<Choice>) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = [
        ("PATH", "/usr/bin:/usr/sbin:/bin:/sbin"),
        ("HOME", "/root"),
        ("TERM", "dumb"),
        ("LC_ALL", "C"),
        ("RUST_BACKTRACE", "1"),
        ("UPCALLD_BIN", "/bin/upcalld"),
        ("UPCALL_EXAMPLES", EXAMPLES),
        ("UPCALL_TEST_GUEST", "1"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    if debian == Some(Choice::Tools) {
        env.push(("UPCALL_TEST_DEBIAN".to_owned(), "1".to_owned()));
    }
    let given = |name: &str| Some((name.to_owned(), std::env::var(name).ok()?));
    env.extend(PASSED_ON.into_iter().filter_map(given));
    env
}

/// Settings that a distribution's init would have made; and room for the packets that a CPU has received
/// and not looked at, because an emulated one on a busy machine takes its time.
fn sysctls() -> Vec<(String, String)> {
    [("net/ipv4/ping_group_range", "0 2147483647"), ("net/core/netdev_max_backlog", "100000")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

impl Guest<'_> {
    /// Boots, runs the jobs, and fails on anything but an orderly end of a healthy kernel.
    pub(crate) fn run(&self, on_frame: &mut dyn FnMut(&Frame)) -> Result<Report> {
        let dir = scratch_dir()?;
        let outcome = self.run_in(&dir, on_frame);
        if outcome.is_ok() {
            let _ = fs::remove_dir_all(&dir);
        } else {
            let _ = fs::remove_file(dir.join("initramfs"));
        }
        outcome
    }

    fn run_in(&self, dir: &Path, on_frame: &mut dyn FnMut(&Frame)) -> Result<Report> {
        let machine = Machine {
            image: &self.kernel.image,
            initrd: dir.join("initramfs"),
            console: dir.join("console.log"),
            smp: self.shape.smp,
            memory_mb: self.shape.memory_mb,
            accel: self.shape.accel,
            limit: self.shape.limit,
            append: &self.shape.append,
        };
        self.pack(&machine.initrd, dir)?;
        let first = self.boot(&machine, on_frame);
        let crashed = matches!(self.shape.accel, Accel::TcgMulti | Accel::TcgPinned)
            && first.is_err()
            && console::is_emulator_crash(&read_log(&machine.console));
        if crashed {
            say!("kernel {}: the emulator's known int3 crash: once more", self.kernel.release);
            return self.boot(&machine, on_frame);
        }
        first
    }

    fn pack(&self, initrd: &Path, dir: &Path) -> Result<()> {
        let mut archive = Archive::create(initrd)?;
        archive.skeleton()?;
        archive.file(
            "etc/passwd",
            0o644,
            b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:\n",
        )?;
        archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
        archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost guest\n::1 localhost\n")?;
        let init = build::guest_binaries(&["guest-init"])?;
        let init = init.first().context("guest-init was not built")?;
        archive.copy(&build::stripped(&init.file, dir)?, "init")?;
        let mut jobs = self.jobs.clone();
        if self.shape.accel == Accel::TcgSingle {
            // A CPU that has work keeps the others waiting for milliseconds.
            let turns = (TURNS_VAR.to_owned(), "1".to_owned());
            for job in &mut jobs {
                job.env.push(turns.clone());
            }
        }
        let mut plan = Plan { sysctls: sysctls(), jobs, ..Plan::default() };
        for module in self.kernel.load_order()? {
            let path = format!("/ko/{}.ko", module.name);
            archive.copy(&module.file, &path)?;
            let params = module.params.to_owned();
            plan.modules.push(Module { path, params, required: module.required });
        }
        archive.file(PLAN_PATH, 0o644, &plan.encode()?)?;
        for (from, to) in &self.files {
            archive.copy(from, to)?;
        }
        archive.finish(self.debian.as_deref())
    }

    fn boot(&self, machine: &Machine<'_>, on_frame: &mut dyn FnMut(&Frame)) -> Result<Report> {
        let begun = Instant::now();
        let mut report =
            Report { statuses: Vec::new(), booted_in: Duration::ZERO, took: Duration::ZERO };
        let mut failure = None;
        let end = machine.run(&mut |frame| {
            match &frame {
                Frame::Ready(_) => report.booted_in = begun.elapsed(),
                Frame::Exit(status) => report.statuses.push(*status),
                Frame::Note(text) => say!("guest {}: {text}", self.kernel.name),
                Frame::Failed(why) => failure = Some(why.clone()),
                _ => {}
            }
            on_frame(&frame);
        })?;
        report.took = begun.elapsed();
        let log = read_log(&machine.console);
        for warning in console::warnings(&log) {
            say!("guest {}: {warning}", self.kernel.name);
        }
        let kernel = &self.kernel.release;
        let whole = machine.console.display();
        if let Some(part) = console::fatal(&log) {
            bail!("kernel {kernel} broke; its console ({whole}):\n{part}");
        }
        match (end, failure) {
            (End::Done, None) => Ok(report),
            (End::Done, Some(why)) => {
                bail!("guest of kernel {kernel} could not be prepared: {why}")
            }
            (End::TimeLimit, _) => bail!(
                "kernel {kernel}: stopped at the time limit of {}; the console's end ({whole}):\n{}",
                humantime::format_duration(machine.limit),
                console::tail(&log)
            ),
            (End::Broken(why), _) => {
                bail!(
                    "kernel {kernel}: {why}; the console's end ({whole}):\n{}",
                    console::tail(&log)
                )
            }
        }
    }
}

fn read_log(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn scratch_dir() -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = build::target_dir()?.join(format!("vm-{}-{number}", std::process::id()));
    fs::create_dir_all(&dir)?;
    Ok(dir)
}
