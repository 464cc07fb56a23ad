//! `cargo xtask tidy`: the rules of the house that no compiler checks.
//!
//! Each rule takes text or names and gives findings, so that a test can show that it can fail.

mod arrows;
mod map;
mod text;

use crate::cmd;
use anyhow::{Context, Result};
use cargo_metadata::{Metadata, MetadataCommand, Package};
use std::fs;
use std::path::{Path, PathBuf};

/// One violation, as it is printed: where, what, and what to do.
pub(crate) type Finding = String;

/// Gives the number of findings as an exit status.
pub(crate) fn run() -> Result<i32> {
    let metadata = MetadataCommand::new()
        .current_dir(cmd::workspace())
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    let findings = findings(&metadata)?;
    for finding in &findings {
        println!("tidy: {finding}");
    }
    if findings.is_empty() {
        println!("tidy: {} packages in order", metadata.packages.len());
    }
    Ok(i32::from(!findings.is_empty()))
}

fn findings(metadata: &Metadata) -> Result<Vec<Finding>> {
    let mut all = arrows::check(&arrows::edges(metadata));
    let root = metadata.workspace_root.as_std_path();
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap_or_default();
    let members: Vec<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    all.extend(map::unmentioned(&architecture, &members));
    all.extend(map::broken_invariants(&architecture, &|path| {
        fs::read_to_string(root.join(path)).ok()
    }));
    for package in &metadata.packages {
        all.extend(check_package(root, package)?);
    }
    Ok(all)
}

fn check_package(root: &Path, package: &Package) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let dir = package.manifest_path.parent().context("a manifest has a directory")?;
    for entry in ["src/lib.rs", "src/main.rs"].map(|path| dir.join(path)) {
        if let Ok(content) = fs::read_to_string(&entry) {
            found.extend(text::refusal(&shown(root, entry.as_std_path()), &content));
            break;
        }
    }
    for file in rust_files(dir.as_std_path())? {
        let content =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = shown(root, &file);
        found.extend(text::length(&name, &content));
        found.extend(text::leftovers(&name, &content));
        found.extend(text::unsafe_code(&name, &content));
    }
    Ok(found)
}

fn shown(root: &Path, file: &Path) -> String {
    file.strip_prefix(root).unwrap_or(file).display().to_string()
}

/// Rust files of one package; a directory with a manifest of its own is another package.
fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                let other = path.join("Cargo.toml").exists() || path.ends_with("target");
                if !other {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
