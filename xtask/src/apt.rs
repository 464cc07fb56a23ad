//! apt with a root directory of its own below the cache: it resolves, verifies and downloads as on
//! any machine (the signature chain, from the archive's release file down to each package), but
//! sees another suite and changes nothing of the machine.

use crate::cmd::{self, say};
use crate::sources::{self, Archive, Source};
use crate::{cache, setup};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Debian installs it under one of these names; trixie renamed it.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// Finds the archive: what the user gave, else what the machine uses itself.
pub(crate) fn archive(given: Option<&str>) -> Result<Archive> {
    if let Some(uri) = given {
        return Ok(Archive::at(uri));
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = sources::os_release_field(&release, "VERSION_CODENAME").unwrap_or_default();
    let is_debian = sources::os_release_field(&release, "ID").as_deref() == Some("debian");
    is_debian.then(|| Archive::of_release(&machine_sources(), &codename)).flatten().context(
        "this machine's apt sources name no Debian archive of its own release: \
         give one with `--archive URL`, or your own kernel with `--kernel-dir DIR`",
    )
}

fn machine_sources() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let parse = |file: &PathBuf| -> Vec<Source> {
        let Ok(text) = fs::read_to_string(file) else { return Vec::new() };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => sources::parse_list(&text),
            Some("sources") => sources::parse_deb822(&text),
            _ => Vec::new(),
        }
    };
    files.iter().flat_map(parse).collect()
}

/// apt for one suite.
pub(crate) struct Apt {
    suite: String,
    root: PathBuf,
    config: PathBuf,
}

impl Apt {
    /// Writes the private root and fetches the suite's indexes.
    pub(crate) fn open(archive: &Archive, suite: &str) -> Result<Self> {
        setup::need_programs(&["apt-get", "apt-cache", "dpkg-deb"])?;
        let keyring = KEYRINGS.iter().find(|path| Path::new(path).exists()).with_context(|| {
            format!("{} is missing: install debian-archive-keyring", KEYRINGS[0])
        })?;
        let root = cache::root()?.join("apt").join(suite);
        for dir in ["state/lists/partial", "cache/archives/partial"] {
            cache::make_dir(&root.join(dir))?;
        }
        let apt = Self { suite: suite.to_owned(), config: root.join("apt.conf"), root };
        fs::write(apt.root.join("status"), "")?;
        fs::write(apt.root.join("sources.list"), source_lines(archive, suite, keyring))?;
        fs::write(&apt.config, config_text(&apt.root)?)?;
        apt.update()?;
        Ok(apt)
    }

    fn update(&self) -> Result<()> {
        say!("{}: fetching the package lists", self.suite);
        let mut command = self.command("apt-get");
        cmd::output(command.args(["-q", "--error-on=any", "update"])).with_context(|| {
            format!("the archive has no usable suite {}: try `--archive URL`", self.suite)
        })?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config).env("LC_ALL", "C");
        command
    }

    /// The control fields of the newest version of a package.
    pub(crate) fn show(&self, package: &str) -> Result<Control> {
        let text =
            cmd::output(self.command("apt-cache").args(["show", "--no-all-versions", package]))
                .with_context(|| format!("{} has no package {package}", self.suite))?;
        Ok(Control(text))
    }

    /// Downloads the newest version of each package into `into`.
    pub(crate) fn download(&self, packages: &[String], into: &Path) -> Result<()> {
        let mut command = self.command("apt-get");
        command.arg("download").args(packages).current_dir(into);
        self.fetch(&mut command, packages)
    }

    /// Downloads packages with all they depend on; gives the files.
    pub(crate) fn download_closure(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let mut command = self.command("apt-get");
        command.args(["install", "--download-only", "--no-install-recommends", "--yes"]);
        command.args(packages);
        self.fetch(&mut command, packages)?;
        packages_in(&self.root.join("cache/archives"))
    }

    /// Frees what has been unpacked.
    pub(crate) fn clean(&self) -> Result<()> {
        cmd::output(self.command("apt-get").arg("clean")).map(drop)
    }

    /// apt draws its own progress where a terminal is; elsewhere a line before and after.
    fn fetch<P: AsRef<str>>(&self, command: &mut Command, packages: &[P]) -> Result<()> {
        let names: Vec<&str> = packages.iter().map(AsRef::as_ref).collect();
        say!("{}: downloading {}", self.suite, names.join(" "));
        let begun = Instant::now();
        if std::io::stderr().is_terminal() {
            let status = command.stdin(Stdio::null()).stdout(std::io::stderr()).status();
            let status = status.with_context(|| format!("cannot start {}", cmd::shown(command)))?;
            if !status.success() {
                bail!("`{}` failed ({status})", cmd::shown(command));
            }
        } else {
            cmd::output(command.arg("-q"))?;
        }
        say!("{}: downloaded in {:.1} s", self.suite, begun.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Package files of a directory, by name.
pub(crate) fn packages_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "deb"))
        .collect();
    files.sort();
    Ok(files)
}

pub(crate) fn unpack(package: &Path, into: &Path) -> Result<()> {
    cmd::output(Command::new("dpkg-deb").arg("-x").arg(package).arg(into)).map(drop)
}

fn source_lines(archive: &Archive, suite: &str, keyring: &str) -> String {
    // A suite that is no longer updated keeps its last release file, which runs out one day.
    let options = format!("[signed-by={keyring} check-valid-until=no]");
    let mut text = format!("deb {options} {} {suite} main\n", archive.main);
    // The unstable suite gets its fixes directly.
    if let Some(security) = archive.security.as_ref().filter(|_| suite != "sid") {
        let _ = writeln!(text, "deb {options} {security} {suite}-security main");
    }
    text
}

/// The machine's configuration stays in force (a proxy, say); what would reach the machine does not.
fn config_text(root: &Path) -> Result<String> {
    let root = root.to_str().filter(|path| !path.contains('"')).with_context(|| {
        format!("apt cannot be given the path {}: set XDG_CACHE_HOME", root.display())
    })?;
    Ok(format!(
        r#"#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
APT::Architecture "amd64";
APT::Sandbox::User "root"; // the cache is its owner's alone: user _apt could not write there
APT::Get::AllowUnauthenticated "false"; // whatever the machine allows itself
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled "false";
Dir::State "{root}/state";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Cache::archives "{root}/cache/archives";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::preferences "/dev/null";
"#
    ))
}

/// The fields of one package, as apt prints them.
pub(crate) struct Control(pub(crate) String);

impl Control {
    fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// Names the package depends on, versions and alternatives left out.
    pub(crate) fn depends(&self) -> Vec<String> {
        let list = self.field("Depends").unwrap_or_default();
        let name = |part: &str| part.split_whitespace().next().map(str::to_owned);
        list.split(',').filter_map(name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_lose_their_versions() {
        let text = "Package: m\nVersion: 1\nDepends: a (= 1-1), b | c (>= 2), linux-image-6\n";
        assert_eq!(Control(text.into()).depends(), ["a", "b", "linux-image-6"]);
        assert!(Control("Package: m\n".into()).depends().is_empty());
    }

    #[test]
    fn only_the_suite_changes() {
        let archive = Archive::at("http://m.example/debian");
        let text = source_lines(&archive, "bullseye", "/k.gpg");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("http://m.example/debian bullseye main"), "{text}");
        assert!(lines[1].ends_with("/debian-security bullseye-security main"), "{text}");
        assert!(lines.iter().all(|line| line.contains("signed-by=/k.gpg")), "{text}");
        assert_eq!(source_lines(&archive, "sid", "/k.gpg").lines().count(), 1);
    }

    #[test]
    fn a_path_that_would_break_out_of_the_configuration_is_refused() {
        assert!(config_text(Path::new("/a\"b")).is_err());
    }
}
