//! Distribution kernels: which lines there are, the newest of each from the archive, the cache.
//!
//! No build number is written down anywhere: those vanish from the archive within weeks.

use crate::apt::{self, Apt};
use crate::cmd::say;
use crate::{cache, image, modules};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The package that always depends on the newest kernel of a suite. The cloud flavour has every
/// module we need, few drivers, and is half the size.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// A line of kernels the product is tested on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Line {
    /// No per-CPU dispatch: the fallback is real here.
    V5_10,
    V6_1,
    V6_12,
    /// Knows `OVS_PACKET_ATTR_UPCALL_PID`.
    V7,
}

impl Line {
    pub(crate) const ALL: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::V7];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7 => "7",
        }
    }

    /// Where to look, first to last.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Self::V5_10 => &["bullseye"],
            Self::V6_1 => &["bookworm"],
            Self::V6_12 => &["trixie"],
            Self::V7 => &["forky", "sid"],
        }
    }

    fn covers(self, release: &str) -> bool {
        release.strip_prefix(self.name()).is_some_and(|rest| rest.starts_with('.'))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Line {
    type Err = String;

    /// A line, or any release of it.
    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |line: &&Self| text == line.name() || line.covers(text);
        Self::ALL.iter().find(fits).copied().ok_or_else(|| {
            format!("kernel {text:?} is none of 5.10, 6.1, 6.12, 7 (or use --kernel-dir)")
        })
    }
}

/// `5.10,7`, or `all`.
pub(crate) fn parse_lines(text: &str) -> Result<Vec<Line>, String> {
    if text == "all" {
        return Ok(Line::ALL.to_vec());
    }
    let mut lines = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let line = part.parse()?;
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    Ok(lines)
}

/// A kernel ready to boot.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// What the user called it: a line, or `own`.
    pub(crate) name: String,
    /// As `uname -r` will say.
    pub(crate) release: String,
    /// What QEMU boots: an uncompressed vmlinux where we could get one, since unpacking it under
    /// emulation costs half a second of each boot.
    pub(crate) image: PathBuf,
    /// The tree below `lib/modules/<release>`.
    pub(crate) modules: PathBuf,
    /// Where unpacked modules are kept.
    pub(crate) unpacked: PathBuf,
}

/// Where kernels come from.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Origin {
    /// Address of a Debian archive, instead of the one in this machine's apt sources
    #[arg(long, value_name = "URL")]
    pub(crate) archive: Option<String>,
    /// A directory with a kernel of your own: `vmlinuz` (or `boot/vmlinuz-*`) and `lib/modules/*`
    #[arg(long, value_name = "DIR")]
    pub(crate) kernel_dir: Option<PathBuf>,
}

/// The kernel of a line, from the cache if it is there.
pub(crate) fn get(line: Line, origin: &Origin) -> Result<Kernel> {
    let dir = line_dir(line)?;
    if let Some(release) = newest_cached(&dir) {
        say!("kernel {line}: {release}, cached");
        return cached(line, &dir, &release);
    }
    let lock = cache::lock()?;
    // Another run may have been faster.
    if let Some(release) = newest_cached(&dir) {
        return cached(line, &dir, &release);
    }
    fetch_locked(line, origin, &lock)
}

/// The newest of a line, even when an older one is cached.
pub(crate) fn fetch(line: Line, origin: &Origin) -> Result<Kernel> {
    fetch_locked(line, origin, &cache::lock()?)
}

fn fetch_locked(line: Line, origin: &Origin, _lock: &File) -> Result<Kernel> {
    let archive = apt::archive(origin.archive.as_deref())?;
    let dir = line_dir(line)?;
    let mut seen = Vec::new();
    for suite in line.suites() {
        let apt = Apt::open(&archive, suite)?;
        let release = newest_release(&apt)?;
        if !line.covers(&release) {
            seen.push(format!("{suite} has {release}"));
            continue;
        }
        if dir.join(&release).join("vmlinuz").exists() {
            say!("kernel {line}: {release} is the newest, cached");
        } else {
            cache::fill_dir(&dir.join(&release), |draft| unpack_release(&apt, &release, draft))?;
        }
        return cached(line, &dir, &release);
    }
    bail!("no kernel of line {line} in the archive ({})", seen.join(", "))
}

fn line_dir(line: Line) -> Result<PathBuf> {
    Ok(cache::root()?.join("kernels").join(line.name()))
}

fn newest_cached(dir: &Path) -> Option<String> {
    let entries = fs::read_dir(dir).ok()?;
    let whole = entries.flatten().filter(|entry| entry.path().join("vmlinuz").exists());
    let mut names: Vec<String> =
        whole.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_by_key(|name| version_key(name));
    names.pop()
}

/// The numbers of a release, for comparing: 6.12.9 is older than 6.12.10.
fn version_key(release: &str) -> Vec<u64> {
    let numbers = release.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    numbers.map(|part| part.parse().unwrap_or(u64::MAX)).collect()
}

fn newest_release(apt: &Apt) -> Result<String> {
    let depends = apt.show(METAPACKAGE)?.depends();
    let release = |name: &String| {
        let release = name.strip_prefix("linux-image-")?;
        release.starts_with(|c: char| c.is_ascii_digit()).then(|| release.to_owned())
    };
    depends
        .iter()
        .find_map(release)
        .with_context(|| format!("{METAPACKAGE} depends on no kernel image: {depends:?}"))
}

/// Newer suites split image and modules into packages of their own.
fn unpack_release(apt: &Apt, release: &str, draft: &Path) -> Result<()> {
    let image = format!("linux-image-{release}");
    let parts = ["linux-binary-", "linux-modules-"].map(|prefix| format!("{prefix}{release}"));
    let mut packages = apt.show(&image)?.depends();
    packages.retain(|name| parts.contains(name));
    packages.push(image);
    let (packed, tree) = (draft.join("packed"), draft.join("tree"));
    cache::make_dir(&packed)?;
    apt.download(&packages, &packed)?;
    for package in apt::packages_in(&packed)? {
        apt::unpack(&package, &tree)?;
    }
    let (vmlinuz, modules, _) = find_kernel(&tree)?;
    fs::rename(vmlinuz, draft.join("vmlinuz"))?;
    fs::rename(modules, draft.join("modules"))?;
    fs::remove_dir_all(packed)?;
    fs::remove_dir_all(tree)?;
    Ok(())
}

fn cached(line: Line, dir: &Path, release: &str) -> Result<Kernel> {
    let dir = dir.join(release);
    prepared(line.name(), release, &dir.join("vmlinuz"), dir.join("modules"), &dir)
}

fn prepared(
    name: &str,
    release: &str,
    vmlinuz: &Path,
    modules: PathBuf,
    keep: &Path,
) -> Result<Kernel> {
    Ok(Kernel {
        name: name.to_owned(),
        release: release.to_owned(),
        image: image::bootable(vmlinuz, &keep.join("vmlinux"))?,
        modules,
        unpacked: keep.join("ko"),
    })
}

/// A kernel of the user's own.
pub(crate) fn own(dir: &Path) -> Result<Kernel> {
    let (vmlinuz, modules, release) = find_kernel(dir)?;
    let keep = cache::root()?.join("own").join(&release);
    // The user may build the same release again and again: keep nothing from last time.
    let _ = fs::remove_dir_all(&keep);
    cache::make_dir(&keep)?;
    prepared("own", &release, &vmlinuz, modules, &keep)
}

/// Image, module tree and release below a directory laid out like a root file system.
fn find_kernel(dir: &Path) -> Result<(PathBuf, PathBuf, String)> {
    let trees = ["usr/lib/modules", "lib/modules"].map(|sub| dir.join(sub));
    let holds_modules = |path: &PathBuf| path.join("kernel").is_dir();
    let modules = trees
        .iter()
        .flat_map(|tree| fs::read_dir(tree).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .find(holds_modules)
        .with_context(|| format!("{} has no lib/modules/RELEASE/kernel", dir.display()))?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names = ["vmlinuz", "vmlinux", "bzImage"].map(|name| dir.join(name));
    let in_boot = dir.join("boot").join(format!("vmlinuz-{release}"));
    let in_tree = modules.join("vmlinuz");
    let vmlinuz = [in_boot, in_tree].into_iter().chain(names).find(|path| path.is_file());
    let vmlinuz = vmlinuz.with_context(|| {
        format!("{} has no vmlinuz, vmlinux, bzImage or boot/vmlinuz-{release}", dir.display())
    })?;
    Ok((vmlinuz, modules, release))
}

impl Kernel {
    /// The modules a guest loads, dependencies first.
    pub(crate) fn load_order(&self) -> Result<Vec<modules::Loadable>> {
        modules::load_order(&self.modules, &self.unpacked)
            .with_context(|| format!("kernel {}", self.release))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_named_by_itself_or_any_release_of_it() {
        assert_eq!("6.1".parse(), Ok(Line::V6_1));
        assert_eq!("6.1.170-1-cloud".parse(), Ok(Line::V6_1));
        assert_eq!("6.12".parse(), Ok(Line::V6_12));
        assert_eq!("7.2.13".parse(), Ok(Line::V7));
        assert!("6.2".parse::<Line>().is_err());
        assert!("".parse::<Line>().is_err());
    }

    #[test]
    fn lists_of_lines() {
        assert_eq!(parse_lines("all").unwrap(), Line::ALL);
        assert_eq!(parse_lines("7, 5.10,7").unwrap(), [Line::V7, Line::V5_10]);
        assert!(parse_lines("7,x").unwrap_err().contains("\"x\""));
    }

    #[test]
    fn releases_compare_as_numbers() {
        let mut names = ["6.12.107+deb13", "6.12.9+deb13", "6.12.10+deb13"];
        names.sort_by_key(|name| version_key(name));
        assert_eq!(names, ["6.12.9+deb13", "6.12.10+deb13", "6.12.107+deb13"]);
    }

    #[test]
    fn a_kernel_dir_is_laid_out_like_a_root() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find_kernel(dir.path()).unwrap_err().to_string().contains("lib/modules"));
        fs::create_dir_all(dir.path().join("lib/modules/9.9/kernel")).unwrap();
        assert!(find_kernel(dir.path()).unwrap_err().to_string().contains("boot/vmlinuz-9.9"));
        fs::write(dir.path().join("vmlinuz"), "").unwrap();
        assert_eq!(find_kernel(dir.path()).unwrap().2, "9.9");
    }
}
