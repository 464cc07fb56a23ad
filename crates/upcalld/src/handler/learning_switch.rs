//! A learning switch: IEEE 802.1Q forwarding with a table of addresses for each VLAN.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use upcall::{
    ActionBuf, Actions, Fate, FlowView, Handler, KeySummary, Look, MacAddr, MatchFields, Port,
    Ports, Upcall, UpcallKind, Verdict,
};

use super::mac_table::{Learned, MacTable, Station};
use super::switch_port::{Flood, PortFigures, PortRules, SwitchPort, SwitchPorts};
use super::vlan::{self, Form, Tag, Vlans};
use super::{Fdb, Policy};
use crate::counting::{Reading, count, counts};
use crate::settings::Settings;

/// What a decision about a known destination depends on: the source too, because a packet from an
/// unknown one must come up to be learned.
const DECIDED_BY: MatchFields =
    REFUSED_BY.union(MatchFields::ETH_SRC).union(MatchFields::ETH_DST).union(MatchFields::ETH_TYPE);

/// Parts of the age of an address: flows are asked in each for whose stations are used.
const AGE_PARTS: u64 = 16;

/// What the decision depends on that a port does not carry a packet's VLAN.
const REFUSED_BY: MatchFields = MatchFields::IN_PORT.union(MatchFields::VLAN_VID);

counts! {
    /// What became of packets that the switch did not treat as others.
    SwitchCounts, "",
    /// Packets whose port does not carry their VLAN, as far as no flow drops them.
    vlan_refused,
    /// Packets from a static MAC address of another port; dropped.
    static_mac_refused,
    /// Packets whose MAC address was not learned because its port has as many as it may; flooded.
    port_macs_refused,
    /// Broadcasts over the rate of their port; dropped.
    flood_broadcast_over,
    /// Multicasts over the rate of their port; dropped.
    flood_multicast_over,
    /// Packets to unknown addresses over the rate of their port; dropped.
    flood_unknown_over,
}

/// What the switch is to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SwitchConfig {
    pub(crate) mac_age: Duration,
    pub(crate) macs_max: usize,
    /// By the configured name of the port.
    pub(crate) ports: Vec<(String, PortRules)>,
    /// For all other ports.
    pub(crate) others: PortRules,
}

/// The switch.
///
/// Packets for an unknown or a group address are flooded and install nothing: the answer changes with
/// the next address learned or port added.
pub(crate) struct LearningSwitch {
    config: SwitchConfig,
    macs: MacTable,
    mac_age_ms: AtomicU64,
    /// The ports at the last change: never older than those of a verdict.
    ports: ArcSwap<SwitchPorts>,
    /// Stands for a port that is not known yet. Its packets are forwarded, if no port is kept apart.
    stranger: Arc<SwitchPort>,
    counts: SwitchCounts,
    epoch: Instant,
    /// When flows were last asked for whose stations are used, on the table's clock.
    flows_asked_ms: AtomicU64,
    /// Addresses were forgotten while a sweep may have been reading flows that know them.
    forgotten: AtomicBool,
}

impl LearningSwitch {
    pub(crate) fn new(config: SwitchConfig) -> Self {
        let is_one = config.ports.iter().all(|(_, rules)| rules.vlans == Vlans::All);
        let vlans = if is_one { Vlans::All } else { Vlans::None };
        let nobody = Port { number: u32::MAX, name: String::new() };
        let stranger = SwitchPort::new(&nobody, PortRules { vlans, ..config.others.clone() });
        Self {
            macs: MacTable::new(config.macs_max),
            mac_age_ms: AtomicU64::new(config.mac_age.as_millis() as u64),
            config,
            ports: ArcSwap::default(),
            stranger: stranger.into(),
            counts: SwitchCounts::default(),
            epoch: Instant::now(),
            flows_asked_ms: AtomicU64::new(0),
            forgotten: AtomicBool::new(false),
        }
    }
}

impl Policy for LearningSwitch {
    fn macs(&self) -> u64 {
        self.macs.len() as u64
    }

    fn readings(&self) -> Vec<Reading> {
        let refused = Reading {
            name: "macs_refused",
            help: "MAC addresses not learned because the table was full.",
            value: self.macs.refused(),
        };
        self.counts.readings().chain([refused]).collect()
    }

    fn tune(&self, settings: &Settings) {
        let SwitchConfig { mac_age, macs_max, .. } = &settings.switch;
        self.mac_age_ms.store(mac_age.as_millis() as u64, Ordering::Relaxed);
        self.macs.set_max(*macs_max);
    }

    fn fdb(&self) -> Option<&dyn Fdb> {
        Some(self)
    }
}

impl Fdb for LearningSwitch {
    fn stations(&self) -> Vec<super::Station> {
        self.macs.list()
    }

    fn ports(&self) -> Vec<PortFigures> {
        self.ports.load().iter().map(|port| port.figures()).collect()
    }

    fn macs_max(&self) -> usize {
        self.macs.max()
    }

    fn forget(&self) {
        self.forgotten.store(true, Ordering::Release);
        let forgotten = self.macs.flush();
        tracing::info!(forgotten, "addresses flushed");
    }
}

/// Where a packet to a known station goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Out of this port.
    Port(u32, Form),
    /// Nowhere: its station is behind the port it came from and has it already, or its port does not
    /// carry such packets.
    Nowhere,
}

/// Where the sender of a packet is, by what was heard of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    /// Where the packet came in.
    Here,
    /// Elsewhere, since the packet was sent: the packet goes on, but no flow is right for its like.
    Gone,
    /// Elsewhere for ever: the packet is dropped.
    Barred,
}

impl LearningSwitch {
    fn mac_age(&self) -> Duration {
        Duration::from_millis(self.mac_age_ms.load(Ordering::Relaxed))
    }

    /// The way to a station, as far as its port is known and there.
    fn way(&self, from: u32, target: Station, tag: Tag, ports: &SwitchPorts) -> Option<Way> {
        let port = ports.get(self.macs.port_of(target)?)?;
        let form = port.rules.vlans.form(target.vlan, tag).filter(|_| port.number != from);
        Some(form.map_or(Way::Nowhere, |form| Way::Port(port.number, form)))
    }

    /// Hears the sender of an upcall; `verdict` is to say if flows are wrong now.
    fn hear(
        &self,
        station: Station,
        port: &Arc<SwitchPort>,
        (upcall, verdict): (&Upcall<'_>, &mut Verdict),
    ) -> Sender {
        let (learned, to) = (self.macs.learn(station, port, upcall.sent_ns()), port.number);
        match learned {
            Learned::Known | Learned::New | Learned::Refused => return Sender::Here,
            Learned::Earlier => return Sender::Gone,
            Learned::Elsewhere => {
                count(&self.counts.static_mac_refused);
                return Sender::Barred;
            }
            Learned::Moved { from } => {
                // At debug: two ports with one address could write a line for each packet.
                tracing::debug!(mac = %station.mac, vlan = station.vlan, from, to, "address moved");
            }
            Learned::OverLimit { from } => {
                count(&self.counts.port_macs_refused);
                if from.is_none() {
                    return Sender::Here;
                }
            }
        }
        verdict.moved(station.mac);
        Sender::Here
    }

    fn flood(
        &self,
        (from, vlan, tag): (&SwitchPort, u16, Tag),
        key: &KeySummary,
        (ports, verdict): (&SwitchPorts, &mut Verdict),
    ) {
        let flood = Flood::of(key.eth_dst);
        if !from.may_flood(flood, || self.epoch.elapsed().as_nanos() as u64) {
            count(match flood {
                Flood::Broadcast => &self.counts.flood_broadcast_over,
                Flood::Multicast => &self.counts.flood_multicast_over,
                Flood::Unknown => &self.counts.flood_unknown_over,
            });
            return;
        }
        let others = ports.iter().filter(|port| Some(port.number) != key.in_port);
        let outputs =
            others.filter_map(|port| Some((port.number, port.rules.vlans.form(vlan, tag)?)));
        vlan::send(verdict.actions(), (vlan, tag), &outputs);
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
        let (ports, tag) = (self.ports.load(), Tag::of(key));
        let known = ports.get(in_port);
        let from = known.unwrap_or(&self.stranger);
        let Some(vlan) = from.rules.vlans.admit(tag) else {
            count(&self.counts.vlan_refused);
            verdict.install(REFUSED_BY);
            return;
        };
        let (source, target) = stations(key, vlan);
        let heard = |port| self.hear(source, port, (upcall, verdict));
        let sender = known.map_or(Sender::Here, heard);
        if sender == Sender::Barred {
            return;
        }
        match self.way(in_port, target, tag, &ports) {
            Some(way) => {
                way.send(vlan, tag, verdict.actions());
                if sender == Sender::Here {
                    verdict.install(way.decided_by(tag));
                }
            }
            None => self.flood((from, vlan, tag), key, (&ports, verdict)),
        }
    }

    /// What was behind a port that is gone, or is another device now, is anywhere: its packets are
    /// flooded, its flows wrong.
    fn ports_changed(&self, ports: &Ports) {
        let SwitchConfig { ports: rules, others, .. } = &self.config;
        let now = Arc::new(SwitchPorts::new(ports, (rules, others), &self.ports.load()));
        self.ports.store(now.clone());
        let same = |port: &Arc<SwitchPort>| {
            now.get(port.number).is_some_and(|current| Arc::ptr_eq(current, port))
        };
        let forgotten = self.macs.retain_ports(same);
        if forgotten > 0 {
            tracing::debug!(forgotten, "addresses of ports that are gone");
        }
        for port in now.iter() {
            for &(vlan, mac) in &port.rules.static_macs {
                self.macs.pin(Station { vlan, mac }, port);
            }
        }
    }

    /// Flows keep their stations known, so stations age by the time when flows were last asked. Flows are
    /// asked often enough for that, and when a station is known no more.
    fn begin_sweep(&self) -> Look {
        self.forgotten.store(false, Ordering::Release);
        let (now_ms, age_ms) = (self.macs.tick(), self.mac_age_ms.load(Ordering::Relaxed));
        let asked_ms = self.flows_asked_ms.load(Ordering::Relaxed);
        let aged = self.macs.forget_before(asked_ms.saturating_sub(age_ms));
        if aged > 0 {
            tracing::debug!(aged, known = self.macs.len(), "addresses aged");
        }
        if aged == 0 && now_ms - asked_ms < age_ms / AGE_PARTS {
            return Look::Times;
        }
        self.flows_asked_ms.store(now_ms, Ordering::Relaxed);
        Look::All
    }

    /// A flow keeps its source known while packets pass, and is right while both its stations are
    /// where it says. One found with an unknown source teaches it: so a new run takes over flows.
    fn revalidate(&self, flow: &FlowView<'_>, _ports: &Ports) -> Fate {
        let (ports, tag) = (self.ports.load(), Tag::of(flow.key));
        let Some(from) = flow.key.in_port.and_then(|port| ports.get(port)) else {
            return Fate::Delete;
        };
        let Some(vlan) = from.rules.vlans.admit(tag) else {
            return keep_if(flow.actions.is_empty());
        };
        // One that refused a VLAN, of whatever source: the port carries it now.
        if flow.key.eth_src == MacAddr::default() {
            return Fate::Delete;
        }
        let (source, target) = stations(flow.key, vlan);
        if flow.idle < self.mac_age() && !self.forgotten.load(Ordering::Acquire) {
            self.macs.keep(source, from, flow.idle);
        }
        // A source that a full table could not take is nowhere else.
        let at_home = match self.macs.seen_at(source) {
            Some(port) => port == from.number,
            None => self.macs.is_full() || from.is_full(),
        };
        let way = self.way(from.number, target, tag, &ports).filter(|_| at_home);
        keep_if(way.is_some_and(|way| way.is_of(vlan, tag, flow.actions)))
    }
}

impl Way {
    fn send(self, vlan: u16, tag: Tag, actions: &mut ActionBuf) {
        if let Self::Port(port, form) = self {
            vlan::send(actions, (vlan, tag), &std::iter::once((port, form)));
        }
    }

    fn decided_by(self, tag: Tag) -> MatchFields {
        match (self, tag) {
            // The priority goes into the tag that is pushed.
            (Self::Port(_, Form::Tagged), Tag::Priority(_)) => DECIDED_BY | MatchFields::VLAN_PCP,
            _ => DECIDED_BY,
        }
    }

    fn is_of(self, vlan: u16, tag: Tag, actions: Actions<'_>) -> bool {
        let mut wanted = ActionBuf::new();
        self.send(vlan, tag, &mut wanted);
        wanted.actions().iter().eq(actions.iter())
    }
}

fn keep_if(right: bool) -> Fate {
    if right { Fate::Keep } else { Fate::Delete }
}

/// Source and destination.
fn stations(key: &KeySummary, vlan: u16) -> (Station, Station) {
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
