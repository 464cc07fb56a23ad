//! Where workers run: as the policy says, and followed through changes of CPUs, affinity and cpuset.
//!
//! What is expected follows from what the kernel says of its CPUs, so that the tests hold with
//! `isolcpus=` and `nohz_full=` too (`cargo xtask vm --append`).

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_tests::traffic::{Load, Traffic, ensure_all};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, modes, skip_ok};
use ovs_features::{Topology, cpu};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::Pid;
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket, Upcalld, UpcalldBuilder, wait_until};

use crate::host::{ensure_nothing_lost, in_guest, restrict};

/// How soon a change of CPUs is followed, on however busy a machine.
const FOLLOWED: Duration = SOON;
/// The CPU that goes and comes.
const GOING: usize = 2;

/// A line of each worker's status, by the worker's number.
fn by_worker<T>(pid: u32, line: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    let mut workers = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        let Some(number) = field("Name:").and_then(|name| name.strip_prefix("upcall-")) else {
            continue;
        };
        let value = field(line).and_then(&read).with_context(|| format!("no {line}\n{status}"))?;
        workers.push((number.parse::<usize>()?, value));
    }
    workers.sort_by_key(|(number, _)| *number);
    Ok(workers.into_iter().map(|(_, value)| value).collect())
}

/// CPUs that each worker may run on: those of its mask that are online.
fn workers(pid: u32) -> Result<Vec<Vec<usize>>> {
    let online = Topology::read(Path::new("/"))?.online.context("which CPUs are online")?;
    by_worker(pid, "Cpus_allowed_list:", |list| {
        let allowed = cpu::parse_list(list)?;
        Some(allowed.into_iter().filter(|id| online.contains(id)).collect())
    })
}

/// Times that each worker has waited.
fn waits(pid: u32) -> Result<Vec<u64>> {
    by_worker(pid, "voluntary_ctxt_switches:", |times| times.parse().ok())
}

/// Is each worker where it belongs? One whose CPU is taken by whoever sends may be away for a while, on the
/// CPUs of all; not all of them are.
fn are_there(are: &[Vec<usize>], wanted: &[Vec<usize>]) -> bool {
    let mut all = wanted.concat();
    all.sort_unstable();
    all.dedup();
    let mut pairs = are.iter().zip(wanted);
    are.len() == wanted.len()
        && pairs.clone().any(|(is, wanted)| is == wanted)
        && pairs.all(|(is, wanted)| is == wanted || *is == all)
}

/// Waits until the workers are where they belong; a change of shape makes threads come and go.
fn wait_workers(daemon: &Upcalld, what: &str, wanted: &[Vec<usize>]) -> Result<()> {
    let begun = Instant::now();
    let there = wait_until(what, FOLLOWED, || {
        workers(daemon.pid()).is_ok_and(|are| are_there(&are, wanted))
    });
    there.with_context(|| {
        format!("{wanted:?} wanted, {:?} are\n{}", workers(daemon.pid()), daemon.log())
    })?;
    eprintln!("{what}: followed in {:?}", begun.elapsed());
    Ok(())
}

/// CPUs of this test that are neither isolated nor without a tick.
fn home() -> Result<Vec<usize>> {
    let topology = Topology::read(Path::new("/"))?;
    let kept_free = [topology.isolated.clone(), topology.nohz_full.clone()];
    let kept_free = kept_free.into_iter().flatten().flatten().collect::<Vec<_>>();
    let home: Vec<_> = cpu::usable()?.into_iter().filter(|id| !kept_free.contains(id)).collect();
    ensure!(home.len() > 1, "{home:?} is too little to tell policies apart: {topology:?}");
    Ok(home)
}

/// Each on its own where workers serve CPUs, all on all where they serve ports.
fn near(mode: &str, cpus: &[usize]) -> Vec<Vec<usize>> {
    match mode {
        "per-cpu" => cpus.iter().map(|cpu| vec![*cpu]).collect(),
        _ => vec![cpus.to_vec(); cpus.len()],
    }
}

fn lab(mode: &str, configure: impl FnOnce(UpcalldBuilder) -> UpcalldBuilder) -> Result<Lab> {
    Lab::start(Hosts::new(2)?, |builder| configure(builder.dispatch(mode).install("never")))
}

#[test]
fn workers_run_where_the_policy_says() -> TestResult {
    let home = home()?;
    let ends = [home[0], home[home.len() - 1]];
    let list = format!("{},{}", ends[0], ends[1]);
    for mode in modes() {
        let cases = [
            ("near-cpu", near(mode, &home)),
            ("housekeeping", vec![home.clone(); home.len()]),
            (list.as_str(), near(mode, &ends)),
        ];
        for (policy, wanted) in cases {
            let lab = lab(mode, |builder| builder.option("--placement", policy))?;
            let are = workers(lab.daemon.pid())?;
            ensure!(are == wanted, "{mode}, {policy}: {are:?}, not {wanted:?}");
            let said = lab.daemon.wait_log("placement", SOON)?;
            ensure!(said.contains(policy), "{said}");
            lab.finish()?;
        }
    }
    Ok(())
}

#[test]
fn fewer_workers_than_cpus_share_them() -> TestResult {
    let home = home()?;
    for mode in modes() {
        let lab = lab(mode, |builder| builder.option("--workers", "2"))?;
        let are = workers(lab.daemon.pid())?;
        ensure!(are.len() == 2, "{are:?}");
        if *mode == "per-cpu" {
            let mut all = are.concat();
            all.sort_unstable();
            ensure!(all == home, "{are:?} are not the parts of {home:?}");
            ensure!(are[0].len().abs_diff(are[1].len()) <= 1, "{are:?}");
        } else {
            ensure!(are == vec![home.clone(); 2], "{are:?}");
        }
        let traffic = Traffic::roaming(&lab.hosts)?;
        ensure_nothing_lost(lab, traffic, mode)?;
    }
    Ok(())
}

/// So little that no worker needs help: then the one that waits most often is the one that reads.
fn load(sender: usize) -> Load {
    Load { flows: 60, packets_per_flow: 1, flows_per_second: 60, cpu: Some(sender) }
}

#[test]
fn upcalls_of_a_cpu_are_read_on_it_and_those_of_others_are_read_too() -> TestResult {
    if modes().len() == 1 {
        skip_ok(
            "upcalls_of_a_cpu_are_read_on_it_and_those_of_others_are_read_too",
            "there is no per-CPU dispatch",
        );
        return Ok(());
    }
    let home = home()?;
    let possible = Topology::read(Path::new("/"))?.possible;
    // The same flows come from one CPU after the other: they hop.
    let lab = lab("per-cpu", |builder| builder.option("--funnel", "off"))?;
    for sender in possible {
        let before = waits(lab.daemon.pid())?;
        let totals = Traffic::start(&lab.hosts, load(sender))?.finish()?;
        ensure_all(&totals).with_context(|| format!("from CPU {sender}"))?;
        let after = waits(lab.daemon.pid())?;
        let times: Vec<u64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        let busiest = (0..times.len()).max_by_key(|w| times[*w]).context("no workers")?;
        let runs_on = &workers(lab.daemon.pid())?[busiest];
        eprintln!(
            "from CPU {sender}: workers waited {times:?} times, the busiest is on {runs_on:?}"
        );
        ensure!(!home.contains(&sender) || *runs_on == [sender], "CPU {sender}: {times:?}");
    }
    lab.finish_after_races()?;
    Ok(())
}

/// Sends frames to nobody from `cpu`, until told to stop, with `pause` between them.
fn send_from(hosts: &Hosts, cpu: usize, stop: &AtomicBool) -> Result<()> {
    cpu::pin_to(cpu)?;
    let link = RawSocket::open(&hosts[0].ns, HOST_LINK)?;
    let frame = Frame::new(hosts[0].mac, hosts[1].mac).raw(ETHERTYPE_EXPERIMENTAL, b"on it goes");
    while !stop.load(Ordering::Relaxed) {
        // Refused while the device's queue is full: all the same here.
        let _ = link.send(&frame);
    }
    Ok(())
}

/// Waits until worker 0 may run on `cpus`, while frames are sent from its CPU.
fn wait_while_sending(lab: &Lab, cpus: &[usize]) -> Result<()> {
    let stop = AtomicBool::new(false);
    let pid = lab.daemon.pid();
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_from(&lab.hosts, home()?[0], &stop));
        let there = wait_until("worker 0 to go", SOON, || {
            workers(pid).is_ok_and(|workers| workers[0] == cpus)
        });
        stop.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        there.with_context(|| format!("{cpus:?} wanted, {:?} are", workers(pid)))
    })
}

#[test]
fn a_worker_leaves_a_cpu_that_others_take_and_comes_back() -> TestResult {
    if modes().len() == 1 {
        skip_ok(
            "a_worker_leaves_a_cpu_that_others_take_and_comes_back",
            "there is no per-CPU dispatch",
        );
        return Ok(());
    }
    let home = home()?;
    let lab = lab("per-cpu", |builder| builder)?;
    wait_while_sending(&lab, &home[1..])?;
    let others = workers(lab.daemon.pid())?.split_off(1);
    ensure!(others == near("per-cpu", &home[1..]), "the others had peace: {others:?}");
    // Without a packet that would wake it.
    wait_workers(&lab.daemon, "nothing comes up", &near("per-cpu", &home))?;
    let log = lab.daemon.log();
    ensure!(!log.contains("workers moved"), "nobody else moves it: {log}");
    lab.finish_after_races()?;
    Ok(())
}

/// Switches a CPU on or off.
fn set_online(cpu: usize, on: bool) -> Result<()> {
    let file = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    fs::write(file, if on { "1" } else { "0" }).context("CPU hotplug")
}

#[test]
fn workers_leave_a_cpu_that_goes_offline_and_come_back() -> TestResult {
    if !in_guest("workers_leave_a_cpu_that_goes_offline_and_come_back") {
        return Ok(());
    }
    let home = home()?;
    let left: Vec<usize> = home.iter().copied().filter(|id| *id != GOING).collect();
    ensure!(left.len() < home.len(), "CPU {GOING} is not among {home:?}");
    for mode in modes() {
        let lab = lab(mode, |builder| builder)?;
        let pid = lab.daemon.pid();
        let before = workers(pid)?;
        // The CPUs of an emulated machine have cores of their own: all are equally near.
        let without = |cpus: &Vec<usize>| {
            let stay: Vec<_> = cpus.iter().copied().filter(|id| *id != GOING).collect();
            if stay.is_empty() { left.clone() } else { stay }
        };
        let during: Vec<Vec<usize>> = before.iter().map(without).collect();
        let mut traffic = Traffic::roaming(&lab.hosts)?;
        for _ in 0..3 {
            set_online(GOING, false)?;
            wait_workers(&lab.daemon, "a CPU offline", &during)?;
            set_online(GOING, true)?;
            wait_workers(&lab.daemon, "a CPU online", &before)?;
            if !traffic.goes_on() {
                ensure_all(&traffic.finish()?).with_context(|| lab.daemon.log())?;
                traffic = Traffic::roaming(&lab.hosts)?;
            }
        }
        let log = lab.daemon.log();
        ensure!(log.contains(&format!("CPU {GOING} went offline")), "{log}");
        ensure!(log.contains(&format!("CPU {GOING} came online")), "{log}");
        ensure_nothing_lost(lab, traffic, mode)?;
    }
    Ok(())
}

/// Restricts the main thread, as `taskset -p` does.
fn restrict_main(pid: u32, cpus: &[usize]) -> Result<()> {
    let pid = i32::try_from(pid)?;
    Ok(cpu::set_affinity(Pid::from_raw(pid), cpus)?)
}

#[test]
fn an_affinity_that_changes_is_followed() -> TestResult {
    let home = home()?;
    for mode in modes() {
        let lab = lab(mode, |builder| builder)?;
        let before = near(mode, &home);
        let pid = lab.daemon.pid();
        thread::scope(|scope| {
            let daemon = &lab.daemon;
            let changes = scope.spawn(|| {
                restrict_main(pid, &home[..1])?;
                let one = vec![home[..1].to_vec(); home.len()];
                wait_workers(daemon, "the main thread narrowed", &one)?;
                restrict(pid, &home)?;
                wait_workers(daemon, "all threads widened", &before)
            });
            while !changes.is_finished() {
                ensure_all(&Traffic::roaming(&lab.hosts)?.finish()?)
                    .with_context(|| daemon.log())?;
            }
            changes.join().map_err(|_| anyhow::anyhow!("it panicked"))?
        })?;
        let said = lab.daemon.wait_log("the process may use CPU", SOON)?;
        ensure!(said.contains("workers moved"), "{said}");
        let stats = lab.finish_after_races()?;
        ensure!(stats.kernel_lost == 0, "{mode}: {stats:?}");
    }
    Ok(())
}

/// Runs `work` on a thread that may use one CPU: what it starts inherits that.
fn on_one_cpu<T: Send>(cpu: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            cpu::pin_to(cpu)?;
            work()
        });
        thread.join().map_err(|_| anyhow::anyhow!("it panicked"))?
    })
}

#[test]
fn workers_come_with_cpus_that_come() -> TestResult {
    let home = home()?;
    for mode in modes() {
        let lab = on_one_cpu(home[0], || lab(mode, |builder| builder))?;
        ensure!(workers(lab.daemon.pid())? == [[home[0]]], "{:?}", workers(lab.daemon.pid()));
        let traffic = Traffic::roaming(&lab.hosts)?;
        restrict_main(lab.daemon.pid(), &home)?;
        wait_workers(&lab.daemon, "more CPUs", &near(mode, &home))?;
        lab.daemon.wait_log("CPUs for more workers", SOON)?;
        ensure_nothing_lost(lab, traffic, mode)?;
    }
    Ok(())
}

#[test]
fn a_list_that_cannot_be_is_refused_by_name() -> TestResult {
    let home = home()?;
    let hosts = Hosts::new(2)?;
    let refused = |list: &str| -> Result<String> {
        let builder = Upcalld::builder(DATAPATH).option("--placement", list);
        let exit = builder.spawn(&hosts.switch)?.wait_exit(SOON)?;
        ensure!(exit.status.code() == Some(2), "{exit:?}");
        Ok(exit.log)
    };
    let log = refused(&format!("{},4000-4001", home[0]))?;
    ensure!(log.contains("CPU 4000-4001: no such CPU"), "{log}");
    let log = on_one_cpu(home[0], || refused(&format!("{}-{}", home[0], home[1])))?;
    let why = format!("CPU {}: this process may use", home[1]);
    ensure!(log.contains(&why), "{log}");
    Ok(())
}

/// A control group for one process, with the cpuset controller.
struct Group(std::path::PathBuf);

impl Group {
    fn new(pid: u32) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        match mount("cgroup2", root, "cgroup2", MountFlags::empty(), None) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(err) => return Err(err).context("mount cgroup2"),
        }
        fs::write(root.join("cgroup.subtree_control"), "+cpuset").context("enable cpuset")?;
        let group = root.join(format!("placement-{pid}"));
        fs::create_dir(&group)?;
        fs::write(group.join("cgroup.procs"), pid.to_string())?;
        Ok(Self(group))
    }

    fn allow(&self, cpus: &[usize]) -> Result<()> {
        Ok(fs::write(self.0.join("cpuset.cpus"), cpu::list_text(cpus))?)
    }
}

#[test]
fn a_cpuset_that_changes_is_followed() -> TestResult {
    if !in_guest("a_cpuset_that_changes_is_followed") {
        return Ok(());
    }
    let home = home()?;
    for mode in modes() {
        let lab = lab(mode, |builder| builder)?;
        let group = Group::new(lab.daemon.pid())?;
        let traffic = Traffic::roaming(&lab.hosts)?;
        group.allow(&home[..1])?;
        let one = vec![home[..1].to_vec(); home.len()];
        wait_workers(&lab.daemon, "a narrow cpuset", &one)?;
        group.allow(&home)?;
        wait_workers(&lab.daemon, "a wide cpuset", &near(mode, &home))?;
        ensure_nothing_lost(lab, traffic, mode)?;
        // Empty now.
        fs::remove_dir(&group.0)?;
    }
    Ok(())
}
