//! A learning switch: a packet for a station that was heard of goes out of its port, others are flooded.
//!
//! It shows state that all workers share, flows that become wrong, and what a handler has to see to: a
//! table with a limit. `upcalld` has a switch with VLANs and with addresses that age.

mod common;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use clap::Parser;
use upcall::{
    Action, Fate, FlowView, Handler, KeySummary, MacAddr, MatchFields, Ports, Upcall, Verdict,
};

/// What a decision depends on. The source too: a packet of a station at another port must come up.
const DECIDED_BY: MatchFields =
    MatchFields::IN_PORT.union(MatchFields::ETH_SRC).union(MatchFields::ETH_DST);

struct LearningSwitch {
    /// Stations, and the ports they were last heard at.
    stations: Mutex<HashMap<MacAddr, u32>>,
    stations_max: usize,
}

impl LearningSwitch {
    fn stations(&self) -> MutexGuard<'_, HashMap<MacAddr, u32>> {
        self.stations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns where the sender is; gives where it was, if that was another port.
    fn learn(&self, key: &KeySummary) -> Option<u32> {
        let (station, port) = (key.eth_src, key.in_port?);
        let mut stations = self.stations();
        let has_room = stations.len() < self.stations_max || stations.contains_key(&station);
        if !has_room || station.is_multicast() {
            return None;
        }
        stations.insert(station, port).filter(|was| *was != port)
    }
}

impl Handler for LearningSwitch {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        let key = upcall.key();
        if self.learn(key).is_some() {
            // It moved: flows to its old port are wrong, and are deleted now, not within ten seconds.
            verdict.moved(key.eth_src);
        }
        match self.stations().get(&key.eth_dst) {
            // It is behind the port that the packet came in by, and has it already.
            Some(port) if Some(*port) == key.in_port => verdict.install(DECIDED_BY),
            Some(port) => verdict.output(*port).install(DECIDED_BY),
            // No flow: the answer changes with the next station that is heard.
            None => verdict.flood(key.in_port),
        };
    }

    /// What was behind a port that is gone may be anywhere.
    fn ports_changed(&self, ports: &Ports) {
        self.stations().retain(|_, port| ports.by_number(*port).is_some());
    }

    /// A flow is right as long as both of its stations are where it says.
    fn revalidate(&self, flow: &FlowView<'_>, _ports: &Ports) -> Fate {
        let stations = self.stations();
        let port_of = |station| stations.get(station).copied();
        let target = port_of(&flow.key.eth_dst);
        let output = target.filter(|port| Some(*port) != flow.key.in_port);
        let is_right = target.is_some()
            && port_of(&flow.key.eth_src) == flow.key.in_port
            && flow.actions.iter().eq(output.map(|port| Ok(Action::Output(port))));
        if is_right { Fate::Keep } else { Fate::Delete }
    }
}

/// Sends packets to where their station is, once it was heard of
#[derive(Parser)]
#[command(
    after_help = "Needs CAP_NET_ADMIN and the openvswitch module. Example:\n  learning_switch veth0 veth1 veth2"
)]
struct Options {
    #[command(flatten)]
    target: common::Target,
    /// Stations to remember; packets for others are flooded
    #[arg(long, value_name = "NUMBER", default_value_t = 4096)]
    stations_max: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let stations_max = options.stations_max;
    let switch = LearningSwitch { stations: Mutex::default(), stations_max };
    common::serve(options.target.builder().start(switch).await?).await?;
    Ok(())
}
