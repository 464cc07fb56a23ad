//! Which station is behind which port.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use hashbrown::HashMap;
use upcall::MacAddr;

use super::switch_port::SwitchPort;

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
    /// A packet that was sent later has come from elsewhere: it is there.
    Earlier,
    /// It was elsewhere.
    Moved {
        /// The port it was at.
        from: u32,
    },
    /// It was unknown, and the table is full.
    Refused,
    /// Its port has as many as it may. Where it was before, if anywhere, it is no more.
    OverLimit {
        /// The port it was at.
        from: Option<u32>,
    },
    /// It is at another port for ever.
    Elsewhere,
}

/// When a station was seen that is there for ever.
const STATIC: u64 = u64::MAX;

struct Entry {
    port: Arc<SwitchPort>,
    seen_ms: AtomicU64,
    /// When the last packet was sent up that it was heard by, in nanoseconds; 0 if that is not known.
    heard_ns: AtomicU64,
    /// Has it a place at its port? If not, it is known to be there, so that flows from where it was before
    /// do not bring it back; packets to it are flooded.
    placed: bool,
}

impl Entry {
    fn new(port: &Arc<SwitchPort>, (seen_ms, heard_ns): (u64, u64), placed: bool) -> Self {
        Self { port: port.clone(), seen_ms: seen_ms.into(), heard_ns: heard_ns.into(), placed }
    }

    fn is_static(&self) -> bool {
        self.seen_ms.load(Ordering::Relaxed) == STATIC
    }

    /// It was heard here by a packet sent up then.
    fn heard(&self, sent_ns: u64) {
        // Workers that read the same station at the same time change it seldom.
        if sent_ns > self.heard_ns.load(Ordering::Relaxed) {
            self.heard_ns.fetch_max(sent_ns, Ordering::Relaxed);
        }
    }

    /// Gives its place back, if it has one that counts.
    fn leave(&self) {
        if self.placed && !self.is_static() {
            self.port.give_mac_back();
        }
    }
}

type Shard = HashMap<Station, Entry, RandomState>;

/// Stations and their ports, with a limit.
pub(crate) struct MacTable {
    shards: Box<[RwLock<Shard>]>,
    hasher: RandomState,
    max: AtomicUsize,
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
            max: AtomicUsize::new(max),
            len: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            epoch: Instant::now(),
            now_ms: AtomicU64::new(0),
        }
    }

    /// Stations there may be.
    pub(crate) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Remembers so many from now on. Those that are beyond go as they age.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Stations known.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Is there no room for another station?
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.max.load(Ordering::Relaxed)
    }

    /// Packets whose station was not learned because the table was full.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The number of the port that packets to a station go to.
    pub(crate) fn port_of(&self, station: Station) -> Option<u32> {
        let shard = self.read(station);
        shard.get(&station).filter(|entry| entry.placed).map(|entry| entry.port.number)
    }

    /// The number of the port that a station was last seen at, whether or not that has a place for it.
    pub(crate) fn seen_at(&self, station: Station) -> Option<u32> {
        self.read(station).get(&station).map(|entry| entry.port.number)
    }

    /// A packet of `station` came in by `port`, and was sent up at `sent_ns` if that is known. Of two that
    /// say different things, the one that was sent later is right, whichever is read first.
    pub(crate) fn learn(
        &self,
        station: Station,
        port: &Arc<SwitchPort>,
        sent_ns: Option<u64>,
    ) -> Learned {
        let sent_ns = sent_ns.unwrap_or(0);
        let now_ms = self.now_ms.load(Ordering::Relaxed);
        if let Some(entry) = self.read(station).get(&station) {
            let seen_ms = entry.seen_ms.load(Ordering::Relaxed);
            if entry.placed && entry.port.number == port.number {
                // Once a sweep is enough, and spares the other workers the cache line.
                if seen_ms != now_ms && seen_ms != STATIC {
                    entry.seen_ms.store(now_ms, Ordering::Relaxed);
                }
                entry.heard(sent_ns);
                return Learned::Known;
            }
            if seen_ms == STATIC {
                return Learned::Elsewhere;
            }
        }
        let learned = self.insert(station, port, (now_ms, sent_ns));
        if learned == Learned::Refused {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        learned
    }

    /// A flow from `station` at `port` was used `idle` ago. A station that is known elsewhere stays
    /// there: packets tell more than flows.
    pub(crate) fn keep(&self, station: Station, port: &Arc<SwitchPort>, idle: Duration) {
        let now_ms = self.now_ms.load(Ordering::Relaxed);
        let used_ms = now_ms.saturating_sub(idle.as_millis() as u64);
        match self.read(station).get(&station) {
            Some(entry) if entry.port.number == port.number => {
                entry.seen_ms.fetch_max(used_ms, Ordering::Relaxed);
                return;
            }
            Some(_) => return,
            None => {}
        }
        // A port that has as many as it may is known to: nothing came that could be refused.
        if !port.is_full() {
            self.insert(station, port, (used_ms, 0));
        }
    }

    fn insert(
        &self,
        station: Station,
        port: &Arc<SwitchPort>,
        (seen_ms, sent_ns): (u64, u64),
    ) -> Learned {
        let mut shard = self.write(station);
        if let Some(entry) = shard.get_mut(&station) {
            let from = entry.placed.then_some(entry.port.number);
            if from == Some(port.number) {
                entry.heard(sent_ns);
                return Learned::Known;
            }
            if entry.is_static() {
                return Learned::Elsewhere;
            }
            if entry.port.number != port.number && (1..*entry.heard_ns.get_mut()).contains(&sent_ns)
            {
                return Learned::Earlier;
            }
            entry.leave();
            let placed = port.take_mac();
            *entry = Entry::new(port, (seen_ms, sent_ns), placed);
            return match from {
                _ if !placed => Learned::OverLimit { from },
                Some(from) => Learned::Moved { from },
                None => Learned::New,
            };
        }
        if self.len.fetch_add(1, Ordering::Relaxed) >= self.max.load(Ordering::Relaxed) {
            self.len.fetch_sub(1, Ordering::Relaxed);
            return Learned::Refused;
        }
        if !port.take_mac() {
            self.len.fetch_sub(1, Ordering::Relaxed);
            return Learned::OverLimit { from: None };
        }
        shard.insert(station, Entry::new(port, (seen_ms, sent_ns), true));
        Learned::New
    }

    /// Puts a station at a port for ever, whatever the limits.
    pub(crate) fn pin(&self, station: Station, port: &Arc<SwitchPort>) {
        let entry = Entry::new(port, (STATIC, 0), true);
        match self.write(station).insert(station, entry) {
            Some(before) => before.leave(),
            None => _ = self.len.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Moves the table's clock; gives the time that it is at from now on.
    pub(crate) fn tick(&self) -> u64 {
        let now_ms = self.epoch.elapsed().as_millis() as u64;
        self.now_ms.store(now_ms, Ordering::Relaxed);
        now_ms
    }

    /// Forgets stations that were not seen since `oldest_ms`; gives how many.
    pub(crate) fn forget_before(&self, oldest_ms: u64) -> usize {
        self.retain(|entry| entry.seen_ms.load(Ordering::Relaxed) >= oldest_ms)
    }

    /// Forgets the stations of ports that are not there any more; gives how many.
    pub(crate) fn retain_ports(&self, is_there: impl Fn(&Arc<SwitchPort>) -> bool) -> usize {
        self.retain(|entry| is_there(&entry.port))
    }

    /// Forgets the stations that were learned; gives how many.
    pub(crate) fn flush(&self) -> usize {
        self.retain(Entry::is_static)
    }

    /// All stations, with how long ago they were seen.
    pub(crate) fn list(&self) -> Vec<super::Station> {
        let now_ms = self.epoch.elapsed().as_millis() as u64;
        let mut list = Vec::with_capacity(self.len());
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            list.extend(shard.iter().filter(|(_, entry)| entry.placed).map(|(station, entry)| {
                let age_ms = now_ms.saturating_sub(entry.seen_ms.load(Ordering::Relaxed));
                let age = (!entry.is_static()).then_some(Duration::from_millis(age_ms));
                let port = entry.port.number;
                super::Station { port, vlan: station.vlan, mac: station.mac, age }
            }));
        }
        list
    }

    fn retain(&self, keep: impl Fn(&Entry) -> bool) -> usize {
        let mut forgotten = 0;
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            for (_, gone) in shard.extract_if(|_, entry| !keep(entry)) {
                forgotten += 1;
                gone.leave();
            }
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
    use crate::handler::switch_port::PortRules;
    use upcall::Port;

    fn station(vlan: u16, last: u8) -> Station {
        Station { vlan, mac: MacAddr([2, 0, 0, 0, 0, last]) }
    }

    fn limited(number: u32, macs_max: Option<u32>) -> Arc<SwitchPort> {
        let rules = PortRules { macs_max, ..PortRules::default() };
        SwitchPort::new(&Port { number, name: format!("p{number}") }, rules).into()
    }

    fn ports() -> [Arc<SwitchPort>; 10] {
        std::array::from_fn(|number| limited(number as u32, None))
    }

    /// Moves the clock to `now`, and forgets what was not seen for `age`.
    fn age_at(table: &MacTable, now: Duration, age: Duration) -> usize {
        let now_ms = now.as_millis() as u64;
        table.now_ms.store(now_ms, Ordering::Relaxed);
        table.forget_before(now_ms.saturating_sub(age.as_millis() as u64))
    }

    #[test]
    fn learns_moves_and_separates_vlans() {
        let (table, ports) = (MacTable::new(10), ports());
        assert_eq!(table.learn(station(0, 1), &ports[7], None), Learned::New);
        assert_eq!(table.learn(station(0, 1), &ports[7], None), Learned::Known);
        assert_eq!(table.learn(station(5, 1), &ports[8], None), Learned::New);
        assert_eq!(table.port_of(station(0, 1)), Some(7));
        assert_eq!(table.learn(station(0, 1), &ports[9], None), Learned::Moved { from: 7 });
        assert_eq!(table.port_of(station(5, 1)), Some(8));
        assert_eq!(table.port_of(station(6, 1)), None);
    }

    #[test]
    fn of_two_words_the_one_that_was_sent_later_is_right() {
        let (table, ports) = (MacTable::new(10), ports());
        let heard = |port: usize, ns| table.learn(station(0, 1), &ports[port], ns);
        assert_eq!(heard(1, Some(20)), Learned::New);
        assert_eq!(heard(2, Some(10)), Learned::Earlier);
        assert_eq!(heard(2, Some(30)), Learned::Moved { from: 1 });
        assert_eq!((heard(2, Some(50)), heard(1, Some(40))), (Learned::Known, Learned::Earlier));
        assert_eq!(table.port_of(station(0, 1)), Some(2));
        assert_eq!(heard(1, None), Learned::Moved { from: 2 }, "who knows");
        assert_eq!(heard(2, Some(1)), Learned::Moved { from: 1 });
    }

    #[test]
    fn a_full_table_refuses_and_counts() {
        let (table, ports) = (MacTable::new(2), ports());
        table.learn(station(0, 1), &ports[1], None);
        table.learn(station(0, 2), &ports[1], None);
        assert_eq!(table.learn(station(0, 3), &ports[1], None), Learned::Refused);
        assert_eq!(table.learn(station(0, 1), &ports[2], None), Learned::Moved { from: 1 });
        assert_eq!((table.len(), table.refused()), (2, 1));
    }

    #[test]
    fn a_port_has_no_more_than_it_may_and_its_places_come_back() {
        let (table, wide, narrow) = (MacTable::new(10), limited(1, None), limited(2, Some(2)));
        let learn = |last, port| table.learn(station(0, last), port, None);
        assert_eq!((learn(1, &narrow), learn(2, &narrow)), (Learned::New, Learned::New));
        assert_eq!(learn(3, &narrow), Learned::OverLimit { from: None });
        assert_eq!(learn(1, &narrow), Learned::Known, "who has a place keeps it");
        learn(4, &wide);
        assert_eq!(learn(4, &narrow), Learned::OverLimit { from: Some(1) });
        assert_eq!((table.port_of(station(0, 4)), wide.figures().macs), (None, 0));
        table.keep(station(0, 4), &wide, Duration::ZERO);
        assert_eq!(table.port_of(station(0, 4)), None, "a flow from where it was is no word of it");
        assert_eq!(table.seen_at(station(0, 4)), Some(2));
        assert_eq!(learn(4, &narrow), Learned::OverLimit { from: None });
        table.keep(station(0, 3), &narrow, Duration::ZERO);
        assert_eq!((table.port_of(station(0, 3)), table.list().len()), (None, 2));
        assert_eq!(learn(2, &wide), Learned::Moved { from: 2 });
        assert_eq!(learn(4, &narrow), Learned::New, "a place that was left");
        assert_eq!(learn(3, &narrow), Learned::OverLimit { from: None });
        assert_eq!((narrow.figures().macs, narrow.figures().macs_refused), (2, 4));
        assert_eq!(table.flush(), 3);
        assert_eq!((narrow.figures().macs, wide.figures().macs, table.len()), (0, 0, 0));
    }

    #[test]
    fn a_static_station_neither_moves_nor_ages_nor_counts() {
        let (table, home, other) = (MacTable::new(1), limited(1, Some(0)), limited(2, None));
        table.learn(station(0, 1), &other, None);
        table.pin(station(0, 1), &home);
        table.pin(station(0, 1), &home);
        assert_eq!((table.len(), other.figures().macs, home.figures().macs), (1, 0, 0));
        assert_eq!(table.learn(station(0, 1), &other, None), Learned::Elsewhere);
        assert_eq!(table.learn(station(0, 1), &home, None), Learned::Known);
        table.keep(station(0, 1), &home, Duration::ZERO);
        let (day, age) = (Duration::from_hours(24), Duration::from_secs(1));
        assert_eq!((age_at(&table, day, age), table.flush()), (0, 0));
        assert_eq!(table.list()[0].age, None);
        assert_eq!(table.retain_ports(|port| port.number == 2), 1);
        assert_eq!((table.len(), home.figures().macs), (0, 0));
    }

    #[test]
    fn forgets_what_neither_packets_nor_flows_keep() {
        let (table, ports) = (MacTable::new(10), ports());
        let (age, at) = (Duration::from_secs(10), Duration::from_secs);
        for last in 1..=3 {
            table.learn(station(0, last), &ports[1], None);
        }
        assert_eq!(age_at(&table, at(9), age), 0);
        table.learn(station(0, 1), &ports[1], None);
        table.keep(station(0, 2), &ports[1], at(4));
        table.keep(station(0, 3), &ports[2], at(0));
        assert_eq!(age_at(&table, at(12), age), 1, "3 is not kept by a flow from another port");
        assert_eq!(age_at(&table, at(16), age), 1, "2 was last used at 5");
        assert_eq!(age_at(&table, at(20), age), 1);
        assert_eq!((table.len(), ports[1].figures().macs), (0, 0));
    }

    #[test]
    fn forgets_the_stations_of_a_port_that_is_gone() {
        let (table, ports) = (MacTable::new(10), ports());
        table.learn(station(0, 1), &ports[1], None);
        table.learn(station(0, 2), &ports[2], None);
        assert_eq!(table.retain_ports(|port| port.number == 1), 1);
        assert_eq!((table.port_of(station(0, 1)), table.port_of(station(0, 2))), (Some(1), None));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_flow_teaches_an_unknown_station() {
        let (table, ports) = (MacTable::new(10), ports());
        table.keep(station(0, 1), &ports[4], Duration::ZERO);
        assert_eq!(table.port_of(station(0, 1)), Some(4));
    }
}
