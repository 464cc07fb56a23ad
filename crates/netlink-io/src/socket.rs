//! The socket itself.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::arrivals::{Alike, Arrivals};
use crate::sys;

/// A generic-netlink socket connected to the kernel.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port_id: u32,
    pub(crate) arrivals: OnceLock<Arrivals>,
}

/// A datagram that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// Bytes in the buffer.
    pub len: usize,
    /// Bytes the datagram had; more than `len` if the buffer was too small.
    pub full_len: usize,
}

impl Datagram {
    /// Did the buffer cut it?
    pub fn is_truncated(self) -> bool {
        self.full_len > self.len
    }
}

/// What [`Socket::set_recv_buffer`] reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecvBuffer {
    /// Bytes of kernel memory queued messages may take, overhead included: the kernel doubles what
    /// was asked for.
    pub effective_bytes: usize,
    /// Was the limit of `net.core.rmem_max` passed by privilege (`CAP_NET_ADMIN`)?
    pub forced: bool,
}

/// Memory and losses of a socket (`SO_MEMINFO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemInfo {
    /// Bytes of kernel memory the queued messages take, overhead included.
    pub queued_bytes: u32,
    /// Limit of `queued_bytes`.
    pub recv_buffer_bytes: u32,
    /// Messages the kernel dropped because the limit was reached, since the socket was made; wraps.
    pub drops: u32,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// * Non-blocking and close-on-exec, bound to a port id of the kernel's choice.
    /// * Connected to port id 0: the kernel refuses messages from other sockets at their sender.
    /// * `NETLINK_NO_ENOBUFS`: without it, one overflow makes the kernel drop every later message
    ///   until the queue has been read empty (`netlink_overrun`, `net/netlink/af_netlink.c`). Losses
    ///   are read from [`MemInfo::drops`] instead.
    /// * Extended acknowledgements on, without the request repeated in them.
    pub fn open() -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(GENERIC),
        )?;
        for option in [libc::NETLINK_NO_ENOBUFS, libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            sys::enable_netlink_option(fd.as_fd(), option)?;
        }
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        rustix::net::connect(&fd, &SocketAddrNetlink::new(0, 0))?;
        let name = SocketAddrNetlink::try_from(rustix::net::getsockname(&fd)?)?;
        Ok(Self { fd, port_id: name.pid(), arrivals: OnceLock::new() })
    }

    /// Takes a socket that the process inherited as descriptor `fd`, as another process left it; only
    /// that it does not block and is closed on exec is set anew, and a filter is taken away: a process
    /// that crashed may have left one.
    ///
    /// The descriptor belongs to the result from then on: nothing else in the process may use it.
    ///
    /// # Errors
    ///
    /// When `fd` is not open, or not a bound generic-netlink socket; it is then left alone.
    pub fn inherit(fd: RawFd) -> io::Result<Self> {
        let other = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let fd = sys::own_checked(fd, |fd| {
            if sockopt::socket_domain(fd)? != AddressFamily::NETLINK {
                return Err(other("it is not a netlink socket"));
            }
            if sockopt::socket_protocol(fd)? != Some(GENERIC) {
                return Err(other("it is not of the generic-netlink protocol"));
            }
            Ok(())
        })?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        let name = SocketAddrNetlink::try_from(rustix::net::getsockname(&fd)?)?;
        let socket = Self { fd, port_id: name.pid(), arrivals: OnceLock::new() };
        socket.detach_filter()?;
        Ok(socket)
    }

    /// The socket's address: what the kernel is told to send upcalls to. Never 0. Not a process id.
    pub fn port_id(&self) -> u32 {
        self.port_id
    }

    /// Asks for `bytes` of receive buffer: by force where permitted, else as far as
    /// `net.core.rmem_max` lets it grow.
    pub fn set_recv_buffer(&self, bytes: usize) -> io::Result<RecvBuffer> {
        let forced = sockopt::set_socket_recv_buffer_size_force(&self.fd, bytes).is_ok();
        if !forced {
            sockopt::set_socket_recv_buffer_size(&self.fd, bytes)?;
        }
        let effective_bytes = sockopt::socket_recv_buffer_size(&self.fd)?;
        Ok(RecvBuffer { effective_bytes, forced })
    }

    /// Queue, limit and losses now.
    pub fn mem_info(&self) -> io::Result<MemInfo> {
        let words = sys::meminfo(self.fd.as_fd())?;
        Ok(MemInfo {
            queued_bytes: words[libc::SK_MEMINFO_RMEM_ALLOC as usize],
            recv_buffer_bytes: words[libc::SK_MEMINFO_RCVBUF as usize],
            drops: words[libc::SK_MEMINFO_DROPS as usize],
        })
    }

    /// Takes the next datagram; `Ok(None)` if there is none. Where arrivals are recorded, by one thread at a
    /// time.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<Option<Datagram>> {
        match rustix::net::recv(&self.fd, buf, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((len, full_len)) => {
                self.arrivals.get().inspect(|arrivals| arrivals.take());
                Ok(Some(Datagram { len, full_len }))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                self.found_empty();
                Ok(None)
            }
            Err(err) => Err(err.into()),
        }
    }

    /// Records from now on when datagrams come, until the socket is closed, and which are `alike`; the socket must be
    /// empty. Costs whoever sends some tens
    /// of nanoseconds, and 192 KiB of memory and a descriptor.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_BPF` (or `CAP_SYS_ADMIN`), in the initial user namespace; what else the kernel says.
    pub fn record_arrivals(&self, alike: Alike) -> io::Result<()> {
        record_arrivals([self].into_iter(), alike)
    }

    /// Refuses a part of what comes before it takes room in the receive buffer: of each of these words so many of 2^32
    /// messages are let in, chosen at random, and all others ([`Alike::word`]). Of the words, eight at most; the
    /// others count among the others. Neither the sender nor [`MemInfo::drops`] is told of what is refused. A few stores:
    /// no system call. `false`, and nothing done, where arrivals are not recorded: [`Socket::attach_filter`] is for that.
    pub fn sample(&self, shares: impl Iterator<Item = (u32, u32)>) -> bool {
        self.arrivals.get().inspect(|arrivals| arrivals.sample(shares)).is_some()
    }

    /// Are arrivals recorded?
    pub fn records_arrivals(&self) -> bool {
        self.arrivals.get().is_some()
    }

    /// Datagrams that were taken out, about: the number of the next one, for [`Socket::arrival_ns`]. 0 where
    /// arrivals are not recorded.
    #[inline]
    pub fn taken(&self) -> u64 {
        self.arrivals.get().map_or(0, Arrivals::taken)
    }

    /// When the datagram of this number came, in nanoseconds of `CLOCK_MONOTONIC`. `None` if that is not
    /// known: it is not recorded, or is none of the last 8,190. Behind a loss it is the
    /// time of an earlier one, until the socket is found empty.
    pub fn arrival_ns(&self, number: u64) -> Option<u64> {
        self.arrivals.get()?.time_of(number)
    }

    /// When the oldest datagram came that is not answered ([`Socket::answer_all`]), likewise. `None` if all are, too.
    pub fn oldest_unanswered_ns(&self) -> Option<u64> {
        let arrivals = self.arrivals.get()?;
        arrivals.time_of(arrivals.answered())
    }

    /// Says that all datagrams that were taken out are answered. Nothing where arrivals are not recorded.
    #[inline]
    pub fn answer_all(&self) {
        if let Some(arrivals) = self.arrivals.get() {
            arrivals.answer_all();
        }
    }

    /// Is it known that all datagrams that came are answered? `false` where arrivals are not recorded.
    pub fn all_answered(&self) -> bool {
        self.arrivals.get().is_some_and(Arrivals::all_answered)
    }

    /// The number, counted from 1, of the last datagram that is not answered, whether it was taken out or not, and is
    /// like others ([`Alike::bucket`]); of the last of all without a `bucket`. There may be none that is like them, but
    /// if there is one, this is some; but where arrivals are not recorded or, with a `bucket`, there are more than
    /// 4,096.
    pub fn last_unanswered(&self, bucket: Option<usize>) -> Option<u64> {
        self.arrivals.get()?.last_unanswered(bucket)
    }

    /// It was found empty: what was lost for want of room is no longer taken for something that is there.
    fn found_empty(&self) {
        if let Some(arrivals) = self.arrivals.get()
            && arrivals.drained()
            && let Ok(info) = self.mem_info()
        {
            arrivals.dropped(info.drops);
        }
    }

    /// When the oldest datagram came that is there, likewise. `None` if there is none, too.
    pub fn oldest_arrival_ns(&self) -> Option<u64> {
        self.arrival_ns(self.taken())
    }

    /// Sends a datagram of one or more whole messages. The kernel handles them before this returns;
    /// errors come back as messages.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.fd, datagram, SendFlags::empty())?;
        Ok(())
    }
}

/// Which of these sockets have something to receive: one system call for all, without waiting.
pub fn readable<'a>(sockets: impl Iterator<Item = &'a Socket>) -> io::Result<Vec<bool>> {
    let mut fds: Vec<PollFd<'_>> = sockets.map(|s| PollFd::new(s, PollFlags::IN)).collect();
    loop {
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Err(Errno::INTR) => {}
            result => break result.map(drop)?,
        }
    }
    // An error is something to receive too: its reader finds out.
    Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect())
}

/// As [`Socket::record_arrivals`], of all these sockets or of none.
///
/// # Errors
///
/// As there; `EEXIST` of a socket of which they are recorded.
pub fn record_arrivals<'a>(
    sockets: impl Iterator<Item = &'a Socket> + Clone,
    alike: Alike,
) -> io::Result<()> {
    if sockets.clone().any(Socket::records_arrivals) {
        return Err(Errno::EXIST.into());
    }
    let all: Vec<_> = sockets.clone().map(|_| Arrivals::new(alike)).collect::<io::Result<_>>()?;
    let mut pairs = sockets.clone().zip(&all);
    if let Err(err) = pairs.try_for_each(|(socket, arrivals)| arrivals.attach_to(socket)) {
        let _ = sockets.clone().try_for_each(Socket::detach_filter);
        return Err(err);
    }
    for (socket, arrivals) in sockets.zip(all) {
        let _cannot_be_there = socket.arrivals.set(arrivals);
    }
    Ok(())
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request for all generic-netlink families: answered by any kernel, without privileges.
    const DUMP_FAMILIES: [u8; 20] =
        [20, 0, 0, 0, 0x10, 0, 1, 3, 7, 0, 0, 0, 0, 0, 0, 0, 3, 2, 0, 0];

    #[test]
    fn every_socket_has_its_own_port_id() {
        let (a, b) = (Socket::open().unwrap(), Socket::open().unwrap());
        assert_ne!(a.port_id(), 0);
        assert_ne!(a.port_id(), b.port_id());
    }

    #[test]
    fn asks_and_receives() {
        let socket = Socket::open().unwrap();
        let mut buf = vec![0u8; 65536];
        assert_eq!(socket.recv(&mut buf).unwrap(), None);
        socket.send(&DUMP_FAMILIES).unwrap();
        let got = socket.recv(&mut buf).unwrap().unwrap();
        assert!(got.len > 16 && !got.is_truncated());
    }

    #[test]
    fn says_how_long_a_cut_datagram_was() {
        let socket = Socket::open().unwrap();
        socket.send(&DUMP_FAMILIES).unwrap();
        let got = socket.recv(&mut [0u8; 32]).unwrap().unwrap();
        assert_eq!(got.len, 32);
        assert!(got.is_truncated());
    }

    #[test]
    fn other_processes_cannot_send_to_it() {
        let socket = Socket::open().unwrap();
        let other = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(GENERIC),
        )
        .unwrap();
        let to = SocketAddrNetlink::new(socket.port_id(), 0);
        let sent = rustix::net::sendto(&other, &DUMP_FAMILIES, SendFlags::empty(), &to);
        // Root is refused because the socket is connected, others because they are not root.
        assert!(matches!(sent, Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::PERM)));
        assert_eq!(socket.recv(&mut [0u8; 64]).unwrap(), None);
    }

    #[test]
    fn an_inherited_socket_is_the_same_socket() {
        let socket = Socket::open().unwrap();
        socket.attach_filter(&[crate::FilterInsn { code: 0x06, jt: 0, jf: 0, k: 0 }]).unwrap();
        let fd = std::os::fd::IntoRawFd::into_raw_fd(socket.fd.try_clone().unwrap());
        let heir = Socket::inherit(fd).unwrap();
        assert_eq!(heir.port_id(), socket.port_id());
        socket.send(&DUMP_FAMILIES).unwrap();
        let got = heir.recv(&mut vec![0u8; 65536]).unwrap();
        assert!(got.is_some(), "the filter of the one before is gone");
    }

    #[test]
    fn what_is_no_netlink_socket_is_not_inherited() {
        assert!(Socket::inherit(-1).is_err());
        assert!(Socket::inherit(9999).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Socket::inherit(file.as_raw_fd()).is_err());
        assert!(file.metadata().is_ok(), "it was left alone");
    }

    #[test]
    fn tells_which_sockets_have_something() {
        let (a, b) = (Socket::open().unwrap(), Socket::open().unwrap());
        assert_eq!(readable([&a, &b].into_iter()).unwrap(), [false, false]);
        b.send(&DUMP_FAMILIES).unwrap();
        assert_eq!(readable([&a, &b].into_iter()).unwrap(), [false, true]);
    }

    #[test]
    fn buffer_and_queue_are_reported() {
        let socket = Socket::open().unwrap();
        let reached = socket.set_recv_buffer(64 << 10).unwrap();
        assert_eq!(reached.effective_bytes, 128 << 10);
        socket.send(&DUMP_FAMILIES).unwrap();
        let info = socket.mem_info().unwrap();
        assert_eq!(info.recv_buffer_bytes, 128 << 10);
        assert!(info.queued_bytes > 0);
        assert_eq!(info.drops, 0);
    }
}
