//! Which socket an upcall goes to, and what becomes of it when the socket cannot take it.
#![allow(missing_docs, reason = "a test binary")]

use std::sync::{Arc, Condvar, Mutex};

use anyhow::{Context as _, ensure};
use netlink_io::Socket;
use netns_tests::{Bench, Lab, SOON, TestResult, bench, has_per_cpu, since, skip_ok, station};
use ovs_features::{DispatchMode, cpu};
use upcall::{Dispatch, Dispatcher, Handler, InstallPolicy, Shape, Upcall, Verdict};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket, raw::ETHERTYPE_EXPERIMENTAL, wait_until};

fn frame(number: u8) -> Vec<u8> {
    Frame::new(station(1), station(2)).raw(ETHERTYPE_EXPERIMENTAL, &[number; 46])
}

/// For tests of what only kernels from 5.15 have: `true`, and reported, on an older one.
fn lacks_per_cpu(test: &str) -> bool {
    if !has_per_cpu() {
        skip_ok(test, "this kernel dispatches by port alone (before 5.15)");
    }
    !has_per_cpu()
}

/// Sends a frame from each CPU in turn and gives the indices of the sockets that took the upcalls.
fn from_each_cpu(bench: &mut Bench) -> anyhow::Result<Vec<usize>> {
    let mut sockets = Vec::new();
    for cpu in cpu::usable()? {
        // The frame is handled on the CPU that sends it.
        cpu::pin_to(cpu)?;
        sockets.push(bench.miss(0, &frame(cpu as u8))?.socket);
    }
    Ok(sockets)
}

#[test]
fn each_cpu_has_its_own_socket() -> TestResult {
    if lacks_per_cpu("each_cpu_has_its_own_socket") {
        return Ok(());
    }
    bench(1, DispatchMode::PerCpu, async |bench| {
        let cpus = cpu::usable()?;
        for round in 0..3 {
            // Misses are counted: exactly one upcall each, at the entry of the sending CPU.
            ensure!(from_each_cpu(bench)? == cpus, "in round {round}");
        }
        ensure!(bench.stats().await?.lost == 0);
        Ok(())
    })
}

#[test]
fn a_short_table_is_used_modulo_its_length() -> TestResult {
    if lacks_per_cpu("a_short_table_is_used_modulo_its_length") {
        return Ok(());
    }
    bench(1, DispatchMode::PerCpu, async |bench| {
        for length in [1, 2] {
            let table: Vec<u32> = bench.sockets[..length].iter().map(Socket::port_id).collect();
            bench.set_table(&table).await?;
            let expected: Vec<_> = cpu::usable()?.iter().map(|cpu| cpu % length).collect();
            ensure!(from_each_cpu(bench)? == expected, "with a table of {length}");
        }
        Ok(())
    })
}

#[test]
fn a_zero_in_the_table_loses_that_cpus_packets_and_they_are_counted() -> TestResult {
    if lacks_per_cpu("a_zero_in_the_table_loses_that_cpus_packets_and_they_are_counted") {
        return Ok(());
    }
    bench(2, DispatchMode::PerCpu, async |bench| {
        let cpus = cpu::usable()?;
        let mut table: Vec<u32> = bench.sockets.iter().map(Socket::port_id).collect();
        let last = *cpus.last().context("a CPU")?;
        table[last] = 0;
        bench.set_table(&table).await?;
        cpu::pin_to(last)?;
        for number in 0..3 {
            bench.links[0].send(&frame(number))?;
        }
        bench.wait_stats("three losses", |stats| (stats.missed, stats.lost) == (3, 3)).await?;
        // Another CPU's packets still come up, and nothing but them.
        if last != 0 {
            cpu::pin_to(0)?;
            ensure!(bench.fence(1)?.is_empty(), "a packet of the CPU without a socket came up");
        }
        let port = &bench.control.vports(bench.dp.ifindex).await?[1];
        // From 6.2 ports count their upcalls; a missing socket is in neither count.
        ensure!(port.upcall_stats == since(6, 2).then(Default::default), "{port:?}");
        Ok(())
    })
}

#[test]
fn each_port_has_its_own_socket_whatever_the_cpu() -> TestResult {
    bench(3, DispatchMode::PerVport, async |bench| {
        for cpu in cpu::usable()? {
            cpu::pin_to(cpu)?;
            for host in 0..3 {
                let got = bench.miss(host, &frame(host as u8))?;
                ensure!(got.socket == host, "host {host}, CPU {cpu}: socket {}", got.socket);
            }
        }
        Ok(())
    })
}

#[test]
fn a_closed_socket_loses_its_packets_and_they_are_counted() -> TestResult {
    bench(2, DispatchMode::PerVport, async |bench| {
        drop(bench.sockets.remove(0));
        for number in 0..3 {
            bench.links[0].send(&frame(number))?;
        }
        bench.wait_stats("three losses", |stats| (stats.missed, stats.lost) == (3, 3)).await?;
        let port = &bench.control.vports(bench.dp.ifindex).await?[1];
        let failed = port.upcall_stats.map(|stats| stats.fail);
        ensure!(failed == since(6, 2).then_some(3), "{port:?}");
        Ok(())
    })
}

/// Contract B4: a socket that overflowed takes upcalls again as soon as it has room.
#[test]
fn an_overflow_leaves_no_latch() -> TestResult {
    bench(1, DispatchMode::PerVport, async |bench| {
        let socket = &bench.sockets[0];
        socket.set_recv_buffer(8 << 10)?;
        wait_until("an overflow", SOON, || {
            bench.links[0].send(&frame(0)).is_err()
                || socket.mem_info().is_ok_and(|info| info.drops > 0)
        })?;
        let drops = socket.mem_info()?.drops;
        ensure!(u64::from(drops) == bench.stats().await?.lost, "the losses of both sides agree");
        // Make room for some, do not read it empty.
        let mut buffer = vec![0; 4096];
        for _ in 0..3 {
            socket.recv(&mut buffer)?.context("the socket is full")?;
        }
        let before = bench.stats().await?;
        bench.links[0].send(&frame(1))?;
        let missed = before.missed + 1;
        let after = bench.wait_stats("the miss", |stats| stats.missed == missed).await?;
        ensure!(after.lost == before.lost, "the socket has room and takes nothing: latched");
        let last = bench.pending()?.pop().context("upcalls")?;
        ensure!(last.upcall().packet == frame(1), "the packet after the overflow came up");
        Ok(())
    })
}

/// Answers an upcall for each permit, and waits for the next one.
#[derive(Clone, Default)]
struct Turnstile(Arc<(Mutex<Turns>, Condvar)>);

#[derive(Default)]
struct Turns {
    permits: usize,
    /// Upcalls that came, the one that waits among them.
    came: usize,
}

impl Turnstile {
    fn let_pass(&self, upcalls: usize) {
        self.0.0.lock().expect("nobody panics with it").permits += upcalls;
        self.0.1.notify_all();
    }

    fn wait_came(&self, upcalls: usize) -> TestResult {
        let came = || self.0.0.lock().expect("nobody panics with it").came;
        wait_until("upcalls to come", SOON, || came() >= upcalls)?;
        ensure!(came() == upcalls, "{} came instead of {upcalls}", came());
        Ok(())
    }
}

impl Handler for Turnstile {
    fn upcall(&self, _: &Upcall<'_>, _: &mut Verdict) {
        let (turns, moved) = &*self.0;
        let mut turns = turns.lock().expect("nobody panics with it");
        turns.came += 1;
        while turns.permits == 0 {
            turns = moved.wait(turns).expect("nobody panics with it");
        }
        turns.permits -= 1;
    }
}

/// Contracts B3 and B4 from end to end: the losses of a full socket are told as such and as nothing else,
/// exactly; and as soon as some of it is read, it takes that many again.
#[test]
fn an_overflow_is_counted_by_its_cause_and_ends_with_the_first_read() -> TestResult {
    let modes: &[Dispatch] =
        if has_per_cpu() { &[Dispatch::PerCpu, Dispatch::PerVport] } else { &[Dispatch::PerVport] };
    for &dispatch in modes {
        let hosts = Hosts::new(1)?;
        // All from one CPU, so to one socket in either mode.
        cpu::pin_to(0)?;
        let link = RawSocket::sender(&hosts[0].ns, HOST_LINK)?;
        hosts.switch.block_on(async || overflow(&hosts, &link, dispatch).await)??;
    }
    Ok(())
}

async fn overflow(hosts: &Hosts, link: &RawSocket, dispatch: Dispatch) -> TestResult {
    cpu::pin_to(0)?;
    let turnstile = Turnstile::default();
    let shape =
        Shape { dispatch, workers: Some(1), recv_buffer_bytes: 4 << 10, ..Shape::default() };
    let builder = Dispatcher::builder(netns_tests::DATAPATH).ports(hosts.ports()).shape(shape);
    let dispatcher = builder.install(InstallPolicy::Never).start(turnstile.clone()).await?;
    let mut total = 0;
    let mut send = |packets: u64| {
        total += packets;
        (0..packets).try_for_each(|_| link.send(&frame(0))).map(|()| total)
    };
    // The first waits in the handler; the others fill the socket, and more.
    send(1)?;
    turnstile.wait_came(1)?;
    send(50)?;
    let full = dispatcher.stats().await?;
    ensure!(full.lost.full > 0 && full.lost.full < 50, "{full:?}");
    only_full(&full)?;
    // Three are read, so there is room for three.
    turnstile.let_pass(3);
    turnstile.wait_came(4)?;
    send(3)?;
    let after = dispatcher.stats().await?;
    ensure!(after.lost == full.lost, "it has room and takes nothing: {full:?}, then {after:?}");
    let all = send(50)?;
    turnstile.let_pass(usize::MAX / 2);
    let stats = dispatcher.stop().await?;
    only_full(&stats)?;
    ensure!(stats.ledger.balances() && stats.kernel.missed == all, "{all} sent: {stats:?}");
    ensure!(stats.ledger.received + stats.lost.full == all, "{all} sent: {stats:?}");
    Ok(())
}

/// The kernel's count of losses is that of full sockets.
fn only_full(stats: &upcall::Stats) -> TestResult {
    let full = upcall::LossByCause { full: stats.kernel.lost, ..Default::default() };
    ensure!(stats.lost == full, "{stats:?}");
    Ok(())
}

#[test]
fn the_daemon_chooses_the_mode_and_says_why() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder)?;
    let stats = lab.finish()?;
    let kernel = ovs_features::kernel_release();
    let (mode, sockets) = if has_per_cpu() {
        ("per-cpu", cpu::table_len()? as u64)
    } else {
        // One for each port, the datapath's own among them.
        ("per-vport", 3)
    };
    ensure!((stats.dispatch_mode.as_str(), stats.sockets) == (mode, sockets), "{stats:?}");
    ensure!(stats.kernel == kernel && stats.reason.contains(&kernel), "{stats:?}");
    if !has_per_cpu() {
        ensure!(stats.reason.contains("5.15"), "the reason names what is missing: {stats:?}");
    }
    Ok(())
}

#[test]
fn per_vport_dispatch_is_there_for_the_asking() -> TestResult {
    let lab = Lab::start(Hosts::new(2)?, |builder| builder.dispatch("per-vport"))?;
    let ports = upcall_pids(&lab)?;
    let mut distinct = ports.clone();
    distinct.sort_unstable();
    distinct.dedup();
    ensure!(distinct.len() == 3 && !distinct.contains(&0), "a socket for each port: {ports:?}");
    let stats = lab.finish()?;
    ensure!(stats.dispatch_mode == "per-vport" && stats.sockets >= 3, "{stats:?}");
    if has_per_cpu() {
        ensure!(stats.reason == "per-vport dispatch was asked for", "{stats:?}");
    }
    Ok(())
}

fn upcall_pids(lab: &Lab) -> anyhow::Result<Vec<u32>> {
    lab.hosts.switch.block_on(async || {
        let control = ovs_datapath::Control::open().await?;
        let dp = control.datapath(netns_tests::DATAPATH).await?.context("no datapath")?;
        let ports = control.vports(dp.ifindex).await?;
        Ok(ports.into_iter().flat_map(|port| port.upcall_pids).collect())
    })?
}
