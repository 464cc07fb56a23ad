//! Which tests share a guest, and what is in it.
//!
//! A test that is not like the others declares it beside them, in the `[package.metadata.guest]` of its package, as
//! `service = { debian = "systemd", kernels = "ends" }`. With `debian` it has a guest of its own kind, and no other
//! test waits for what it needs. With `kernels = "ends"` it is about the daemon and not about the kernel: of several
//! kernels it runs on the oldest and on the newest.

use crate::build::{self, Built, Kind, REAL_KERNEL_TESTS};
use crate::cmd::{self, say};
use crate::debian::Choice;
use crate::guest;
use crate::kernels::Origin;
use crate::libtest::{Case, Outcome};
use anyhow::{Context, Result, anyhow, bail};
use cargo_metadata::MetadataCommand;
use clap::ValueEnum as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tests of one guest.
#[derive(Debug, Clone)]
pub(super) struct Group {
    tests: Vec<Test>,
    /// These, and what they run: paths on this machine and in the guest.
    pub(super) files: Vec<(PathBuf, String)>,
    /// What it has of Debian.
    pub(super) choice: Choice,
    pub(super) debian: Option<PathBuf>,
    /// Why its tests cannot run.
    pub(super) lacks: Option<String>,
}

#[derive(Debug, Clone)]
struct Test {
    /// Of its binary, in the guest.
    path: String,
    kernels: Kernels,
}

/// On which of several kernels a test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kernels {
    #[default]
    All,
    /// The oldest and the newest.
    Ends,
}

/// What a test declares.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Declared {
    debian: Option<String>,
    kernels: Kernels,
}

impl Declared {
    /// What its guest has of Debian.
    fn choice(&self) -> Result<Choice> {
        let Some(name) = &self.debian else { return Ok(Choice::Tools) };
        Choice::from_str(name, false)
            .map_err(|_| anyhow!("debian = \"{name}\" is nothing that a guest can have"))
    }
}

/// Builds all test binaries and what they run, and gets what guests have of Debian. With a filter only
/// binaries that have a test of such a name.
pub(super) fn build(origin: &Origin, filter: Option<&str>, require: bool) -> Result<Vec<Group>> {
    let small = build::target_dir()?.join("stripped");
    let built = build::for_kernels(Some(build::MUSL))?;
    let (tests, programs): (Vec<_>, _) = built.into_iter().partition(|b| b.kind == Kind::Test);
    let mut products = Vec::new();
    for built in programs {
        let dir = if built.kind == Kind::Example { guest::EXAMPLES } else { "/bin" };
        products.push((build::stripped(&built.file, &small)?, format!("{dir}/{}", built.name)));
    }
    let mut groups = Vec::new();
    for (choice, tests) in by_choice(tests, &declared()?)? {
        let mut group = Group::new(choice, products.clone());
        for (built, kernels) in tests.into_iter().filter(|(b, _)| has_test(&b.file, filter)) {
            group.add(build::stripped(&built.file, &small)?, &built.name, kernels);
        }
        if !group.tests.is_empty() {
            group.furnish(origin, require)?;
            groups.push(group);
        }
    }
    Ok(groups)
}

/// What tests declare, by their names.
fn declared() -> Result<BTreeMap<String, Declared>> {
    let metadata = MetadataCommand::new().current_dir(cmd::workspace()).no_deps().exec();
    let metadata = metadata.context("cargo metadata")?;
    let package = metadata.packages.iter().find(|p| p.name.as_str() == REAL_KERNEL_TESTS);
    let package = package.with_context(|| format!("there is no package {REAL_KERNEL_TESTS}"))?;
    read(&package.metadata["guest"])
        .with_context(|| format!("{REAL_KERNEL_TESTS}, [package.metadata.guest]"))
}

fn read(table: &serde_json::Value) -> Result<BTreeMap<String, Declared>> {
    let entry = |(test, value): (&String, &serde_json::Value)| {
        let declared: Declared =
            serde_json::from_value(value.clone()).with_context(|| test.clone())?;
        declared.choice().with_context(|| test.clone())?;
        Ok((test.clone(), declared))
    };
    table.as_object().into_iter().flatten().map(entry).collect()
}

fn by_choice(
    tests: Vec<Built>,
    declared: &BTreeMap<String, Declared>,
) -> Result<BTreeMap<Choice, Vec<(Built, Kernels)>>> {
    if let Some(name) = declared.keys().find(|name| tests.iter().all(|test| test.name != **name)) {
        bail!("there is no test {name}, which {REAL_KERNEL_TESTS} declares things of");
    }
    let mut groups: BTreeMap<Choice, Vec<_>> = BTreeMap::new();
    for test in tests {
        let declared = declared.get(&test.name).cloned().unwrap_or_default();
        groups.entry(declared.choice()?).or_default().push((test, declared.kernels));
    }
    Ok(groups)
}

/// Asks the binary itself, which is static. One that cannot be asked is taken.
fn has_test(file: &Path, filter: Option<&str>) -> bool {
    let Some(filter) = filter else { return true };
    let mut list = Command::new(file);
    let listed = cmd::output(list.args(["--list", "--format", "terse", filter]));
    listed.map_or(true, |names| names.contains(": test"))
}

impl Group {
    fn new(choice: Choice, files: Vec<(PathBuf, String)>) -> Self {
        Self { tests: Vec::new(), files, choice, debian: None, lacks: None }
    }

    fn add(&mut self, file: PathBuf, name: &str, kernels: Kernels) {
        let path = format!("/bin/{name}");
        self.files.push((file, path.clone()));
        self.tests.push(Test { path, kernels });
    }

    /// Paths in the guest of the test binaries that run on a kernel, which may be an end of several.
    pub(super) fn tests(&self, at_end: bool) -> Vec<String> {
        let runs = |test: &&Test| at_end || test.kernels == Kernels::All;
        self.tests.iter().filter(runs).map(|test| test.path.clone()).collect()
    }

    /// Tests that share a guest can do without Debian, and say what they left out; those that declare what
    /// they need cannot.
    fn furnish(&mut self, origin: &Origin, require: bool) -> Result<()> {
        match self.choice.archive(origin) {
            Ok(archive) => self.debian = Some(archive),
            Err(e) if require => return Err(e.context("Debian's programs for the guests")),
            Err(e) => {
                say!("guests go without Debian's {:?}: {e:#}", self.choice);
                self.lacks = (self.choice != Choice::Tools).then(|| format!("{e:#}"));
            }
        }
        Ok(())
    }

    /// One for each binary: its tests are not known here.
    pub(super) fn skipped(tests: &[String], why: &str) -> Vec<Case> {
        let reason = why.lines().next().unwrap_or_default();
        let case = |test: &String| Case {
            name: format!("{}::(all)", test.trim_start_matches("/bin/")),
            outcome: Outcome::Skipped { reason: reason.to_owned(), by_design: false },
        };
        tests.iter().map(case).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtest::count;

    fn built(name: &str) -> Built {
        let (package, file) = (REAL_KERNEL_TESTS.to_owned(), PathBuf::from(name));
        Built { package, name: name.to_owned(), kind: Kind::Test, file }
    }

    #[test]
    fn a_test_that_declares_a_need_has_a_guest_of_its_kind() {
        let table = serde_json::json!({ "service": { "debian": "systemd" } });
        let tests = ["flows", "service", "plan"].map(built);
        let groups = by_choice(tests.into(), &read(&table).unwrap()).unwrap();
        let names: Vec<Vec<_>> =
            groups.values().map(|g| g.iter().map(|(b, _)| b.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["flows", "plan"], vec!["service"]]);
        assert!(read(&serde_json::Value::Null).unwrap().is_empty());
    }

    #[test]
    fn what_is_declared_wrong_is_told() {
        let told = |table| format!("{:#}", read(&table).unwrap_err());
        let err = told(serde_json::json!({ "service": { "debian": "sysv" } }));
        assert!(err.contains("service: debian = \"sysv\""), "{err}");
        let err = told(serde_json::json!({ "service": { "kernel": "ends" } }));
        assert!(err.contains("service: unknown field `kernel`"), "{err}");
        let gone = read(&serde_json::json!({ "gone": {} })).unwrap();
        let err = by_choice(vec![built("flows")], &gone).unwrap_err().to_string();
        assert!(err.contains("no test gone"), "{err}");
    }

    #[test]
    fn a_test_of_the_daemon_runs_on_the_oldest_and_the_newest_kernel() {
        let mut group = Group::new(Choice::Tools, Vec::new());
        group.add("/x/flows".into(), "flows", Kernels::All);
        group.add("/x/control".into(), "control", Kernels::Ends);
        assert_eq!(group.tests(true), ["/bin/flows", "/bin/control"]);
        assert_eq!(group.tests(false), ["/bin/flows"]);
    }

    #[test]
    fn a_need_that_cannot_be_met_is_an_unexpected_skip() {
        let cases = Group::skipped(&["/bin/service".to_owned()], "no archive\nmore");
        assert_eq!(count(&cases).skipped, 1);
        let skipped = Outcome::Skipped { reason: "no archive".into(), by_design: false };
        assert_eq!(cases, [Case { name: "service::(all)".into(), outcome: skipped }]);
    }
}
