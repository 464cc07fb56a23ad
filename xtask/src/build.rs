//! Static binaries for the guest, built by the cargo that runs us.

use crate::cache;
use crate::cmd;
use anyhow::{Context, Result, bail};
use cargo_metadata::{Artifact, Message, TargetKind};
use std::ffi::OsString;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Everything that runs in a guest is built for this target: static, one file.
pub(crate) const MUSL: &str = "x86_64-unknown-linux-musl";

/// The package whose tests need a real kernel.
pub(crate) const REAL_KERNEL_TESTS: &str = "netns-tests";

/// A program that was built.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    pub(crate) package: String,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Program,
    Example,
    Test,
}

pub(crate) fn rustc() -> OsString {
    std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// The profile of everything that runs on a real kernel, here or in a guest: one for programs and
/// tests, so that what they share is built once; without LTO, which takes minutes; with checks.
const PROFILE: [&str; 2] = ["--profile", "kernel"];

/// Binaries of packages, static for a guest.
pub(crate) fn guest_binaries(packages: &[&str]) -> Result<Vec<Built>> {
    binaries(packages, Some(MUSL))
}

/// Binaries of packages, for `target` or this machine.
pub(crate) fn binaries(packages: &[&str], target: Option<&str>) -> Result<Vec<Built>> {
    let mut command = cmd::cargo();
    command.args(["build", "--bins"]).args(PROFILE);
    for package in packages {
        command.args(["--package", package]);
    }
    executables(command, target)
}

/// The tests of real kernels, and the daemon and the library's examples that they run, for `target` or this
/// machine, by their names. In one build: what they share would be built again with other features.
pub(crate) fn for_kernels(target: Option<&str>) -> Result<Vec<Built>> {
    let mut command = cmd::cargo();
    command.arg("build").args(PROFILE).args(["--bins", "--examples", "--test", "*"]);
    for package in ["upcalld", "upcall", REAL_KERNEL_TESTS] {
        command.args(["--package", package]);
    }
    let mut built = executables(command, target)?;
    built.retain(|built| built.kind != Kind::Test || built.package == REAL_KERNEL_TESTS);
    Ok(built)
}

/// What is measured, as users get it, static for a guest.
pub(crate) fn release_binaries() -> Result<Vec<Built>> {
    executables(release_command(cmd::cargo()), Some(MUSL))
}

/// Begins to build the same in what time others leave: they do not notice, and whoever asks for it waits for less.
/// `None` where nothing can be run so.
pub(crate) fn release_ahead() -> Option<Child> {
    let mut command = Command::new(cmd::find("chrt")?);
    command.args(["--idle", "0"]).arg(cmd::cargo().get_program()).current_dir(cmd::workspace());
    let mut command = release_command(command);
    command.args(["--quiet", "--target", MUSL]);
    // What is wrong with it is told when it is asked for.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
}

fn release_command(mut cargo: Command) -> Command {
    cargo.args(["build", "--bins", "--release", "--package", "upcalld", "--package", "bench"]);
    cargo
}

/// Runs a cargo command that builds, and gives the programs it made.
pub(crate) fn executables(mut command: Command, target: Option<&str>) -> Result<Vec<Built>> {
    command.args(["--quiet", "--message-format=json-render-diagnostics"]);
    if let Some(target) = target {
        command.args(["--target", target]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", cmd::shown(&command)))?;
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    let mut built = Vec::new();
    for message in Message::parse_stream(BufReader::new(stdout)) {
        if let Message::CompilerArtifact(artifact) = message? {
            built.extend(executable(artifact));
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed ({status})", cmd::shown(&command));
    }
    built.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(built)
}

fn executable(artifact: Artifact) -> Option<Built> {
    let file = artifact.executable?.into_std_path_buf();
    let kinds = &artifact.target.kind;
    let kind = if kinds.contains(&TargetKind::Example) {
        Kind::Example
    } else if artifact.profile.test {
        Kind::Test
    } else if kinds.contains(&TargetKind::Bin) {
        Kind::Program
    } else {
        return None;
    };
    // `path+file:///…/tests/netns#netns-tests@0.1.0`, or `…/crates/upcalld#0.1.0`.
    let id = artifact.package_id.repr;
    let (path, fragment) = id.rsplit_once('#')?;
    let package = fragment.split_once('@').map_or_else(
        || path.rsplit('/').next().unwrap_or_default().to_owned(),
        |(name, _)| name.to_owned(),
    );
    Some(Built { package, name: artifact.target.name, kind, file })
}

/// A copy without debug information, for the initramfs; the file itself where `strip` is missing.
pub(crate) fn stripped(file: &Path, into: &Path) -> Result<PathBuf> {
    let Some(strip) = cmd::find("strip") else { return Ok(file.to_owned()) };
    cache::make_dir(into)?;
    let target = into.join(file.file_name().context("a program has a name")?);
    // Another run may be reading the last one's copy.
    let draft = target.with_extension(std::process::id().to_string());
    cmd::output(Command::new(strip).arg("--strip-debug").arg("-o").arg(&draft).arg(file))?;
    std::fs::rename(&draft, &target)?;
    Ok(target)
}

/// Where results of ours go, below cargo's target directory.
pub(crate) fn target_dir() -> Result<PathBuf> {
    // xtask itself runs from there: target/PROFILE/xtask.
    let program = std::env::current_exe().context("where am I?")?;
    let target = program.ancestors().nth(2).context("a program is below target/PROFILE")?;
    let dir = target.join("xtask");
    cache::make_dir(&dir)?;
    Ok(dir)
}
