//! `upcalld top` and `upcalld trace`: that what they show is what happens, and what they cost.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{Lab, TestResult, ctl, ctl_at, ctl_json, has_per_cpu, since, station};
use pcap_file::pcapng::{Block, PcapNgReader};
use upcall_testkit::daemon::UPCALLD_BIN;
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, PingPlan, RawSocket, wait_until};

use super::{busy_lab, pings};

fn upcalld(lab: &Lab, command: &str, words: &[&str]) -> Result<Command> {
    let program = std::env::var_os(UPCALLD_BIN).context("no UPCALLD_BIN")?;
    let mut upcalld = Command::new(program);
    upcalld.arg(command).arg("--control").arg(lab.daemon.control()).args(words);
    upcalld.stdin(Stdio::null());
    Ok(upcalld)
}

fn output(lab: &Lab, command: &str, words: &[&str]) -> Result<String> {
    let output = upcalld(lab, command, words)?.output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{command} {words:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn top_shows_what_happens_in_text_and_json() -> TestResult {
    let lab = busy_lab()?;
    let page = output(&lab, "top", &["--once", "--interval", "300ms"])?;
    ensure!(page.lines().count() <= 60 && !page.contains('\x1b'), "{page}");
    let wide = page.lines().filter(|line| !line.contains("->")).find(|line| line.len() > 80);
    ensure!(wide.is_none(), "wider than 80 columns: {wide:?}");
    for part in
        ["upcalld 0", "dp0", "upcalls/s  received", "LATENCY", "WORKER", "upcall-0", "PORT", "1 p0"]
    {
        ensure!(page.contains(part), "no '{part}' in\n{page}");
    }
    // Traffic while it looks.
    let json = std::thread::scope(|scope| {
        let looking =
            scope.spawn(|| output(&lab, "top", &["--once", "--json", "--interval", "2s"]));
        let link = RawSocket::sender(&lab.hosts[0].ns, HOST_LINK)?;
        let end = Instant::now() + Duration::from_secs(2);
        let mut sent = 0_u32;
        while Instant::now() < end {
            let frame =
                Frame::broadcast(station(1)).raw(ETHERTYPE_EXPERIMENTAL, &sent.to_be_bytes());
            link.send(&frame)?;
            sent += 1;
            pings(&lab, &PingPlan { count: 1, ..PingPlan::default() })?;
        }
        looking.join().map_err(|_| anyhow::anyhow!("it panicked"))?
    })?;
    let told: serde_json::Value = serde_json::from_str(&json)?;
    ensure!(told["per_second"]["received"].as_f64().is_some_and(|rate| rate > 0.0), "{told}");
    let ports = told["snapshot"]["ports"].as_array().context("no ports")?;
    ensure!(ports.len() == 3 && ports.iter().any(|port| port["name"] == "p0"), "{told}");
    let hot = told["hot"]["flows"].as_array().context("no flows")?;
    ensure!(
        hot.iter().any(|flow| flow["line"].as_str().is_some_and(|l| l.contains("in_port(1)"))),
        "{told}"
    );
    let of_port =
        ports.iter().find(|port| port["name"] == "p0").map(|port| port["upcalls"].is_u64());
    ensure!(of_port == Some(since(6, 2)), "{told}");
    let nobody = ctl_at(&lab.daemon.control(), &["stats/show", "wrong"])?;
    ensure!(nobody.status.code() == Some(2), "{nobody:?}");
    lab.finish_after_races()?;
    Ok(())
}

/// A running `upcalld trace`, once it follows.
fn follow(lab: &Lab, words: &[&str]) -> Result<Child> {
    let before = commands(lab)?;
    let child =
        upcalld(lab, "trace", words)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // set-options, trace/start, and the first trace/read.
    wait_until("the trace to follow", netns_tests::SOON, || {
        commands(lab).is_ok_and(|now| now >= before + 3 + 2)
    })?;
    Ok(child)
}

fn commands(lab: &Lab) -> Result<u64> {
    ctl_json(lab, "coverage/show")?["control_commands"]["total"].as_u64().context("no commands")
}

#[test]
fn a_trace_shows_what_matches_and_nothing_else() -> TestResult {
    let lab = busy_lab()?;
    let [one, two] = [0, 1].map(|host| RawSocket::sender(&lab.hosts[host].ns, HOST_LINK));
    let (one, two) = (one?, two?);
    let mut trace =
        follow(&lab, &["--count", "3", "port=p0", "src=02:50:00:00:00:07", "proto!=arp"])?;
    for number in 0..3_u8 {
        two.send(&Frame::broadcast(station(7)).raw(ETHERTYPE_EXPERIMENTAL, &[number; 46]))?;
        one.send(&Frame::broadcast(station(8)).raw(ETHERTYPE_EXPERIMENTAL, &[number; 46]))?;
        one.send(&Frame::broadcast(station(7)).raw(ETHERTYPE_EXPERIMENTAL, &[number; 46]))?;
    }
    let lines: Vec<String> = BufReader::new(trace.stdout.take().context("no output")?)
        .lines()
        .collect::<Result<_, _>>()?;
    ensure!(trace.wait()?.success() && lines.len() == 3, "{lines:#?}");
    for line in &lines {
        let whole = line.contains(" p0 miss 60 bytes ")
            && line.contains("in_port(1)")
            && line.contains("eth(src=02:50:00:00:00:07,dst=ff:ff:ff:ff:ff:ff)")
            && line.contains(" -> 0,2");
        ensure!(whole, "{line}");
        let cpu = line.split(" cpu ").nth(1).and_then(|rest| rest.split(' ').next());
        ensure!(cpu.is_some_and(|cpu| (cpu == "-") != has_per_cpu()), "{line}");
    }
    let wrong = ctl_at(&lab.daemon.control(), &["trace/start", "port=nobody"])?;
    let said = String::from_utf8(wrong.stderr)?;
    ensure!(wrong.status.code() == Some(2) && said.contains("no port 'nobody'"), "{said}");
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn a_trace_is_a_capture_and_bounded() -> TestResult {
    const SENT: usize = 300;
    let lab = busy_lab()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("up.pcapng");
    let file = path.display().to_string();
    let words = ["--pcapng", &file, "--rate", "1:20", "--for", "3s", "src=02:50:00:00:00:07"];
    let trace = follow(&lab, &words)?;
    let link = RawSocket::sender(&lab.hosts[0].ns, HOST_LINK)?;
    let frame = Frame::broadcast(station(7)).raw(ETHERTYPE_EXPERIMENTAL, &[7; 46]);
    for _ in 0..SENT {
        link.send(&frame)?;
    }
    let output = trace.wait_with_output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.success() && said.contains(&format!("{SENT} matched")), "{said}");
    let mut reader = PcapNgReader::new(File::open(&path)?)?;
    let mut packets = 0;
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block? {
            ensure!(packet.data == frame && !packet.options.is_empty(), "{packet:?}");
            packets += 1;
        }
    }
    ensure!((20..=40).contains(&packets), "{packets} packets of {SENT}");
    ensure!(said.contains(&format!("{} left out", SENT - packets)), "{said}");
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn traces_are_few_and_end_when_nobody_reads_them() -> TestResult {
    let lab = busy_lab()?;
    for id in 1..=4 {
        ensure!(ctl(&lab, &["trace/start"])? == format!("{id}\n"));
    }
    let many = ctl_at(&lab.daemon.control(), &["trace/start"])?;
    ensure!(many.status.code() == Some(2), "{many:?}");
    ctl(&lab, &["trace/stop", "2"])?;
    ensure!(ctl(&lab, &["trace/start", "--every", "2", "kind=miss"])? == "5\n");
    pings(&lab, &PingPlan::default())?;
    lab.daemon.wait_log("a trace that nobody read any more has ended", Duration::from_secs(40))?;
    // The oldest is among those that ended, and there is a place again.
    let ended = ctl_at(&lab.daemon.control(), &["trace/read", "1"])?;
    ensure!(ended.status.code() == Some(2), "{ended:?}");
    ensure!(ctl(&lab, &["trace/start"])? == "6\n");
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn latencies_are_told() -> TestResult {
    let lab = busy_lab()?;
    let text = ctl(&lab, &["latency/show"])?;
    ensure!(text.starts_with("latencies of dp0") && text.contains("  decide "), "{text}");
    let json = ctl_json(&lab, "latency/show")?;
    ensure!(json["decide"]["count"].as_u64().is_some_and(|count| count > 0), "{json}");
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn the_process_is_found_by_its_name() -> TestResult {
    let directory = tempfile::tempdir()?;
    let pidfile = directory.path().join("upcalld.pid").display().to_string();
    let lab = Lab::start(Hosts::new(1)?, |builder| builder.option("--pidfile", &pidfile))?;
    let pid = std::fs::read_to_string(&pidfile)?;
    ensure!(pid.trim() == lab.daemon.pid().to_string(), "{pid}");
    let link = directory.path().join(format!("upcalld.{}.ctl", pid.trim()));
    let told = ctl_at(&link, &["version"])?;
    ensure!(told.status.success(), "{told:?}");
    lab.finish()?;
    ensure!(!link.exists() && !std::path::Path::new(&pidfile).exists(), "they are left behind");
    Ok(())
}
