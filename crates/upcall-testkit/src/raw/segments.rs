//! Packets as large as a stack that leaves segmentation to the device sends them (GSO): one system call and one
//! walk through the stack for many frames, and the datapath cuts them when it sends them up
//! (`queue_gso_packets` of `net/openvswitch/datapath.c`).

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, SockaddrStorage, sendmsg, setsockopt};

use super::{open_bound, option};
use crate::error::{Error, Result};
use crate::netns::NetNs;

/// Headers of an Ethernet frame with IPv4 and TCP, both without options.
const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const TCP_BYTES: usize = 20;
/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: u16 = 16;
/// `struct virtio_net_hdr` and its values, of `include/uapi/linux/virtio_net.h`.
const HEADER_BYTES: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;

/// A packet socket that sends TCP packets of many segments on one link.
#[derive(Debug)]
pub struct SegmentSender {
    fd: OwnedFd,
}

impl SegmentSender {
    /// Opens a socket on `link` of `ns`. Needs `CAP_NET_RAW`.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`], or [`Error::System`].
    pub fn open(ns: &NetNs, link: &str) -> Result<Self> {
        let (fd, _) = ns.run(|| open_bound(link, None))??;
        setsockopt(&fd, option::PacketVnetHeader, &1)
            .map_err(Error::system("ask for segmentation"))?;
        Ok(Self { fd })
    }

    /// Sends `frame`, one of [`super::Frame::tcp`] over IPv4, whose payload is sent in segments of `bytes` bytes each.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn send(&self, frame: &[u8], bytes: u16) -> Result<()> {
        let header = header(bytes);
        let parts = [IoSlice::new(&header), IoSlice::new(frame)];
        let nobody = None::<&SockaddrStorage>;
        sendmsg(self.fd.as_raw_fd(), &parts, &[], MsgFlags::empty(), nobody)
            .map(drop)
            .map_err(Error::system(format!("send segments of {} bytes", frame.len())))
    }
}

/// What says that the payload is to be cut, and where the checksum goes that each segment needs of its own.
fn header(segment_bytes: u16) -> [u8; HEADER_BYTES] {
    let transport = (ETHERNET_BYTES + IPV4_BYTES) as u16;
    let fields = [transport + TCP_BYTES as u16, segment_bytes, transport, TCP_CHECKSUM];
    let mut header = [NEEDS_CHECKSUM, GSO_TCPV4, 0, 0, 0, 0, 0, 0, 0, 0];
    for (place, field) in header[2..].chunks_exact_mut(2).zip(fields) {
        place.copy_from_slice(&field.to_ne_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::header;

    #[test]
    fn the_header_is_that_of_virtio() {
        let header = header(24);
        let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        assert_eq!(header[..2], [1, 1]);
        assert_eq!((field(2), field(4), field(6), field(8)), (54, 24, 34, 16));
    }
}
