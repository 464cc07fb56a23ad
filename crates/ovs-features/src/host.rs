//! What this process may do on this host: capabilities, namespaces, receive buffers.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::net::{AddressFamily, SocketType, netlink, socket, sockopt};

use crate::topology::status_field;

/// Capabilities that a dispatcher has a use for, with what for
/// (`include/uapi/linux/capability.h`).
pub const CAPABILITIES: [(&str, u8, &str); 7] = [
    ("CAP_NET_ADMIN", 12, "change datapaths, execute packets, exceed rmem_max"),
    ("CAP_IPC_LOCK", 14, "lock memory"),
    ("CAP_SYS_PTRACE", 19, "see which process of another user holds a socket"),
    ("CAP_SYS_ADMIN", 21, "probe in a network namespace of its own"),
    ("CAP_SYS_NICE", 23, "real-time priority, affinity of others"),
    ("CAP_SYS_RESOURCE", 24, "raise limits on file descriptors"),
    ("CAP_BPF", 39, "know when upcalls were sent, for the order of flows that change CPU"),
];

/// Inode of the initial user namespace (`PROC_USER_INIT_INO`, `include/linux/proc_ns.h`).
const INITIAL_USER_NS: u64 = 0xEFFF_FFFD;

/// The effective capabilities of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Reads the line `CapEff` of a `/proc/…/status`.
    pub fn from_status(status: &str) -> Option<Self> {
        u64::from_str_radix(status_field(status, "CapEff")?, 16).ok().map(Self)
    }

    /// Is the capability `name` of [`CAPABILITIES`] in force?
    pub fn has(self, name: &str) -> bool {
        CAPABILITIES.iter().any(|(n, bit, _)| *n == name && self.0 & 1 << bit != 0)
    }
}

/// How large a receive buffer may be, in bytes, as `SO_RCVBUF` counts: double of what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecvBuffer {
    /// Without asking (`net.core.rmem_default`).
    pub default_bytes: usize,
    /// What anyone may reach: twice `net.core.rmem_max`.
    pub plain_bytes: usize,
    /// What `SO_RCVBUFFORCE` reaches, if it is permitted.
    pub forced_bytes: Option<usize>,
    /// The errno with which it was refused.
    pub force_errno: Option<i32>,
}

impl RecvBuffer {
    /// Tries it on a socket of its own; no memory is taken by a limit.
    pub fn probe() -> io::Result<Self> {
        // As much as the kernel can count: it takes half of `int` and doubles it (`sk_setsockopt`,
        // net/core/sock.c).
        const ALL: usize = i32::MAX as usize / 2;
        let open = || socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::GENERIC));
        let fd = open()?;
        let default_bytes = sockopt::socket_recv_buffer_size(&fd)?;
        sockopt::set_socket_recv_buffer_size(&fd, ALL)?;
        let plain_bytes = sockopt::socket_recv_buffer_size(&fd)?;
        let (forced_bytes, force_errno) = match sockopt::set_socket_recv_buffer_size_force(&fd, ALL)
        {
            Ok(()) => (Some(sockopt::socket_recv_buffer_size(&fd)?), None),
            Err(errno) => (None, Some(errno.raw_os_error())),
        };
        Ok(Self { default_bytes, plain_bytes, forced_bytes, force_errno })
    }
}

/// What this process is on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// Effective capabilities, if they could be read.
    pub capabilities: Option<Capabilities>,
    /// Inode of the network namespace: tells two apart, as `ip netns identify` and `lsns` print it.
    pub net_ns: Option<u64>,
    /// Inode of the user namespace.
    pub user_ns: Option<u64>,
    /// Receive buffers.
    pub recv_buffer: Option<RecvBuffer>,
}

impl Host {
    /// Reads it for the calling thread.
    pub fn read() -> Self {
        let inode = |path: &str| fs::metadata(path).ok().map(|meta| meta.ino());
        let status = fs::read_to_string(Path::new("/proc/thread-self/status")).unwrap_or_default();
        Self {
            capabilities: Capabilities::from_status(&status),
            net_ns: inode("/proc/thread-self/ns/net"),
            user_ns: inode("/proc/thread-self/ns/user"),
            recv_buffer: RecvBuffer::probe().ok(),
        }
    }

    /// Is it the user namespace the system was started with? Capabilities elsewhere count only for
    /// network namespaces that were made there.
    pub fn in_initial_user_ns(&self) -> Option<bool> {
        self.user_ns.map(|inode| inode == INITIAL_USER_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_by_name() {
        let caps = Capabilities::from_status("CapInh:\t0\nCapEff:\t0000000000801000\n").unwrap();
        assert!(caps.has("CAP_NET_ADMIN") && caps.has("CAP_SYS_NICE"));
        assert!(!caps.has("CAP_SYS_ADMIN") && !caps.has("CAP_NO_SUCH"));
        assert_eq!(Capabilities::from_status("CapEff:\tnonsense\n"), None);
        assert_eq!(Capabilities::from_status(""), None);
    }

    #[test]
    fn buffers_of_this_host_are_ordered() {
        let probed = RecvBuffer::probe().unwrap();
        assert!(probed.default_bytes <= probed.plain_bytes.max(probed.default_bytes));
        let max: usize =
            fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse().unwrap();
        assert_eq!(probed.plain_bytes, 2 * max);
        match probed.forced_bytes {
            Some(bytes) => assert!(bytes > probed.plain_bytes),
            None => assert_eq!(probed.force_errno, Some(1)),
        }
    }

    #[test]
    fn namespaces_have_inodes() {
        let host = Host::read();
        assert!(host.net_ns.is_some() && host.user_ns.is_some() && host.capabilities.is_some());
    }
}
