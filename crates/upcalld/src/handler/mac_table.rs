//! Which station is behind which port.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use hashbrown::HashMap;
use upcall::MacAddr;

/// Parts of the table with a lock each. Workers read; a write happens once for each new station.
const SHARDS: usize = 64;

/// A MAC address in a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Station {
    /// VLAN id, 0 for untagged.
    pub(crate) vlan: u16,
    /// Address.
    pub(crate) mac: MacAddr,
}

/// What [`MacTable::learn`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learned {
    /// It was known to be there.
    Known,
    /// It was unknown.
    New,
    /// It was elsewhere.
    Moved {
        /// The port it was at.
        from: u32,
    },
    /// It was unknown, and the table is full.
    Refused,
}

struct Entry {
    port: u32,
    seen_ms: AtomicU64,
}

type Shard = HashMap<Station, Entry, RandomState>;

/// Stations and their ports, with a limit.
pub(crate) struct MacTable {
    shards: Box<[RwLock<Shard>]>,
    hasher: RandomState,
    max: usize,
    len: AtomicUsize,
    refused: AtomicU64,
    epoch: Instant,
    /// Milliseconds since `epoch` at the last sweep: what a packet stamps, so that none reads a clock.
    now_ms: AtomicU64,
}

impl MacTable {
    /// An empty table for at most `max` stations.
    pub(crate) fn new(max: usize) -> Self {
        let hasher = RandomState::default();
        let shard = || RwLock::new(Shard::with_hasher(hasher.clone()));
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::default(),
            max,
            len: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            epoch: Instant::now(),
            now_ms: AtomicU64::new(0),
        }
    }

    /// Stations known.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Is there no room for another station?
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.max
    }

    /// Packets whose station was not learned because the table was full.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The port of a station.
    pub(crate) fn port_of(&self, station: Station) -> Option<u32> {
        self.read(station).get(&station).map(|entry| entry.port)
    }

    /// A packet of `station` came in by `port`.
    pub(crate) fn learn(&self, station: Station, port: u32) -> Learned {
        let now_ms = self.now_ms.load(Ordering::Relaxed);
        if let Some(entry) = self.read(station).get(&station)
            && entry.port == port
        {
            // Once a sweep is enough, and spares the other workers the cache line.
            if entry.seen_ms.load(Ordering::Relaxed) != now_ms {
                entry.seen_ms.store(now_ms, Ordering::Relaxed);
            }
            return Learned::Known;
        }
        let learned = self.insert(station, port, now_ms);
        if learned == Learned::Refused {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        learned
    }

    /// A flow from `station` at `port` was used `idle` ago. A station that is known elsewhere stays
    /// there: packets tell more than flows.
    pub(crate) fn keep(&self, station: Station, port: u32, idle: Duration) {
        let now_ms = self.now_ms.load(Ordering::Relaxed);
        let used_ms = now_ms.saturating_sub(idle.as_millis() as u64);
        match self.read(station).get(&station) {
            Some(entry) if entry.port == port => {
                entry.seen_ms.fetch_max(used_ms, Ordering::Relaxed);
                return;
            }
            Some(_) => return,
            None => {}
        }
        self.insert(station, port, used_ms);
    }

    fn insert(&self, station: Station, port: u32, seen_ms: u64) -> Learned {
        let mut shard = self.write(station);
        if let Some(entry) = shard.get_mut(&station) {
            let from = std::mem::replace(&mut entry.port, port);
            entry.seen_ms.store(seen_ms, Ordering::Relaxed);
            return if from == port { Learned::Known } else { Learned::Moved { from } };
        }
        if self.len.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.len.fetch_sub(1, Ordering::Relaxed);
            return Learned::Refused;
        }
        shard.insert(station, Entry { port, seen_ms: seen_ms.into() });
        Learned::New
    }

    /// Forgets stations that were not seen for `age`; gives how many. Moves the table's clock.
    pub(crate) fn age(&self, age: Duration) -> usize {
        self.age_at(self.epoch.elapsed(), age)
    }

    fn age_at(&self, now: Duration, age: Duration) -> usize {
        let now_ms = now.as_millis() as u64;
        self.now_ms.store(now_ms, Ordering::Relaxed);
        let oldest_ms = now_ms.saturating_sub(age.as_millis() as u64);
        self.retain(|entry| entry.seen_ms.load(Ordering::Relaxed) >= oldest_ms)
    }

    /// Forgets the stations of ports that are not there any more; gives how many.
    pub(crate) fn retain_ports(&self, is_there: impl Fn(u32) -> bool) -> usize {
        self.retain(|entry| is_there(entry.port))
    }

    fn retain(&self, keep: impl Fn(&Entry) -> bool) -> usize {
        let mut forgotten = 0;
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            let before = shard.len();
            shard.retain(|_, entry| keep(entry));
            forgotten += before - shard.len();
        }
        self.len.fetch_sub(forgotten, Ordering::Relaxed);
        forgotten
    }

    fn shard(&self, station: Station) -> &RwLock<Shard> {
        &self.shards[self.hasher.hash_one(station) as usize % SHARDS]
    }

    fn read(&self, station: Station) -> RwLockReadGuard<'_, Shard> {
        self.shard(station).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, station: Station) -> RwLockWriteGuard<'_, Shard> {
        self.shard(station).write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn station(vlan: u16, last: u8) -> Station {
        Station { vlan, mac: MacAddr([2, 0, 0, 0, 0, last]) }
    }

    #[test]
    fn learns_moves_and_separates_vlans() {
        let table = MacTable::new(10);
        assert_eq!(table.learn(station(0, 1), 7), Learned::New);
        assert_eq!(table.learn(station(0, 1), 7), Learned::Known);
        assert_eq!(table.learn(station(5, 1), 8), Learned::New);
        assert_eq!(table.port_of(station(0, 1)), Some(7));
        assert_eq!(table.learn(station(0, 1), 9), Learned::Moved { from: 7 });
        assert_eq!(table.port_of(station(5, 1)), Some(8));
        assert_eq!(table.port_of(station(6, 1)), None);
    }

    #[test]
    fn a_full_table_refuses_and_counts() {
        let table = MacTable::new(2);
        table.learn(station(0, 1), 1);
        table.learn(station(0, 2), 1);
        assert_eq!(table.learn(station(0, 3), 1), Learned::Refused);
        assert_eq!(table.learn(station(0, 1), 2), Learned::Moved { from: 1 });
        assert_eq!((table.len(), table.refused()), (2, 1));
    }

    #[test]
    fn forgets_what_neither_packets_nor_flows_keep() {
        let table = MacTable::new(10);
        let (age, at) = (Duration::from_secs(10), Duration::from_secs);
        for last in 1..=3 {
            table.learn(station(0, last), 1);
        }
        assert_eq!(table.age_at(at(9), age), 0);
        table.learn(station(0, 1), 1);
        table.keep(station(0, 2), 1, at(4));
        table.keep(station(0, 3), 2, at(0));
        assert_eq!(table.age_at(at(12), age), 1, "3 is not kept by a flow from another port");
        assert_eq!(table.age_at(at(16), age), 1, "2 was last used at 5");
        assert_eq!(table.age_at(at(20), age), 1);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn forgets_the_stations_of_a_port_that_is_gone() {
        let table = MacTable::new(10);
        table.learn(station(0, 1), 1);
        table.learn(station(0, 2), 2);
        assert_eq!(table.retain_ports(|port| port == 1), 1);
        assert_eq!((table.port_of(station(0, 1)), table.port_of(station(0, 2))), (Some(1), None));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_flow_teaches_an_unknown_station() {
        let table = MacTable::new(10);
        table.keep(station(0, 1), 4, Duration::ZERO);
        assert_eq!(table.port_of(station(0, 1)), Some(4));
    }
}
