use super::*;

use ovs_features::Cpu;
use proptest::prelude::*;

/// `nodes` sockets of `cores` cores with two threads each, numbered as firmware does: the first threads
/// of all cores, then the second ones.
fn host(nodes: usize, cores: usize) -> Topology {
    let half = nodes * cores;
    let cpu = |id: usize| {
        let first = id % half;
        Cpu { id, siblings: vec![first, first + half], node: Some(first / cores) }
    };
    let all: Vec<usize> = (0..2 * half).collect();
    Topology {
        possible: all.clone(),
        online: Some(all.clone()),
        affinity: Some(all),
        cpus: (0..2 * half).map(cpu).collect(),
        ..Topology::default()
    }
}

fn masks(topology: &Topology, placement: &Placement, workers: usize) -> Vec<Vec<usize>> {
    let home = placement.home(topology);
    runs_on(topology, &home, &assign(topology, &home, workers), workers)
}

#[test]
fn one_worker_for_each_cpu_runs_on_it() {
    let topology = host(2, 2);
    let home = Placement::NearCpu.home(&topology);
    let serves = assign(&topology, &home, 8);
    for (worker, cpus) in runs_on(&topology, &home, &serves, 8).into_iter().enumerate() {
        assert_eq!(cpus.len(), 1);
        assert_eq!(serves[cpus[0]], worker);
    }
}

#[test]
fn fewer_workers_serve_neighbours() {
    let topology = host(2, 2);
    assert_eq!(masks(&topology, &Placement::NearCpu, 4), [[0, 4], [1, 5], [2, 6], [3, 7]]);
    assert_eq!(masks(&topology, &Placement::NearCpu, 2), [[0, 1, 4, 5], [2, 3, 6, 7]]);
}

#[test]
fn upcalls_of_isolated_cpus_are_read_by_the_nearest_housekeeping_cpu() {
    let isolated = Some(vec![4, 5, 3]);
    let topology = Topology { isolated, nohz_full: Some(vec![7]), ..host(2, 2) };
    let home = Placement::NearCpu.home(&topology);
    assert_eq!(home, [0, 1, 2, 6]);
    let serves = assign(&topology, &home, 4);
    // Of one core: 4 with 0, 5 with 1. Of one node: 3 and 7 with 2 and 6.
    assert_eq!(serves, [0, 1, 2, 2, 0, 1, 3, 3]);
    assert_eq!(masks(&topology, &Placement::NearCpu, 4), [[0], [1], [2], [6]]);
}

#[test]
fn a_worker_whose_cpu_is_gone_runs_beside_it_and_goes_back() {
    let topology = host(2, 2);
    let serves = assign(&topology, &Placement::NearCpu.home(&topology), 8);
    let without = |gone: &[usize]| {
        let mut left = topology.clone();
        let stay = |ids: &mut Vec<usize>| ids.retain(|id| !gone.contains(id));
        left.online.as_mut().map(stay);
        left.affinity.as_mut().map(stay);
        runs_on(&left, &Placement::NearCpu.home(&left), &serves, 8)
    };
    assert_eq!(without(&[4])[serves[4]], [0], "the other thread of its core");
    assert_eq!(without(&[4, 0])[serves[4]], [1, 5], "its node");
    assert_eq!(without(&[0, 1, 4, 5])[serves[4]], [2, 3, 6, 7]);
    assert_eq!(without(&[])[serves[4]], [4]);
}

#[test]
fn ids_that_no_cpu_has_are_served_too() {
    let mut topology = host(1, 1);
    topology.possible = vec![0, 1, 6];
    assert_eq!(assign(&topology, &[0, 1], 2), [0, 1, 0, 1, 0, 1, 0]);
}

#[test]
fn a_list_is_checked_against_the_host() {
    let topology = Topology {
        affinity: Some(vec![0, 1, 2]),
        online: Some(vec![0, 1, 2, 3, 4]),
        isolated: Some(vec![4]),
        ..host(2, 2)
    };
    let refused = |cpus: &[usize]| {
        let checked = Placement::List(cpus.to_vec()).check(&topology);
        checked.err().map(|err| err.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(&[0, 4, 7]), "", "isolated ones must be asked for, offline ones may come");
    assert!(refused(&[0, 8, 9]).contains("CPU 8-9: no such CPU; this host can have 0-7"));
    assert!(refused(&[2, 3]).contains("CPU 3: this process may use 0-2,4 only"));
    assert!(refused(&[5, 6]).contains("CPU 5-6: none of them is online; 0-4 are"));
    assert!(refused(&[]).contains("an empty list"));
}

#[test]
fn housekeeping_cpus_stand_in_for_a_list_that_cannot_be_had() {
    let list = Placement::List(vec![2, 3]);
    assert_eq!(list.home(&host(2, 2)), [2, 3]);
    let narrowed = Topology { affinity: Some(vec![0, 3]), ..host(2, 2) };
    assert_eq!(list.home(&narrowed), [3]);
    let narrowed = Topology { affinity: Some(vec![0, 1]), isolated: Some(vec![1]), ..host(2, 2) };
    assert_eq!(list.home(&narrowed), [0]);
}

#[test]
fn policies_are_written_as_they_are_read() {
    for text in ["near-cpu", "housekeeping", "2-5,8"] {
        assert_eq!(text.parse::<Placement>().unwrap().to_string(), text);
    }
    for text in ["", "near", "5-2", "1,x"] {
        let err = text.parse::<Placement>().unwrap_err();
        assert!(err.contains("near-cpu, housekeeping or a list"), "{err}");
    }
}

prop_compose! {
    /// A host, some of whose CPUs are isolated, without a tick, offline or not allowed.
    fn hosts()(nodes in 1usize..3, cores in 1usize..9)(
        flags in proptest::collection::vec(0u8..16, 2 * nodes * cores),
        topology in Just(host(nodes, cores)),
    ) -> Topology {
        let with = |bit: u8| -> Vec<usize> {
            (0..flags.len()).filter(|id| flags[*id] & bit != 0).collect()
        };
        let mut affinity = with(1);
        if affinity.is_empty() {
            affinity.push(0);
        }
        let mut online = with(8);
        online.extend(&affinity);
        online.sort_unstable();
        online.dedup();
        Topology {
            online: Some(online),
            affinity: Some(affinity),
            isolated: Some(with(2)),
            nohz_full: Some(with(4)),
            ..topology
        }
    }
}

proptest! {
    #[test]
    fn every_cpu_id_has_one_worker_and_no_worker_is_out_of_place(
        topology in hosts(),
        workers in 1usize..40,
        listed in proptest::collection::vec(0usize..40, 1..5),
    ) {
        let workers = workers.min(topology.table_len());
        for placement in [Placement::NearCpu, Placement::Housekeeping, Placement::List(listed)] {
            let home = placement.home(&topology);
            let serves = assign(&topology, &home, workers);
            prop_assert_eq!(serves.len(), topology.table_len());
            prop_assert!(serves.iter().all(|worker| *worker < workers));
            let count = |worker, ids: &[usize]| ids.iter().filter(|id| serves[**id] == worker).count();
            let all: Vec<usize> = (0..serves.len()).collect();
            let of = |ids: &[usize]| (0..workers).map(|w| count(w, ids)).collect::<Vec<_>>();
            prop_assert!(of(&all).iter().all(|n| *n > 0), "idle: {:?}", serves);
            let at_home = of(&home);
            prop_assert!(at_home.iter().max().unwrap() - at_home.iter().min().unwrap() <= 1);
            let masks = runs_on(&topology, &home, &serves, workers);
            prop_assert!(masks.iter().all(|cpus| !cpus.is_empty()));
            prop_assert!(masks.iter().flatten().all(|cpu| home.contains(cpu)));
            for cpu in &home {
                prop_assert!(masks[serves[*cpu]].contains(cpu), "{cpu} is served from elsewhere");
            }
        }
    }

    #[test]
    fn no_isolated_cpu_is_used_unless_there_is_no_other(topology in hosts()) {
        let kept_free = |id: &usize| {
            [&topology.isolated, &topology.nohz_full].iter().any(|l| l.as_ref().unwrap().contains(id))
        };
        let allowed = topology.affinity.clone().unwrap();
        let home = Placement::NearCpu.home(&topology);
        prop_assert!(home.iter().all(|id| allowed.contains(id)));
        if !allowed.iter().all(kept_free) {
            prop_assert!(!home.iter().any(kept_free));
        }
    }
}
