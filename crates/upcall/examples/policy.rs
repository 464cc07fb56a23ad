//! A policy that has to ask: whether a station may send is for an oracle to say, which takes its time.
//!
//! A handler must not wait: while it runs, its worker reads nothing. So it gives a future
//! (`Verdict::later`), which runs elsewhere. Until it is ready the flow waits, its packets in order, and
//! all others go on. What the oracle said is remembered, for the packets that waited and as a flow.

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Parser;
use upcall::{Fate, FlowView, Handler, MacAddr, MatchFields, Ports, Upcall, Verdict};

/// Answers to remember. With more stations than that all are asked about anew.
const ANSWERS_MAX: usize = 4096;

/// In place of a database, a server, a person.
struct Oracle {
    denied: Vec<MacAddr>,
    delay: Duration,
}

impl Oracle {
    async fn may_send(&self, station: MacAddr) -> bool {
        tokio::time::sleep(self.delay).await;
        !self.denied.contains(&station)
    }
}

struct Policy {
    oracle: Oracle,
    answers: Mutex<HashMap<MacAddr, bool>>,
}

impl Policy {
    fn answers(&self) -> MutexGuard<'_, HashMap<MacAddr, bool>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, station: MacAddr) -> Option<bool> {
        self.answers().get(&station).copied()
    }

    async fn ask(&self, station: MacAddr) -> bool {
        let allowed = self.oracle.may_send(station).await;
        let mut answers = self.answers();
        if answers.len() >= ANSWERS_MAX {
            answers.clear();
        }
        answers.insert(station, allowed);
        allowed
    }
}

fn decide(allowed: bool, in_port: Option<u32>, verdict: &mut Verdict) {
    if allowed {
        verdict.flood(in_port);
    }
    // Without an action the flow drops: then no packet of the station comes up any more.
    verdict.install(MatchFields::IN_PORT | MatchFields::ETH_SRC);
}

/// The policy, shared with the futures that it gives.
struct Asking(Arc<Policy>);

impl Handler for Asking {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        let (station, in_port) = (upcall.key().eth_src, upcall.in_port());
        if let Some(allowed) = self.0.answer(station) {
            return decide(allowed, in_port, verdict);
        }
        let policy = self.0.clone();
        verdict.later(async move |mut verdict: Verdict| {
            decide(policy.ask(station).await, in_port, &mut verdict);
            verdict
        });
    }

    fn revalidate(&self, flow: &FlowView<'_>, ports: &Ports) -> Fate {
        match self.0.answer(flow.key.eth_src) {
            Some(true) => common::floods(flow, ports),
            Some(false) if flow.actions.iter().next().is_none() => Fate::Keep,
            _ => Fate::Delete,
        }
    }
}

/// Asks a slow oracle about every station, and floods the packets of those that may send
#[derive(Parser)]
#[command(
    after_help = "Needs CAP_NET_ADMIN and the openvswitch module. Example:\n  policy --delay 2s --deny 02:00:00:00:00:07 veth0 veth1"
)]
struct Options {
    #[command(flatten)]
    target: common::Target,
    /// What the oracle takes for an answer
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = humantime::parse_duration)]
    delay: Duration,
    /// Ethernet address of a station that may not send; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    deny: Vec<MacAddr>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Options { target, delay, deny } = Options::parse();
    let oracle = Oracle { denied: deny, delay };
    let policy = Asking(Arc::new(Policy { oracle, answers: Mutex::default() }));
    common::serve(target.builder().start(policy).await?).await?;
    Ok(())
}
