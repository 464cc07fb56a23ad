//! Ports joined in pairs, as if by a wire.

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use upcall::{
    Action, Fate, FlowView, Handler, Look, MatchFields, Ports, Upcall, UpcallKind, Verdict,
};

use super::Policy;

/// Pairs of ports.
pub(crate) struct CrossConnect {
    pairs: Vec<(String, String)>,
    /// Port number to the number of its peer; made anew when ports change.
    peers: ArcSwap<HashMap<u32, u32, foldhash::quality::RandomState>>,
}

impl CrossConnect {
    pub(crate) fn new(pairs: Vec<(String, String)>) -> Self {
        Self { pairs, peers: ArcSwap::default() }
    }

    fn peer(&self, port: Option<u32>) -> Option<u32> {
        self.peers.load().get(&port?).copied()
    }
}

impl Policy for CrossConnect {}

impl Handler for CrossConnect {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        // An action upcall is a copy for somebody else: the flow has forwarded the packet.
        if upcall.kind() == UpcallKind::Action || upcall.is_truncated() {
            return;
        }
        if let Some(peer) = self.peer(upcall.in_port()) {
            verdict.output(peer);
        }
        // A port without a peer gets a flow that drops: its packets need not come up.
        verdict.install(MatchFields::IN_PORT);
    }

    fn ports_changed(&self, ports: &Ports) {
        let number = |name: &str| ports.by_configured_name(name).map(|p| p.number);
        let mut peers = HashMap::default();
        for (a, b) in &self.pairs {
            if let (Some(a), Some(b)) = (number(a), number(b)) {
                peers.extend([(a, b), (b, a)]);
            }
        }
        self.peers.store(peers.into());
    }

    /// Nothing but ports makes flows wrong.
    fn begin_sweep(&self) -> Look {
        Look::Times
    }

    fn revalidate(&self, flow: &FlowView<'_>, _ports: &Ports) -> Fate {
        let wanted = self.peer(flow.key.in_port).map(|peer| Ok(Action::Output(peer)));
        if wanted.into_iter().eq(flow.actions.iter()) { Fate::Keep } else { Fate::Delete }
    }
}
