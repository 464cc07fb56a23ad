//! The file by which `ovs-appctl -t NAME` finds a daemon by its name.
//!
//! The peer's client reads `NAME.pid` in its run directory, makes sure that the process it names holds a
//! lock on it (`read_pidfile`, `lib/daemon-unix.c`), and connects to `NAME.PID.ctl` beside it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// A file with our process id, locked, and a link to the control socket beside it; both go with the value.
pub(crate) struct PidFile {
    path: PathBuf,
    link: Option<PathBuf>,
    /// Kept: the lock goes with it.
    _file: File,
}

impl PidFile {
    /// Writes `path`, and links to the control socket at `control`, if there is one.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when a process that is alive holds it; else what the system says.
    pub(crate) fn create(path: &Path, control: Option<&Path>) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .read(true)
            .mode(0o644)
            .open(path)?;
        rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            io::Error::new(io::ErrorKind::AddrInUse, "another process that is alive holds it")
        })?;
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        let link = control.map(|control| link(path, control)).transpose()?;
        Ok(Self { path: path.to_owned(), link, _file: file })
    }
}

/// `NAME.PID.ctl` beside `NAME.pid`.
fn link(path: &Path, control: &Path) -> io::Result<PathBuf> {
    let link = path.with_extension(format!("{}.ctl", std::process::id()));
    // One of a process before us that had our number.
    if std::fs::symlink_metadata(&link).is_ok_and(|meta| meta.is_symlink()) {
        std::fs::remove_file(&link)?;
    }
    std::os::unix::fs::symlink(std::path::absolute(control)?, &link)?;
    Ok(link)
}

impl Drop for PidFile {
    fn drop(&mut self) {
        for path in self.link.iter().chain([&self.path]) {
            let _gone_already = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_us_and_links_to_the_socket_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let (path, control) =
            (directory.path().join("upcalld.pid"), directory.path().join("dp0.ctl"));
        let _listener = std::os::unix::net::UnixListener::bind(&control).unwrap();
        let pid = std::process::id();
        std::fs::write(&path, "999999 and more").unwrap();
        let file = PidFile::create(&path, Some(&control)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{pid}\n"));
        let link = directory.path().join(format!("upcalld.{pid}.ctl"));
        std::os::unix::net::UnixStream::connect(&link).unwrap();
        drop(file);
        assert!(!path.exists() && !link.exists() && control.exists());
        assert!(PidFile::create(&directory.path().join("no/such"), None).is_err());
    }
}
