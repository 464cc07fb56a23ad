//! Programs of a distribution: for the guest, the peers and clients that tests talk to; for this machine, what
//! reads our metrics.

use crate::apt::{self, Apt};
use crate::cache;
use crate::cmd::say;
use crate::initramfs::Archive;
use crate::kernels::Origin;
use anyhow::{Context, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A choice of programs from one suite.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Programs {
    suite: &'static str,
    packages: &'static [&'static str],
    /// What of them is left out beside [`LEFT_OUT`].
    left_out: &'static [&'static str],
    /// What of [`LEFT_OUT`] is taken all the same.
    kept: &'static [&'static str],
    /// Directory of the cache: an older archive of the same choice is thrown away.
    home: &'static str,
}

/// What a guest can have of Debian, by the name that a test declares it with or a person asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Choice {
    /// ovs-dpctl, ip, ping, iperf3, curl, ethtool, busybox as sh
    Tools,
    /// systemd with its tools, to be started in namespaces of its own; busybox as sh
    Systemd,
}

impl Choice {
    fn programs(self) -> Programs {
        match self {
            Self::Tools => TOOLS,
            Self::Systemd => SYSTEMD,
        }
    }

    /// An initramfs archive with it, from the cache if it is there.
    pub(crate) fn archive(self, origin: &Origin) -> Result<PathBuf> {
        self.programs().archive(origin)
    }
}

/// What tests talk to: tools, without the peer's daemons.
const TOOLS: Programs = Programs {
    suite: "trixie",
    packages: PACKAGES,
    left_out: DAEMONS,
    kept: &["usr/share/iproute2", "usr/share/openvswitch"],
    home: "debian",
};

/// A service manager, in one version for all kernels: what is tested with it is a unit.
const SYSTEMD: Programs = Programs {
    suite: "trixie",
    packages: &["busybox-static", "dash", "kmod", "systemd", "util-linux"],
    left_out: NOT_OF_A_SERVICE,
    kept: &["usr/bin/systemctl", "usr/bin/systemd", "usr/lib/systemd", SYSTEMD_LIBRARIES],
    home: "systemd",
};

/// The peer itself, `ovs-vswitchd`, in the version that was current with this line of kernels.
pub(crate) fn peer(line: &str) -> Programs {
    let (suite, home) =
        if line == "7" { ("forky", "peer-forky") } else { ("trixie", "peer-trixie") };
    Programs { suite, packages: PEER_PACKAGES, left_out: &[], kept: TOOLS.kept, home }
}

const PEER_PACKAGES: &[&str] = &[
    "busybox-static",
    "dash",
    "iproute2",
    "openvswitch-common",
    "openvswitch-switch",
    "util-linux",
];
const PACKAGES: &[&str] = &[
    "busybox-static",
    "curl",
    "dash",
    "ethtool",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "libcap2-bin",
    "openvswitch-common",
    "openvswitch-switch",
    "tcpdump",
];
/// What a test never looks at, and what is large: documentation, translations, the parts of a full
/// system that come along as dependencies (nothing here starts a service).
const LEFT_OUT: &[&str] = &[
    "usr/share/",
    "usr/lib/systemd",
    "usr/lib/x86_64-linux-gnu/systemd",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/security",
    "usr/lib/python3",
    "usr/lib/udev",
    "usr/lib/locale",
    "usr/bin/perl",
    "usr/bin/localedef",
    "usr/bin/openssl",
    "usr/bin/systemctl",
    "usr/bin/systemd",
    "usr/include",
    "usr/games",
    "var/",
    "etc/systemd",
    "etc/init.d",
    "etc/passwd",
    "etc/group",
    "etc/hosts",
];

/// Needed by the peer alone.
const DAEMONS: &[&str] = &[
    "usr/sbin/ovs-vswitchd",
    "usr/lib/openvswitch-switch",
    "usr/bin/ovs-vsctl",
    "usr/bin/ovsdb",
    "usr/sbin/ovsdb",
    "usr/share/openvswitch",
];

const SYSTEMD_LIBRARIES: &str = "usr/lib/x86_64-linux-gnu/systemd";

/// What systemd starts at boot and a single service does not need: it takes an emulated CPU seconds.
const NOT_OF_A_SERVICE: &[&str] = &[
    "usr/lib/systemd/boot",
    "usr/lib/systemd/catalog",
    "usr/lib/systemd/system-generators",
    "usr/lib/systemd/system-environment-generators",
    "usr/lib/systemd/system/multi-user.target.wants",
    "usr/lib/systemd/system/sockets.target.wants",
    "usr/lib/systemd/system/sysinit.target.wants",
    "usr/lib/systemd/system/timers.target.wants",
];

/// Small tools from busybox, where no package has brought its own. The shell is not among them: its
/// would prefer busybox's `ip` and `ping` to the real ones.
const APPLETS: &[&str] = &[
    "awk", "cat", "chmod", "cmp", "cp", "cut", "date", "dd", "df", "dmesg", "echo", "false",
    "find", "free", "grep", "head", "hexdump", "id", "kill", "ls", "lsmod", "mkdir", "mv", "nc",
    "ps", "rm", "rmmod", "sed", "seq", "sleep", "sort", "stat", "sysctl", "tail", "tee", "test",
    "timeout", "top", "tr", "true", "uname", "wc",
];

impl Programs {
    /// An initramfs archive with the programs, from the cache if it is there.
    pub(crate) fn archive(&self, origin: &Origin) -> Result<PathBuf> {
        let path = cache::root()?.join(self.home).join(self.file_name());
        if path.exists() {
            return Ok(path);
        }
        let _lock = cache::lock()?;
        if !path.exists() {
            self.make(origin, &path)?;
        }
        Ok(path)
    }

    /// Another list of packages is another archive.
    fn file_name(&self) -> String {
        let lists = [self.packages, LEFT_OUT, self.left_out, self.kept, APPLETS];
        let words = lists.into_iter().flatten().copied();
        let digest = words.flat_map(str::bytes).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{}-{digest:016x}.cpio", self.suite)
    }

    fn make(&self, origin: &Origin, path: &Path) -> Result<()> {
        let apt = Apt::open(&apt::archive(origin.archive.as_deref())?, self.suite)?;
        let packages = apt.download_closure(self.packages)?;
        say!("{}: unpacking {} packages", self.suite, packages.len());
        // Nothing of an older list of packages, or of an attempt that was interrupted.
        let home = path.parent().context("a cache entry has a parent")?;
        let _ = std::fs::remove_dir_all(home);
        let tree = path.with_extension("tree");
        cache::make_dir(&tree)?;
        for package in &packages {
            apt::unpack(package, &tree)?;
        }
        let draft = path.with_extension("draft");
        let mut archive = Archive::create(&draft)?;
        archive.tree(&tree, &|path| self.is_kept(path))?;
        add_links(&mut archive, &tree)?;
        archive.finish(None)?;
        std::fs::rename(&draft, path)?;
        std::fs::remove_dir_all(&tree)?;
        apt.clean()
    }

    fn is_kept(&self, path: &str) -> bool {
        let begins = |list: &[&str]| list.iter().any(|prefix| path.starts_with(prefix));
        !begins(self.left_out) && (begins(self.kept) || path == "usr/share" || !begins(LEFT_OUT))
    }
}

/// The directory of `prometheus` and `promtool`, unpacked in the cache and not installed. They need nothing but
/// a C library, and their suite's asks for none that is newer than that of the release before.
pub(crate) fn prometheus(origin: &Origin) -> Result<PathBuf> {
    let home = cache::root()?.join("prometheus");
    let programs = home.join("usr/bin");
    if programs.exists() {
        return Ok(programs);
    }
    let _lock = cache::lock()?;
    let apt = Apt::open(&apt::archive(origin.archive.as_deref())?, "trixie")?;
    cache::fill_dir(&home, |draft| {
        apt.download(&["prometheus", "promtool"].map(str::to_owned), draft)?;
        for package in apt::packages_in(draft)? {
            apt::unpack(&package, draft)?;
            std::fs::remove_file(package)?;
        }
        Ok(())
    })?;
    Ok(programs)
}

fn add_links<W: Write>(archive: &mut Archive<W>, tree: &Path) -> Result<()> {
    let brought = |name: &str| {
        let dirs = ["usr/bin", "usr/sbin", "bin", "sbin"].map(|dir| tree.join(dir).join(name));
        dirs.iter().any(|path| path.symlink_metadata().is_ok())
    };
    for applet in APPLETS.iter().filter(|name| !brought(name)) {
        archive.link(&format!("usr/bin/{applet}"), "busybox")?;
    }
    // Some releases make this link only when the package is configured.
    if !brought("sh") {
        archive.link("usr/bin/sh", "dash")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_libraries_stay() {
        for path in
            ["usr/bin/ovs-dpctl", "usr/lib/x86_64-linux-gnu/libc.so.6", "usr/bin", "usr/lib"]
        {
            assert!(TOOLS.is_kept(path), "{path}");
        }
        for path in ["usr/share/doc", "usr/bin/perl5.40", "var/lib", "usr/lib/systemd/systemd"] {
            assert!(!TOOLS.is_kept(path), "{path}");
        }
    }

    #[test]
    fn a_service_manager_comes_without_what_else_it_would_start() {
        let kept = |path: &str| SYSTEMD.is_kept(path);
        assert!(kept("usr/lib/systemd/systemd") && kept("usr/bin/systemd-analyze"));
        assert!(kept("usr/lib/systemd/system/sysinit.target") && kept(SYSTEMD_LIBRARIES));
        assert!(!kept("usr/lib/systemd/system/sysinit.target.wants/x.service"));
        assert!(!kept("usr/share/doc") && !kept("usr/lib/udev/rules.d"));
    }

    #[test]
    fn the_daemons_come_with_the_peer_alone() {
        for path in ["usr/lib/openvswitch-switch/ovs-vswitchd", "usr/sbin/ovsdb-server"] {
            assert!(peer("6.12").is_kept(path), "{path}");
            assert!(!TOOLS.is_kept(path), "{path}");
        }
        assert!(peer("7").is_kept("usr/share/openvswitch/vswitch.ovsschema"));
    }
}
