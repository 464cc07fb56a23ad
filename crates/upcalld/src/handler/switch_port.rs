//! A port of the learning switch: its VLANs, the addresses and floods it may have, and what it had.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use upcall::{MacAddr, Port, Ports, Rate, TokenBucket};

use super::vlan::Vlans;

/// What is configured for a port, by its name.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct PortRules {
    pub(crate) vlans: Vlans,
    /// Most addresses that are learned there.
    pub(crate) macs_max: Option<u32>,
    /// Addresses that are there for ever, each in a VLAN.
    pub(crate) static_macs: Vec<(u16, MacAddr)>,
    pub(crate) floods: FloodRates,
}

/// Packets that go to many, by why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flood {
    Broadcast,
    Multicast,
    /// To an address that is not known.
    Unknown,
}

impl Flood {
    pub(crate) const ALL: [Self; 3] = [Self::Broadcast, Self::Multicast, Self::Unknown];

    pub(crate) fn of(destination: MacAddr) -> Self {
        match destination {
            MacAddr::BROADCAST => Self::Broadcast,
            mac if mac.is_multicast() => Self::Multicast,
            _ => Self::Unknown,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Broadcast => "broadcast",
            Self::Multicast => "multicast",
            Self::Unknown => "unknown",
        }
    }
}

/// Floods that a port may send, in the order of [`Flood::ALL`]; `None` is as many as come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FloodRates(pub(crate) [Option<Rate>; 3]);

impl FloodRates {
    /// These, and what they leave open from `others`.
    pub(crate) fn or(self, others: Self) -> Self {
        let [b, m, u] = self.0;
        Self([b.or(others.0[0]), m.or(others.0[1]), u.or(others.0[2])])
    }
}

/// A port that is there.
#[derive(Debug)]
pub(crate) struct SwitchPort {
    pub(crate) number: u32,
    name: String,
    pub(crate) rules: PortRules,
    buckets: [Option<TokenBucket>; 3],
    /// Addresses learned.
    macs: AtomicU32,
    /// Packets whose address was not learned because the port had its share.
    macs_refused: AtomicU64,
    /// Packets that were dropped because of a rate, in the order of [`Flood::ALL`].
    flooded_over: [AtomicU64; 3],
}

/// What a port of the switch has and had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortFigures {
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) vlans: Vlans,
    pub(crate) macs: u32,
    pub(crate) macs_max: Option<u32>,
    pub(crate) macs_refused: u64,
    /// In the order of [`Flood::ALL`].
    pub(crate) flooded_over: [u64; 3],
}

impl SwitchPort {
    pub(crate) fn new(port: &Port, rules: PortRules) -> Self {
        let buckets = rules.floods.0.map(|rate| rate.map(TokenBucket::new));
        Self {
            number: port.number,
            name: port.name.clone(),
            rules,
            buckets,
            macs: AtomicU32::new(0),
            macs_refused: AtomicU64::new(0),
            flooded_over: Default::default(),
        }
    }

    /// Is it this port, with these rules?
    pub(crate) fn is(&self, port: &Port, rules: &PortRules) -> bool {
        (self.number, &self.name, &self.rules) == (port.number, &port.name, rules)
    }

    /// Takes the place of an address; `false`, if it has as many as it may.
    pub(crate) fn take_mac(&self) -> bool {
        let max = self.rules.macs_max.unwrap_or(u32::MAX);
        let one_more = |macs: u32| (macs < max).then(|| macs + 1);
        let taken = self.macs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        if !taken {
            self.macs_refused.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    pub(crate) fn give_mac_back(&self) {
        self.macs.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.rules.macs_max.is_some_and(|max| self.macs.load(Ordering::Relaxed) >= max)
    }

    /// May a packet be flooded? `now_ns` is asked for only where a rate is bounded.
    pub(crate) fn may_flood(&self, flood: Flood, now_ns: impl FnOnce() -> u64) -> bool {
        let Some(bucket) = &self.buckets[flood as usize] else { return true };
        let may = bucket.take(now_ns());
        if !may {
            self.flooded_over[flood as usize].fetch_add(1, Ordering::Relaxed);
        }
        may
    }

    pub(crate) fn figures(&self) -> PortFigures {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PortFigures {
            number: self.number,
            name: self.name.clone(),
            vlans: self.rules.vlans.clone(),
            macs: self.macs.load(Ordering::Relaxed),
            macs_max: self.rules.macs_max,
            macs_refused: load(&self.macs_refused),
            flooded_over: self.flooded_over.each_ref().map(load),
        }
    }
}

/// The ports of the switch, by number.
#[derive(Debug, Default)]
pub(crate) struct SwitchPorts(Vec<Arc<SwitchPort>>);

impl SwitchPorts {
    /// Those of `ports` with the rules that go by their names, or `others`; of `before` those that are
    /// the same.
    pub(crate) fn new(
        ports: &Ports,
        (rules, others): (&[(String, PortRules)], &PortRules),
        before: &Self,
    ) -> Self {
        let by_name = |(name, rules): &'_ (String, PortRules)| {
            Some((ports.by_configured_name(name)?.number, rules.clone()))
        };
        let by_number: Vec<(u32, PortRules)> = rules.iter().filter_map(by_name).collect();
        let make = |port: &Port| {
            let found = by_number.iter().find(|(number, _)| *number == port.number);
            let rules = found.map_or(others, |(_, rules)| rules);
            let same = before.get(port.number).filter(|known| known.is(port, rules));
            same.cloned().unwrap_or_else(|| SwitchPort::new(port, rules.clone()).into())
        };
        Self(ports.iter().map(make).collect())
    }

    pub(crate) fn get(&self, number: u32) -> Option<&Arc<SwitchPort>> {
        self.0.binary_search_by_key(&number, |port| port.number).ok().map(|at| &self.0[at])
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Arc<SwitchPort>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u32) -> Port {
        Port { number, name: format!("p{number}") }
    }

    #[test]
    fn a_port_keeps_what_it_had_as_long_as_it_is_the_same() {
        let rules = |max| {
            vec![("p1".to_owned(), PortRules { macs_max: Some(max), ..PortRules::default() })]
        };
        let ports = Ports::new(vec![port(1), port(2)]);
        let new = |max, before: &SwitchPorts| {
            SwitchPorts::new(&ports, (&rules(max), &PortRules::default()), before)
        };
        let first = new(1, &SwitchPorts::default());
        let one = first.get(1).unwrap();
        assert!(one.take_mac() && !one.take_mac() && one.is_full());
        assert!(first.get(2).is_some_and(|two| two.take_mac() && !two.is_full()));
        let same = new(1, &first);
        assert_eq!(same.get(1).unwrap().figures().macs_refused, 1);
        let changed = new(2, &first);
        assert_eq!(changed.get(1).unwrap().figures().macs, 0);
        assert!(changed.get(3).is_none());
    }

    #[test]
    fn floods_are_bounded_by_cause() {
        let rates = [Some("1000:2".parse().unwrap()), None, None];
        let rules = PortRules { floods: FloodRates(rates), ..PortRules::default() };
        let port = SwitchPort::new(&port(1), rules);
        let broadcast = |at: u64| port.may_flood(Flood::Broadcast, || at);
        assert!(broadcast(0) && broadcast(0) && !broadcast(0) && broadcast(1_000_000));
        assert!((0..100).all(|_| port.may_flood(Flood::Unknown, || unreachable!("unbounded"))));
        assert_eq!(port.figures().flooded_over, [1, 0, 0]);
        assert_eq!(Flood::of(MacAddr([1, 0, 0, 0, 0, 1])), Flood::Multicast);
    }
}
