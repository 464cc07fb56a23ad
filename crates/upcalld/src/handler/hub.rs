//! Every packet to all other ports.

use upcall::{
    Action, Fate, FlowView, Handler, Look, MatchFields, Ports, Upcall, UpcallKind, Verdict,
};

use super::Policy;

/// A hub.
pub(crate) struct Hub;

impl Policy for Hub {}

impl Handler for Hub {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        // An action upcall is a copy for somebody else: the flow has forwarded the packet.
        if upcall.kind() == UpcallKind::Miss && !upcall.is_truncated() {
            verdict.flood(upcall.in_port()).install(MatchFields::IN_PORT);
        }
    }

    /// Nothing but ports makes flows wrong.
    fn begin_sweep(&self) -> Look {
        Look::Times
    }

    /// A flow is right as long as it sends to the ports there are.
    fn revalidate(&self, flow: &FlowView<'_>, ports: &Ports) -> Fate {
        let others = ports.iter().map(|p| p.number).filter(|n| Some(*n) != flow.key.in_port);
        let right = others.map(|n| Ok(Action::Output(n))).eq(flow.actions.iter());
        if right { Fate::Keep } else { Fate::Delete }
    }
}
