//! The kernel memory that upcall sockets may take: shared, bounded, and told when it could not be had.
#![allow(missing_docs, reason = "a test binary")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns_tests::{DATAPATH, SOON, TestResult, bench, modes, skip_ok, station};
use ovs_datapath::Control;
use ovs_features::DispatchMode;
use ovs_wire::vport::VportType;
use upcall::{Dispatcher, Handler, Shape, Socket, Upcall, Verdict};
use upcall_testkit::{Frame, Hosts, NetNs, Upcalld, raw::ETHERTYPE_EXPERIMENTAL, wait_until};

struct Drop;

impl Handler for Drop {
    fn upcall(&self, _: &Upcall<'_>, _: &mut Verdict) {}
}

const TOTAL: usize = 4 << 20;

/// The sizes of all sockets, which never exceed the total.
async fn sizes(dispatcher: &Dispatcher) -> Result<Vec<usize>> {
    let size = |socket: &Arc<Socket>| Ok(socket.mem_info()?.recv_buffer_bytes as usize);
    let sizes = dispatcher.sockets().await.iter().map(size).collect::<Result<Vec<_>>>()?;
    ensure!(sizes.iter().sum::<usize>() <= TOTAL, "too much: {sizes:?}");
    ensure!(sizes.iter().all(|size| *size == sizes[0]), "not the same: {sizes:?}");
    Ok(sizes)
}

/// Waits until there are so many sockets; gives the size of each.
async fn sockets(dispatcher: &Dispatcher, wanted: usize) -> Result<usize> {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let sizes = sizes(dispatcher).await?;
        if sizes.len() == wanted {
            return Ok(sizes[0]);
        }
        ensure!(tokio::time::Instant::now() < deadline, "{wanted} wanted: {sizes:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn sockets_share_the_total_as_ports_come_and_go() -> TestResult {
    const MORE: usize = 40;
    for mode in modes() {
        NetNs::new("budget")?.block_on(async || {
            let shape = Shape {
                dispatch: mode.parse().map_err(anyhow::Error::msg)?,
                recv_buffer_total_bytes: Some(TOTAL),
                ..Shape::default()
            };
            let dispatcher = Dispatcher::builder(DATAPATH).shape(shape).start(Drop).await?;
            let first = sizes(&dispatcher).await?;
            ensure!(first.iter().sum::<usize>() > TOTAL / 2, "{mode}: most of it: {first:?}");
            let control = Control::open().await?;
            let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
            let mut added = Vec::new();
            for number in 0..MORE {
                let name = format!("more{number}");
                added.push(control.add_vport(&dp, VportType::Internal, &name, None, 0).await?);
            }
            let more = if *mode == "per-vport" { MORE } else { 0 };
            let shared = sockets(&dispatcher, first.len() + more).await?;
            ensure!((shared < first[0]) == (more > 0), "{mode}: {shared} of {first:?}");
            for port in added {
                control.delete_vport(dp.ifindex, port.port_no).await?;
            }
            let back = sockets(&dispatcher, first.len()).await?;
            ensure!(back == first[0], "{mode}: {back} is not {first:?}");
            let info = dispatcher.info().await;
            ensure!(info.recv_buffers_bytes == first.iter().sum::<usize>(), "{info:?}");
            dispatcher.stop().await?;
            anyhow::Ok(())
        })??;
    }
    Ok(())
}

/// What the bound stands on: a limit below what is queued costs nothing that is queued.
#[test]
fn a_socket_that_is_made_smaller_keeps_what_it_holds() -> TestResult {
    const FRAMES: u8 = 100;
    bench(1, DispatchMode::PerVport, async |bench| {
        let frame = |n| Frame::new(station(1), station(2)).raw(ETHERTYPE_EXPERIMENTAL, &[n; 46]);
        let before = bench.stats().await?;
        for number in 0..FRAMES {
            bench.links[0].send(&frame(number))?;
        }
        let all = before.missed + u64::from(FRAMES);
        bench.wait_stats("the misses", |stats| stats.missed == all).await?;
        let socket = &bench.sockets[0];
        socket.set_recv_buffer(4 << 10)?;
        let info = socket.mem_info()?;
        ensure!(info.queued_bytes > 4 * info.recv_buffer_bytes, "{info:?}");
        let pending = bench.pending()?;
        ensure!(pending.len() == usize::from(FRAMES), "{} of {FRAMES}", pending.len());
        for (number, got) in (0..FRAMES).zip(&pending) {
            ensure!(got.upcall().packet == frame(number), "frame {number}");
        }
        ensure!(bench.stats().await?.lost == before.lost);
        Ok(())
    })
}

#[test]
fn the_daemon_shares_what_it_was_allowed_and_prints_it() -> TestResult {
    let hosts = Hosts::new(2)?;
    let builder = Upcalld::builder(DATAPATH).ports(hosts.ports()).dispatch("per-vport");
    let daemon = builder.option("--recv-buffer-total", "1M").start(&hosts.switch)?;
    let line = daemon.wait_log("recv_buffer_total_bytes=1048576", SOON)?;
    let sum = line.split("recv_buffers_bytes=").nth(1).and_then(|rest| rest.split(' ').next());
    let sum: usize = sum.context("no sum")?.parse()?;
    ensure!(sum > 1 << 19 && sum <= 1 << 20, "{line}");
    ensure!(daemon.stop()?.status.success());
    Ok(())
}

/// Root of a user namespace may serve datapaths there, but not exceed `rmem_max` of the host.
#[test]
fn a_buffer_that_cannot_be_had_is_reported_with_the_remedy() -> TestResult {
    const NAME: &str = "a_buffer_that_cannot_be_had_is_reported_with_the_remedy";
    const UNSHARE: &str = "/bin/busybox";
    if !std::fs::exists(UNSHARE)? {
        skip_ok(NAME, "there is no busybox to make a user namespace with");
        return Ok(());
    }
    let max: usize = std::fs::read_to_string("/proc/sys/net/core/rmem_max")?.trim().parse()?;
    let launcher = [UNSHARE, "unshare", "-U", "-r", "-n"];
    // More than any kernel's default of the limit.
    let config = tempfile::NamedTempFile::new()?;
    std::fs::write(config.path(), "recv_buffer_bytes = 67108864\n")?;
    let path = config.path().to_str().context("an odd path")?;
    let builder = Upcalld::builder(DATAPATH).launcher(launcher).option("--config", path);
    let daemon = builder.start(&NetNs::new("outer")?)?;
    let line = daemon.wait_log("rmem_max=67108864", SOON)?;
    ensure!(line.contains(&format!("{max} bytes each where 67108864 were asked for")), "{line}");
    let reached = || daemon.log().contains(&format!("recv_buffer_bytes={}", 2 * max));
    wait_until("the size that was reached", SOON, reached)?;
    ensure!(daemon.stop()?.status.success());
    Ok(())
}
