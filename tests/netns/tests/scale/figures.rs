//! What dispatch costs, by mode and number of ports: printed, and held against bounds.

use std::{fmt, thread};

use anyhow::{Context as _, Result, ensure};
use netns_tests::traffic::last_cpu;
use netns_tests::{SOON, TestResult, modes, station, tell};
use ovs_features::cpu;
use rustix::process::setpriority_process;
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, RawSocket, Stats, Upcalld, wait_until};

use crate::ladder::{Ladder, steps};
use crate::process::Process;

/// Upcalls that each find every worker asleep.
const ISOLATED: u32 = 50;
/// Upcalls as fast as the kernel takes them: fewer than a socket has room for.
const BURST: u32 = 3000;
/// The highest priority of an ordinary thread.
const NICE_MIN: i32 = -20;

/// Wake-ups for each upcall: one alone (and now and then a host that asks for its neighbour), and what must
/// be shared by the upcalls of a burst. (0.04 by the instruction clock, `cargo xtask bench`; here an emulated
/// CPU that pauses splits a burst.)
const WAKEUPS_ISOLATED_MAX: f64 = 1.2;
const WAKEUPS_BURST_MAX: f64 = 0.1;
/// Descriptors of a worker: its runtime's, and the socket it answers on.
const WORKER_DESCRIPTORS_MAX: u64 = 6;
/// Descriptors beside sockets and workers: standard streams, the control plane, the sweep.
const OTHER_DESCRIPTORS_MAX: u64 = 32;
/// Resident memory of the daemon's own, for each socket its reader, and for each port what is told of it. How much
/// of the program is in RAM beside it is the kernel's affair: 8 to 11 MiB of this build. With 1,000 ports both were
/// 15 MiB together, where ovs-vswitchd has 26 MB. Of its own are 3.4 MiB, and now and then 2.0 more: the kernel may back
/// any 2 MiB of it by one huge page.
const OWN_KIB_MAX: u64 = (5 + 2) << 10;
const PROGRAM_KIB_MAX: u64 = 12 << 10;
const SOCKET_RESIDENT_KIB_MAX: u64 = 8;
const PORT_RESIDENT_KIB_MAX: u64 = 4;

/// The figures of one daemon.
struct Figures {
    mode: String,
    ports: u64,
    sockets: u64,
    workers: u64,
    descriptors: u64,
    resident_kib: u64,
    own_kib: u64,
    socket_memory_max_kib: u64,
    /// Wake-ups of workers for each upcall that comes alone.
    wakeups_isolated: f64,
    /// Wake-ups of workers for each upcall of a burst.
    wakeups_burst: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>5} ports {:<9}  {:>4} sockets  {:>4} descriptors  {:>6} KiB resident, {:>5} its own  {:>8} KiB of \
             socket memory at most  wake-ups per upcall {:.3} alone, {:.4} in a burst",
            self.ports,
            self.mode,
            self.sockets,
            self.descriptors,
            self.resident_kib,
            self.own_kib,
            self.socket_memory_max_kib,
            self.wakeups_isolated,
            self.wakeups_burst
        )
    }
}

impl Figures {
    fn take(ladder: &Ladder, daemon: &Upcalld, mode: &str, ports: usize) -> Result<Self> {
        let all = |stats: &Stats| stats.ports == ports as u64;
        let stats = daemon.wait_stats("all ports", SOON, all)?;
        let process = Process(daemon.pid());
        let wakeups_isolated = isolated(ladder, process)?;
        // Before the burst: where the host is slow workers help each other with it, and the queue that it waits
        // in stays with the process.
        let (resident_kib, own_kib) = (process.resident_kib()?, process.own_kib()?);
        let wakeups_burst = burst(ladder, daemon, process)?;
        Ok(Self {
            mode: mode.to_owned(),
            ports: stats.ports,
            sockets: stats.sockets,
            workers: stats.workers,
            descriptors: process.descriptors()?.len() as u64,
            resident_kib,
            own_kib,
            socket_memory_max_kib: process.socket_memory_max_kib()?,
            wakeups_isolated,
            wakeups_burst,
        })
    }

    /// Holds them against what the mode promises.
    fn check(&self) -> TestResult {
        let Self { ports, sockets, workers, .. } = *self;
        if self.mode == "per-cpu" {
            ensure!(sockets == cpu::table_len()? as u64, "a socket for each CPU id: {self}");
        } else {
            // Spare ones wait for a switch to per-CPU dispatch, where the kernel has it.
            let spares = if modes().len() > 1 { workers } else { 0 };
            ensure!(sockets == ports + spares, "a socket for each port there is: {self}");
        }
        let descriptors = sockets + workers * WORKER_DESCRIPTORS_MAX + OTHER_DESCRIPTORS_MAX;
        ensure!((sockets..=descriptors).contains(&self.descriptors), "descriptors: {self}");
        let own_kib =
            OWN_KIB_MAX + sockets * SOCKET_RESIDENT_KIB_MAX + ports * PORT_RESIDENT_KIB_MAX;
        ensure!((1..=own_kib).contains(&self.own_kib), "resident memory of its own: {self}");
        let all_kib = PROGRAM_KIB_MAX + own_kib;
        ensure!((1..=all_kib).contains(&self.resident_kib), "resident memory: {self}");
        ensure!(self.socket_memory_max_kib > 0, "socket memory: {self}");
        ensure!(self.wakeups_isolated <= WAKEUPS_ISOLATED_MAX, "wake-ups of one alone: {self}");
        ensure!(self.wakeups_isolated >= 0.9, "somebody has to wake up: {self}");
        ensure!(self.wakeups_burst <= WAKEUPS_BURST_MAX, "wake-ups in a burst: {self}");
        Ok(())
    }
}

fn frame() -> Vec<u8> {
    Frame::new(station(1), station(2)).raw(ETHERTYPE_EXPERIMENTAL, &[0; 46])
}

/// Wake-ups for each upcall when all workers sleep before it. From one CPU: else the flow hops with its
/// sender, and the readers of both sockets wake.
fn isolated(ladder: &Ladder, process: Process) -> Result<f64> {
    let counted = thread::scope(|scope| {
        let one_by_one = || {
            cpu::pin_to(last_cpu()?)?;
            one_by_one(ladder, process)
        };
        scope.spawn(one_by_one).join()
    });
    counted.map_err(|_| anyhow::anyhow!("the sender panicked"))?
}

fn one_by_one(ladder: &Ladder, process: Process) -> Result<f64> {
    let asleep = || {
        let sleep = || process.workers_sleep().unwrap_or(false);
        wait_until("the workers to sleep", SOON, sleep).map_err(anyhow::Error::from)
    };
    let from = RawSocket::sender(&ladder.hosts[0].ns, HOST_LINK)?;
    let mut to = RawSocket::open(&ladder.hosts[1].ns, HOST_LINK)?;
    let frame = frame();
    asleep()?;
    let before = process.worker_sleeps()?;
    for _ in 0..ISOLATED {
        from.send(&frame)?;
        to.receive_matching("a packet of the wire", SOON, |bytes| bytes == frame)?;
        asleep()?;
    }
    per_upcall(process.worker_sleeps()? - before, ISOLATED)
}

/// Wake-ups for each upcall when they come as fast as can be.
fn burst(ladder: &Ladder, daemon: &Upcalld, process: Process) -> Result<f64> {
    let from = RawSocket::sender(&ladder.hosts[0].ns, HOST_LINK)?;
    let start = daemon.stats().context("no counters")?;
    let before = process.worker_sleeps()?;
    let sent = thread::scope(|scope| scope.spawn(|| send_burst(&from)).join());
    sent.map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    let done = |stats: &Stats| stats.completed >= start.completed + u64::from(BURST);
    let stats = daemon.wait_stats("the burst", SOON, done)?;
    ensure!(stats.lost_full == start.lost_full, "the burst fits in a socket: {stats:?}");
    per_upcall(process.worker_sleeps()? - before, BURST)
}

fn per_upcall(wakeups: u64, upcalls: u32) -> Result<f64> {
    Ok(f64::from(u32::try_from(wakeups)?) / f64::from(upcalls))
}

/// Sends a burst before the worker of the CPU has its turn, and from that CPU alone, as the interrupt of
/// a network device does.
fn send_burst(from: &RawSocket) -> Result<()> {
    cpu::set_affinity(None, &[last_cpu()?])?;
    setpriority_process(None, NICE_MIN)?;
    let frame = frame();
    for _ in 0..BURST {
        from.send(&frame)?;
    }
    Ok(())
}

#[test]
fn what_each_mode_costs_by_the_number_of_ports() -> TestResult {
    let mut ladder = Ladder::new()?;
    for &ports in steps() {
        ladder.grow(ports)?;
        for mode in modes() {
            // A daemon of its own for each, so that its memory is that of these ports.
            let daemon = ladder.serve(mode)?;
            let figures = Figures::take(&ladder, &daemon, mode, ports);
            let figures = figures.with_context(|| format!("{mode}\n{}", daemon.log()))?;
            tell(&format!("figures: {figures}"));
            figures.check()?;
            daemon.stop()?;
        }
    }
    Ok(())
}
