//! Whole Ethernet frames, sent and received on one link: what an ordinary socket cannot say or see.

mod frame;
mod segments;

use std::fmt;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind,
    recvmsg, send, setsockopt, socket,
};
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Error, Result};
use crate::links::Mac;
use crate::netns::NetNs;

pub(crate) use frame::udp_payload;
pub use frame::{ETHERTYPE_EXPERIMENTAL, Frame, TcpFlags, VlanTag};
pub use segments::SegmentSender;

/// Longest frame that is received whole, in bytes: larger than any GSO packet.
pub const FRAME_BYTES_MAX: usize = 70_000;

/// Receive buffer asked for, in bytes (the kernel doubles it, and charges about 800 bytes for each
/// small frame).
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// `sll_pkttype` of a frame that left through the link.
const PACKET_OUTGOING: u8 = 4;

// The kernel takes the outer VLAN tag out of a received frame and tells it beside the data.
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
const PACKET_AUXDATA_BYTES: usize = 20;

mod option {
    #![allow(
        unsafe_code,
        missing_docs,
        reason = "nix declares socket options it does not know by this macro, which holds the system \
                  call; rustix 1.1 and nix 0.31 both lack these two"
    )]
    // The macro calls itself and its sister without a path.
    use nix::{setsockopt_impl, sockopt_impl};
    sockopt_impl!(PacketAuxdata, SetOnly, libc::SOL_PACKET, libc::PACKET_AUXDATA, bool);
    sockopt_impl!(PacketVnetHeader, SetOnly, libc::SOL_PACKET, libc::PACKET_VNET_HDR, i32);
}

/// A packet socket bound to one link. It sends frames as they are, and receives every frame that
/// *arrives* on the link (not those that leave), VLAN tags in their place.
pub struct RawSocket {
    fd: OwnedFd,
    address: LinkAddr,
    buffer: Vec<u8>,
}

impl fmt::Debug for RawSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawSocket(link {})", self.address.ifindex())
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl RawSocket {
    /// Opens a socket on `link` of `ns`. Needs `CAP_NET_RAW`.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`], or [`Error::System`].
    pub fn open(ns: &NetNs, link: &str) -> Result<Self> {
        let (fd, address) = ns.run(|| open_bound(link, SockProtocol::EthAll.into()))??;
        let _unprivileged_keeps_default =
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER_BYTES);
        Ok(Self { fd, address, buffer: vec![0; FRAME_BYTES_MAX] })
    }

    /// Opens a socket that only sends: it costs no copy of every frame that arrives, and
    /// [`RawSocket::receive`] never yields one.
    ///
    /// # Errors
    /// As [`RawSocket::open`].
    pub fn sender(ns: &NetNs, link: &str) -> Result<Self> {
        let (fd, address) = ns.run(|| open_bound(link, None))??;
        Ok(Self { fd, address, buffer: Vec::new() })
    }

    /// The Ethernet address of the link when the socket was opened.
    pub fn mac(&self) -> Mac {
        self.address.addr().unwrap_or_default()
    }

    /// Sends one frame, from its destination address on.
    ///
    /// # Errors
    /// [`Error::System`]; `ENOBUFS` means that the link's peer dropped the frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.fd.as_raw_fd(), frame, MsgFlags::empty())
            .map(drop)
            .map_err(Error::system(format!("send a frame of {} bytes", frame.len())))
    }

    /// The next frame that arrives within `timeout`; `None` if none does.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + timeout;
        loop {
            while let Some(frame) = self.receive_now()? {
                if let Arrival::Frame(bytes) = frame {
                    return Ok(Some(bytes));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !readable(&self.fd, left)? {
                return Ok(None);
            }
        }
    }

    /// The next frame within `timeout` that `wanted` accepts; the others are thrown away.
    ///
    /// # Errors
    /// [`Error::Timeout`] that names `what`, if no such frame arrives.
    pub fn receive_matching(
        &mut self,
        what: &str,
        timeout: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<Vec<u8>> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                Some(frame) if wanted(&frame) => return Ok(frame),
                Some(_) => {}
                None => {
                    return Err(Error::Timeout { what: what.to_owned(), waited: timeout });
                }
            }
        }
    }

    fn receive_now(&mut self) -> Result<Option<Arrival>> {
        let mut control = nix::cmsg_space!([u8; PACKET_AUXDATA_BYTES], [u64; 8]);
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let fd = self.fd.as_raw_fd();
        let received =
            match recvmsg::<LinkAddr>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT) {
                Ok(received) => received,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
                Err(error) => return Err(Error::system("receive a frame")(error)),
            };
        let elsewhere = received.address.is_some_and(|from| {
            from.pkttype() == PACKET_OUTGOING || from.ifindex() != self.address.ifindex()
        });
        let mut control =
            received.cmsgs().map_err(Error::system("read a frame's auxiliary data"))?;
        let tag = control.find_map(|message| auxiliary_tag(&message));
        let len = received.bytes;
        if elsewhere {
            return Ok(Some(Arrival::Elsewhere));
        }
        Ok(Some(Arrival::Frame(with_tag(&self.buffer[..len], tag))))
    }
}

enum Arrival {
    Frame(Vec<u8>),
    /// It left through the link, or came before the socket was bound to it.
    Elsewhere,
}

/// Opens a packet socket on `link` of this thread's namespace; without a protocol it hears nothing.
fn open_bound(link: &str, protocol: Option<SockProtocol>) -> Result<(OwnedFd, LinkAddr)> {
    let address = link_address(link)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, protocol)
        .map_err(Error::system("open a packet socket"))?;
    setsockopt(&fd, option::PacketAuxdata, &true).map_err(Error::system("ask for VLAN tags"))?;
    // The address has protocol 0, with which bind keeps the socket's own.
    bind(fd.as_raw_fd(), &address)
        .map_err(Error::system(format!("bind a packet socket to {link}")))?;
    Ok((fd, address))
}

/// The packet address of a link: `getifaddrs` is the one safe source of such a value.
fn link_address(link: &str) -> Result<LinkAddr> {
    let all = nix::ifaddrs::getifaddrs().map_err(Error::system("list the link addresses"))?;
    all.filter(|entry| entry.interface_name == link)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| Error::NoSuchLink { name: link.to_owned() })
}

/// Waits until `fd` is readable; `false` at the end of `timeout`.
pub(crate) fn readable(fd: impl AsFd, timeout: Duration) -> Result<bool> {
    let timeout = timeout.try_into().map_err(|_| Error::Invalid("timeout too long".to_owned()))?;
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        // The caller looks at its deadline and comes again.
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(Error::system("wait for a socket")(error)),
    }
}

/// The tag that `struct tpacket_auxdata` tells, if it is one and tells one.
fn auxiliary_tag(message: &ControlMessageOwned) -> Option<VlanTag> {
    let ControlMessageOwned::Unknown(unknown) = message else { return None };
    let header = &unknown.cmsg_header;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // tp_status u32, tp_len u32, tp_snaplen u32, tp_mac u16, tp_net u16, tp_vlan_tci u16, tp_vlan_tpid u16
    let data: &[u8; PACKET_AUXDATA_BYTES] = unknown.data_bytes.first_chunk()?;
    let status = u32::from_ne_bytes([data[0], data[1], data[2], data[3]]);
    let tci = u16::from_ne_bytes([data[16], data[17]]);
    let tpid = u16::from_ne_bytes([data[18], data[19]]);
    if status & TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tpid = if status & TP_STATUS_VLAN_TPID_VALID == 0 { VlanTag::TPID_8021Q } else { tpid };
    Some(VlanTag { tpid, tci })
}

/// The frame with the tag back behind the two addresses.
fn with_tag(frame: &[u8], tag: Option<VlanTag>) -> Vec<u8> {
    match (tag, frame.split_at_checked(12)) {
        (Some(tag), Some((addresses, rest))) => {
            let tpid = tag.tpid.to_be_bytes();
            let tci = tag.tci.to_be_bytes();
            [addresses, &tpid, &tci, rest].concat()
        }
        _ => frame.to_vec(),
    }
}
