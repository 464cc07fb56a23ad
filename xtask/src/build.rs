//! Static binaries for the guest, built by the cargo that runs us.

use crate::cache;
use crate::cmd;
use anyhow::{Context, Result, bail};
use cargo_metadata::{Artifact, Message, TargetKind};
use std::ffi::OsString;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Everything that runs in a guest is built for this target: static, one file.
pub(crate) const MUSL: &str = "x86_64-unknown-linux-musl";

/// A program that was built.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    pub(crate) package: String,
    pub(crate) name: String,
    pub(crate) is_example: bool,
    pub(crate) file: PathBuf,
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

/// The daemon and the library's examples, for `target` or this machine: what tests run. In one build,
/// because what they share is then built once.
pub(crate) fn products(target: Option<&str>) -> Result<Vec<Built>> {
    let mut command = cmd::cargo();
    command.args(["build", "--bins", "--examples", "--package", "upcalld", "--package", "upcall"]);
    command.args(PROFILE);
    executables(command, target)
}

/// Binaries of packages as users get them, static for a guest: what is measured.
pub(crate) fn release_binaries(packages: &[&str]) -> Result<Vec<Built>> {
    let mut command = cmd::cargo();
    command.args(["build", "--bins", "--release"]);
    for package in packages {
        command.args(["--package", package]);
    }
    executables(command, Some(MUSL))
}

/// The test binaries of a package, in the order of their names.
pub(crate) fn tests(package: &str, target: Option<&str>) -> Result<Vec<Built>> {
    let mut command = cmd::cargo();
    command.args(["test", "--no-run", "--package", package]).args(PROFILE);
    executables(command, target)
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
    // Beside each integration test cargo also builds the package's programs.
    let is_example = artifact.target.kind.contains(&TargetKind::Example);
    let is_program = is_example || artifact.target.kind.contains(&TargetKind::Bin);
    let wanted = artifact.profile.test || is_program;
    // `path+file:///…/tests/netns#netns-tests@0.1.0`, or `…/crates/upcalld#0.1.0`.
    let id = artifact.package_id.repr;
    let (path, fragment) = id.rsplit_once('#')?;
    let package = fragment.split_once('@').map_or_else(
        || path.rsplit('/').next().unwrap_or_default().to_owned(),
        |(name, _)| name.to_owned(),
    );
    wanted.then_some(Built { package, name: artifact.target.name, is_example, file })
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
