//! Where the workers of a delivery run, and following changes of the host's CPUs.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ovs_features::Topology;
use ovs_features::cpu::{self, list_text};

use crate::roam::Room;
use crate::worker::Worker;
use crate::{Error, Placement, Shape, placement};

/// Where the workers of one delivery are to run.
pub(crate) struct Places {
    shape: Shape,
    workers_max: usize,
    /// Sockets there are at most, if workers serve CPUs.
    sockets_max: usize,
    count: usize,
    /// The worker of each CPU id; empty where workers serve ports. Never changes: a worker that moves
    /// takes its sockets along.
    serves: Vec<usize>,
    seen: Mutex<Seen>,
}

/// What was found when it was last looked.
struct Seen {
    topology: Topology,
    /// CPUs that each worker belongs to, as the kernel told them.
    workers: Vec<Vec<usize>>,
}

impl Places {
    /// Plans places for `shape` on this host. `cpus` is the length of the per-CPU table, if workers
    /// serve CPUs. The limit is for a default that a large host would carry too far: a number that was
    /// asked for is obeyed.
    pub(crate) fn plan(
        shape: Shape,
        workers_max: usize,
        topology: Topology,
        cpus: Option<usize>,
    ) -> Self {
        let mut places = Self {
            shape,
            workers_max,
            sockets_max: cpus.unwrap_or(usize::MAX),
            count: 0,
            serves: Vec::new(),
            seen: Mutex::new(Seen { topology: Topology::default(), workers: Vec::new() }),
        };
        let home = places.shape.placement.home(&topology);
        let wanted = places.wanted(&home);
        places.count = wanted.min(places.sockets_max);
        if places.count < wanted {
            let workers = places.count;
            tracing::warn!(wanted, workers, "more workers than sockets are of no use");
        }
        if cpus.is_some() {
            places.serves = placement::assign(&topology, &home, places.count);
        }
        places.look().topology = topology;
        places
    }

    fn wanted(&self, home: &[usize]) -> usize {
        self.shape.workers.unwrap_or(home.len().min(self.workers_max)).max(1)
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The worker that serves a CPU id of the table.
    pub(crate) fn worker_of(&self, cpu: usize) -> usize {
        self.serves.get(cpu).copied().unwrap_or(0)
    }

    /// CPUs for each worker that is to be started.
    pub(crate) fn planned(&self) -> Vec<Room> {
        self.rooms(&self.look().topology)
    }

    /// The workers run.
    pub(crate) fn settled(&self, workers: &[Worker]) {
        self.look().workers = workers.iter().map(Worker::belongs_to).collect();
    }

    /// CPUs for each worker.
    fn rooms(&self, topology: &Topology) -> Vec<Room> {
        let home = self.shape.placement.home(topology);
        if self.serves.is_empty() || self.shape.placement == Placement::Housekeeping {
            return vec![Room { near: home.clone(), far: home }; self.count];
        }
        let near = placement::runs_on(topology, &home, &self.serves, self.count);
        near.into_iter().map(|near| Room { near, far: home.clone() }).collect()
    }

    /// Moves workers if CPUs, affinity or cpuset have changed, or somebody moved a worker. What is
    /// compared is what is, not what happened: a CPU that went and came between two looks has cost its
    /// worker its place. Cheap if nothing has changed: a system call for each worker and one more.
    ///
    /// Gives the shape to build anew when there are CPUs for more workers than there are. Fewer CPUs
    /// need no such thing: each socket must be read by someone, and a worker with nothing to read
    /// costs nothing.
    pub(crate) fn follow(&self, workers: &[Worker]) -> Result<Option<Shape>, Error> {
        let mut seen = self.look();
        let usable = cpu::usable_by_process().map_err(read_error)?;
        let now: Vec<_> = workers.iter().map(Worker::belongs_to).collect();
        if seen.topology.affinity.as_ref() == Some(&usable) && seen.workers == now {
            return Ok(None);
        }
        let topology = topology()?;
        let reason = reason(&seen.topology, &topology);
        let rooms = self.rooms(&topology);
        seen.topology = topology;
        seen.workers = workers.iter().zip(&rooms).map(|(worker, room)| put(worker, room)).collect();
        let places = text(&seen.workers);
        tracing::info!(reason, workers = places, placement = %self.shape.placement, "workers moved");
        let wanted = self.wanted(&self.shape.placement.home(&seen.topology)).min(self.sockets_max);
        Ok((wanted > self.count).then(|| self.shape.clone()))
    }

    fn look(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves a worker, and gives the CPUs to find it on at the next look: what was asked for, or what the
/// kernel left of it. Found elsewhere at once, somebody else moves threads too, and goes on: before 6.2
/// a cpuset that changes takes each thread's mask from it, one thread after the other. The next look
/// sets that right.
fn put(worker: &Worker, room: &Room) -> Vec<usize> {
    let (moved, cpus) = (worker.move_to(room), &room.near);
    let is = worker.belongs_to();
    match moved {
        Err(err) => {
            tracing::warn!(cpus = list_text(cpus), %err, "cannot move a worker");
            is
        }
        Ok(()) if is.iter().all(|cpu| cpus.contains(cpu)) => is,
        Ok(()) => cpus.clone(),
    }
}

/// The host's CPUs, with those that this process may use: its main thread's affinity.
pub(crate) fn topology() -> Result<Topology, Error> {
    let topology = Topology::read(Path::new("/")).map_err(read_error)?;
    Ok(Topology { affinity: Some(cpu::usable_by_process().map_err(read_error)?), ..topology })
}

fn read_error(err: std::io::Error) -> Error {
    Error::system("find out which CPUs this process may use")(err)
}

/// Each worker with its CPUs, as `0:0 1:1-2`.
pub(crate) fn text(workers: &[Vec<usize>]) -> String {
    let one = |(number, cpus): (usize, &Vec<usize>)| format!("{number}:{}", list_text(cpus));
    workers.iter().enumerate().map(one).collect::<Vec<_>>().join(" ")
}

/// What has changed between two looks.
fn reason(before: &Topology, after: &Topology) -> String {
    let less = |from: &[usize], what: &[usize]| -> Vec<usize> {
        from.iter().copied().filter(|cpu| !what.contains(cpu)).collect()
    };
    let online = |topology: &Topology| topology.online.clone().unwrap_or_default();
    let (was, is) = (online(before), online(after));
    let (gone, come) = (less(&was, &is), less(&is, &was));
    match (gone.is_empty(), come.is_empty()) {
        (false, true) => format!("CPU {} went offline", list_text(&gone)),
        (true, false) => format!("CPU {} came online", list_text(&come)),
        (false, false) => {
            format!("CPU {} went offline, {} came online", list_text(&gone), list_text(&come))
        }
        (true, true) if before.affinity != after.affinity => {
            let may = list_text(after.affinity.as_deref().unwrap_or_default());
            format!("the process may use CPU {may} now")
        }
        (true, true) => "somebody moved them, or a CPU went and came".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(online: &[usize], affinity: &[usize]) -> Topology {
        let (online, affinity) = (Some(online.to_vec()), Some(affinity.to_vec()));
        Topology { possible: vec![0, 1, 2, 3], online, affinity, ..Topology::default() }
    }

    fn plan(shape: Shape, topology: Topology, cpus: Option<usize>) -> Places {
        Places::plan(shape, 64, topology, cpus)
    }

    fn near(places: &Places) -> Vec<Vec<usize>> {
        places.planned().into_iter().map(|room| room.near).collect()
    }

    #[test]
    fn the_reason_tells_hotplug_from_affinity() {
        let all = topology(&[0, 1, 2, 3], &[0, 1, 2, 3]);
        let cases = [
            (topology(&[0, 1, 3], &[0, 1, 3]), "CPU 2 went offline"),
            (topology(&[0, 1, 2, 3], &[0, 1]), "the process may use CPU 0-1 now"),
            (all.clone(), "somebody moved them, or a CPU went and came"),
        ];
        for (after, text) in cases {
            assert_eq!(reason(&all, &after), text);
        }
        assert_eq!(reason(&topology(&[0], &[0]), &all), "CPU 1-3 came online");
    }

    #[test]
    fn workers_are_as_many_as_cpus_within_the_limits() {
        let host = || topology(&[0, 1, 2], &[0, 1, 2]);
        let workers =
            |workers, cpus| near(&plan(Shape { workers, ..Shape::default() }, host(), cpus));
        assert_eq!(workers(None, Some(4)), [[0], [1], [2]]);
        assert_eq!(workers(Some(9), Some(4)).len(), 4, "as many as sockets");
        assert_eq!(workers(Some(9), None), vec![vec![0, 1, 2]; 9], "ports belong to no CPU");
        let capped = Places::plan(Shape::default(), 2, host(), Some(4));
        assert_eq!(near(&capped), [vec![0, 1], vec![2]]);
        assert_eq!(capped.planned()[1].far, [0, 1, 2]);
    }

    #[test]
    fn housekeeping_workers_float_and_listed_ones_stay() {
        let shape = |placement| Shape { placement, ..Shape::default() };
        let all = || topology(&[0, 1, 2, 3], &[0, 1, 2, 3]);
        let isolated = Topology { isolated: Some(vec![3]), ..all() };
        let floating = plan(shape(Placement::Housekeeping), isolated, Some(4));
        assert_eq!(near(&floating), [[0, 1, 2], [0, 1, 2], [0, 1, 2]]);
        let list = Placement::List(vec![1, 3]);
        let listed = plan(shape(list.clone()), all(), Some(4));
        assert_eq!(near(&listed), [[1], [3]]);
        assert_eq!(listed.planned()[0].far, [1, 3], "not even then on others");
        assert_eq!(near(&plan(shape(list), all(), None)), [[1, 3], [1, 3]]);
    }
}
