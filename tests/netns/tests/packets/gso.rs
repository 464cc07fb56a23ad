//! A large packet of TCP is one miss and several upcalls.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::{Context as _, ensure};
use netns_tests::{DATAPATH, Lab, SOON, TestResult, modes};
use ovs_datapath::Control;
use upcall_testkit::Hosts;

const BYTES: usize = 1 << 20;
/// Longest frame: Ethernet header and MTU.
const FRAME_MAX: u64 = 1514;

/// Bulk TCP with segmentation offload through a switch that installs nothing: a packet of up to
/// 64 KiB misses once, and comes up as segments that fit the MTU.
#[test]
fn tcp_in_bulk_comes_up_in_segments() -> TestResult {
    for mode in modes() {
        let lab = Lab::start(Hosts::new(2)?, |builder| builder.install("never").dispatch(mode))?;
        let listener = lab.hosts[1].ns.run(|| TcpListener::bind((lab.hosts[1].ip4, 7001)))??;
        let reader = thread::spawn(move || -> std::io::Result<usize> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(SOON))?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all)
        });
        let to = (lab.hosts[1].ip4, 7001);
        let mut stream = lab.hosts[0].ns.run(|| TcpStream::connect(to))??;
        stream.write_all(&vec![7; BYTES])?;
        drop(stream);
        let received = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        ensure!(received == BYTES, "{received} bytes arrived");
        let (rx_packets, rx_bytes) = lab.hosts.switch.block_on(async || {
            let control = Control::open().await?;
            let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
            let ports = control.vports(dp.ifindex).await?;
            anyhow::Ok((ports[1].stats.rx_packets, ports[1].stats.rx_bytes))
        })??;
        ensure!(rx_bytes / rx_packets > FRAME_MAX, "no large packets: the test proves nothing");
        let stats = lab.finish()?;
        ensure!(stats.kernel_lost == 0, "{stats:?}");
        ensure!(stats.upcalls_received > stats.kernel_missed, "a segment each: {stats:?}");
        let data = BYTES as u64 / FRAME_MAX;
        ensure!(stats.upcalls_received > data, "each fits the MTU: {stats:?}");
    }
    Ok(())
}
