//! `upcalld probe`: what this host can do, and why which dispatch mode is selected.

mod json;
mod text;

use std::io::Write;

use tokio::signal::unix::{SignalKind, signal};
use upcall::features::{Probe, Report};

use crate::cli::ProbeArgs;
use crate::exit::Exit;

/// Appended to `upcalld probe --help`.
pub(crate) const HELP: &str = "\
Each feature is available, unavailable or undetermined (with the cause: a missing privilege, for
example), with the evidence and, behind '->', what follows. At the end: why which dispatch mode is
selected.

Nothing that is there is changed. Features are tried on a datapath in a network namespace of its
own (needs CAP_SYS_ADMIN), or under a free name beside the others (CAP_NET_ADMIN alone), which is
deleted at once. Asking makes the kernel load the openvswitch module if it can.

Examples:
  upcalld probe
      everything; as root for all answers
  upcalld probe --datapath dp0
      and how dp0 delivers its upcalls now: CPU or port -> port id -> process
  upcalld probe | grep unavailable
      what this kernel lacks
  upcalld probe --json | jq -r '.features.per_cpu_dispatch.support'
      one answer, for a script

Exit status: 0 when there are answers, also when the answer is no; 4 when nothing could be asked.";

/// Probes and prints.
pub(crate) fn run(args: &ProbeArgs) -> Result<(), Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Exit::Other(format!("cannot start the runtime: {err}")))?;
    let report = runtime.block_on(probe(args.datapath.as_deref()))?;
    let out = render(&report, args.json);
    // That nobody reads it any more ('| head') is no failure.
    let _nobody_reads = std::io::stdout().write_all(out.as_bytes());
    if report.is_answered() {
        Ok(())
    } else {
        Err(Exit::NothingAsked("the kernel could not be asked anything: see above".to_owned()))
    }
}

/// The report, for people or as one JSON object.
pub(crate) fn render(report: &Report, json: bool) -> String {
    if json { json::render(report) } else { text::render(report) }
}

/// A signal waits until the datapath that was asked is deleted: milliseconds.
async fn probe(datapath: Option<&str>) -> Result<Report, Exit> {
    let listen =
        |kind| signal(kind).map_err(|err| Exit::Other(format!("cannot listen to signals: {err}")));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut probe = Probe::new();
    let mut report = std::pin::pin!(probe.report(datapath));
    tokio::select! {
        report = &mut report => return Ok(report),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let _not_wanted_any_more = report.await;
    Err(Exit::Other("interrupted; nothing is left behind".to_owned()))
}
