//! Which tests share a guest, and what is in it.
//!
//! A test that needs more than the others declares it beside them, in the `[package.metadata.guest]` of its
//! package: `service = "systemd"`. It then has a guest of its own kind, and no other test waits for what it needs.

use super::REAL_KERNEL_PACKAGE;
use crate::build::{self, Built};
use crate::cmd::{self, say};
use crate::debian::Choice;
use crate::guest;
use crate::kernels::Origin;
use crate::libtest::{Case, Outcome};
use anyhow::{Context, Result, anyhow};
use cargo_metadata::MetadataCommand;
use clap::ValueEnum as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tests of one guest.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// Paths of the test binaries in the guest.
    pub(super) tests: Vec<String>,
    /// These, and what they run: paths on this machine and in the guest.
    pub(super) files: Vec<(PathBuf, String)>,
    /// What it has of Debian.
    pub(super) choice: Choice,
    pub(super) debian: Option<PathBuf>,
    /// Why its tests cannot run.
    pub(super) lacks: Option<String>,
}

/// Builds all test binaries and what they run, and gets what guests have of Debian. With a filter only
/// binaries that have a test of such a name.
pub(super) fn build(origin: &Origin, filter: Option<&str>, require: bool) -> Result<Vec<Group>> {
    let small = build::target_dir()?.join("stripped");
    let mut products = Vec::new();
    for built in build::products(Some(build::MUSL))? {
        let dir = if built.is_example { guest::EXAMPLES } else { "/bin" };
        products.push((build::stripped(&built.file, &small)?, format!("{dir}/{}", built.name)));
    }
    let mut tests = build::tests(REAL_KERNEL_PACKAGE, Some(build::MUSL))?;
    tests.retain(|built| built.package == REAL_KERNEL_PACKAGE && has_test(&built.file, filter));
    tests.dedup_by(|a, b| a.name == b.name);
    let mut groups = Vec::new();
    for (choice, tests) in by_choice(tests, &declared()?) {
        let mut group = Group::new(choice, products.clone());
        for built in tests {
            group.add(build::stripped(&built.file, &small)?, &built.name);
        }
        group.furnish(origin, require)?;
        groups.push(group);
    }
    Ok(groups)
}

/// What tests declare that they need, by their names.
fn declared() -> Result<BTreeMap<String, Choice>> {
    let metadata = MetadataCommand::new().current_dir(cmd::workspace()).no_deps().exec();
    let metadata = metadata.context("cargo metadata")?;
    let package = metadata.packages.iter().find(|p| p.name.as_str() == REAL_KERNEL_PACKAGE);
    let package = package.with_context(|| format!("there is no package {REAL_KERNEL_PACKAGE}"))?;
    needs(&package.metadata["guest"])
}

fn needs(table: &serde_json::Value) -> Result<BTreeMap<String, Choice>> {
    let entry = |(test, need): (&String, &serde_json::Value)| {
        let choice = Choice::from_str(need.as_str().unwrap_or_default(), false);
        let choice = choice.map_err(|_| anyhow!("{REAL_KERNEL_PACKAGE}, [package.metadata.guest]: {test} = {need} is nothing that a guest can have"))?;
        Ok((test.clone(), choice))
    };
    table.as_object().into_iter().flatten().map(entry).collect()
}

fn by_choice(
    tests: Vec<Built>,
    declared: &BTreeMap<String, Choice>,
) -> BTreeMap<Choice, Vec<Built>> {
    let mut groups: BTreeMap<Choice, Vec<Built>> = BTreeMap::new();
    for test in tests {
        let choice = declared.get(&test.name).copied().unwrap_or(Choice::Tools);
        groups.entry(choice).or_default().push(test);
    }
    groups
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

    fn add(&mut self, file: PathBuf, name: &str) {
        let path = format!("/bin/{name}");
        self.files.push((file, path.clone()));
        self.tests.push(path);
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
    pub(super) fn skipped(&self, why: &str) -> Vec<Case> {
        let reason = why.lines().next().unwrap_or_default();
        let case = |test: &String| Case {
            name: format!("{}::(all)", test.trim_start_matches("/bin/")),
            outcome: Outcome::Skipped { reason: reason.to_owned(), by_design: false },
        };
        self.tests.iter().map(case).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtest::count;

    fn built(name: &str) -> Built {
        let (package, file) = (REAL_KERNEL_PACKAGE.to_owned(), PathBuf::from(name));
        Built { package, name: name.to_owned(), is_example: false, file }
    }

    #[test]
    fn a_test_that_declares_a_need_has_a_guest_of_its_kind() {
        let table = serde_json::json!({ "service": "systemd" });
        let groups =
            by_choice(["flows", "service", "plan"].map(built).into(), &needs(&table).unwrap());
        let names: Vec<Vec<_>> =
            groups.values().map(|g| g.iter().map(|b| b.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["flows", "plan"], vec!["service"]]);
        assert!(needs(&serde_json::Value::Null).unwrap().is_empty());
        let err = needs(&serde_json::json!({ "service": "sysv" })).unwrap_err().to_string();
        assert!(err.contains("service = \"sysv\""), "{err}");
    }

    #[test]
    fn a_need_that_cannot_be_met_is_an_unexpected_skip() {
        let mut group = Group::new(Choice::Systemd, Vec::new());
        group.add("/x/service".into(), "service");
        let cases = group.skipped("no archive\nmore");
        assert_eq!(count(&cases).skipped, 1);
        let skipped = Outcome::Skipped { reason: "no archive".into(), by_design: false };
        assert_eq!(cases, [Case { name: "service::(all)".into(), outcome: skipped }]);
    }
}
