//! What is read for a scrape.

use upcall::{Dispatcher, Info, Stats, Vport};

use crate::control::Counts;
use crate::counting::{self, Reading};
use crate::handler::Policy;

/// Ports with metrics of their own: those with the lowest numbers. What the others count is added up
/// under [`OTHER_PORTS`], so that the number of series has a bound.
pub(super) const PORTS_MAX: usize = 128;
/// No device has this name: it is too long.
pub(super) const OTHER_PORTS: &str = "all other ports";

/// What a scrape found.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(super) datapath: String,
    /// Or why there are none: the kernel does not tell, or the datapath is gone.
    pub(super) readings: Result<Readings, String>,
}

/// Everything that is counted or measured.
#[derive(Debug)]
pub(super) struct Readings {
    pub(super) about: Vec<(&'static str, String)>,
    pub(super) counters: Vec<Reading>,
    pub(super) gauges: Vec<Gauge>,
    pub(super) ports: Vec<PortReading>,
}

/// Something that goes up and down.
#[derive(Debug)]
pub(super) struct Gauge {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) value: f64,
}

/// Upcalls of a port, on kernels that count them (6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortReading {
    pub(super) port: String,
    pub(super) delivered: u64,
    pub(super) failed: u64,
}

impl Scrape {
    /// Of a datapath that is not served now.
    pub(crate) fn without(datapath: &str, why: String) -> Self {
        Self { datapath: datapath.to_owned(), readings: Err(why) }
    }
}

/// Takes the readings.
pub(crate) async fn take(
    datapath: &str,
    dispatcher: &Dispatcher,
    policy: &dyn Policy,
    control: &Counts,
) -> Scrape {
    let read = async {
        let stats = dispatcher.stats().await?;
        let (info, vports) = (dispatcher.info().await, dispatcher.vports().await?);
        Ok(Readings {
            about: about(&info),
            counters: counting::all(&stats, policy, control),
            gauges: gauges(&stats, &info, policy.macs()),
            ports: ports(&vports),
        })
    };
    let readings = read.await.map_err(|err: upcall::Error| err.to_string());
    Scrape { datapath: datapath.to_owned(), readings }
}

fn about(info: &Info) -> Vec<(&'static str, String)> {
    vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("kernel", info.kernel.clone()),
        ("dispatch_mode", info.mode.to_string()),
        ("placement", info.placement.to_string()),
    ]
}

fn gauges(stats: &Stats, info: &Info, macs: u64) -> Vec<Gauge> {
    let lanes = &stats.lanes;
    let mut gauges: Vec<Gauge> = [
        ("flows", "Flows on the datapath.", stats.flows_current),
        ("flow_limit", "Flows past which none is installed, now.", stats.flow_limit),
        ("macs", "MAC addresses known.", macs),
        ("ports", "Ports, the datapath's own among them.", stats.ports as u64),
        ("sockets", "Upcall sockets.", stats.sockets as u64),
        ("workers", "Worker threads.", info.workers as u64),
        ("cpus_sharing", "CPUs that share another one's socket.", stats.cpus_sharing as u64),
        (
            "recv_buffers_bytes",
            "Kernel memory that all upcall sockets together may fill.",
            info.recv_buffers_bytes as u64,
        ),
        ("upcalls_in_flight", "Upcalls of which nothing has become yet.", stats.ledger.in_flight()),
        ("upcalls_waiting", "Upcalls that wait in lanes.", lanes.upcalls),
        ("upcalls_waiting_peak", "Most upcalls that ever waited in lanes.", lanes.upcalls_peak),
        ("upcalls_waiting_bytes", "Bytes of the upcalls that wait in lanes.", lanes.bytes),
        (
            "handler_pending",
            "Answers that the handler gives later and has not given yet.",
            stats.handler_pending as u64,
        ),
        ("lanes_waiting", "Lanes with upcalls that wait.", lanes.lanes),
        (
            "arrival_times",
            "1 if it is known when the kernel sent each upcall.",
            u64::from(stats.arrival_times),
        ),
        (
            "funnelled",
            "1 while the upcalls of all CPUs go by one socket, because flows hop.",
            u64::from(stats.funnelled),
        ),
        ("sockets_shielded", "Sockets with a storm shield up.", stats.sockets_shielded as u64),
        (
            "ports_shielded",
            "Ports that storm shields are up against, once for each socket.",
            stats.ports_shielded as u64,
        ),
    ]
    .into_iter()
    .map(|(name, help, value)| Gauge { name, help, value: counting::float(value) })
    .collect();
    gauges.push(Gauge {
        name: "sweep_duration_seconds",
        help: "How long the last sweep of the flow table took.",
        value: stats.sweeps.last_took.as_secs_f64(),
    });
    gauges.extend(counting::resident_kb().map(|kb| Gauge {
        name: "resident_memory_bytes",
        help: "Resident memory of the process.",
        value: counting::float(kb << 10),
    }));
    gauges
}

fn ports(vports: &[Vport]) -> Vec<PortReading> {
    let counted = vports.iter().filter_map(|port| Some((port, port.upcall_stats?)));
    let mut all: Vec<PortReading> = counted
        .map(|(port, upcalls)| PortReading {
            port: port.name.clone(),
            delivered: upcalls.success,
            failed: upcalls.fail,
        })
        .collect();
    if all.len() > PORTS_MAX {
        let others = all.split_off(PORTS_MAX);
        all.push(PortReading {
            port: OTHER_PORTS.to_owned(),
            delivered: others.iter().map(|port| port.delivered).sum(),
            failed: others.iter().map(|port| port.failed).sum(),
        });
    }
    all
}
