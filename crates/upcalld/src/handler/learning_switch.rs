//! A learning switch: IEEE 802.1D forwarding with a table of addresses for each VLAN.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use upcall::{
    Action, Fate, FlowView, Handler, KeySummary, MacAddr, MatchFields, Ports, Upcall, UpcallKind,
    Verdict, VlanTci,
};

use super::Policy;
use super::mac_table::{Learned, MacTable, Station};

/// What a decision about a known destination depends on: the source too, because a packet from an
/// unknown one must come up to be learned.
const DECIDED_BY: MatchFields = MatchFields::IN_PORT
    .union(MatchFields::ETH_SRC)
    .union(MatchFields::ETH_DST)
    .union(MatchFields::VLAN_VID)
    .union(MatchFields::ETH_TYPE);

/// The switch.
///
/// Packets for an unknown or a group address are flooded and install nothing: the answer changes with
/// the next address learned or port added.
pub(crate) struct LearningSwitch {
    macs: MacTable,
    mac_age: Duration,
    /// The ports at the last change.
    ports: ArcSwap<Ports>,
}

impl LearningSwitch {
    pub(crate) fn new(mac_age: Duration, mac_max: usize) -> Self {
        Self { macs: MacTable::new(mac_max), mac_age, ports: ArcSwap::default() }
    }
}

impl Policy for LearningSwitch {
    fn macs(&self) -> (u64, u64) {
        (self.macs.len() as u64, self.macs.refused())
    }
}

impl LearningSwitch {
    /// The port to send to, as far as it is known and there.
    fn target(&self, station: Station, ports: &Ports) -> Option<u32> {
        self.macs.port_of(station).filter(|port| ports.by_number(*port).is_some())
    }

    fn learn(&self, station: Station, port: u32, verdict: &mut Verdict) {
        if let Learned::Moved { from } = self.macs.learn(station, port) {
            // At debug: two ports with one address could write a line for each packet.
            tracing::debug!(mac = %station.mac, vlan = station.vlan, from, to = port, "address moved");
            verdict.revalidate();
        }
    }
}

impl Handler for LearningSwitch {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        let key = upcall.key();
        let Some(in_port) = key.in_port else { return };
        // An action upcall is a copy for somebody else: the flow has forwarded the packet.
        if upcall.kind() == UpcallKind::Action
            || upcall.is_truncated()
            || key.eth_src.is_multicast()
            || is_link_local(key.eth_dst)
        {
            return;
        }
        let (source, target) = stations(key);
        if verdict.ports().by_number(in_port).is_some() {
            self.learn(source, in_port, verdict);
        }
        match self.target(target, verdict.ports()) {
            // Its station is behind the port it came from and has it already: drop all like it.
            Some(port) if port == in_port => {
                verdict.install(DECIDED_BY);
            }
            Some(port) => {
                verdict.output(port).install(DECIDED_BY);
            }
            None => {
                verdict.flood(Some(in_port));
            }
        }
    }

    /// What was behind a port that is gone, or is another device now, is anywhere: its packets are
    /// flooded, its flows wrong.
    fn ports_changed(&self, ports: &Ports) {
        let before = self.ports.swap(Arc::new(ports.clone()));
        let same = |port: u32| {
            ports.by_number(port).is_some() && ports.by_number(port) == before.by_number(port)
        };
        let forgotten = self.macs.retain_ports(same);
        if forgotten > 0 {
            tracing::debug!(forgotten, "addresses of ports that are gone");
        }
    }

    fn begin_sweep(&self) {
        let aged = self.macs.age(self.mac_age);
        if aged > 0 {
            tracing::debug!(aged, known = self.macs.len(), "addresses aged");
        }
    }

    /// A flow keeps its source known while packets pass, and is right while both its stations are
    /// where it says. One found with an unknown source teaches it: so a new run takes over flows.
    fn revalidate(&self, flow: &FlowView<'_>, ports: &Ports) -> Fate {
        let Some(in_port) = flow.key.in_port else { return Fate::Delete };
        if ports.by_number(in_port).is_none() {
            return Fate::Delete;
        }
        let (source, target) = stations(flow.key);
        if flow.idle < self.mac_age {
            self.macs.keep(source, in_port, flow.idle);
        }
        // A source that a full table could not take is nowhere else.
        let at_home = match self.macs.port_of(source) {
            Some(port) => port == in_port,
            None => self.macs.is_full(),
        };
        let Some(port) = self.target(target, ports).filter(|_| at_home) else {
            return Fate::Delete;
        };
        let wanted = (port != in_port).then_some(Ok(Action::Output(port)));
        if wanted.into_iter().eq(flow.actions.iter()) { Fate::Keep } else { Fate::Delete }
    }
}

/// Source and destination. A priority tag (VLAN id 0) is no VLAN.
fn stations(key: &KeySummary) -> (Station, Station) {
    let vlan = key.vlan.map_or(0, VlanTci::vid);
    (Station { vlan, mac: key.eth_src }, Station { vlan, mac: key.eth_dst })
}

/// 01:80:c2:00:00:00 to 0f: for the neighbour alone, never forwarded (IEEE 802.1D, table 7-10).
fn is_link_local(mac: MacAddr) -> bool {
    matches!(mac.0, [0x01, 0x80, 0xc2, 0, 0, last] if last <= 0x0f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_addresses_are_not_forwarded() {
        assert!(is_link_local(MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e])));
        assert!(!is_link_local(MacAddr([1, 0x80, 0xc2, 0, 0, 0x10])));
        assert!(!is_link_local(MacAddr([0xff; 6])));
    }
}
