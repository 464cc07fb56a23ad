//! Ids of flows: who installed a flow, when, and for which stations.
//!
//! The kernel does not know when a flow was installed, and an id is 16 bytes of any kind to it. So the time
//! is in the id: how old a flow is can be read from the kernel's table, also by a successor, and no record
//! of flows is needed for it. So are tags of the two stations: when one moves, a reading of the ids alone finds
//! the flows that are affected.
//!
//! | bytes | what |
//! |---|---|
//! | 3 | what ids of ours begin with |
//! | 5 | when, on `CLOCK_MONOTONIC`, in units of 16 ms: enough for 557 years |
//! | 1, 3 | the worker, and how many it has made |
//! | 2, 2 | tags of source and destination |

use ovs_wire::MacAddr;

/// What ids of ours begin with. Those of `ovs-vswitchd` are hashes; one in 2^24 looks like ours, and is
/// taken for older or younger than it is.
const MARK: [u8; 3] = *b"upc";
/// Milliseconds of a unit of time, as a shift.
const UNIT_SHIFT: u32 = 4;

/// An id, as the kernel is given it.
pub(crate) type FlowId = [u8; 16];

/// What an id tells of a station: 1 of 65,536 others has the same.
pub(crate) type Tag = u16;

/// The tag of a station. The same in every process, because a successor reads it.
pub(crate) fn tag(station: MacAddr) -> Tag {
    let mut word = [0; 8];
    word[2..].copy_from_slice(&station.0);
    // The golden ratio: neighbours are far apart in the upper bits.
    (u64::from_be_bytes(word).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as Tag
}

/// Makes the ids of one worker.
#[derive(Debug)]
pub(crate) struct FlowIds {
    /// Tells it from other workers of the process.
    maker: u8,
    made: u32,
}

impl FlowIds {
    pub(crate) fn new(maker: u16) -> Self {
        Self { maker: maker as u8, made: 0 }
    }

    /// The id of a flow that is decided about at `now_ms` of `CLOCK_MONOTONIC`, between these stations.
    pub(crate) fn next(&mut self, now_ms: u64, stations: [MacAddr; 2]) -> FlowId {
        self.made = self.made.wrapping_add(1);
        let [_, _, _, when @ ..] = (now_ms >> UNIT_SHIFT).to_be_bytes();
        let [_, made @ ..] = self.made.to_be_bytes();
        let [source, destination] = stations.map(|station| tag(station).to_be_bytes());
        let mut id = FlowId::default();
        id[..3].copy_from_slice(&MARK);
        id[3..8].copy_from_slice(&when);
        id[8] = self.maker;
        id[9..12].copy_from_slice(&made);
        id[12..14].copy_from_slice(&source);
        id[14..].copy_from_slice(&destination);
        id
    }
}

/// What an id of ours tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    /// When the flow was decided about, 15 ms early at most.
    pub(crate) installed_ms: u64,
    /// The tags of its stations.
    pub(crate) tags: [Tag; 2],
}

/// Reads an id; `None` if it is none of ours.
pub(crate) fn read(ufid: &[u8]) -> Option<Told> {
    let id: &FlowId = ufid.try_into().ok()?;
    let [a, b, c, when @ .., _, _, _, _, s0, s1, d0, d1] = id;
    let [w0, w1, w2, w3, w4] = *when;
    let units = u64::from_be_bytes([0, 0, 0, w0, w1, w2, w3, w4]);
    let tags = [Tag::from_be_bytes([*s0, *s1]), Tag::from_be_bytes([*d0, *d1])];
    ([*a, *b, *c] == MARK).then_some(Told { installed_ms: units << UNIT_SHIFT, tags })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    #[test]
    fn an_id_tells_its_time_and_is_that_of_no_other() {
        let (mut one, mut other) = (FlowIds::new(1), FlowIds::new(2));
        let latest = (u64::MAX >> 24) << UNIT_SHIFT;
        let ids = [
            one.next(80, [A, B]),
            one.next(95, [A, B]),
            other.next(95, [A, B]),
            other.next(latest, [A, B]),
        ];
        let times = ids.map(|id| read(&id).map(|told| told.installed_ms));
        assert_eq!(times, [80, 80, 80, latest].map(Some));
        assert!((0..4).all(|i| !ids[..i].contains(&ids[i])));
    }

    #[test]
    fn an_id_tells_whose_flow_it_is() {
        let told = read(&FlowIds::new(7).next(1, [A, B])).unwrap();
        assert_eq!(told.tags, [tag(A), tag(B)]);
        let stations = (0..=u16::MAX).map(|n| MacAddr([2, 0, 0, 1, n.to_be_bytes()[0], n as u8]));
        let tags: std::collections::BTreeSet<_> = stations.map(tag).collect();
        assert!(tags.len() > 40_000, "neighbours have tags of their own: {}", tags.len());
    }

    #[test]
    fn an_id_of_another_make_tells_nothing() {
        assert_eq!(read(&[0x5a; 16]), None);
        assert_eq!(read(b"upc1"), None);
        assert_eq!(read(&FlowIds::new(1).next(1, [A, B])[..15]), None);
    }
}
