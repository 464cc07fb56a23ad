//! The flows that most packets take now.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use netlink_io::Socket;
use ovs_wire::flow::{Flow, Omit};

use super::Dispatcher;
use super::inspect::flow_line;
use crate::Error;
use crate::flow_dump::{self, monotonic_ms};

/// What was found at the last look at the flow table, to tell what was added since.
#[derive(Debug, Default)]
pub struct HotFlows {
    hasher: RandomState,
    /// Packets and bytes by flow.
    before: HashMap<u64, (u64, u64)>,
    at: Option<Instant>,
}

/// A flow, and what it took since the last look.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct HotFlow {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// The flow, in the form of [`FlowText`](crate::FlowText), but counted since it was installed last.
    pub line: String,
}

impl Dispatcher {
    /// The flows that took most packets since the last look with this `hot`, the first one first, at most
    /// `max`, and how long ago that look was; at the first look since they were installed, and `None`. It
    /// costs a dump of the flow table, and 24 bytes of memory for each flow as long as `hot` is kept.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub async fn hot_flows(
        &self,
        hot: &mut HotFlows,
        max: usize,
    ) -> Result<(Vec<HotFlow>, Option<Duration>), Error> {
        let error = || Error::system("read the flow table");
        let socket = Arc::new(Socket::open().map_err(error())?);
        let mut look = Look {
            hasher: &hot.hasher,
            before: &hot.before,
            now: HashMap::with_capacity(hot.before.len()),
            now_ms: monotonic_ms(),
            max,
            found: BinaryHeap::with_capacity(max + 1),
        };
        let each = |flow: &Flow<'_>| {
            look.flow(flow);
            Ok(())
        };
        let (family, dp_ifindex) = (self.shared.flow_family, self.dp.ifindex);
        flow_dump::read(&socket, family, (dp_ifindex, Omit::Nothing), each)
            .await
            .map_err(error())?;
        let (now, found) = (look.now, look.found.into_sorted_vec());
        hot.before = now;
        let since = hot.at.replace(Instant::now()).map(|at| at.elapsed());
        Ok((found.into_iter().map(|Reverse(flow)| flow).collect(), since))
    }
}

/// One reading of the table.
struct Look<'a> {
    hasher: &'a RandomState,
    before: &'a HashMap<u64, (u64, u64)>,
    now: HashMap<u64, (u64, u64)>,
    now_ms: u64,
    max: usize,
    /// The coldest of them on top.
    found: BinaryHeap<Reverse<HotFlow>>,
}

impl Look<'_> {
    fn flow(&mut self, flow: &Flow<'_>) {
        let id = self.hasher.hash_one((flow.key, flow.mask));
        let (packets, bytes) = (flow.stats.packets, flow.stats.bytes);
        self.now.insert(id, (packets, bytes));
        // One that was installed anew counts from 0.
        let before = self.before.get(&id).filter(|(before, _)| *before <= packets);
        let (packets_before, bytes_before) = before.copied().unwrap_or_default();
        let packets = packets - packets_before;
        let coldest = self.found.peek().map_or(0, |Reverse(coldest)| coldest.packets);
        if packets == 0 || self.found.len() == self.max && packets <= coldest {
            return;
        }
        let bytes = bytes.saturating_sub(bytes_before);
        self.found.push(Reverse(HotFlow { packets, bytes, line: flow_line(flow, self.now_ms) }));
        if self.found.len() > self.max {
            self.found.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_wire::flow::FlowStats;
    use ovs_wire::text;

    #[test]
    fn the_hottest_are_those_that_grew_most() {
        let key = |port: u32| {
            let (mut key, mut mask) = (Vec::new(), Vec::new());
            text::parse_key(&format!("in_port({port})"), &mut key, &mut mask).unwrap();
            key
        };
        let mut hot = HotFlows::default();
        let mut look = |counts: &[(u32, u64)]| {
            let mut look = Look {
                hasher: &hot.hasher,
                before: &hot.before,
                now: HashMap::new(),
                now_ms: 0,
                max: 2,
                found: BinaryHeap::new(),
            };
            for (port, packets) in counts {
                let key = key(*port);
                look.flow(&Flow {
                    dp_ifindex: 1,
                    key: &key,
                    mask: &[],
                    actions: &[],
                    stats: FlowStats { packets: *packets, bytes: packets * 60 },
                    tcp_flags: 0,
                    used_ms: None,
                    ufid: None,
                });
            }
            let (now, found) = (look.now, look.found.into_sorted_vec());
            hot.before = now;
            found.into_iter().map(|Reverse(flow)| (flow.packets, flow.bytes)).collect::<Vec<_>>()
        };
        assert_eq!(look(&[(1, 5), (2, 0), (3, 9), (4, 7)]), [(9, 540), (7, 420)]);
        assert_eq!(look(&[(1, 5), (2, 3), (3, 8), (4, 17)]), [(10, 600), (8, 480)]);
        assert!(look(&[(1, 5), (2, 3)]).is_empty());
    }
}
