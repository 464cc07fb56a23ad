//! What is asked of a process with several datapaths: by the control socket, by metrics, by `top` and `trace`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{SOON, TestResult, station};
use prometheus_parse::{Scrape, Value};
use upcall_testkit::daemon::UPCALLD_BIN;
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket, wait_until};

use super::{Several, TWO, upcalld};

/// Commands that are about the process, with those that end it or what is asked of it.
const OF_PROCESS: [&str; 8] = [
    "dpif-netlink/dispatch-mode",
    "exit",
    "list-commands",
    "reload",
    "set-options",
    "version",
    "vlog/list",
    "vlog/set",
];
/// Commands that tell of all datapaths.
const OF_ALL: [&str; 3] = ["dpctl/show", "dpif/show", "upcall/show"];

#[test]
fn a_command_is_about_the_datapath_that_it_names() -> TestResult {
    let several = Several::start(Hosts::new(4)?, &format!("flow_idle = '10m'\n{TWO}"))?;
    several.pings(0, 1)?;
    several.pings(2, 3)?;
    let dumped = || several.ask(&["dpctl/dump-flows", "dp0"]);
    wait_until("a flow", SOON, || dumped().is_ok_and(|flows| flows.contains("in_port(1)")))?;
    let by_name = || several.ask(&["dpctl/dump-flows", "--names", "dp1", "filter=in_port=p2"]);
    wait_until("a flow", SOON, || by_name().is_ok_and(|flows| flows.contains("in_port(p2)")))?;
    // Of all commands, one flushes the flows.
    let listed = several.ask(&["list-commands"])?;
    let names = listed.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let mut about_one = 0;
    for name in names.filter(|name| !OF_PROCESS.contains(name) && !name.starts_with("trace/")) {
        ensure!(!several.ask(&[name, "dp0"])?.is_empty(), "{name}");
        ensure!(several.ask_json(&[name, "system@dp1"])?.is_object(), "{name}");
        if !OF_ALL.contains(&name) {
            about_one += 1;
            let why = several.refusal(&[name])?;
            ensure!(why.contains("name a datapath") && why.contains("dp0, dp1"), "{name}: {why}");
        }
    }
    for name in ["lane/show", "dpif/show", "dpctl/dump-flows"] {
        let why = several.refusal(&[name, "dp7"])?;
        ensure!(why.contains("dp0, dp1"), "{name}: {why}");
    }
    let why = several.refusal(&["trace/stop", "dp0"])?;
    ensure!(why.contains("requires at least 1 arguments"), "{why}");
    ensure!(about_one > 8, "{listed}");
    for command in ["dpif/show", "dpctl/show", "upcall/show", "dpif-netlink/dispatch-mode"] {
        let all = several.ask(&[command])?;
        ensure!(all.contains("dp0") && all.contains("dp1"), "{command}: {all}");
    }
    let json = several.ask_json(&["dpif/show"])?;
    ensure!(json["system@dp0"].is_object() && json["system@dp1"].is_object(), "{json}");
    let one = several.ask(&["dpctl/show", "-s", "dp1"])?;
    ensure!(
        one.contains("system@dp1:") && one.contains("RX packets") && !one.contains("dp0"),
        "{one}"
    );
    let quota = several.ask(&["port/quota", "dp1", "p2", "miss", "5000"])?;
    ensure!(quota.starts_with("p2: ") && quota.contains("miss 5000"), "{quota}");
    ensure!(!several.ask(&["port/quota", "dp0"])?.contains("by hand"));
    let told = several.ask(&["reload"])?;
    ensure!(told == "dp1: quotas of ports set by hand: 1 -> none\n", "{told}");
    ensure!(!several.ask(&["port/quota", "dp1"])?.contains("by hand"));
    several.finish()?;
    Ok(())
}

#[test]
fn clients_say_once_which_datapath_they_mean() -> TestResult {
    let several = Several::start(Hosts::new(4)?, TWO)?;
    let control = several.daemon.control();
    let told = upcalld(&control, "ctl", &["--datapath", "dp1", "lane/show"])?;
    ensure!(told.starts_with("lanes of dp1"), "{told}");
    let page = upcalld(&control, "top", &["--datapath", "dp1", "--once", "--interval", "200ms"])?;
    ensure!(page.contains("dp1") && page.contains(" p2") && !page.contains(" p0"), "{page}");
    let program = std::env::var_os(UPCALLD_BIN).context("no UPCALLD_BIN")?;
    let mut trace = Command::new(program);
    trace.arg("trace").arg("--control").arg(&control);
    trace.args(["--datapath", "dp1", "--count", "2", "src=02:50:00:00:00:07"]);
    let mut trace = trace.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let [zero, two] = [0, 2].map(|host| RawSocket::sender(&several.hosts[host].ns, HOST_LINK));
    let (zero, two) = (zero?, two?);
    // It begins some time, and ends when it has seen as many as it wants to.
    let frame = Frame::broadcast(station(7)).raw(ETHERTYPE_EXPERIMENTAL, &[0; 46]);
    wait_until("the trace to end", SOON, || {
        let sent = zero.send(&frame).and_then(|()| two.send(&frame));
        sent.is_err() || !matches!(trace.try_wait(), Ok(None))
    })?;
    let output = trace.wait_with_output()?;
    let lines = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && lines.lines().count() == 2, "{lines}");
    ensure!(lines.lines().all(|line| line.contains(" p2 miss ")), "{lines}");
    several.finish()?;
    Ok(())
}

#[test]
fn each_name_finds_the_process_in_the_usual_place() -> TestResult {
    let directory = tempfile::tempdir()?;
    let several = Several::start_with(Hosts::new(4)?, TWO, |builder| {
        builder.without_control().env("RUNTIME_DIRECTORY", directory.path())
    })?;
    let ctl = |words: &[&str]| -> Result<String> {
        let program = std::env::var_os(UPCALLD_BIN).context("no UPCALLD_BIN")?;
        let mut command = Command::new(program);
        command.arg("ctl").args(words).env("RUNTIME_DIRECTORY", directory.path());
        let output = command.stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{words:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    for name in ["dp0", "dp1"] {
        let told = ctl(&["--datapath", name, "loss/show"])?;
        ensure!(told.starts_with(&format!("losses of {name}")), "{told}");
    }
    // One process, whatever names it has.
    ensure!(ctl(&["version"])?.starts_with("upcalld "));
    several.finish()?;
    let left: Vec<_> = std::fs::read_dir(directory.path())?.collect();
    ensure!(left.is_empty(), "it left {left:?}");
    Ok(())
}

fn get(socket: &Path, path: &str) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: upcalld\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
}

#[test]
fn metrics_tell_datapaths_apart_and_the_process_once() -> TestResult {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("metrics");
    let text = format!("metrics = '{}'\n{TWO}", socket.display());
    let several = Several::start(Hosts::new(4)?, &text)?;
    several.pings(0, 1)?;
    let (status, text) = get(&socket, "/metrics")?;
    ensure!(status == 200 && text.ends_with("# EOF\n"), "{text}");
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))?;
    let of = |name: &str, datapath: Option<&str>| {
        let sample = scrape
            .samples
            .iter()
            .find(|sample| sample.metric == name && sample.labels.get("datapath") == datapath);
        match sample.map(|sample| &sample.value) {
            Some(Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value)) => {
                Some(*value)
            }
            _ => None,
        }
    };
    for name in ["dp0", "dp1"] {
        ensure!(of("upcalld_up", Some(name)) == Some(1.0), "{text}");
        ensure!(of("upcalld_ports", Some(name)) == Some(3.0), "{text}");
        ensure!(of("upcalld_control_commands_total", Some(name)).is_none(), "{text}");
    }
    ensure!(of("upcalld_macs", Some("dp0")) == Some(2.0), "{text}");
    ensure!(of("upcalld_macs", Some("dp1")) == Some(0.0), "{text}");
    ensure!(of("upcalld_received_total", Some("dp0")).is_some_and(|count| count > 0.0), "{text}");
    ensure!(of("upcalld_control_commands_total", None).is_some(), "{text}");
    ensure!(of("upcalld_resident_memory_bytes", None).is_some_and(|bytes| bytes > 1e6), "{text}");
    let types = text.lines().filter(|line| line.starts_with("# TYPE upcalld_received "));
    ensure!(types.count() == 1, "a family is there once: {text}");
    ensure!(get(&socket, "/readyz")? == (200, "serving\n".to_owned()));
    several.finish()?;
    Ok(())
}
