//! What a receiver makes of the stamps: lost, doubled, overtaken. Pure; no sockets and no clock.

use std::collections::HashMap;

use super::stamp::Stamp;

/// Most flows of one tally; packets of further flows count as foreign.
pub const FLOWS_MAX: usize = 1 << 16;

/// Highest sequence number of a flow; packets beyond count as foreign (a flow costs a bit for each
/// number, so this bounds a flow to 512 KiB).
pub const SEQ_MAX: u32 = (1 << 22) - 1;

/// One flow as its receiver saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowTally {
    /// Packets received, duplicates included.
    pub received: u64,
    /// Packets whose number had been received before.
    pub duplicates: u64,
    /// Packets that arrived after one with a higher number (duplicates not counted again).
    pub reordered: u64,
    /// From sending to receiving the packet that arrived first, in nanoseconds: for a new flow, the
    /// time of its set-up.
    pub first_latency_ns: u64,
    /// The longest way of any packet in nanoseconds.
    pub latency_ns_max: u64,
    /// One more than the highest number received.
    seq_end: u32,
    /// Packets that the sender says it has sent, from number 0 on.
    told: u32,
    seen: Vec<u64>,
}

impl FlowTally {
    /// Packets missing: of those the sender told, else of those up to the highest number received.
    pub fn lost(&self) -> u64 {
        u64::from(self.told.max(self.seq_end)) - self.distinct()
    }

    /// Packets received, duplicates not counted.
    pub fn distinct(&self) -> u64 {
        self.received - self.duplicates
    }

    fn record(&mut self, stamp: &Stamp, now_ns: u64) {
        let latency_ns = now_ns.saturating_sub(stamp.sent_ns);
        if self.received == 0 {
            self.first_latency_ns = latency_ns;
        }
        self.received += 1;
        self.latency_ns_max = self.latency_ns_max.max(latency_ns);
        if !self.mark(stamp.seq) {
            self.duplicates += 1;
        } else if stamp.seq < self.seq_end {
            self.reordered += 1;
        }
        self.seq_end = self.seq_end.max(stamp.seq + 1);
    }

    /// Marks a number as received; `false` if it was already.
    fn mark(&mut self, seq: u32) -> bool {
        let (word, bit) = ((seq / 64) as usize, 1 << (seq % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        let fresh = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        fresh
    }
}

/// The sum over all flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Flows of which a packet arrived or was told of.
    pub flows: u64,
    /// Packets received, duplicates included.
    pub received: u64,
    /// Packets missing.
    pub lost: u64,
    /// Packets received again.
    pub duplicates: u64,
    /// Packets overtaken by a later one of their flow.
    pub reordered: u64,
    /// Packets without a stamp, or beyond [`FLOWS_MAX`] or [`SEQ_MAX`].
    pub foreign: u64,
}

impl std::ops::Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            flows: self.flows + other.flows,
            received: self.received + other.received,
            lost: self.lost + other.lost,
            duplicates: self.duplicates + other.duplicates,
            reordered: self.reordered + other.reordered,
            foreign: self.foreign + other.foreign,
        }
    }
}

/// All flows of one receiver.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    flows: HashMap<u32, FlowTally>,
    foreign: u64,
}

impl Tally {
    /// Nothing received yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records a packet by its payload, received at `now_ns` of the stamps' clock.
    pub fn record_payload(&mut self, payload: &[u8], now_ns: u64) {
        match Stamp::read(payload) {
            Some(stamp) => self.record(&stamp, now_ns),
            None => self.foreign += 1,
        }
    }

    /// Records a packet by its stamp, received at `now_ns` of the stamps' clock.
    pub fn record(&mut self, stamp: &Stamp, now_ns: u64) {
        match self.entry(stamp.flow) {
            Some(flow) if stamp.seq <= SEQ_MAX => flow.record(stamp, now_ns),
            _ => self.foreign += 1,
        }
    }

    /// Takes the sender's word that it has sent `packets` packets of `flow`, numbered from 0, so that
    /// a loss at the end of a flow, or of all of it, is seen.
    pub fn expect(&mut self, flow: u32, packets: u32) {
        if let Some(flow) = self.entry(flow) {
            flow.told = flow.told.max(packets);
        }
    }

    /// One flow.
    pub fn flow(&self, flow: u32) -> Option<&FlowTally> {
        self.flows.get(&flow)
    }

    /// All flows by number, in no order.
    pub fn flows(&self) -> impl Iterator<Item = (u32, &FlowTally)> {
        self.flows.iter().map(|(&number, flow)| (number, flow))
    }

    /// The sum over all flows.
    pub fn totals(&self) -> Totals {
        let zero = Totals { foreign: self.foreign, ..Totals::default() };
        self.flows.values().fold(zero, |sum, flow| {
            sum + Totals {
                flows: 1,
                received: flow.received,
                lost: flow.lost(),
                duplicates: flow.duplicates,
                reordered: flow.reordered,
                foreign: 0,
            }
        })
    }

    fn entry(&mut self, flow: u32) -> Option<&mut FlowTally> {
        if self.flows.len() >= FLOWS_MAX && !self.flows.contains_key(&flow) {
            return None;
        }
        Some(self.flows.entry(flow).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(seqs: &[u32]) -> Tally {
        let mut tally = Tally::new();
        for &seq in seqs {
            tally.record(&Stamp { flow: 7, seq, cpu: 0, sent_ns: 100 }, 150);
        }
        tally
    }

    fn counts(tally: &Tally) -> (u64, u64, u64, u64) {
        let sum = tally.totals();
        (sum.received, sum.lost, sum.duplicates, sum.reordered)
    }

    #[test]
    fn in_order_is_nothing_special() {
        assert_eq!(counts(&tally(&[0, 1, 2, 3])), (4, 0, 0, 0));
        assert_eq!(tally(&[0]).flow(7).unwrap().first_latency_ns, 50);
    }

    #[test]
    fn a_gap_is_a_loss_until_it_is_filled() {
        assert_eq!(counts(&tally(&[0, 2, 3])), (3, 1, 0, 0));
        assert_eq!(counts(&tally(&[0, 2, 3, 1])), (4, 0, 0, 1));
    }

    #[test]
    fn a_missing_head_is_a_loss() {
        assert_eq!(counts(&tally(&[3])), (1, 3, 0, 0));
    }

    #[test]
    fn one_late_packet_is_one_reorder_and_one_early_packet_makes_many() {
        assert_eq!(counts(&tally(&[1, 2, 3, 0])), (4, 0, 0, 1));
        assert_eq!(counts(&tally(&[3, 0, 1, 2])), (4, 0, 0, 3));
    }

    #[test]
    fn a_duplicate_is_no_reorder_and_fills_no_gap() {
        assert_eq!(counts(&tally(&[0, 1, 1, 0, 3])), (5, 1, 2, 0));
    }

    #[test]
    fn what_the_sender_tells_shows_the_lost_tail_and_the_lost_flow() {
        let mut tally = tally(&[0, 1]);
        tally.expect(7, 5);
        tally.expect(8, 2);
        assert_eq!(counts(&tally), (2, 5, 0, 0));
        assert_eq!(tally.totals().flows, 2);
        // A late word about fewer packets takes nothing back.
        tally.expect(7, 1);
        assert_eq!(tally.flow(7).unwrap().lost(), 3);
    }

    #[test]
    fn what_is_out_of_bounds_is_foreign() {
        let mut tally = tally(&[SEQ_MAX, SEQ_MAX + 1, u32::MAX]);
        tally.record_payload(b"no stamp", 0);
        let sum = tally.totals();
        assert_eq!((sum.received, sum.foreign, sum.lost), (1, 3, u64::from(SEQ_MAX)));
    }

    #[test]
    fn any_order_of_any_subset_balances() {
        // Every permutation of every subset of five packets, one of them twice.
        for mask in 0u32..32 {
            let seqs: Vec<u32> = (0..5).filter(|seq| mask & (1 << seq) != 0).collect();
            for turn in 0..seqs.len() {
                let mut order = seqs.clone();
                order.rotate_left(turn);
                order.extend(seqs.first());
                let mut tally = tally(&order);
                tally.expect(7, 5);
                let flow = tally.flow(7).unwrap();
                assert_eq!(flow.distinct() + flow.lost(), 5, "{order:?}");
                assert_eq!(flow.duplicates, 1);
                assert!(flow.reordered <= flow.distinct());
            }
        }
    }
}
