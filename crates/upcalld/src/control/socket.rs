//! The control socket as a file: who may connect, and that none is left behind.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// A listening socket; the file goes with it.
pub(crate) struct ControlFile {
    path: PathBuf,
    /// Somebody else's file of that name is left alone.
    identity: Identity,
}

/// Device, inode and time of the last change: inodes are given out again.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> io::Result<Identity> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

impl ControlFile {
    /// Listens at `path` for root and our own user, and for `group` if one is given. A socket there
    /// that nobody listens at is replaced.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when somebody listens there; else what the system says.
    pub(crate) fn listen(path: &Path, group: Option<u32>) -> io::Result<(Self, UnixListener)> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        remove_stale(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Linux gives the file the mode of the socket (less the umask): there is no moment at which
        // others could connect.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        if let Some(group) = group {
            rustix::fs::chown(path, None, Some(Gid::from_raw(group)))?;
            rustix::fs::chmod(path, Mode::from_raw_mode(0o660))?;
        }
        rustix::net::listen(&socket, BACKLOG)?;
        let file = Self { path: path.to_owned(), identity: identity(path)? };
        Ok((file, UnixListener::from(socket)))
    }
}

impl Drop for ControlFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _gone_already = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that a run before could not remove; leaves everything else.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let is_socket = meta.mode() & 0o170_000 == 0o140_000;
    if !is_socket {
        let why = "there is a file of that name that is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    match UnixStream::connect(path) {
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
    }
}

/// The number of a group: as it is, or by name from `/etc/group`.
pub(crate) fn group_id(group: &str) -> Result<u32, String> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group")
        .map_err(|err| format!("cannot look up group '{group}' in /etc/group: {err}"))?;
    find_group(&groups, group)
        .ok_or_else(|| format!("there is no group '{group}' in /etc/group; a number works as well"))
}

/// `name:password:number:members`.
fn find_group(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn the_file_is_ours_alone_and_gone_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/ctl");
        let (file, listener) = ControlFile::listen(&path, None).unwrap();
        assert_eq!(mode(&path), 0o600);
        let busy = ControlFile::listen(&path, None).err().unwrap();
        assert_eq!(busy.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        // As a process leaves it that was killed.
        let (next, _listener) = ControlFile::listen(&path, None).unwrap();
        drop(file);
        assert!(path.exists(), "it is the next one's");
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn a_group_may_connect_and_other_files_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ctl");
        std::fs::write(&path, "precious").unwrap();
        assert!(ControlFile::listen(&path, None).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
        let own = rustix::process::getegid().as_raw();
        let (_file, _listener) = ControlFile::listen(&path, Some(own)).unwrap();
        assert_eq!(mode(&path), 0o660);
    }

    #[test]
    fn groups_are_found_by_name_or_number() {
        let groups = "root:x:0:\nnetdev:x:101:a,b\nbad\n";
        assert_eq!(find_group(groups, "netdev"), Some(101));
        assert_eq!(find_group(groups, "bad"), None);
        assert_eq!(group_id("77"), Ok(77));
        assert!(group_id("no-such-group").unwrap_err().contains("/etc/group"));
    }
}
