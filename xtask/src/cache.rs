//! Where things that took a download or a boot to find out are kept.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// `${XDG_CACHE_HOME:-~/.cache}/upcalld`, made when missing.
pub(crate) fn root() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: set XDG_CACHE_HOME to a directory")?;
    let root = base.join("upcalld");
    make_dir(&root)?;
    Ok(root)
}

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

/// A directory that is only seen at its final name when `fill` has succeeded: an interrupted
/// download leaves nothing that looks finished.
pub(crate) fn fill_dir(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = target.parent().context("a cache entry has a parent")?;
    make_dir(parent)?;
    let draft = parent.join(format!(".draft-{}", std::process::id()));
    remove(&draft)?;
    make_dir(&draft)?;
    let outcome = fill(&draft).and_then(|()| {
        remove(target)?;
        fs::rename(&draft, target).with_context(|| format!("cannot make {}", target.display()))
    });
    if outcome.is_err() {
        let _ = fs::remove_dir_all(&draft);
    }
    outcome
}

/// Held while something is fetched: a second run waits, and then finds it there.
pub(crate) fn lock() -> Result<File> {
    let path = root()?.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Writes beside the target and renames, so that a reader never sees half a file.
pub(crate) fn write_file(target: &Path, bytes: &[u8]) -> Result<()> {
    make_dir(target.parent().context("a cache entry has a parent")?)?;
    let draft = target.with_extension(format!("draft-{}", std::process::id()));
    fs::write(&draft, bytes).with_context(|| format!("cannot write {}", draft.display()))?;
    fs::rename(&draft, target).with_context(|| format!("cannot make {}", target.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_fill_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("entry");
        let failed = fill_dir(&target, |draft| {
            fs::write(draft.join("half"), "x")?;
            anyhow::bail!("interrupted")
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_fill_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("entry");
        for name in ["old", "new"] {
            fill_dir(&target, |draft| Ok(fs::write(draft.join(name), "x")?)).unwrap();
        }
        assert!(target.join("new").exists() && !target.join("old").exists());
    }
}
