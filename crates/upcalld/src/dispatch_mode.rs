//! `upcalld dispatch-mode`: how each datapath delivers its upcalls now, down to the worker, and why.

mod json;
mod text;
pub(crate) mod told;

use std::io::Write;

use upcall::features::{Delivery, DispatchMode, Sockets, Table, Target, deliveries};

use crate::cli::DispatchModeArgs;
use crate::exit::Exit;
use told::Told;

/// Appended to `upcalld dispatch-mode --help`.
pub(crate) const HELP: &str = "\
Mode, features, table and ports come from the kernel, processes from /proc (as root those of all
users), workers and the reason from the upcalld that serves the datapath. Of a datapath that another
program serves, workers and reason are not known. Nothing is changed.

Examples:
  upcalld dispatch-mode
      all datapaths of this network namespace
  upcalld dispatch-mode --datapath dp0 --json | jq -r '.datapaths[0].dispatch_mode'
      per-cpu or per-vport, for a script

Exit status: 0 when there are answers; 1 when there is no datapath of the name given; 5 without the
module.";

/// A datapath, as the kernel and the daemon that serves it tell.
struct View {
    name: String,
    features: u32,
    delivery: Delivery,
    /// What the daemon said, or why it is not known.
    told: Result<Told, String>,
}

/// Looks and prints.
pub(crate) fn run(args: &DispatchModeArgs) -> Result<(), Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Exit::Other(format!("cannot start the runtime: {err}")))?;
    let views = runtime.block_on(look(args.datapath.as_deref()))?;
    if let (Some(name), true) = (&args.datapath, views.is_empty()) {
        let text = format!("there is no datapath '{name}' in this network namespace");
        return Err(Exit::Other(text));
    }
    let out = if args.json { json::render(&views) } else { text::render(&views) };
    // That nobody reads it any more ('| head') is no failure.
    let _nobody_reads = std::io::stdout().write_all(out.as_bytes());
    Ok(())
}

async fn look(name: Option<&str>) -> Result<Vec<View>, Exit> {
    let found = deliveries(name).await.map_err(upcall::Error::from)?;
    let mut views = Vec::new();
    for (dp, mut delivery) in found {
        let owners = delivery.served_by();
        let pids: Vec<u32> = owners.iter().map(|owner| owner.pid).collect();
        let told = match told::ask(&dp.name, &pids).await {
            Ok(Some(told)) => Ok(told),
            Ok(None) if owners.is_empty() => Err("nobody known serves it".to_owned()),
            Ok(None) => Err("who serves it does not tell".to_owned()),
            Err(why) => Err(why),
        };
        if let Ok(told) = &told {
            complete(&mut delivery, told, &mut Sockets::read().unwrap_or_default());
        }
        views.push(View { name: dp.name, features: dp.features.bits(), delivery, told });
    }
    Ok(views)
}

/// Kernels from 5.15 to 6.0 do not report the table, but who set it knows it.
fn complete(delivery: &mut Delivery, told: &Told, sockets: &mut Sockets) {
    if delivery.table.is_none() && !told.table.is_empty() {
        delivery.table = Some(Table::resolve(&told.table, sockets));
    }
}

impl View {
    /// The thread that reads what is sent there.
    fn worker(&self, target: &Target) -> Option<&str> {
        self.told.as_ref().ok()?.workers.get(&target.port_id).map(String::as_str)
    }

    /// Sockets that take upcalls in this mode; those that wait for another mode are not counted.
    fn sockets(&self) -> usize {
        let targets = self.delivery.in_force().unwrap_or_default();
        let alive = targets.iter().filter(|target| target.end.is_alive());
        alive.map(|target| target.port_id).collect::<std::collections::BTreeSet<_>>().len()
    }

    fn table_is_in_force(&self) -> bool {
        self.delivery.mode == DispatchMode::PerCpu
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use upcall::features::End;

    pub(super) fn view(told: Result<Told, String>) -> View {
        let target = |port_id| Target { port_id, end: End::Alive(None) };
        let table = Some(Table { entries: vec![target(7), target(8), target(7)] });
        let delivery = Delivery { mode: DispatchMode::PerCpu, table, ports: Vec::new() };
        View { name: "dp0".into(), features: 9, delivery, told }
    }

    pub(super) fn told() -> Told {
        let workers = BTreeMap::from([(7, "upcall-0".into()), (8, "upcall-1".into())]);
        Told { mode: "per-cpu".into(), reason: "because".into(), table: vec![7, 8, 7], workers }
    }

    #[test]
    fn a_socket_that_cpus_share_counts_once() {
        assert_eq!(view(Ok(told())).sockets(), 2);
    }

    #[test]
    fn a_table_that_the_kernel_does_not_report_is_the_daemons() {
        let mut delivery = Delivery { table: None, ..view(Ok(told())).delivery };
        complete(&mut delivery, &told(), &mut Sockets::default());
        let ids: Vec<_> = delivery.table.unwrap().entries.iter().map(|e| e.port_id).collect();
        assert_eq!(ids, [7, 8, 7]);
        let mut reported = view(Ok(told())).delivery;
        let other = Told { table: vec![1], ..told() };
        complete(&mut reported, &other, &mut Sockets::default());
        assert_eq!(reported.table.unwrap().entries.len(), 3, "the kernel's word counts");
    }
}
