//! The unit's text, and what the daemon may and can do in it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{SOON, TestResult, has_per_cpu, tell};
use upcall_testkit::wait_until;

use crate::outside_guests;
use crate::unit::{self, DATAPATH, NAME, Service};

/// `systemd-analyze security` gives 0 to what may do nothing and 10 to what may do all.
const EXPOSURE_MAX: f64 = 2.0;
/// `CAP_NET_ADMIN` and `CAP_BPF`, as a mask.
const HELD: u64 = 1 << 12 | 1 << 39;
/// A CPU that goes and comes.
const CPU: usize = 1;
const METRICS_PORT: u16 = 9477;

fn analyze(words: &[&str]) -> Result<(bool, String)> {
    let mut command = Command::new("systemd-analyze");
    command.args(words).stdin(Stdio::null());
    let output = command.output().context("cannot run systemd-analyze")?;
    let (said, complaint) = (&output.stdout, &output.stderr);
    let text = String::from_utf8_lossy(said) + String::from_utf8_lossy(complaint);
    Ok((output.status.success(), text.into_owned()))
}

#[test]
fn the_unit_is_valid_and_exposes_little() -> TestResult {
    if outside_guests("the_unit_is_valid_and_exposes_little") {
        return Ok(());
    }
    unit::install()?;
    // There are no manual pages here.
    let verified = analyze(&["verify", "--man=no", "--recursive-errors=no", NAME])?;
    ensure!(verified == (true, String::new()), "{verified:?}");
    let (_, text) = analyze(&["security", "--offline=yes", "--no-pager", NAME])?;
    let overall = text.lines().find(|line| line.contains("Overall exposure level"));
    let overall = overall.with_context(|| text.clone())?;
    tell(&format!("figures: {}", overall.trim_start_matches(|c: char| !c.is_ascii())));
    let exposure = overall
        .split_once("upcalld.service: ")
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<f64>().ok());
    ensure!(exposure.is_some_and(|exposure| exposure <= EXPOSURE_MAX), "{text}");
    Ok(())
}

/// A field of `/proc/PID/status`, or of one of its threads.
fn field(path: &str, name: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{path}/status"))?;
    let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(found.with_context(|| format!("no {name}: {status}"))?.trim().to_owned())
}

#[test]
fn it_has_a_user_and_two_capabilities_and_all_that_it_needs() -> TestResult {
    if outside_guests("it_has_a_user_and_two_capabilities_and_all_that_it_needs") {
        return Ok(());
    }
    let config =
        format!("metrics = '{METRICS_PORT}'\ncrash_report = '/var/lib/upcalld/crash.txt'\n");
    let service = Service::start(&config, "")?;
    let pid = service.pid()?;
    let user = confined(&service, pid)?;
    files(&service, user)?;
    service.ensure_switches()?;
    metrics(&service)?;
    // Where workers serve ports, each may run on all CPUs, and none has one to lose.
    if has_per_cpu() {
        follows_cpus(pid).with_context(|| service.state())?;
    }
    let status = service.property("StatusText")?;
    ensure!(status.starts_with(&format!("serving {DATAPATH}, per-")), "{status}");
    let log = service.log();
    ensure!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    Ok(())
}

/// Its user, who is not root and can become nobody else.
fn confined(service: &Service, pid: u32) -> Result<u32> {
    let process = pid.to_string();
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.starts_with("upcalld:")).context("no user")?;
    let user: u32 = line.split(':').nth(2).context("no number")?.parse()?;
    let users = field(&process, "Uid")?;
    ensure!(user != 0 && users.split('\t').all(|id| id == user.to_string()), "{line}: {users}");
    for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let held = u64::from_str_radix(&field(&process, set)?, 16)?;
        ensure!(held == HELD, "{set}: {held:#x}");
    }
    ensure!(field(&process, "NoNewPrivs")? == "1" && field(&process, "Seccomp")? == "2");
    ensure!(service.property("MainPID")? != "0");
    Ok(user)
}

/// The directories are its own, and others cannot use the control socket.
fn files(service: &Service, user: u32) -> Result<()> {
    let metadata = |path: &str| {
        let metadata = fs::metadata(service.machine.path(path)).with_context(|| path.to_owned())?;
        anyhow::Ok((metadata.uid(), metadata.permissions().mode() & 0o7777))
    };
    ensure!(metadata("/run/upcalld")? == (user, 0o755));
    ensure!(metadata("/var/lib/upcalld")? == (user, 0o700));
    ensure!(metadata(&format!("/run/upcalld/{DATAPATH}.ctl"))? == (user, 0o600));
    Ok(())
}

fn metrics(service: &Service) -> Result<()> {
    let mut stream =
        service.hosts.switch.run(|| TcpStream::connect(("127.0.0.1", METRICS_PORT)))??;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: upcalld\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text.contains("\nupcalld_up{") && text.ends_with("# EOF\n"), "{text}");
    let times = text.lines().find(|line| line.starts_with("upcalld_arrival_times{"));
    let are_told = times.context("no arrival_times")?.ends_with(" 1.0");
    ensure!(are_told == has_per_cpu(), "{times:?}\n{}", service.log());
    Ok(())
}

/// CPUs that the worker of a number may run on.
fn allowed(pid: u32, worker: usize) -> Result<String> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = format!("{pid}/task/{}", task?.file_name().display());
        if field(&thread, "Name")? == format!("upcall-{worker}") {
            return field(&thread, "Cpus_allowed_list");
        }
    }
    anyhow::bail!("there is no worker {worker}")
}

/// The kernel takes a worker's CPU with the CPU, and does not give it back: the daemon does.
fn follows_cpus(pid: u32) -> Result<()> {
    let before = allowed(pid, CPU)?;
    ensure!(before == CPU.to_string(), "worker {CPU} is not where its CPU is: {before}");
    let online = format!("/sys/devices/system/cpu/cpu{CPU}/online");
    fs::write(&online, "0")?;
    let left = wait_until("the worker to leave", SOON, || {
        allowed(pid, CPU).is_ok_and(|now| now != before)
    });
    fs::write(&online, "1")?;
    left?;
    Ok(wait_until("the worker to come back", SOON, || {
        allowed(pid, CPU).is_ok_and(|now| now == before)
    })?)
}
