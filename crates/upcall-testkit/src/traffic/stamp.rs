//! What each packet says about itself.

use rustix::time::{ClockId, clock_gettime};

/// Bytes of a [`Stamp`] in a payload.
pub const STAMP_BYTES: usize = 24;

/// First bytes of every stamp.
const MAGIC: u32 = 0x6f76_5575;

/// What each packet of a generator carries in its payload, big-endian: magic, flow, seq, cpu, two zero
/// bytes, time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The flow, unique among the generators that send to one receiver.
    pub flow: u32,
    /// Position within the flow, from 0.
    pub seq: u32,
    /// The CPU the sender ran on.
    pub cpu: u16,
    /// When it was sent: nanoseconds of `CLOCK_MONOTONIC`, which all namespaces share.
    pub sent_ns: u64,
}

impl Stamp {
    /// A stamp of here and now.
    pub fn now(flow: u32, seq: u32) -> Self {
        Self { flow, seq, cpu: rustix::thread::sched_getcpu() as u16, sent_ns: monotonic_ns() }
    }

    /// Writes the stamp into the head of `payload`.
    ///
    /// # Panics
    /// When `payload` is shorter than [`STAMP_BYTES`].
    pub fn write(&self, payload: &mut [u8]) {
        payload[..4].copy_from_slice(&MAGIC.to_be_bytes());
        payload[4..8].copy_from_slice(&self.flow.to_be_bytes());
        payload[8..12].copy_from_slice(&self.seq.to_be_bytes());
        payload[12..14].copy_from_slice(&self.cpu.to_be_bytes());
        payload[14..16].fill(0);
        payload[16..24].copy_from_slice(&self.sent_ns.to_be_bytes());
    }

    /// Reads the stamp at the head of `payload`; `None` if there is none.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let head: &[u8; STAMP_BYTES] = payload.first_chunk()?;
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if word(0) != MAGIC {
            return None;
        }
        Some(Self {
            flow: word(4),
            seq: word(8),
            cpu: u16::from_be_bytes([head[12], head[13]]),
            sent_ns: u64::from(word(16)) << 32 | u64::from(word(20)),
        })
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back() {
        let stamp = Stamp { flow: 1, seq: u32::MAX, cpu: 300, sent_ns: u64::MAX - 1 };
        let mut payload = [0xffu8; STAMP_BYTES + 4];
        stamp.write(&mut payload);
        assert_eq!(Stamp::read(&payload), Some(stamp));
    }

    #[test]
    fn other_bytes_are_no_stamp() {
        assert_eq!(Stamp::read(&[]), None);
        assert_eq!(Stamp::read(&[0; STAMP_BYTES - 1]), None);
        assert_eq!(Stamp::read(&[0; STAMP_BYTES]), None);
    }
}
