//! The guard of the daemon, with a stand-in for the daemon: this very test binary, started again with
//! [`FAKE`] set. Needs root, not Open vSwitch.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy takes for product code")]

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use upcall_testkit::daemon::UpcalldBuilder;
use upcall_testkit::{Error, NetNs, Upcalld, skip_unless_root, wait_until};

/// Says how the stand-in behaves.
const FAKE: &str = "UPCALL_TESTKIT_FAKE";
const SOON: Duration = Duration::from_secs(10);

/// The stand-in; without the variable it is an empty test.
#[test]
fn fake_upcalld() {
    let Ok(behaviour) = std::env::var(FAKE) else { return };
    eprintln!("INFO arguments {:?}", std::env::args().skip(5).collect::<Vec<_>>());
    eprintln!("INFO namespace {}", NetNs::current().unwrap().id().unwrap());
    match behaviour.as_str() {
        "good" => good(),
        "deaf" => loop {
            std::thread::park();
        },
        _ => {
            eprintln!("ERROR the kernel has no openvswitch module");
            std::process::exit(3);
        }
    }
}

fn good() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).unwrap();
        let notify = UnixDatagram::unbound().unwrap();
        let path = std::env::var_os("NOTIFY_SOCKET").unwrap();
        // More than a socket's queue holds: the guard must read them all.
        for _ in 0..100 {
            notify.send_to(b"STATUS=starting", &path).unwrap();
        }
        notify.send_to(b"READY=1\nSTATUS=ready", &path).unwrap();
        println!("\n{{\"sockets\":2,\"upcalls_received\":5}}");
        term.recv().await;
        println!("{{\"final\":true,\"sockets\":2,\"upcalls_received\":9}}");
        std::process::exit(0);
    });
}

fn fake(behaviour: &str) -> UpcalldBuilder {
    let exe = std::env::current_exe().unwrap().into_os_string().into_string().unwrap();
    Upcalld::builder("dp0")
        .launcher([exe.as_str(), "--exact", "fake_upcalld", "--nocapture", "--"])
        .program("upcalld")
        .env(FAKE, behaviour)
        .stats(Duration::from_millis(500))
}

#[test]
fn a_daemon_is_started_inside_watched_and_stopped() {
    if skip_unless_root("a_daemon_is_started_inside_watched_and_stopped") {
        return;
    }
    let ns = NetNs::new("switch").unwrap();
    let mut daemon = fake("good").ports(["p0", "p1"]).dispatch("auto").start(&ns).unwrap();
    assert!(daemon.is_running());
    let line = daemon.wait_log("INFO namespace", SOON).unwrap();
    assert_eq!(line, format!("INFO namespace {}", ns.id().unwrap()));
    let arguments = [
        "run",
        "--datapath",
        "dp0",
        "--stats",
        "500ms",
        "--port",
        "p0",
        "--port",
        "p1",
        "--dispatch",
        "auto",
    ];
    // Behind them comes the control socket, in a directory of its own.
    let shown = format!("{arguments:?}");
    assert!(daemon.log().contains(shown.trim_matches(['[', ']'])), "{}", daemon.log());
    assert_eq!(daemon.control().file_name(), Some("ctl".as_ref()));
    let stats = daemon.wait_stats("five upcalls", SOON, |s| s.upcalls_received == 5).unwrap();
    assert!(!stats.final_line);
    let exit = daemon.stop().unwrap();
    assert!(exit.status.success());
    let last = exit.stats.unwrap();
    assert!(last.final_line && last.upcalls_received == 9);
}

#[test]
fn a_daemon_that_dies_passes_its_own_words_on() {
    if skip_unless_root("a_daemon_that_dies_passes_its_own_words_on") {
        return;
    }
    let ns = NetNs::new("switch").unwrap();
    let error = fake("bad").start(&ns).unwrap_err().to_string();
    assert!(error.starts_with("upcalld ended with exit status: 3 before it was ready"), "{error}");
    assert!(error.contains("ERROR the kernel has no openvswitch module"), "{error}");
    let exit = fake("bad").spawn(&ns).unwrap().wait_exit(SOON).unwrap();
    assert_eq!((exit.status.code(), exit.stats), (Some(3), None));
}

#[test]
fn a_silent_daemon_is_given_up_and_a_dropped_one_is_gone() {
    if skip_unless_root("a_silent_daemon_is_given_up_and_a_dropped_one_is_gone") {
        return;
    }
    let ns = NetNs::new("switch").unwrap();
    let mut daemon = fake("deaf").spawn(&ns).unwrap();
    let error = daemon.wait_ready(Duration::from_millis(50)).unwrap_err().to_string();
    assert!(error.starts_with("upcalld was not ready after 50ms"), "{error}");
    let process = format!("/proc/{}", daemon.pid());
    assert!(std::fs::exists(&process).unwrap());
    drop(daemon);
    wait_until("its end", SOON, || !std::fs::exists(&process).unwrap()).unwrap();
    let exit = fake("deaf").spawn(&ns).unwrap().stop().unwrap();
    assert_eq!(exit.status.signal(), Some(15));
}

#[test]
fn a_missing_binary_is_named() {
    if skip_unless_root("a_missing_binary_is_named") {
        return;
    }
    let ns = NetNs::new("switch").unwrap();
    let error = Upcalld::builder("dp0").program("/nonexistent/upcalld").start(&ns).unwrap_err();
    assert!(matches!(error, Error::System { .. }));
    let error = error.to_string();
    assert!(error.starts_with("cannot execute /nonexistent/upcalld: No such file"), "{error}");
}
