//! The machine around the jobs: mounts, modules, links, settings, the end.

use guest_init::protocol::Module;
use rustix::mount::{MountFlags, mount};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SendFlags, SocketType, sendto, socket};
use rustix::system::{RebootCommand, reboot, sethostname, uname};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// What a program that runs as root on a Linux machine takes for granted.
const MOUNTS: &[(&str, &str, &str)] = &[
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "ptmxmode=0666"),
    ("tmpfs", "/dev/shm", ""),
    ("tmpfs", "/tmp", ""),
    ("tmpfs", "/run", ""),
];
/// Absent from some kernels: a guest without them still runs.
const OPTIONAL_MOUNTS: &[(&str, &str, &str)] =
    &[("tracefs", "/sys/kernel/tracing", ""), ("debugfs", "/sys/kernel/debug", "")];

pub(crate) fn mount_all() -> io::Result<()> {
    for entry in MOUNTS {
        mount_one(entry).map_err(|e| {
            io::Error::new(e.kind(), format!("mount {} on {}: {e}", entry.0, entry.1))
        })?;
    }
    for entry in OPTIONAL_MOUNTS {
        let _ = mount_one(entry);
    }
    fs::create_dir_all("/run/netns")?;
    if !Path::new("/var/run").exists() {
        fs::create_dir_all("/var")?;
        symlink("/run", "/var/run")?;
    }
    if !Path::new("/dev/fd").exists() {
        symlink("/proc/self/fd", "/dev/fd")?;
    }
    Ok(())
}

fn mount_one((kind, target, options): &(&str, &str, &str)) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let options = std::ffi::CString::new(*options)?;
    match mount(*kind, *target, *kind, MountFlags::empty(), Some(options.as_c_str())) {
        // The kernel mounts /dev by itself when it is built to.
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Loads in order. Notes what an optional module said, and gives the first failure of a required one.
pub(crate) fn load(modules: &[Module]) -> (Vec<String>, Option<String>) {
    let mut notes = Vec::new();
    for module in modules {
        let Err(e) = insert(module) else { continue };
        let text = format!("module {}: {e}", module.path);
        if module.required {
            return (notes, Some(text));
        }
        notes.push(text);
    }
    (notes, None)
}

fn insert(module: &Module) -> io::Result<()> {
    let file = File::open(&module.path)?;
    let params = std::ffi::CString::new(module.params.as_str())?;
    match rustix::system::finit_module(&file, &params, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Host name, loopback, sysctls: a failure is a note, since a job that needs it says more.
pub(crate) fn settle(sysctls: &[(String, String)]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |what: &str, outcome: io::Result<()>| {
        if let Err(e) = outcome {
            notes.push(format!("{what}: {e}"));
        }
    };
    note("sethostname", sethostname(b"guest").map_err(Into::into));
    note("loopback", loopback_up());
    for (key, value) in sysctls {
        note(key, fs::write(Path::new("/proc/sys").join(key), value));
    }
    notes
}

/// One `RTM_NEWLINK` by hand: an ioctl would need `unsafe`, a netlink crate would need tokio.
fn loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const LOOPBACK_INDEX: u32 = 1;
    const IFF_UP: u32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence and port id
    message.extend_from_slice(&[0; 4]); // family, padding, device type
    for word in [LOOPBACK_INDEX, IFF_UP, IFF_UP] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    // No protocol means 0, which is NETLINK_ROUTE.
    let fd = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    sendto(&fd, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    Ok(())
}

pub(crate) fn release() -> String {
    uname().release().to_string_lossy().into_owned()
}

/// Ends the machine; with QEMU's `-no-reboot` a restart is an exit.
pub(crate) fn stop() -> ! {
    let _ = reboot(RebootCommand::Restart);
    loop {
        std::thread::park();
    }
}
