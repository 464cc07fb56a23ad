//! Ids of flows: who installed a flow, and when.
//!
//! The kernel does not know when a flow was installed, and an id is 16 bytes of any kind to it. So the time
//! is in the id: how old a flow is can be read from the kernel's table, also by a successor, and no record
//! of flows is needed for it.

/// What ids of ours begin with. Those of `ovs-vswitchd` are hashes; one in 2^32 looks like ours, and is
/// taken for older or younger than it is.
const MARK: [u8; 4] = *b"upc1";

/// An id, as the kernel is given it.
pub(crate) type FlowId = [u8; 16];

/// Makes the ids of one worker.
#[derive(Debug)]
pub(crate) struct FlowIds {
    /// Tells it from other workers of the process.
    maker: u16,
    made: u32,
}

impl FlowIds {
    pub(crate) fn new(maker: u16) -> Self {
        Self { maker, made: 0 }
    }

    /// The id of a flow that is decided about at `now_ms` of `CLOCK_MONOTONIC`.
    pub(crate) fn next(&mut self, now_ms: u64) -> FlowId {
        self.made = self.made.wrapping_add(1);
        let mut id = FlowId::default();
        // 48 bits of milliseconds are 8,900 years.
        id[2..10].copy_from_slice(&now_ms.to_be_bytes());
        id[..4].copy_from_slice(&MARK);
        id[10..12].copy_from_slice(&self.maker.to_be_bytes());
        id[12..].copy_from_slice(&self.made.to_be_bytes());
        id
    }
}

/// When the flow with this id was decided about, if the id is one of ours.
pub(crate) fn installed_ms(ufid: &[u8]) -> Option<u64> {
    let time = ufid.strip_prefix(&MARK)?.first_chunk::<6>().filter(|_| ufid.len() == 16)?;
    let mut ms = [0; 8];
    ms[2..].copy_from_slice(time);
    Some(u64::from_be_bytes(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_its_time_and_is_that_of_no_other() {
        let (mut one, mut other) = (FlowIds::new(1), FlowIds::new(2));
        let ids = [one.next(77), one.next(77), other.next(77), other.next(u64::MAX >> 16)];
        assert_eq!(ids.map(|id| installed_ms(&id)), [77, 77, 77, u64::MAX >> 16].map(Some));
        assert!((0..4).all(|i| !ids[..i].contains(&ids[i])));
    }

    #[test]
    fn an_id_of_another_make_has_no_time() {
        assert_eq!(installed_ms(&[0x5a; 16]), None);
        assert_eq!(installed_ms(b"upc1"), None);
        assert_eq!(installed_ms(&FlowIds::new(1).next(1)[..15]), None);
    }
}
