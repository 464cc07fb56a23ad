//! What `stats/show` tells and `upcalld top` reads: counts since the start, of which the reader makes
//! rates.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use upcall::features::cpu::list_text;
use upcall::{HotFlows, LatencySnapshot, PortSheds, Vport, WorkerStats};

use crate::control::View;
use crate::counting;
use crate::handler::Fdb;
use crate::report::Quantiles;

/// Ports that are told: those with most upcalls.
const PORTS_MAX: usize = 256;
/// Flows that are told.
const HOT_MAX: usize = 16;
/// How long what was found at the last look at the flow table is kept.
const HOT_KEPT: Duration = Duration::from_secs(30);

/// Everything that is shown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) version: String,
    pub(crate) datapath: String,
    pub(crate) kernel: String,
    pub(crate) mode: String,
    /// How long the daemon runs, in microseconds.
    pub(crate) uptime_us: u64,
    pub(crate) resident_kb: u64,
    pub(crate) sockets: usize,
    pub(crate) flows: u64,
    pub(crate) flow_limit: u64,
    pub(crate) macs: u64,
    pub(crate) upcalls_waiting: u64,
    pub(crate) answers_pending: usize,
    pub(crate) ports_shielded: usize,
    pub(crate) flows_installed: u64,
    /// Every counter, by the name that it has in `coverage/show`.
    pub(crate) counters: BTreeMap<String, u64>,
    /// By stage, since the start.
    pub(crate) latency_ns: BTreeMap<String, Quantiles>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) ports: Vec<Port>,
    pub(crate) ports_left_out: usize,
    /// `None` where it was not asked for.
    pub(crate) hot: Option<Hot>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Worker {
    pub(crate) thread: String,
    /// CPUs that it may run on.
    pub(crate) runs_on: String,
    /// CPUs whose upcalls it reads; none in per-vport mode.
    pub(crate) reads: String,
    pub(crate) received: u64,
    pub(crate) completed: u64,
    pub(crate) flows_installed: u64,
    /// Bytes in its sockets.
    pub(crate) queued_bytes: u64,
    /// Upcalls that its sockets had no room for.
    pub(crate) lost: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Port {
    pub(crate) number: u32,
    pub(crate) name: String,
    /// Upcalls that a socket took and that none took; `None` on kernels that do not count them (before 6.2).
    pub(crate) upcalls: Option<u64>,
    pub(crate) lost: Option<u64>,
    pub(crate) shed: u64,
    /// Packets not flooded because of a rate.
    pub(crate) flood_over: u64,
    pub(crate) macs: u32,
    pub(crate) macs_refused: u64,
}

/// The flows that took most packets since the look before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hot {
    /// Seconds since then; `None` for the first look.
    pub(crate) since: Option<f64>,
    pub(crate) flows: Vec<HotFlow>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HotFlow {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) line: String,
}

impl Snapshot {
    pub(crate) fn uptime(&self) -> Duration {
        Duration::from_micros(self.uptime_us)
    }
}

/// What was found at the last look at the flow table, as long as somebody looks.
#[derive(Default)]
pub(crate) struct Looks(RefCell<Option<(HotFlows, Instant)>>);

impl Looks {
    /// Forgets it when nobody looks any more.
    pub(crate) fn expire(&self) {
        self.0.borrow_mut().take_if(|(_, at)| at.elapsed() > HOT_KEPT);
    }
}

/// Reads everything; the flow table only if `hot`: it may be large.
///
/// # Errors
///
/// When the kernel does not tell.
pub(crate) async fn take(view: View<'_>, hot: bool) -> Result<Snapshot, String> {
    let failed = |err: upcall::Error| err.to_string();
    let View { dispatcher, policy, settings, counts, .. } = view;
    let stats = dispatcher.stats().await.map_err(failed)?;
    let (info, vports) = (dispatcher.info().await, dispatcher.vports().await.map_err(failed)?);
    let (ports, ports_left_out) = ports(&vports, &stats.sheds, view);
    let readings = counting::all(&stats, policy, counts);
    Ok(Snapshot {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        datapath: settings.datapath.clone(),
        kernel: info.kernel.clone(),
        mode: info.mode.to_string(),
        uptime_us: view.started.elapsed().as_micros() as u64,
        resident_kb: counting::resident_kb().unwrap_or(0),
        sockets: stats.sockets,
        flows: stats.flows_current,
        flow_limit: stats.flow_limit,
        macs: policy.macs(),
        upcalls_waiting: stats.lanes.upcalls,
        answers_pending: stats.handler_pending,
        ports_shielded: stats.ports_shielded,
        flows_installed: stats.ledger.flows_installed(),
        counters: readings.into_iter().map(|r| (r.name.to_owned(), r.value)).collect(),
        latency_ns: quantiles(&stats.latency),
        workers: dispatcher.workers().await.iter().map(worker).collect(),
        ports,
        ports_left_out,
        hot: if hot { Some(look(view).await?) } else { None },
    })
}

fn quantiles(latency: &LatencySnapshot) -> BTreeMap<String, Quantiles> {
    latency.stages().map(|(stage, all)| (stage.to_owned(), all.into())).collect()
}

fn worker(stats: &WorkerStats) -> Worker {
    let mut reads: Vec<usize> = stats.sockets.iter().flat_map(|s| s.cpus.clone()).collect();
    reads.sort_unstable();
    Worker {
        thread: stats.thread.clone(),
        runs_on: list_text(&stats.cpus),
        reads: list_text(&reads),
        received: stats.ledger.received,
        completed: stats.ledger.completed,
        flows_installed: stats.ledger.flows_installed(),
        queued_bytes: stats.sockets.iter().map(|socket| socket.queued_bytes).sum(),
        lost: stats.sockets.iter().map(|socket| socket.drops).sum(),
    }
}

fn ports(vports: &[Vport], sheds: &[PortSheds], view: View<'_>) -> (Vec<Port>, usize) {
    let figures = view.policy.fdb().map_or_else(Vec::new, Fdb::ports);
    let port = |vport: &Vport| {
        let shed = sheds.iter().find(|sheds| sheds.port == vport.port_no);
        let own = figures.iter().find(|figures| figures.number == vport.port_no);
        Port {
            number: vport.port_no,
            name: vport.name.clone(),
            upcalls: vport.upcall_stats.map(|stats| stats.success),
            lost: vport.upcall_stats.map(|stats| stats.fail),
            shed: shed.map_or(0, |sheds| sheds.no_room + sheds.quota + sheds.rate),
            flood_over: own.map_or(0, |own| own.flooded_over.iter().sum()),
            macs: own.map_or(0, |own| own.macs),
            macs_refused: own.map_or(0, |own| own.macs_refused),
        }
    };
    let mut ports: Vec<Port> = vports.iter().map(port).collect();
    ports.sort_by_key(|port| (std::cmp::Reverse(port.upcalls), port.number));
    let left_out = ports.len().saturating_sub(PORTS_MAX);
    ports.truncate(PORTS_MAX);
    (ports, left_out)
}

async fn look(view: View<'_>) -> Result<Hot, String> {
    // Taken out while it is used: two that look at once each see what happened since they began.
    let (mut hot, _) = view.looks.0.take().unwrap_or_else(|| (HotFlows::default(), Instant::now()));
    let found = view.dispatcher.hot_flows(&mut hot, HOT_MAX).await;
    view.looks.0.replace(Some((hot, Instant::now())));
    let (flows, since) = found.map_err(|err| err.to_string())?;
    let flow = |flow: upcall::HotFlow| HotFlow {
        packets: flow.packets,
        bytes: flow.bytes,
        line: flow.line,
    };
    let since = since.map(|since| since.as_secs_f64());
    Ok(Hot { since, flows: flows.into_iter().map(flow).collect() })
}
