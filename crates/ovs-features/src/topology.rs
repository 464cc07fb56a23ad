//! The CPUs of this host, as `/sys` and `/proc` describe them.
//!
//! Everything is read below a root directory, so that trees recorded on other hosts can be read too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cpu::parse_list;

const CPU_DIR: &str = "sys/devices/system/cpu";
const NODE_DIR: &str = "sys/devices/system/node";
const CGROUP_DIR: &str = "sys/fs/cgroup";

/// One CPU that can exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cpu {
    /// Its id.
    pub id: usize,
    /// Ids of the hardware threads of its core, itself among them; empty while it is offline.
    pub siblings: Vec<usize>,
    /// Its NUMA node, where the kernel tells.
    pub node: Option<usize>,
}

/// CPU ids in ascending order, by what holds for them. `None`: this kernel has no such list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// Can ever exist: those a per-CPU table must have an entry for.
    pub possible: Vec<usize>,
    /// Are plugged in.
    pub present: Option<Vec<usize>>,
    /// Run.
    pub online: Option<Vec<usize>>,
    /// Kept free of tasks by `isolcpus=`.
    pub isolated: Option<Vec<usize>>,
    /// Without a tick while one task runs (`nohz_full=`).
    pub nohz_full: Option<Vec<usize>>,
    /// Allowed by the control group of this process (`cpuset.cpus.effective`).
    pub cpuset: Option<Vec<usize>>,
    /// Allowed for the thread that asked.
    pub affinity: Option<Vec<usize>>,
    /// Each possible CPU.
    pub cpus: Vec<Cpu>,
}

impl Topology {
    /// Reads it below `root`: `/` for this host.
    ///
    /// # Errors
    ///
    /// When the list of possible CPUs is missing or is none. All else may be missing.
    pub fn read(root: &Path) -> io::Result<Self> {
        let cpu_dir = root.join(CPU_DIR);
        let possible = cpu_dir.join("possible");
        let text = fs::read_to_string(&possible)?;
        let bad = || {
            let why = format!("{}: not a CPU list: {text:?}", possible.display());
            io::Error::new(io::ErrorKind::InvalidData, why)
        };
        let possible = parse_list(&text).ok_or_else(bad)?;
        let nodes = read_nodes(&root.join(NODE_DIR));
        let cpus = possible.iter().map(|id| read_cpu(&cpu_dir, *id, &nodes)).collect();
        Ok(Self {
            possible,
            present: read_list(&cpu_dir.join("present")),
            online: read_list(&cpu_dir.join("online")),
            isolated: read_list(&cpu_dir.join("isolated")),
            nohz_full: read_list(&cpu_dir.join("nohz_full")),
            cpuset: read_cpuset(root),
            affinity: read_affinity(root),
            cpus,
        })
    }

    /// Entries that a per-CPU table needs: the highest possible id and one, because ids may be sparse
    /// and the kernel looks up `table[cpu]` (`ovs_dp_get_upcall_portid`, `net/openvswitch/datapath.c`).
    pub fn table_len(&self) -> usize {
        self.possible.last().map_or(1, |id| id + 1)
    }

    /// Possible ids are not `0..n`: a table sized to their number would be too short.
    pub fn is_sparse(&self) -> bool {
        self.table_len() != self.possible.len()
    }

    /// CPUs the thread may run on that are kept free for nothing else: neither isolated nor without a
    /// tick; all it may run on, if there are no others.
    pub fn housekeeping(&self) -> Vec<usize> {
        let allowed = self.affinity.as_ref().unwrap_or(&self.possible);
        let kept_free = |id: &usize| {
            contains(self.isolated.as_ref(), *id) || contains(self.nohz_full.as_ref(), *id)
        };
        let rest: Vec<_> = allowed.iter().copied().filter(|id| !kept_free(id)).collect();
        if rest.is_empty() { allowed.clone() } else { rest }
    }

    /// CPUs the thread may be put on: those of its affinity and, unless the cpuset forbids them,
    /// isolated ones. The kernel leaves these out of the affinity that every process starts with
    /// (`isolcpus=`), so that they have to be asked for.
    pub fn reachable(&self) -> Vec<usize> {
        let runs = |id| self.online.is_none() || contains(self.online.as_ref(), id);
        let in_cpuset = |id| self.cpuset.is_none() || contains(self.cpuset.as_ref(), id);
        let isolated = |id| contains(self.isolated.as_ref(), id) && runs(id) && in_cpuset(id);
        let own = |id| self.affinity.is_none() || contains(self.affinity.as_ref(), id);
        self.possible.iter().copied().filter(|id| own(*id) || isolated(*id)).collect()
    }

    /// What is known of a CPU id; `None` for one that cannot exist.
    pub fn cpu(&self, id: usize) -> Option<&Cpu> {
        self.cpus.iter().find(|cpu| cpu.id == id)
    }

    /// Threads of a core, at most; 1 without hyper-threading.
    pub fn threads_per_core(&self) -> usize {
        self.cpus.iter().map(|cpu| cpu.siblings.len()).max().unwrap_or(1).max(1)
    }

    /// The hardware threads of each core that is online, each core once.
    pub fn cores(&self) -> Vec<&[usize]> {
        let firsts = self.cpus.iter().filter(|cpu| cpu.siblings.first() == Some(&cpu.id));
        firsts.map(|cpu| cpu.siblings.as_slice()).collect()
    }

    /// NUMA nodes that have CPUs, in order.
    pub fn nodes(&self) -> Vec<usize> {
        let mut nodes: Vec<_> = self.cpus.iter().filter_map(|cpu| cpu.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}

fn contains(list: Option<&Vec<usize>>, id: usize) -> bool {
    list.is_some_and(|list| list.contains(&id))
}

/// A list file. Kernels print `(null)` for a mask that was never set (`print_cpus_nohz_full`,
/// `drivers/base/cpu.c`).
fn read_list(path: &Path) -> Option<Vec<usize>> {
    let text = fs::read_to_string(path).ok()?;
    if text.trim() == "(null)" { Some(Vec::new()) } else { parse_list(&text) }
}

/// Each node with its CPUs.
fn read_nodes(dir: &Path) -> Vec<(usize, Vec<usize>)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let nodes = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        Some((number, read_list(&entry.path().join("cpulist"))?))
    });
    nodes.collect()
}

fn read_cpu(cpu_dir: &Path, id: usize, nodes: &[(usize, Vec<usize>)]) -> Cpu {
    let topology = cpu_dir.join(format!("cpu{id}/topology"));
    // `core_cpus_list` is the new name (5.3) of `thread_siblings_list`; both have been there since.
    let siblings = ["core_cpus_list", "thread_siblings_list"]
        .iter()
        .find_map(|file| read_list(&topology.join(file)))
        .unwrap_or_default();
    let node = nodes.iter().find(|(_, cpus)| cpus.contains(&id)).map(|(number, _)| *number);
    Cpu { id, siblings, node }
}

/// The line `Cpus_allowed_list` of the calling thread.
fn read_affinity(root: &Path) -> Option<Vec<usize>> {
    let status = fs::read_to_string(root.join("proc/thread-self/status")).ok()?;
    parse_list(status_field(&status, "Cpus_allowed_list")?)
}

/// The value of a line `name:\tvalue` of `/proc/…/status`.
pub(crate) fn status_field<'s>(status: &'s str, name: &str) -> Option<&'s str> {
    let value = |line: &'s str| line.strip_prefix(name)?.strip_prefix(':');
    status.lines().find_map(value).map(str::trim)
}

/// The effective CPUs of the control group this process is in. A group without the cpuset controller
/// has what the nearest group above it has.
fn read_cpuset(root: &Path) -> Option<Vec<usize>> {
    let membership = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let (mount, group, file) = cpuset_group(&membership)?;
    let mount: PathBuf = root.join(CGROUP_DIR).join(mount);
    let group = Path::new(group.trim_start_matches('/'));
    group.ancestors().find_map(|group| read_list(&mount.join(group).join(file)))
}

/// Mount below `/sys/fs/cgroup`, path in it, and file name, from lines `id:controllers:path`: version 1
/// where the cpuset controller is mounted, else version 2, whose line has no controllers.
fn cpuset_group(membership: &str) -> Option<(&'static str, &str, &'static str)> {
    let lines = || membership.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let has_cpuset = |controllers: &str| controllers.split(',').any(|c| c == "cpuset");
    if let Some((_, path)) = lines().find(|(controllers, _)| has_cpuset(controllers)) {
        return Some(("cpuset", path, "cpuset.effective_cpus"));
    }
    let (_, path) = lines().find(|(controllers, _)| controllers.is_empty())?;
    Some(("", path, "cpuset.cpus.effective"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes files below a new root.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    /// Two sockets of two cores with two threads, with holes between the sockets' ids.
    const SPARSE: &[(&str, &str)] = &[
        ("sys/devices/system/cpu/possible", "0-3,8-11\n"),
        ("sys/devices/system/cpu/present", "0-3,8-11\n"),
        ("sys/devices/system/cpu/online", "0-3,8-10\n"),
        ("sys/devices/system/cpu/isolated", "2-3\n"),
        ("sys/devices/system/cpu/nohz_full", "(null)\n"),
        ("sys/devices/system/cpu/cpu0/topology/core_cpus_list", "0,2\n"),
        ("sys/devices/system/cpu/cpu8/topology/thread_siblings_list", "8,10\n"),
        ("sys/devices/system/node/node0/cpulist", "0-3\n"),
        ("sys/devices/system/node/node1/cpulist", "8-11\n"),
        ("sys/devices/system/node/possible", "0-1\n"),
        ("proc/thread-self/status", "Name:\tx\nCpus_allowed:\tf07\nCpus_allowed_list:\t0-2,8\n"),
        ("proc/self/cgroup", "0::/system.slice/upcalld.service\n"),
        ("sys/fs/cgroup/system.slice/cpuset.cpus.effective", "0-2,8-11\n"),
    ];

    #[test]
    fn sparse_ids_need_a_table_up_to_the_highest() {
        let root = tree(SPARSE);
        let topology = Topology::read(root.path()).unwrap();
        assert_eq!(topology.possible, [0, 1, 2, 3, 8, 9, 10, 11]);
        assert_eq!((topology.table_len(), topology.is_sparse()), (12, true));
        assert_eq!(topology.online, Some(vec![0, 1, 2, 3, 8, 9, 10]));
        assert_eq!(topology.nohz_full, Some(vec![]));
        assert_eq!(topology.affinity, Some(vec![0, 1, 2, 8]));
        assert_eq!(topology.housekeeping(), [0, 1, 8]);
        assert_eq!(topology.reachable(), [0, 1, 2, 8], "3 is isolated, but not in the cpuset");
        let topology = Topology { nohz_full: Some(vec![1]), cpuset: None, ..topology };
        assert_eq!(topology.housekeeping(), [0, 8]);
        assert_eq!(topology.reachable(), [0, 1, 2, 3, 8]);
    }

    #[test]
    fn cores_and_nodes_are_told_for_each_cpu() {
        let topology = Topology::read(tree(SPARSE).path()).unwrap();
        let cpu = |id| topology.cpu(id).unwrap();
        assert_eq!((cpu(0).siblings.as_slice(), cpu(0).node), ([0, 2].as_slice(), Some(0)));
        assert_eq!((cpu(8).siblings.as_slice(), cpu(8).node), ([8, 10].as_slice(), Some(1)));
        assert_eq!((cpu(11).siblings.as_slice(), cpu(11).node), ([].as_slice(), Some(1)));
        assert_eq!((topology.threads_per_core(), topology.nodes()), (2, vec![0, 1]));
        assert_eq!(topology.cores(), [[0, 2].as_slice(), &[8, 10]]);
    }

    #[test]
    fn a_group_without_the_controller_has_what_its_parent_has() {
        let topology = Topology::read(tree(SPARSE).path()).unwrap();
        assert_eq!(topology.cpuset, Some(vec![0, 1, 2, 8, 9, 10, 11]));
    }

    #[test]
    fn version_1_control_groups_are_read_where_cpuset_is_mounted() {
        let root = tree(&[
            ("sys/devices/system/cpu/possible", "0-1\n"),
            ("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:cpuset:/b:c\n0::/d\n"),
            ("sys/fs/cgroup/cpuset/b:c/cpuset.effective_cpus", "1\n"),
        ]);
        assert_eq!(Topology::read(root.path()).unwrap().cpuset, Some(vec![1]));
    }

    #[test]
    fn only_the_list_of_possible_cpus_is_needed() {
        let root = tree(&[("sys/devices/system/cpu/possible", "0\n")]);
        let topology = Topology::read(root.path()).unwrap();
        assert_eq!((topology.table_len(), topology.is_sparse()), (1, false));
        assert_eq!((topology.online.clone(), topology.cpuset.clone()), (None, None));
        assert_eq!((topology.housekeeping(), topology.threads_per_core()), (vec![0], 1));
        assert!(Topology::read(tree(&[("x", "")]).path()).is_err());
        let bad = tree(&[("sys/devices/system/cpu/possible", "0-x\n")]);
        let err = Topology::read(bad.path()).unwrap_err();
        assert!(err.to_string().contains("not a CPU list"), "{err}");
    }

    #[test]
    fn this_host_is_read() {
        let topology = Topology::read(Path::new("/")).unwrap();
        assert_eq!(topology.table_len(), crate::cpu::table_len().unwrap());
        assert_eq!(topology.affinity, Some(crate::cpu::usable().unwrap()));
    }
}
