//! Changes to the host: CPUs that go and come, affinity, ports by the thousand, the peer's tools, a
//! datapath that somebody deletes.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use netns_tests::traffic::{Traffic, ensure_all};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, has_per_cpu, modes, skip_ok};
use ovs_datapath::Control;
use ovs_wire::vport::VportType;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use upcall_testkit::{Hosts, PingPlan, Stats, Upcalld, ping};

/// Ports that somebody else adds: a thousand where dispatch by port is the only one. Elsewhere fewer
/// tell the same, and an emulated kernel takes its time to take them down again.
fn many_ports() -> usize {
    if has_per_cpu() { 100 } else { 1000 }
}

/// How long the peer's tool runs again and again under traffic.
const TOOL_TIME: Duration = Duration::from_secs(4);

/// All upcalls, so that none is spared by a flow.
fn lab(mode: &str) -> Result<Lab> {
    Lab::start(Hosts::new(2)?, |builder| builder.dispatch(mode).install("never"))
}

pub(crate) fn ensure_nothing_lost(lab: Lab, traffic: Traffic, mode: &str) -> TestResult {
    let totals = traffic.finish()?;
    ensure_all(&totals).with_context(|| format!("{mode}\n{}", lab.daemon.log()))?;
    let stats = lab.finish_after_races()?;
    ensure!(stats.kernel_lost == 0, "{mode}: {stats:?}");
    Ok(())
}

pub(crate) fn in_guest(test: &str) -> bool {
    let guest = std::env::var_os("UPCALL_TEST_GUEST").is_some();
    if !guest {
        skip_ok(test, "it would disturb this host: in guests alone");
    }
    guest
}

#[test]
fn a_cpu_that_goes_and_comes_costs_no_upcall() -> TestResult {
    if !in_guest("a_cpu_that_goes_and_comes_costs_no_upcall") {
        return Ok(());
    }
    for mode in modes() {
        let lab = lab(mode)?;
        let traffic = Traffic::roaming(&lab.hosts)?;
        let mut times = 0;
        while traffic.goes_on() {
            for state in ["0", "1"] {
                fs::write("/sys/devices/system/cpu/cpu2/online", state).context("CPU hotplug")?;
                thread::sleep(Duration::from_millis(50));
            }
            times += 1;
        }
        ensure!(times > 1, "it went {times} times only");
        ensure_nothing_lost(lab, traffic, mode)?;
    }
    Ok(())
}

/// Restricts all threads of a process to CPUs.
pub(crate) fn restrict(pid: u32, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = task?.file_name();
        let id: i32 = name.to_str().context("a number")?.parse()?;
        sched_setaffinity(Pid::from_raw(id), &set)?;
    }
    Ok(())
}

#[test]
fn an_affinity_that_is_narrowed_and_widened_costs_no_upcall() -> TestResult {
    for mode in modes() {
        let lab = lab(mode)?;
        let all = ovs_features::cpu::usable()?;
        let traffic = Traffic::roaming(&lab.hosts)?;
        while traffic.goes_on() {
            restrict(lab.daemon.pid(), &all[..1])?;
            thread::sleep(Duration::from_millis(100));
            restrict(lab.daemon.pid(), &all)?;
            thread::sleep(Duration::from_millis(100));
        }
        ensure_nothing_lost(lab, traffic, mode)?;
    }
    Ok(())
}

#[test]
fn the_peers_tool_in_a_loop_costs_no_upcall() -> TestResult {
    const TOOL: &str = "/usr/bin/ovs-dpctl";
    if !fs::exists(TOOL)? {
        skip_ok("the_peers_tool_in_a_loop_costs_no_upcall", "there is no ovs-dpctl here");
        return Ok(());
    }
    for mode in modes() {
        let lab = lab(mode)?;
        let switch = lab.hosts.switch.clone();
        let shows = thread::spawn(move || {
            let began = Instant::now();
            while began.elapsed() < TOOL_TIME {
                let mut show = Command::new(TOOL);
                show.args(["show", DATAPATH]).stdin(Stdio::null());
                let output = switch.run(|| show.output())??;
                ensure!(output.status.success(), "{output:?}");
            }
            Ok(())
        });
        let traffic = traffic_during(&lab, shows)?;
        ensure_nothing_lost(lab, traffic, mode)?;
    }
    Ok(())
}

/// Sends traffic while `work` is done, which all has to arrive; gives the last of it.
fn traffic_during(lab: &Lab, work: thread::JoinHandle<Result<()>>) -> Result<Traffic> {
    let mut traffic = Traffic::roaming(&lab.hosts)?;
    while !work.is_finished() {
        ensure_all(&traffic.finish()?).with_context(|| lab.daemon.log())?;
        traffic = Traffic::roaming(&lab.hosts)?;
    }
    work.join().map_err(|_| anyhow::anyhow!("the work panicked"))??;
    Ok(traffic)
}

/// Internal ports, which need no device: made by somebody else, without a socket.
async fn add_ports(count: usize) -> Result<()> {
    let control = Control::open().await?;
    let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
    for number in 0..count {
        let name = format!("many{number}");
        control.add_vport(&dp, VportType::Internal, &name, None, 0).await?;
    }
    Ok(())
}

#[test]
fn many_ports_that_somebody_adds_are_served_and_cost_no_upcall() -> TestResult {
    // The mode in which each port needs a socket and a reader.
    let lab = lab("per-vport")?;
    let switch = lab.hosts.switch.clone();
    let adder = thread::spawn(move || switch.block_on(async || add_ports(many_ports()).await)?);
    let traffic = traffic_during(&lab, adder)?;
    let ports = many_ports() as u64 + 3;
    let all = |stats: &Stats| stats.ports == ports && stats.sockets >= ports;
    let stats = lab.daemon.wait_stats("all ports", SOON, all);
    let stats = stats.with_context(|| lab.daemon.log())?;
    ensure_all(&traffic.finish()?).with_context(|| lab.daemon.log())?;
    ensure!(stats.kernel_lost == 0, "{stats:?}");
    // Not stopped in order: the kernel takes many seconds to delete a thousand devices, which go with
    // their namespace.
    Ok(())
}

#[test]
fn a_datapath_that_somebody_deletes_is_made_anew() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |b| b.option("--on-deleted", "recreate"))?;
    lab.hosts.switch.block_on(async || {
        let control = Control::open().await?;
        let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
        control.delete_datapath(&dp).await.map_err(anyhow::Error::from)
    })??;
    lab.daemon.wait_log("making the datapath anew", SOON)?;
    // Ready again: the second time that it says what it serves.
    let again = || lab.daemon.log().matches("INFO upcalld::run: serving").count() == 2;
    upcall_testkit::wait_until("a new datapath", SOON, again)?;
    let plan = PingPlan { count: 3, ..PingPlan::default() };
    let pings = ping::ping(&lab.hosts[0].ns, lab.hosts[1].ip4, &plan)?;
    ensure!(pings.unanswered_after_first() == 0, "{pings:?}\n{}", lab.daemon.log());
    lab.finish()?;
    Ok(())
}

/// Starts a daemon that may have so many descriptors.
fn start_with_descriptors(hosts: &Hosts, limit: u64) -> Result<Upcalld> {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    let builder = Upcalld::builder(DATAPATH).ports(hosts.ports()).install("never");
    // Those take descriptors too, and are left out first.
    let builder = builder.option("--arrival-times", "off").stats(Duration::from_millis(50));
    let daemon = builder.spawn(&hosts.switch);
    setrlimit(Resource::Nofile, before)?;
    let mut daemon = daemon?;
    daemon.wait_ready(SOON)?;
    Ok(daemon)
}

/// Starts the daemon with so few descriptors that not every CPU gets a socket. How many are open when
/// sockets are opened cannot be seen from outside, only how many there are in the end, `descriptors`.
fn start_short_of_descriptors(hosts: &Hosts, descriptors: u64) -> Result<Upcalld> {
    for limit in (descriptors - 4..=descriptors + 2).rev() {
        let daemon = start_with_descriptors(hosts, limit)?;
        if daemon.wait_stats("counters", SOON, |_| true)?.cpus_sharing > 0 {
            return Ok(daemon);
        }
        daemon.stop()?;
    }
    bail!("{descriptors} descriptors are open, and with 4 less every CPU has a socket of its own")
}

#[test]
fn cpus_share_sockets_where_descriptors_run_out() -> TestResult {
    if !has_per_cpu() {
        skip_ok("cpus_share_sockets_where_descriptors_run_out", "there is no per-CPU dispatch");
        return Ok(());
    }
    let hosts = Hosts::new(2)?;
    let descriptors = {
        let daemon = start_with_descriptors(&hosts, 1024)?;
        let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?.count();
        daemon.stop()?;
        open as u64
    };
    let daemon = start_short_of_descriptors(&hosts, descriptors)?;
    ensure!(daemon.log().contains("CPUs share upcall sockets"), "{}", daemon.log());
    let traffic = Traffic::roaming(&hosts)?;
    ensure_all(&traffic.finish()?)?;
    let stats = daemon.stop()?.stats.context("no counters")?;
    ensure!(stats.kernel_lost == 0, "{stats:?}");
    Ok(())
}
