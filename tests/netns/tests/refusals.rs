//! Bad input to the daemon: one line that names cause and remedy, the documented exit status, and
//! nothing left behind.
#![allow(missing_docs, reason = "a test binary")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, ensure};
use netns_tests::{DATAPATH, SOON, TestResult, has_per_cpu, modes, since, skip_ok};
use ovs_datapath::Control;
use ovs_wire::datapath::UserFeatures;
use ovs_wire::vport::VportType;
use upcall_testkit::daemon::{Exit, Signal, UPCALLD_BIN};
use upcall_testkit::{Hosts, NetNs, Upcalld, UpcalldBuilder, Veth};

/// Exit statuses, as `upcalld --help` has them.
const USAGE: i32 = 2;
const CONFIG: i32 = 3;
const PERMISSION: i32 = 4;
const UNSUPPORTED: i32 = 5;
const CONFLICT: i32 = 6;

/// Everything a daemon could leave in a namespace: links with their controllers, datapaths with their
/// features, ports and flows.
fn inventory(ns: &NetNs) -> anyhow::Result<Vec<String>> {
    let links = ns.links(async |links| links.list().await)?;
    let mut all: Vec<String> = links
        .iter()
        .map(|link| format!("{} {:?} {:?}", link.name, link.kind, link.controller))
        .collect();
    let datapaths = ns.block_on(async || {
        let control = Control::open().await?;
        let mut found = Vec::new();
        for dp in control.datapaths().await? {
            found.push(format!("{} {:?} {:?}", dp.name, dp.features, dp.per_cpu_pids));
            for port in control.vports(dp.ifindex).await? {
                found.push(format!("{} {} {:?}", port.port_no, port.name, port.upcall_pids));
            }
            let flows = control.flows(dp.ifindex, |flow| format!("{:02x?}", flow.key)).await?;
            found.extend(flows);
        }
        anyhow::Ok(found)
    })??;
    all.extend(datapaths);
    all.sort();
    Ok(all)
}

fn builder() -> UpcalldBuilder {
    Upcalld::builder(DATAPATH)
}

/// Runs the daemon, which must end by itself with `status`, one line that has all of `words`, and
/// leave the namespace as it was.
fn refused(ns: &NetNs, builder: &UpcalldBuilder, status: i32, words: &[&str]) -> TestResult {
    let before = inventory(ns)?;
    let exit: Exit = builder.spawn(ns)?.wait_exit(SOON)?;
    says(exit.status.code(), &exit.log, status, words)?;
    ensure!(inventory(ns)? == before, "it left {:#?} of {before:#?}", inventory(ns)?);
    Ok(())
}

fn says(code: Option<i32>, log: &str, status: i32, words: &[&str]) -> TestResult {
    ensure!(code == Some(status), "exit status {code:?}, not {status}: {log}");
    ensure!(log.starts_with("upcalld: ") && log.trim_end().lines().count() == 1, "one line: {log}");
    for word in words {
        ensure!(log.contains(word), "no '{word}' in: {log}");
    }
    Ok(())
}

#[test]
fn an_interface_that_is_not_there() -> TestResult {
    for mode in modes() {
        let hosts = Hosts::new(2)?;
        let daemon = builder().ports(["p0", "p1", "p7"]).dispatch(mode);
        let words = ["'p7'", "no network interface", "ip link"];
        refused(&hosts.switch, &daemon, USAGE, &words)?;
    }
    Ok(())
}

#[test]
fn an_interface_of_another_datapath() -> TestResult {
    for mode in modes() {
        let hosts = Hosts::new(2)?;
        hosts.switch.block_on(async || {
            let control = Control::open().await?;
            let other = control.create_datapath("other", UserFeatures::UNALIGNED).await?;
            control.add_vport(&other, VportType::Netdev, "p1", None, 0).await.map(drop)
        })??;
        let daemon = builder().ports(["p0", "p1"]).dispatch(mode);
        let words = ["'p1'", "in use by datapath 'other'", "remove it there first"];
        refused(&hosts.switch, &daemon, CONFLICT, &words)?;
    }
    Ok(())
}

#[test]
fn an_interface_that_cannot_be_a_port() -> TestResult {
    let hosts = Hosts::new(1)?;
    let daemon = builder().ports(["p0", "lo"]);
    refused(&hosts.switch, &daemon, USAGE, &["'lo'", "loopback"])
}

#[test]
fn names_that_no_device_can_have() -> TestResult {
    let hosts = Hosts::new(1)?;
    let long = Upcalld::builder("sixteen-bytes-xx").port("p0");
    let words = ["'sixteen-bytes-xx'", "16 bytes, at most 15"];
    refused(&hosts.switch, &long, USAGE, &words)?;
    let slash = builder().port("p/0");
    refused(&hosts.switch, &slash, USAGE, &["'p/0'", "'/'"])
}

#[test]
fn a_datapath_name_that_another_device_has() -> TestResult {
    let hosts = Hosts::new(1)?;
    hosts.switch.links(async |links| links.add_veth(&Veth::new(DATAPATH, "peer")).await)?;
    let words = ["'dp0'", "network interface of that name", "--datapath"];
    refused(&hosts.switch, &builder().port("p0"), CONFLICT, &words)
}

#[test]
fn a_datapath_that_is_served() -> TestResult {
    for mode in modes() {
        if *mode == "per-cpu" && !since(6, 1) {
            let test = "a_datapath_that_is_served";
            skip_ok(test, "this kernel does not report the per-CPU table (before 6.1)");
            continue;
        }
        let hosts = Hosts::new(2)?;
        let first = builder().ports(hosts.ports()).dispatch(mode).start(&hosts.switch)?;
        let who = format!("upcalld (pid {})", first.pid());
        let words = ["'dp0'", "is served by", &who, "stop it first"];
        refused(&hosts.switch, &builder().ports(hosts.ports()), CONFLICT, &words)?;
        ensure!(first.stop()?.status.success(), "and the first one goes on unharmed");
    }
    Ok(())
}

#[test]
fn takeover_takes_a_served_datapath() -> TestResult {
    let hosts = Hosts::new(2)?;
    let first = builder().ports(hosts.ports()).arg("--keep").start(&hosts.switch)?;
    let second = builder().ports(hosts.ports()).arg("--takeover").start(&hosts.switch)?;
    let exit = second.stop()?;
    ensure!(exit.status.success(), "{}", exit.log);
    drop(first);
    Ok(())
}

#[test]
fn per_cpu_dispatch_where_there_is_none() -> TestResult {
    let hosts = Hosts::new(1)?;
    let daemon = builder().port("p0").dispatch("per-cpu");
    if has_per_cpu() {
        let exit = daemon.start(&hosts.switch)?.stop()?;
        ensure!(exit.status.success(), "{}", exit.log);
        return Ok(());
    }
    let words = ["per-CPU dispatch is not available", "5.15", "--dispatch auto"];
    refused(&hosts.switch, &daemon, UNSUPPORTED, &words)
}

/// Runs `upcalld run` with these arguments and without the testkit's own.
fn run(ns: &NetNs, adjust: impl FnOnce(&mut Command) + Send) -> anyhow::Result<Output> {
    let program = std::env::var_os(UPCALLD_BIN).context("UPCALLD_BIN names the binary")?;
    let mut command = Command::new(program);
    command.arg("run").stdin(Stdio::null()).env_remove("NOTIFY_SOCKET");
    adjust(&mut command);
    Ok(ns.run(|| command.output())??)
}

#[test]
fn no_privileges() -> TestResult {
    use std::os::unix::process::CommandExt as _;
    let program = std::env::var_os(UPCALLD_BIN).context("UPCALLD_BIN names the binary")?;
    let hosts = Hosts::new(1)?;
    // A place and a mode in which somebody else may execute it.
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let copy = directory.path().join("upcalld");
    fs::copy(&program, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    ensure!(fs::metadata(&copy)?.uid() == 0);
    let before = inventory(&hosts.switch)?;
    let output = hosts.switch.run(|| {
        let mut command = Command::new(&copy);
        command.args(["run", "--datapath", DATAPATH, "--port", "p0"]);
        command.uid(65534).gid(65534).stdin(Stdio::null()).env_remove("NOTIFY_SOCKET").output()
    })??;
    let log = String::from_utf8_lossy(&output.stderr);
    let words = ["not permitted", "create datapath 'dp0'", "CAP_NET_ADMIN"];
    says(output.status.code(), &log, PERMISSION, &words)?;
    ensure!(inventory(&hosts.switch)? == before);
    Ok(())
}

#[test]
fn a_configuration_that_is_missing_or_wrong() -> TestResult {
    let hosts = Hosts::new(1)?;
    let missing = builder().option("--config", "/no/such/file.toml");
    let words = ["/no/such/file.toml", "No such file"];
    refused(&hosts.switch, &missing, CONFIG, &words)?;
    let directory = tempfile::tempdir()?;
    let cases = [
        ("prots = ['p0']\n", ":1:1: ", "did you mean 'ports'?"),
        ("port = ['p0']\n", ":1:8: ", "did you mean 'ports'?"),
        ("datapath = 'dp0'\nworkers = -1\n", ":2:11: ", "invalid value"),
        ("datapath = 'dp0'\n\nmac_age = '5 parsecs'\n", ":3:11: ", "expected a duration"),
        ("datapath = 'dp0\n", ":1:", "string"),
    ];
    for (text, at, what) in cases {
        let file = directory.path().join("upcalld.toml");
        fs::write(&file, text)?;
        let name = file.display().to_string();
        let place = format!("{name}{at}");
        let daemon = builder().option("--config", &name);
        refused(&hosts.switch, &daemon, CONFIG, &[&place, what, "upcalld check-config"])?;
    }
    Ok(())
}

#[test]
fn flags_that_make_no_sense() -> TestResult {
    let hosts = Hosts::new(1)?;
    let cases: [(&[&str], &str); 5] = [
        (&[], "--datapath NAME"),
        (&["--datapath", "dp0", "--handler", "cross-connect"], "--cross-connect A=B"),
        (&["--datapath", "dp0", "--cross-connect", "a=b"], "--handler cross-connect"),
        (&["--datapath", "dp0", "--stats", "1ms"], "at least 10ms"),
        (&["--datapath", "dp0", "--mac-age", "1s"], "twice sweep_interval"),
    ];
    let before = inventory(&hosts.switch)?;
    for (flags, remedy) in cases {
        let output = run(&hosts.switch, |command| {
            command.args(flags);
        })?;
        let log = String::from_utf8_lossy(&output.stderr);
        says(output.status.code(), &log, USAGE, &[remedy])?;
    }
    // What the parser of the command line finds, it says in its own form, and with the same status.
    let output = run(&hosts.switch, |command| {
        command.args(["--workers", "0"]);
    })?;
    ensure!(output.status.code() == Some(USAGE), "{output:?}");
    ensure!(inventory(&hosts.switch)? == before);
    Ok(())
}

#[test]
fn a_kernel_without_the_module() {
    let reason = "the module is loaded here, and cannot be unloaded safely";
    skip_ok("a_kernel_without_the_module", reason);
}

#[test]
fn a_signal_during_the_start_is_served_after_it() -> TestResult {
    let hosts = Hosts::new(4)?;
    let before = inventory(&hosts.switch)?;
    // Whatever the moment: nothing of it stays, and it never hangs.
    for pause_us in [0u64, 2_000, 10_000, 30_000, 80_000] {
        let daemon = builder().ports(hosts.ports()).spawn(&hosts.switch)?;
        let begun = std::time::Instant::now();
        while begun.elapsed().as_micros() < u128::from(pause_us) {
            std::thread::yield_now();
        }
        daemon.signal(Signal::TERM)?;
        // Again, for those who cannot wait. It may have ended by then.
        let _ended = daemon.signal(Signal::TERM);
        let exit = daemon.wait_exit(SOON)?;
        // Before it listens to signals, one kills it; then it has made nothing yet.
        let killed = std::os::unix::process::ExitStatusExt::signal(&exit.status) == Some(15);
        ensure!(exit.status.success() || killed, "{}: {}", exit.status, exit.log);
        ensure!(inventory(&hosts.switch)? == before, "after {pause_us} us: {}", exit.log);
    }
    Ok(())
}
