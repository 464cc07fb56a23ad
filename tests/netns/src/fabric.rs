//! Which hosts a frame reaches.

use anyhow::{Context as _, Result, ensure};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket};

use crate::SOON;

/// Ethertype of the frames that mark an end.
const ETHERTYPE_MARK: u16 = 0x88b7;

/// Ears and a voice on the link of every host.
///
/// That a frame does *not* reach a host is known without waiting: a broadcast is sent behind it from
/// the same link, and another one from another host, and what had not arrived before them was not
/// sent there. That holds for switches that flood broadcasts, install no flow for them before the
/// frame has one, and keep the order of a port and CPU; so the thread stays on CPU 0.
#[derive(Debug)]
pub struct Fabric {
    links: Vec<RawSocket>,
    marks: u32,
}

impl Fabric {
    /// Opens a socket on each host's link, and keeps the calling thread on CPU 0.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn new(hosts: &Hosts) -> Result<Self> {
        ovs_features::cpu::pin_to(0).context("stay on CPU 0")?;
        let open = |host: &upcall_testkit::Host| RawSocket::open(&host.ns, HOST_LINK);
        Ok(Self { links: hosts.iter().map(open).collect::<Result<_, _>>()?, marks: 0 })
    }

    /// Sends a frame from a host's link.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn send(&self, from: usize, frame: &[u8]) -> Result<()> {
        Ok(self.links[from].send(frame)?)
    }

    /// Waits until this frame arrives at `host`; others are passed over.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait(&mut self, host: usize, frame: &[u8]) -> Result<()> {
        self.links[host].receive_matching("a frame", SOON, |bytes| bytes == frame)?;
        Ok(())
    }

    /// Sends `frame` from a host and gives the hosts that it reaches, in order.
    ///
    /// # Errors
    /// When the broadcasts behind it do not arrive, or it arrives twice.
    pub fn reach(&mut self, from: usize, frame: &[u8]) -> Result<Vec<usize>> {
        self.send(from, frame)?;
        let behind = self.mark(from)?;
        let mut counts = vec![0; self.links.len()];
        self.listen(from, frame, &behind, &mut counts)?;
        // The sender's own link hears the mark of another host only.
        let other = (from + 1) % self.links.len();
        let last = self.mark(other)?;
        self.listen(other, frame, &last, &mut counts)?;
        ensure!(counts.iter().all(|count| *count <= 1), "it arrived more than once: {counts:?}");
        Ok((0..counts.len()).filter(|host| counts[*host] > 0).collect())
    }

    /// Broadcasts a frame that is like no other, from a station that is always behind this link.
    fn mark(&mut self, from: usize) -> Result<Vec<u8>> {
        self.marks += 1;
        let source = [0x02, 0x4d, 0, 0, 0, from as u8];
        let mut payload = [0; 46];
        payload[..4].copy_from_slice(&self.marks.to_be_bytes());
        let frame = Frame::broadcast(source).raw(ETHERTYPE_MARK, &payload);
        self.send(from, &frame)?;
        Ok(frame)
    }

    /// Reads every link but that of `from` until `mark` arrives, and counts `frame`.
    fn listen(&mut self, from: usize, frame: &[u8], mark: &[u8], counts: &mut [u32]) -> Result<()> {
        for (host, link) in self.links.iter_mut().enumerate().filter(|(host, _)| *host != from) {
            let what = format!("the broadcast behind a frame, at host {host}");
            link.receive_matching(&what, SOON, |bytes| {
                counts[host] += u32::from(bytes == frame);
                bytes == mark
            })?;
        }
        Ok(())
    }
}
