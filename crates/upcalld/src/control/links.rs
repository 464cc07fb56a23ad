//! Links to the control socket, so that one that serves several datapaths is found by the name of each.

use std::path::{Path, PathBuf};

/// Links to a socket beside it; they go with the value.
#[derive(Debug)]
pub(super) struct Links {
    target: PathBuf,
    paths: Vec<PathBuf>,
}

impl Links {
    /// Makes them, as far as it can: what is there and is no link of an ended run is left alone, and told.
    pub(super) fn make(socket: &Path, paths: impl Iterator<Item = PathBuf>) -> Self {
        let target = socket.file_name().map_or_else(PathBuf::new, PathBuf::from);
        let mut links = Self { target, paths: Vec::new() };
        for path in paths {
            match links.link(&path) {
                Ok(()) => links.paths.push(path),
                Err(err) => {
                    tracing::warn!(path = %path.display(), %err, "no link to the control socket");
                }
            }
        }
        links
    }

    fn link(&self, path: &Path) -> std::io::Result<()> {
        // One that leads nowhere, or to a socket that nobody listens at.
        let is_link = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
        let leads_here = std::fs::read_link(path).is_ok_and(|target| target == self.target);
        if is_link && (leads_here || std::os::unix::net::UnixStream::connect(path).is_err()) {
            std::fs::remove_file(path)?;
        }
        std::os::unix::fs::symlink(&self.target, path)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for path in &self.paths {
            if std::fs::read_link(path).is_ok_and(|target| target == self.target) {
                let _gone_already = std::fs::remove_file(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn each_name_leads_to_the_socket_until_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let _listener = UnixListener::bind(path("dp0.ctl")).unwrap();
        let _other = UnixListener::bind(path("dp2.ctl")).unwrap();
        std::os::unix::fs::symlink("gone.ctl", path("dp1.ctl")).unwrap();
        let links = Links::make(&path("dp0.ctl"), ["dp1.ctl", "dp2.ctl"].map(path).into_iter());
        UnixStream::connect(path("dp1.ctl")).unwrap();
        assert!(!path("dp2.ctl").is_symlink(), "another one's socket");
        drop(links);
        assert!(!path("dp1.ctl").exists() && path("dp0.ctl").exists() && path("dp2.ctl").exists());
    }
}
