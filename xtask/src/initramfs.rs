//! The guest's root file system: a newc archive, uncompressed, since unpacking under emulation costs
//! more than reading.

use anyhow::{Context, Result};
use cpio::newc;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// As on any merged-usr distribution, whose loader and scripts name the short paths.
const USR_LINKS: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Writes one archive; the kernel unpacks several in a row.
pub(crate) struct Archive<W: Write> {
    out: W,
    dirs: BTreeSet<String>,
    inode: u32,
}

impl Archive<BufWriter<File>> {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self::new(BufWriter::new(file)))
    }
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, dirs: BTreeSet::new(), inode: 0 }
    }

    /// The skeleton that a first program needs before it has mounted anything.
    pub(crate) fn skeleton(&mut self) -> Result<()> {
        for name in USR_LINKS {
            self.dir(&format!("usr/{name}"))?;
            self.link(name, &format!("usr/{name}"))?;
        }
        for dir in ["dev", "proc", "sys", "tmp", "run", "root", "etc", "var/log", "var/lib"] {
            self.dir(dir)?;
        }
        let (major, minor) = (5, 1);
        let console = self.header("dev/console", S_IFCHR | 0o600);
        self.entry(console.rdev_major(major).rdev_minor(minor), &[])
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        let header = self.header(path.trim_start_matches('/'), S_IFREG | mode);
        self.entry(header, content)
    }

    /// A file of this machine, with its own permission bits.
    pub(crate) fn copy(&mut self, from: &Path, path: &str) -> Result<()> {
        let what = || format!("cannot read {}", from.display());
        let mode = fs::metadata(from).with_context(what)?.permissions().mode() & 0o7777;
        self.file(path, mode, &fs::read(from).with_context(what)?)
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.parents(path)?;
        let header = self.header(path.trim_start_matches('/'), S_IFLNK | 0o777);
        self.entry(header, target.as_bytes())
    }

    pub(crate) fn dir(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        if !self.dirs.insert(path.to_owned()) {
            return Ok(());
        }
        let header = self.header(path, S_IFDIR | 0o755);
        self.entry(header, &[])
    }

    /// The whole tree below `root`, in a stable order; `keep` is asked with each relative path.
    pub(crate) fn tree(&mut self, root: &Path, keep: &dyn Fn(&str) -> bool) -> Result<()> {
        let mut pending = vec![root.to_owned()];
        while let Some(dir) = pending.pop() {
            let mut paths: Vec<_> = fs::read_dir(&dir)
                .with_context(|| format!("cannot read {}", dir.display()))?
                .flatten()
                .map(|entry| entry.path())
                .collect();
            paths.sort();
            for path in paths {
                let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
                // A short path of an older package would replace the link of the skeleton.
                if USR_LINKS.contains(&&*relative) || !keep(&relative) {
                    continue;
                }
                let kind = fs::symlink_metadata(&path)?.file_type();
                if kind.is_dir() {
                    self.dir(&relative)?;
                    pending.push(path);
                } else if kind.is_symlink() {
                    self.link(&relative, &fs::read_link(&path)?.to_string_lossy())?;
                } else if kind.is_file() {
                    self.copy(&path, &relative)?;
                }
            }
        }
        Ok(())
    }

    /// Appends an archive made before.
    pub(crate) fn finish(self, more: Option<&Path>) -> Result<()> {
        let mut out = newc::trailer(self.out)?;
        if let Some(more) = more {
            let mut file =
                File::open(more).with_context(|| format!("cannot read {}", more.display()))?;
            io::copy(&mut file, &mut out)?;
        }
        out.flush()?;
        Ok(())
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.trim_matches('/').rsplit_once('/') {
            // A parent that is one of the links is there already, below usr.
            Some((parent, _)) if !USR_LINKS.contains(&parent) => self.dir(parent),
            _ => Ok(()),
        }
    }

    fn header(&mut self, path: &str, mode: u32) -> newc::Builder {
        self.inode += 1;
        newc::Builder::new(path).ino(self.inode).mode(mode).nlink(1)
    }

    fn entry(&mut self, header: newc::Builder, content: &[u8]) -> Result<()> {
        let length = u32::try_from(content.len()).context("a file of over 4 GiB")?;
        let mut writer = header.write(&mut self.out, length);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(bytes: &[u8]) -> Vec<(String, u32, u32)> {
        let mut found = Vec::new();
        let mut input = bytes;
        loop {
            let mut reader = newc::Reader::new(input).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                return found;
            }
            found.push((entry.name().to_owned(), entry.mode(), entry.file_size()));
            io::copy(&mut reader, &mut io::sink()).unwrap();
            input = reader.finish().unwrap();
        }
    }

    #[test]
    fn parents_are_made_once_and_before() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file("/a/b/c", 0o644, b"xyz").unwrap();
        archive.file("a/b/d", 0o755, b"").unwrap();
        archive.finish(None).unwrap();
        let names: Vec<String> = entries(&bytes).into_iter().map(|e| e.0).collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/b/d"]);
        assert_eq!(entries(&bytes)[2].1, S_IFREG | 0o644);
        assert_eq!(entries(&bytes)[2].2, 3);
    }

    #[test]
    fn a_tree_cannot_replace_the_links_of_the_skeleton() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        fs::write(dir.path().join("usr/bin/tool"), "x").unwrap();
        fs::create_dir(dir.path().join("lib")).unwrap();
        fs::write(dir.path().join("skipped"), "x").unwrap();
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.skeleton().unwrap();
        archive.tree(dir.path(), &|path| path != "skipped").unwrap();
        archive.finish(None).unwrap();
        let found = entries(&bytes);
        let lib: Vec<_> = found.iter().filter(|e| e.0 == "lib").collect();
        assert_eq!(lib.len(), 1);
        assert_eq!(lib[0].1 & S_IFLNK, S_IFLNK);
        assert!(found.iter().any(|e| e.0 == "usr/bin/tool"));
        assert!(!found.iter().any(|e| e.0 == "skipped"));
    }
}
