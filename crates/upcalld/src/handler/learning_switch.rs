//! A learning switch: IEEE 802.1D forwarding with a table of addresses for each VLAN.

use std::time::Duration;

use upcall::{
    Action, Fate, FlowView, Handler, KeySummary, MacAddr, MatchFields, Ports, Upcall, Verdict,
    VlanTci,
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
}

impl LearningSwitch {
    pub(crate) fn new(mac_age: Duration, mac_max: usize) -> Self {
        Self { macs: MacTable::new(mac_max), mac_age }
    }
}

impl Policy for LearningSwitch {
    fn macs(&self) -> (u64, u64) {
        (self.macs.len() as u64, self.macs.refused())
    }
}

impl Handler for LearningSwitch {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        let key = upcall.key();
        let Some(in_port) = key.in_port else { return };
        if upcall.is_truncated() || key.eth_src.is_multicast() || is_link_local(key.eth_dst) {
            return;
        }
        let (source, target) = stations(key);
        if let Learned::Moved { from } = self.macs.learn(source, in_port) {
            tracing::info!(mac = %source.mac, vlan = source.vlan, from, to = in_port, "address moved");
            verdict.revalidate();
        }
        match self.macs.port_of(target) {
            // Its station is behind the port it came from: it has it already.
            Some(port) if port == in_port => {}
            Some(port) => {
                verdict.output(port).install(DECIDED_BY);
            }
            None => {
                verdict.flood(Some(in_port));
            }
        }
    }

    /// What was behind a port that is gone is anywhere now: its packets are flooded, its flows wrong.
    fn ports_changed(&self, ports: &Ports) {
        let forgotten = self.macs.retain_ports(|port| ports.by_number(port).is_some());
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
        let at_home = self.macs.port_of(source) == Some(in_port);
        let wanted = self.macs.port_of(target).map(|port| Ok(Action::Output(port)));
        if at_home && wanted.is_some() && wanted.into_iter().eq(flow.actions.iter()) {
            Fate::Keep
        } else {
            Fate::Delete
        }
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
