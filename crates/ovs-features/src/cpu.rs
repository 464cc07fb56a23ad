//! CPUs of this host: which can exist, which this process may use.

use std::fs;
use std::io;

use rustix::process::{Pid, getpid};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where the kernel lists the CPUs that can ever exist: hotplugged ones included.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// Highest CPU id taken from the kernel: `NR_CPUS` of the largest configuration.
const CPU_ID_MAX: usize = 8191;

/// Entries a per-CPU table needs: the highest possible CPU id and one. Ids may be sparse, and a CPU
/// beyond the table is served by another entry (`cpu % n`, `net/openvswitch/datapath.c`).
pub fn table_len() -> io::Result<usize> {
    let text = fs::read_to_string(POSSIBLE)?;
    let ids = parse_list(&text).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{POSSIBLE}: not a CPU list: {text:?}"))
    })?;
    Ok(ids.last().map_or(1, |id| id + 1))
}

/// CPUs the calling thread may run on, in order; at least one.
pub fn usable() -> io::Result<Vec<usize>> {
    affinity(None)
}

/// CPUs the main thread of this process may run on: what `taskset` shows and sets by the process id.
pub fn usable_by_process() -> io::Result<Vec<usize>> {
    affinity(Some(getpid()))
}

/// CPUs that a thread of this process, or the calling one, may run on now, in order: those of its
/// affinity mask that are online (`sched_getaffinity`, `kernel/sched/syscalls.c`).
pub fn affinity(thread: Option<Pid>) -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(thread)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Lets a thread of this process, or the calling one, run on `cpus` alone.
///
/// # Errors
///
/// When none of them is online and in the thread's cpuset, or an id is beyond [`CpuSet::MAX_CPU`].
pub fn set_affinity(thread: Option<Pid>, cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        if *cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        set.set(*cpu);
    }
    Ok(sched_setaffinity(thread, &set)?)
}

/// Keeps the calling thread on `cpu`.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    set_affinity(None, &[cpu])
}

/// Reads a list such as `0-3,8,10-11` into ascending ids; `None` if it is not one.
pub fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut ids = Vec::new();
    for part in text.trim().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > CPU_ID_MAX {
            return None;
        }
        ids.extend(first..=last);
    }
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

/// Writes ascending ids as [`parse_list`] reads them: `0-3,8,10-11`.
pub fn list_text(ids: &[usize]) -> String {
    let runs = ids.chunk_by(|a, b| a + 1 == *b);
    let text = |run: &[usize]| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run.iter().map(ToString::to_string).collect(),
    };
    runs.map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sparse_lists() {
        assert_eq!(parse_list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse_list("0"), Some(vec![0]));
        assert_eq!(parse_list(""), Some(vec![]));
    }

    #[test]
    fn lists_are_written_as_they_are_read() {
        for text in ["", "0", "0-3", "0-3,8,10-11", "1,3,5-6"] {
            assert_eq!(list_text(&parse_list(text).unwrap()), text);
        }
    }

    #[test]
    fn refuses_what_is_not_a_list() {
        for text in ["a", "3-1", "0-99999999", "1-2-3", "-1"] {
            assert_eq!(parse_list(text), None, "{text}");
        }
    }

    #[test]
    fn a_thread_runs_where_it_was_put() {
        let before = usable().unwrap();
        let one = *before.last().unwrap();
        let inside = std::thread::spawn(move || pin_to(one).and_then(|()| usable()));
        assert_eq!(inside.join().unwrap().unwrap(), [one]);
        assert_eq!(usable().unwrap(), before);
        assert!(pin_to(CpuSet::MAX_CPU).is_err());
        assert!(set_affinity(None, &[]).is_err());
    }

    #[test]
    fn this_host_has_cpus() {
        let usable = usable().unwrap();
        assert!(!usable.is_empty());
        assert!(table_len().unwrap() > *usable.last().unwrap());
    }
}
