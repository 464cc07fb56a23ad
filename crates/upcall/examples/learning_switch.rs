//! A learning switch: a packet for a station that was heard of goes out of its port, others are flooded.
//!
//! It shows state that all workers share, flows that become wrong, and what a handler has to see to: a
//! table with a limit, and words of one station that are heard in another order than they were said.
//! `upcalld` has a switch with VLANs and with addresses that age.

mod common;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use clap::Parser;
use upcall::{Action, Fate, FlowView, Handler, MacAddr, MatchFields, Ports, Upcall, Verdict};

/// What a decision depends on. The source too: a packet of a station at another port must come up.
const DECIDED_BY: MatchFields =
    MatchFields::IN_PORT.union(MatchFields::ETH_SRC).union(MatchFields::ETH_DST);

/// Where a station was heard, and when the kernel sent that up, if it tells.
struct Heard {
    port: u32,
    sent_ns: Option<u64>,
}

struct LearningSwitch {
    /// Stations, and where they were last heard.
    stations: Mutex<HashMap<MacAddr, Heard>>,
    stations_max: usize,
}

impl LearningSwitch {
    fn stations(&self) -> MutexGuard<'_, HashMap<MacAddr, Heard>> {
        self.stations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn port_of(&self, station: MacAddr) -> Option<u32> {
        self.stations().get(&station).map(|heard| heard.port)
    }

    /// Learns where the sender is; has it moved?
    fn learn(&self, upcall: &Upcall<'_>) -> bool {
        let (station, sent_ns) = (upcall.key().eth_src, upcall.sent_ns());
        let Some(port) = upcall.in_port().filter(|_| !station.is_multicast()) else { return false };
        let mut stations = self.stations();
        let known = stations.get(&station);
        // A flow's upcalls come in order; those of two flows, such as two ports make, may not.
        let is_late = known.is_some_and(|known| known.sent_ns > sent_ns && sent_ns.is_some());
        let has_room = known.is_some() || stations.len() < self.stations_max;
        if is_late || !has_room {
            return false;
        }
        let was = stations.insert(station, Heard { port, sent_ns });
        was.is_some_and(|was| was.port != port)
    }
}

impl Handler for LearningSwitch {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        let key = upcall.key();
        if self.learn(upcall) {
            // It moved: flows to its old port are wrong, and are deleted now, not within ten seconds.
            verdict.moved(key.eth_src);
        }
        let target = self.port_of(key.eth_dst);
        match target {
            // It is behind the port that the packet came in by, and has it already.
            Some(port) if Some(port) == key.in_port => {}
            Some(port) => _ = verdict.output(port),
            None => _ = verdict.flood(key.in_port),
        }
        // No flow where the answer changes with the next station that is heard, or has with one that was.
        if target.is_some() && self.port_of(key.eth_src) == key.in_port {
            verdict.install(DECIDED_BY);
        }
    }

    /// What was behind a port that is gone may be anywhere.
    fn ports_changed(&self, ports: &Ports) {
        self.stations().retain(|_, heard| ports.by_number(heard.port).is_some());
    }

    /// A flow is right as long as both of its stations are where it says.
    fn revalidate(&self, flow: &FlowView<'_>, _ports: &Ports) -> Fate {
        let target = self.port_of(flow.key.eth_dst);
        let output = target.filter(|port| Some(*port) != flow.key.in_port);
        let is_right = target.is_some()
            && self.port_of(flow.key.eth_src) == flow.key.in_port
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
