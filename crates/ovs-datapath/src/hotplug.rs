//! CPUs that come and go, as the kernel announces them.

use std::io;

use netlink_sys::protocols::NETLINK_KOBJECT_UEVENT;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

/// The multicast group in which the kernel itself speaks; device managers use another one.
const KERNEL_GROUP: u32 = 1;
/// What the kernel's words about a CPU contain: `SUBSYSTEM=` is a variable of each uevent
/// (`kobject_uevent_env`, `lib/kobject_uevent.c`), `cpu` the name of the bus (`cpu_subsys`,
/// `drivers/base/cpu.c`).
const ABOUT_A_CPU: &[u8] = b"SUBSYSTEM=cpu";

/// Hears of CPUs that come and go. Needs no privilege, but a network namespace that belongs to the
/// initial user namespace: elsewhere nothing is heard (`uevent_net_broadcast`).
pub struct Hotplug {
    socket: TokioSocket,
}

impl Hotplug {
    /// Begins to listen, on the current runtime.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn listen() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.socket_mut().bind(&SocketAddr::new(0, KERNEL_GROUP))?;
        Ok(Self { socket })
    }

    /// Waits until a CPU has come or gone, or may have: words that were lost count as one. Anyone who
    /// is root can say so too; believe the host, not the word.
    ///
    /// # Errors
    ///
    /// When the socket cannot be read any more.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            match self.socket.recv_from_full().await {
                Ok((message, _)) if is_about_a_cpu(&message) => return Ok(()),
                Ok(_) => {}
                Err(err) if err.raw_os_error() == Some(NOBUFS) => return Ok(()),
                Err(err) => return Err(err),
            }
        }
    }
}

const NOBUFS: i32 = rustix::io::Errno::NOBUFS.raw_os_error();

/// A uevent is a title and variables, each with a zero behind it.
fn is_about_a_cpu(message: &[u8]) -> bool {
    message.split(|byte| *byte == 0).any(|part| part == ABOUT_A_CPU)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_about_cpus_are_told_from_others() {
        let word = b"offline@/devices/system/cpu/cpu2\0ACTION=offline\0\
            DEVPATH=/devices/system/cpu/cpu2\0SUBSYSTEM=cpu\0SEQNUM=1017\0";
        assert!(is_about_a_cpu(word));
        assert!(!is_about_a_cpu(b"add@/x\0ACTION=add\0SUBSYSTEM=cpuidle\0NAME=cpu\0"));
        assert!(!is_about_a_cpu(b""));
    }

    #[tokio::test]
    async fn nothing_is_heard_while_nothing_happens() {
        let mut hotplug = Hotplug::listen().unwrap();
        let limit = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(limit, hotplug.changed()).await.is_err());
    }
}
