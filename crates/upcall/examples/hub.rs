//! A hub: every packet goes out of all ports but the one it came in by.
//!
//! About the least that a handler can do, and still the kernel does nearly all of the work: an installed
//! flow says which packets are decided alike, so only the first one of each port comes up.

mod common;

use clap::Parser;
use upcall::{Fate, FlowView, Handler, MatchFields, Ports, Upcall, Verdict};

struct Hub;

impl Handler for Hub {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        // Nothing but the input port matters to a hub: the flow is for all packets that have the same.
        verdict.flood(upcall.in_port()).install(MatchFields::IN_PORT);
    }

    // Asked about every flow once a second: a port that came or went makes it wrong.
    fn revalidate(&self, flow: &FlowView<'_>, ports: &Ports) -> Fate {
        common::floods(flow, ports)
    }
}

/// Sends every packet to all interfaces but the one it came in by
#[derive(Parser)]
#[command(
    after_help = "Needs CAP_NET_ADMIN and the openvswitch module. Example:\n  hub veth0 veth1"
)]
struct Options {
    #[command(flatten)]
    target: common::Target,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    common::serve(options.target.builder().start(Hub).await?).await?;
    Ok(())
}
