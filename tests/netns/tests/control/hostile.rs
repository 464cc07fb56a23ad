//! Clients that mean no good: malformed, oversized, slow, many, not allowed. Nothing else notices.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns_tests::{Lab, TestResult, ctl, ctl_json, tell};
use upcall_testkit::daemon::UPCALLD_BIN;
use upcall_testkit::{Hosts, PingPlan};

use super::{busy_lab, pings};

const MANY: usize = 10_000;
/// More clients than there are places.
const HOLDERS: usize = 40;

fn connect(lab: &Lab) -> Result<UnixStream> {
    let stream = UnixStream::connect(lab.daemon.control())?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

fn counted(lab: &Lab, name: &str) -> Result<u64> {
    let all = ctl_json(lab, "coverage/show")?;
    all[name]["total"].as_u64().with_context(|| format!("no {name}: {all}"))
}

fn resident_kb(lab: &Lab) -> Result<u64> {
    ctl_json(lab, "memory/show")?["resident-kB"].as_u64().context("no resident-kB")
}

/// Sends bytes and reads to the end of the connection, which must come.
fn provoke(lab: &Lab, bytes: &[u8]) -> Result<String> {
    let mut stream = connect(lab)?;
    // The daemon may close before all of it is taken.
    let _refused = stream.write_all(bytes);
    let mut said = Vec::new();
    // A connection that is closed with bytes unread is reset.
    let _reset = stream.read_to_end(&mut said);
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn bytes_that_are_no_request_end_the_connection_and_nothing_else() -> TestResult {
    let lab = busy_lab()?;
    let deep = format!("{{\"method\":\"a\",\"id\":0,\"params\":{}", "[".repeat(60_000));
    let cases: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\xff\xfe",
        b"{\"id\":0,\"result\":\"x\",\"error\":null}",
        b"{\"method\":\"version\",\"params\":[],\"id\":null}",
        b"{\"method\":7,\"params\":[],\"id\":1}",
        b"{\"method\":\"version\",\"params\":{},\"id\":1}",
    ];
    for bytes in cases {
        let said = provoke(&lab, bytes)?;
        ensure!(said.contains("no JSON-RPC request"), "{bytes:?}: {said}");
    }
    ensure!(counted(&lab, "control_malformed")? == 6);
    provoke(&lab, format!("{{\"method\":\"{}", "x".repeat(1 << 20)).as_bytes())?;
    provoke(&lab, format!("{deep}{deep}").as_bytes())?;
    ensure!(counted(&lab, "control_oversized")? == 2);
    // What is well-formed and wrong is answered, and the connection goes on.
    let mut stream = connect(&lab)?;
    stream.write_all(b"{\"method\":\"version\",\"params\":[1],\"id\":\"a\"}")?;
    stream.write_all(b"{\"method\":\"version\",\"params\":[],\"id\":[2]}")?;
    let mut replies = serde_json::Deserializer::from_reader(&stream).into_iter();
    let mut next = || -> Result<serde_json::Value> { Ok(replies.next().context("no reply")??) };
    let (first, second) = (next()?, next()?);
    ensure!(first["id"] == "a" && first["result"].is_null(), "{first}");
    ensure!(second["id"][0] == 2 && second["error"].is_null(), "{second}");
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn who_holds_places_makes_room_for_others() -> TestResult {
    let lab = busy_lab()?;
    let silent: Vec<_> = (0..HOLDERS).map(|_| connect(&lab)).collect::<Result<_>>()?;
    ensure!(ctl(&lab, &["version"])?.starts_with("upcalld "));
    ensure!(counted(&lab, "control_evicted")? >= (HOLDERS - 32) as u64);
    drop(silent);
    // Half a request each, and one that asks for much and reads nothing.
    let mut slow = Vec::new();
    for _ in 0..HOLDERS {
        let mut stream = connect(&lab)?;
        let _evicted = stream.write_all(b"{\"method\":\"vers");
        slow.push(stream);
    }
    let mut deaf = connect(&lab)?;
    for id in 0..10_000 {
        deaf.set_nonblocking(true)?;
        let request = format!("{{\"method\":\"coverage/show\",\"params\":[],\"id\":{id}}}");
        if deaf.write_all(request.as_bytes()).is_err() {
            break;
        }
    }
    ensure!(ctl(&lab, &["version"])?.starts_with("upcalld "));
    let slow_before = counted(&lab, "control_slow")?;
    upcall_testkit::wait_until("slow clients to be dropped", Duration::from_secs(30), || {
        counted(&lab, "control_slow").is_ok_and(|slow| slow > slow_before)
    })?;
    lab.finish_after_races()?;
    Ok(())
}

#[test]
fn ten_thousand_connections_cost_no_packet_and_no_memory() -> TestResult {
    let lab = busy_lab()?;
    ctl(&lab, &["fdb/show"])?;
    let before = resident_kb(&lab)?;
    let plan = PingPlan { count: 60, interval: Duration::from_millis(50), ..PingPlan::default() };
    std::thread::scope(|scope| -> TestResult {
        let storm = scope.spawn(|| storm(&lab));
        pings(&lab, &plan)?;
        let refused = storm.join().map_err(|_| anyhow::anyhow!("the storm panicked"))?;
        tell(&format!("{MANY} connections, {refused} could not be made"));
        Ok(())
    })?;
    ensure!(ctl(&lab, &["version"])?.starts_with("upcalld "));
    let after = resident_kb(&lab)?;
    tell(&format!("resident memory: {before} kB before, {after} kB after"));
    ensure!(after < before + 4096, "{before} kB became {after} kB");
    let accepted = counted(&lab, "control_accepted")? + counted(&lab, "control_refused")?;
    ensure!(accepted > MANY as u64 / 2, "{accepted}");
    let stats = lab.finish_after_races()?;
    ensure!(stats.kernel_lost == 0 && stats.shed == 0, "{stats:?}");
    Ok(())
}

/// Connections that ask, ask nonsense, or say nothing; gives how many could not be made.
fn storm(lab: &Lab) -> u64 {
    let mut refused = 0;
    let mut kept = std::collections::VecDeque::new();
    for number in 0..MANY {
        let Ok(mut stream) = connect(lab) else {
            refused += 1;
            continue;
        };
        let _closed = match number % 3 {
            0 => stream.write_all(b"{\"method\":\"dpctl/show\",\"params\":[],\"id\":1}"),
            1 => stream.write_all(b"nonsense"),
            _ => Ok(()),
        };
        kept.push_back(stream);
        if kept.len() > 100 {
            kept.pop_front();
        }
    }
    refused
}

/// The exit status of a client that runs as this user and group.
fn as_user(path: &Path, user: u32, group: u32) -> Result<Option<i32>> {
    let program = std::env::var_os(UPCALLD_BIN).context("no UPCALLD_BIN")?;
    let mut command = Command::new(program);
    command.arg("ctl").arg("--control").arg(path).arg("version").uid(user).gid(group);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status()?.code())
}

#[test]
fn others_are_kept_out_and_a_group_is_let_in() -> TestResult {
    let path = Path::new("/run/control-test/ctl");
    let shown = path.display().to_string();
    for (group, members_may) in [(None, false), (Some("4711"), true)] {
        let lab = Lab::start(Hosts::new(2)?, |builder| {
            let builder = builder.option("--control", &shown);
            group.into_iter().fold(builder, |b, group| b.option("--control-group", group))
        })?;
        ensure!(as_user(path, 0, 0)? == Some(0), "root is let in");
        ensure!(as_user(path, 1234, 1234)? == Some(1), "a user is kept out");
        let member = as_user(path, 1234, 4711)?;
        ensure!((member == Some(0)) == members_may, "{group:?}: {member:?}");
        // A second daemon must not take the first one's socket.
        let hosts = Hosts::new(2)?;
        let second = upcall_testkit::Upcalld::builder("dp1").option("--control", &shown);
        let err = second.start(&hosts.switch).err().context("the second one starts")?;
        ensure!(format!("{err:?}").contains("another process listens"), "{err:?}");
        ensure!(as_user(path, 0, 0)? == Some(0), "the first one's socket is left alone");
        lab.finish()?;
        ensure!(!path.exists());
    }
    fs::remove_dir("/run/control-test")?;
    Ok(())
}
