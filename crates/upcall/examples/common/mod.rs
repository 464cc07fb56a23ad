//! What the examples share: where they work, and how they end.

use anyhow::{Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use upcall::{Action, Builder, Dispatcher, Fate, FlowView, Ports, Stats};

/// Where to work.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Datapath to serve; created if there is none, and then removed at the end
    #[arg(long, value_name = "NAME", default_value = "dp0")]
    datapath: String,
    /// Network interfaces that become its ports
    #[arg(required = true, value_name = "INTERFACE")]
    interfaces: Vec<String>,
}

impl Target {
    pub(crate) fn builder(&self) -> Builder {
        Dispatcher::builder(&self.datapath).ports(&self.interfaces)
    }
}

/// Serves until Ctrl-C, SIGTERM, or whatever keeps the dispatcher from its work. Then it stops, which
/// answers what is queued and removes what was created, and tells what became of the upcalls.
pub(crate) async fn serve(dispatcher: Dispatcher) -> Result<Stats> {
    let mut terminated = signal(SignalKind::terminate())?;
    let info = dispatcher.info().await;
    println!("ready: {} dispatch, {} workers; Ctrl-C ends it", info.mode, info.workers);
    let failure = tokio::select! {
        _ = tokio::signal::ctrl_c() => None,
        _ = terminated.recv() => None,
        failure = dispatcher.failed() => Some(failure),
    };
    let stats = dispatcher.stop().await?;
    let ledger = &stats.ledger;
    println!(
        "upcalls: {} received, {} completed, {} shed, {} answered later; flows: {} installed",
        ledger.received,
        ledger.completed,
        ledger.shed,
        ledger.deferred,
        ledger.flows_installed()
    );
    if let Some(failure) = failure {
        bail!(failure);
    }
    Ok(stats)
}

/// Is a flow that floods still right, with the ports there are now?
#[allow(dead_code, reason = "not every example has such flows")]
pub(crate) fn floods(flow: &FlowView<'_>, ports: &Ports) -> Fate {
    let others = ports.iter().map(|port| port.number).filter(|n| Some(*n) != flow.key.in_port);
    let is_right = others.map(|number| Ok(Action::Output(number))).eq(flow.actions.iter());
    if is_right { Fate::Keep } else { Fate::Delete }
}
