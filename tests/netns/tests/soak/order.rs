//! Packets by kind, and the order in which somebody sees those of each flow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use netns_tests::TestResult;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::Stamp;
use upcall_testkit::{Host, RawSocket};

/// Bytes of a frame before its payload: Ethernet, IPv4, UDP.
const HEADERS: usize = 14 + 20 + 8;

/// What a packet is for, told by its UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of flows whose sender changes its CPU.
    Hop,
    /// Of flows that are set up by a burst, and installed.
    Burst,
    /// Keeps the handler for a while.
    Slow,
    /// Answered later.
    Later,
    Flood,
}

impl Kind {
    /// Those that do not flood: in order, and none lost.
    pub(crate) const QUIET: [Self; 4] = [Self::Hop, Self::Burst, Self::Slow, Self::Later];

    pub(crate) fn port(self) -> u16 {
        7001 + self as u16
    }

    pub(crate) fn of_port(port: u16) -> Option<Self> {
        let all = [Self::Hop, Self::Burst, Self::Slow, Self::Later, Self::Flood];
        all.into_iter().find(|kind| kind.port() == port)
    }
}

/// The stamp of a frame, with its kind.
pub(crate) fn stamp(frame: &[u8]) -> Option<(Kind, Stamp)> {
    let [high, low] = *frame.get(36..38)?.first_chunk()?;
    let kind = Kind::of_port(u16::from_be_bytes([high, low]))?;
    Some((kind, Stamp::read(frame.get(HEADERS..)?)?))
}

/// Flows that are remembered at a time.
const FLOWS: usize = 1 << 12;

/// What somebody has seen of one kind. Flows that are long over make room for new ones, so that memory
/// does not grow.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Flow and one more than the highest number seen.
    last: Box<[AtomicU64]>,
    pub(crate) packets: AtomicU64,
    pub(crate) reordered: AtomicU64,
}

impl Default for Seen {
    fn default() -> Self {
        let last = (0..FLOWS).map(|_| AtomicU64::new(0)).collect();
        Self { last, packets: AtomicU64::new(0), reordered: AtomicU64::new(0) }
    }
}

impl Seen {
    pub(crate) fn see(&self, stamp: &Stamp) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        let now = u64::from(stamp.flow) << 32 | u64::from(stamp.seq + 1);
        let before = self.last[stamp.flow as usize % FLOWS].fetch_max(now, Ordering::Relaxed);
        if before > now && before >> 32 == u64::from(stamp.flow) {
            self.reordered.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    pub(crate) fn reordered(&self) -> u64 {
        self.reordered.load(Ordering::Relaxed)
    }
}

/// Hears what arrives at a host.
pub(crate) struct Ear {
    pub(crate) seen: Arc<[Seen; Kind::QUIET.len()]>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<TestResult>>,
}

impl Ear {
    pub(crate) fn open(host: &Host) -> Result<Self> {
        let (seen, stop) = (Arc::<[Seen; 4]>::default(), Arc::<AtomicBool>::default());
        let mut link = RawSocket::open(&host.ns, HOST_LINK)?;
        let (hears, ends) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let frame = link.receive(Duration::from_millis(50))?;
                if let Some((kind, stamp)) = frame.as_deref().and_then(stamp)
                    && let Some(seen) = hears.get(kind as usize)
                {
                    seen.see(&stamp);
                }
            }
            Ok(())
        });
        Ok(Self { seen, stop, thread: Some(thread) })
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_) | Ok(Err(_))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the ear failed");
        }
    }
}
