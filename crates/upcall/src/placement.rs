//! Where workers run: the policy, and the assignment that follows from it.
//!
//! A worker serves CPU ids, the sockets of which it reads, for as long as it lives. Where it runs
//! follows from what it serves and from the CPUs there are now; so a change of CPUs moves threads and
//! no socket.

use std::fmt;
use std::str::FromStr;

use ovs_features::Topology;
use ovs_features::cpu::{list_text, parse_list};

use crate::Error;

/// Which CPUs worker threads may run on. All follow changes of CPUs, affinity and cpuset.
///
/// The CPUs of a process are those of its main thread's affinity. Housekeeping CPUs are those that are
/// neither isolated (`isolcpus=`) nor without a tick (`nohz_full=`); all of them, if there are no
/// others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Placement {
    /// In per-CPU mode each worker on the housekeeping CPUs whose upcalls it reads: one, if there are
    /// as many workers, else a group of neighbours. Upcalls of all other CPUs are read nearby. A worker
    /// that is kept from running there, while others do nothing, runs on any of the housekeeping CPUs
    /// for a while. In per-vport mode workers belong to no CPU and float, as with
    /// [`Placement::Housekeeping`].
    #[default]
    NearCpu,
    /// Each worker on any housekeeping CPU, as the scheduler likes.
    Housekeeping,
    /// As [`Placement::NearCpu`], with these CPUs, ascending, in the place of the housekeeping CPUs;
    /// isolated ones may be among them. While this process may use none of them, housekeeping CPUs
    /// stand in.
    List(Vec<usize>),
}

impl Placement {
    /// CPUs that workers run on, in order; never empty.
    pub(crate) fn home(&self, topology: &Topology) -> Vec<usize> {
        let Self::List(listed) = self else { return topology.housekeeping() };
        let reachable = topology.reachable();
        let home: Vec<_> = reachable.into_iter().filter(|cpu| listed.contains(cpu)).collect();
        if home.is_empty() { topology.housekeeping() } else { home }
    }

    /// Can it be done on this host? A listed CPU may be offline, but not all of them.
    pub(crate) fn check(&self, topology: &Topology) -> Result<(), Error> {
        let Self::List(listed) = self else { return Ok(()) };
        let refuse = |cpus: &[usize], why: String| {
            let cpus = if cpus.is_empty() { "an empty list".to_owned() } else { list_text(cpus) };
            Err(Error::BadPlacement { cpus, why })
        };
        let online = topology.online.as_ref().unwrap_or(&topology.possible);
        let reachable = topology.reachable();
        let of = |wanted: &dyn Fn(&usize) -> bool| -> Vec<usize> {
            listed.iter().copied().filter(|cpu| wanted(cpu)).collect()
        };
        let missing = of(&|cpu| !topology.possible.contains(cpu));
        if !missing.is_empty() {
            let there = list_text(&topology.possible);
            return refuse(&missing, format!("no such CPU; this host can have {there}"));
        }
        let forbidden = of(&|cpu| online.contains(cpu) && !reachable.contains(cpu));
        if !forbidden.is_empty() {
            let may = list_text(&reachable);
            let why = format!("this process may use {may} only (taskset, cpuset)");
            return refuse(&forbidden, why);
        }
        if of(&|cpu| online.contains(cpu)).is_empty() {
            return refuse(listed, format!("none of them is online; {} are", list_text(online)));
        }
        Ok(())
    }
}

impl FromStr for Placement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "near-cpu" => Ok(Self::NearCpu),
            "housekeeping" => Ok(Self::Housekeeping),
            _ => {
                parse_list(text).filter(|cpus| !cpus.is_empty()).map(Self::List).ok_or_else(|| {
                    format!(
                        "'{text}' is no placement: use near-cpu, housekeeping or a list of CPUs \
                     such as 2-5,8"
                    )
                })
            }
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NearCpu => f.write_str("near-cpu"),
            Self::Housekeeping => f.write_str("housekeeping"),
            Self::List(cpus) => f.write_str(&list_text(cpus)),
        }
    }
}

/// Where a CPU is, in the order in which CPUs are made into groups: those of a core beside each other,
/// those of a node too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Spot {
    node: Option<usize>,
    /// The core's first hardware thread; unknown while the CPU is offline.
    core: Option<usize>,
    id: usize,
}

impl Spot {
    /// How far two CPUs are apart: the same, of one core, of one node, other.
    fn distance(self, other: Self) -> u8 {
        let same = |a: Option<usize>, b: Option<usize>| a.is_some() && a == b;
        match other {
            _ if self.id == other.id => 0,
            _ if same(self.core, other.core) => 1,
            _ if same(self.node, other.node) => 2,
            _ => 3,
        }
    }

    fn nearest(self, others: &[Self]) -> u8 {
        others.iter().map(|other| self.distance(*other)).min().unwrap_or(u8::MAX)
    }
}

/// The spot of each id of the per-CPU table, ids that no CPU has included.
fn spots(topology: &Topology) -> Vec<Spot> {
    let mut spots: Vec<Spot> =
        (0..topology.table_len()).map(|id| Spot { id, ..Spot::default() }).collect();
    for cpu in &topology.cpus {
        let core = cpu.siblings.first().copied();
        spots[cpu.id] = Spot { node: cpu.node, core, id: cpu.id };
    }
    spots
}

/// The worker, from 0, of each id of the per-CPU table. CPUs at `home` are dealt out in groups of
/// neighbours whose sizes differ by one at most. Another id goes to the nearest worker, of several to
/// the one with the least; where there are more workers than CPUs at home, to the one with the least.
pub(crate) fn assign(topology: &Topology, home: &[usize], workers: usize) -> Vec<usize> {
    let (spots, workers) = (spots(topology), workers.max(1));
    let mut at_home: Vec<Spot> = home.iter().filter_map(|id| spots.get(*id)).copied().collect();
    at_home.sort_unstable();
    let groups = workers.min(at_home.len());
    let mut serves = vec![None; spots.len()];
    let mut members = vec![Vec::new(); workers];
    for (rank, spot) in at_home.iter().enumerate() {
        let worker = rank * groups / at_home.len();
        serves[spot.id] = Some(worker);
        members[worker].push(*spot);
    }
    let mut load: Vec<usize> = members.iter().map(Vec::len).collect();
    let spare = workers > groups;
    let mut rest: Vec<Spot> = spots.iter().filter(|s| serves[s.id].is_none()).copied().collect();
    // Those that run come first, so that they are spread evenly among themselves.
    let runs = |id: usize| topology.online.as_ref().is_none_or(|online| online.contains(&id));
    rest.sort_by_key(|spot| !runs(spot.id));
    for spot in rest {
        let far = |worker: usize| if spare { 0 } else { spot.nearest(&members[worker]) };
        let worker = (0..workers).min_by_key(|worker| (far(*worker), load[*worker])).unwrap_or(0);
        serves[spot.id] = Some(worker);
        load[worker] += 1;
    }
    serves.into_iter().map(Option::unwrap_or_default).collect()
}

/// CPUs that each worker runs on: those at `home` that it serves, else those nearest to what it
/// serves.
pub(crate) fn runs_on(
    topology: &Topology,
    home: &[usize],
    serves: &[usize],
    workers: usize,
) -> Vec<Vec<usize>> {
    let spots = spots(topology);
    let mut of_worker = vec![Vec::new(); workers];
    for (spot, worker) in spots.iter().zip(serves) {
        of_worker[*worker].push(*spot);
    }
    let near = |own: Vec<Spot>| {
        let far = |cpu: &usize| spots.get(*cpu).map_or(u8::MAX, |spot| spot.nearest(&own));
        let least = home.iter().map(far).min();
        home.iter().copied().filter(|cpu| Some(far(cpu)) == least).collect()
    };
    of_worker.into_iter().map(near).collect()
}

#[cfg(test)]
mod tests;
