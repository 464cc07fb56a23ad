//! The tap, and what it writes.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use netns_tests::{TestResult, has_per_cpu, skip_ok};
use ovs_features::cpu;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Hosts, RawSocket};

use crate::program::Program;
use crate::{arrivals, frame, ours};

const EACH: u8 = 20;

#[test]
fn tap() -> TestResult {
    let hosts = Hosts::new(2)?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("tap.pcapng");
    let tap = Program::start("tap", &hosts, &["--write".as_ref(), path.as_os_str()])?;
    let mut receiver = RawSocket::open(&hosts[1].ns, HOST_LINK)?;
    for (cpu, from) in [(0, 1), (1, 3)] {
        cpu::pin_to(cpu)?;
        let sender = RawSocket::sender(&hosts[0].ns, HOST_LINK)?;
        (0..EACH).try_for_each(|number| sender.send(&frame(from, 2, number)))?;
        ensure!(arrivals(&mut receiver, EACH - 1)?.len() == usize::from(EACH));
    }
    let counted = tap.stop()?;
    ensure!(counted.installed == 0 && counted.shed == 0, "{counted:?}");
    ensure!(counted.rest == ["0 packets not written"], "{counted:?}");
    let captured = read(&path)?;
    let mut flows = HashSet::new();
    for (cpu, from) in [(0, 1), (1, 3)] {
        let of = captured.iter().filter(|packet| ours(&packet.bytes).is_some_and(|o| o.0 == from));
        let bytes: Vec<_> = of.clone().map(|packet| packet.bytes.clone()).collect();
        let sent: Vec<_> = (0..EACH).map(|number| frame(from, 2, number)).collect();
        ensure!(bytes == sent, "all of flow {from}, in order");
        let cpu = if has_per_cpu() { cpu.to_string() } else { "unknown".to_owned() };
        ensure!(of.clone().all(|packet| packet.cpu == cpu), "CPU {cpu}: {captured:?}");
        let flow: HashSet<_> = of.map(|packet| packet.flow.clone()).collect();
        ensure!(flow.len() == 1, "one flow: {flow:?}");
        flows.extend(flow);
    }
    ensure!(flows.len() == 2, "{flows:?}");
    tcpdump_reads(&path, captured.len())
}

#[derive(Debug)]
struct Captured {
    bytes: Vec<u8>,
    flow: String,
    cpu: String,
}

fn read(path: &Path) -> Result<Vec<Captured>> {
    let mut reader = PcapNgReader::new(File::open(path)?)?;
    let (mut all, mut last) = (Vec::new(), std::time::Duration::ZERO);
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block? else { continue };
        let comment = packet.options.iter().find_map(|option| match option {
            EnhancedPacketOption::Comment(text) => Some(text.as_ref()),
            _ => None,
        });
        let words: Vec<_> = comment.context("no comment")?.split(' ').collect();
        let ["flow", flow, "cpu", cpu, "socket", _] = words[..] else {
            anyhow::bail!("an odd comment: {words:?}");
        };
        let (flow, cpu) = (flow.to_owned(), cpu.to_owned());
        ensure!(packet.timestamp > last.saturating_sub(std::time::Duration::from_secs(1)));
        last = packet.timestamp;
        all.push(Captured { bytes: packet.data.into_owned(), flow, cpu });
    }
    Ok(all)
}

/// Another program reads as much in the file.
fn tcpdump_reads(path: &Path, packets: usize) -> TestResult {
    if std::env::var_os("UPCALL_TEST_DEBIAN").is_none() {
        skip_ok("tap", "no tcpdump here to read the file too (UPCALL_TEST_DEBIAN is not set)");
        return Ok(());
    }
    let mut tcpdump = Command::new("tcpdump");
    // It stays root: a guest has no user tcpdump.
    let output = tcpdump.args(["-Z", "root", "-nn", "-tttt", "-r"]).arg(path).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = text.lines().filter(|line| line.contains("ethertype Unknown (0x88b5)"));
    ensure!(read.count() == packets, "{packets} packets in:\n{text}");
    let year = text.split('-').next().and_then(|year| year.parse::<u32>().ok());
    ensure!(year.is_some_and(|year| year > 2020), "the time of day in:\n{text}");
    Ok(())
}
