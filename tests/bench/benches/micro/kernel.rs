//! Somebody who plays the kernel: sends upcalls to the product's sockets and takes its answers. Needs
//! `CAP_NET_ADMIN`: a netlink socket's port id is reached by whoever has it.

use std::cell::RefCell;
use std::io;
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::time::Duration;

use ovs_wire::nl::NlMsgs;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use upcall::Socket;

use crate::message::IDS;

/// Receive buffers: far more than a burst takes.
const BUFFER_BYTES: usize = 4 << 20;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than any batch has.
const BATCH_BYTES: usize = 1 << 17;

/// See the module.
pub(crate) struct Kernel {
    fd: OwnedFd,
    port_id: u32,
    buf: RefCell<Vec<u8>>,
}

/// Messages of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Answers {
    pub(crate) executes: u32,
    pub(crate) puts: u32,
}

impl Kernel {
    /// `None`, and said so, where that is not permitted.
    pub(crate) fn new_or_skip(what: &str) -> Option<Self> {
        match Self::new() {
            Ok(kernel) => Some(kernel),
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
                println!("SKIP {what}: to play the kernel needs CAP_NET_ADMIN");
                None
            }
            Err(err) => panic!("{what}: cannot play the kernel: {err}"),
        }
    }

    fn new() -> io::Result<Self> {
        let fd = bound()?;
        sockopt::set_socket_recv_buffer_size_force(&fd, BUFFER_BYTES)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(PATIENCE))?;
        let port_id = port_id(&fd)?;
        Ok(Self { fd, port_id, buf: vec![0; BATCH_BYTES].into() })
    }

    /// A socket that takes messages of this kernel alone, as those of the product take the kernel's alone.
    pub(crate) fn socket(&self) -> io::Result<Socket> {
        let fd = bound()?;
        rustix::net::connect(&fd, &SocketAddrNetlink::new(self.port_id, 0))?;
        let socket = Socket::inherit(fd.into_raw_fd())?;
        socket.set_recv_buffer(BUFFER_BYTES)?;
        Ok(socket)
    }

    /// Sends datagrams up.
    pub(crate) fn send(&self, to: &Socket, datagrams: &[Vec<u8>]) {
        let to = SocketAddrNetlink::new(to.port_id(), 0);
        for datagram in datagrams {
            let sent = rustix::net::sendto(&self.fd, datagram, SendFlags::empty(), &to);
            assert_eq!(sent, Ok(datagram.len()), "the product's socket takes it");
        }
    }

    /// Takes answers until there are so many EXECUTEs; waits for them.
    pub(crate) fn wait_for(&self, executes: u32) -> Answers {
        let mut answers = Answers::default();
        while answers.executes < executes {
            let came = self.take(RecvFlags::empty(), &mut answers);
            assert!(came, "{answers:?} and no more, of {executes} EXECUTEs");
        }
        answers
    }

    /// Takes the answers that are there.
    pub(crate) fn answers(&self) -> Answers {
        let mut answers = Answers::default();
        while self.take(RecvFlags::DONTWAIT, &mut answers) {}
        answers
    }

    fn take(&self, flags: RecvFlags, answers: &mut Answers) -> bool {
        let mut buf = self.buf.borrow_mut();
        let Ok((len, _)) = rustix::net::recv(&self.fd, buf.as_mut_slice(), flags) else {
            return false;
        };
        for message in NlMsgs::new(&buf[..len]) {
            match message.expect("a message").kind {
                kind if kind == IDS.packet_family => answers.executes += 1,
                kind if kind == IDS.flow_family => answers.puts += 1,
                kind => panic!("a message of family {kind}"),
            }
        }
        true
    }
}

fn bound() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let fd =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(GENERIC))?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
    Ok(fd)
}

fn port_id(fd: &OwnedFd) -> io::Result<u32> {
    Ok(SocketAddrNetlink::try_from(rustix::net::getsockname(fd)?)?.pid())
}
