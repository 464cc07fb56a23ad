//! A real systemd: PID 1 of namespaces of its own in the guest, with a network namespace of the test.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns_tests::SOON;
use upcall_testkit::{NetNs, wait::wait_for, wait_until};

/// What a boot mounts before its first program; the rest systemd does by itself. Its `/sys` shows the network
/// namespace that it is in.
const BOOT: &str = "\
mount -t sysfs sysfs /sys && mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -t tmpfs -o mode=0755 tmpfs /run &&
exec /usr/lib/systemd/systemd --unit=basic.target --show-status=no";
/// How long a boot may take.
const BOOT_TIMEOUT: Duration = SOON.saturating_mul(6);
/// A machine that knows its name boots not for the first time, when units are enabled by the dozen.
const MACHINE_ID: &str = "75706361 6c6c6475 70636c6c 64757063";

/// A machine within the guest, which ends with the value.
pub(crate) struct Machine {
    /// Ends all of it when it is killed.
    outside: Child,
    /// The process id of systemd as the guest sees it.
    init: u32,
}

impl Machine {
    /// Boots in a network namespace, up to where services can be started and journalled.
    pub(crate) fn boot(ns: &NetNs) -> Result<Self> {
        fs::write("/etc/machine-id", MACHINE_ID.replace(' ', "") + "\n")?;
        let mut command = Command::new("unshare");
        command.args(["--fork", "--kill-child", "--pid", "--mount-proc", "--uts", "--ipc"]);
        command.args(["/bin/sh", "-c", BOOT]);
        // By the interface of containers: systemd leaves the hardware alone.
        command.env("container", "test");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let outside = ns.run(|| command.spawn())?.context("cannot run unshare")?;
        let mut machine = Self { outside, init: 0 };
        machine.init = wait_for("a first process", SOON, || machine.first_process())?;
        let listens = || machine.path("/run/systemd/private").exists();
        wait_until("systemd to listen", BOOT_TIMEOUT, listens)?;
        machine.systemctl(&["start", "basic.target", "systemd-journald.service"])?;
        Ok(machine)
    }

    fn first_process(&self) -> Option<u32> {
        let id = self.outside.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// A file of the machine, as the guest sees it.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Runs a program in the machine.
    pub(crate) fn output(&self, program: &str, words: &[&str]) -> Result<Output> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--all", "--root", "--", program]);
        command.args(words.iter().map(OsStr::new)).stdin(Stdio::null());
        command.output().with_context(|| format!("cannot run {program}"))
    }

    /// What a program says that succeeds.
    pub(crate) fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let output = self.output(program, words)?;
        ensure!(output.status.success(), "{program} {words:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    pub(crate) fn systemctl(&self, words: &[&str]) -> Result<String> {
        self.run("systemctl", words)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended_already = self.outside.kill();
        let _nobody_to_tell = self.outside.wait();
    }
}
