//! Families, versions, groups and attribute maxima (ABI page A.1).

use anyhow::ensure;
use netns_tests::{TestResult, since};

use crate::alone;

#[test]
fn all_four_are_there_with_their_versions_and_groups() -> TestResult {
    alone(async |control| {
        let families = control.families();
        let all = [
            (&families.datapath, "ovs_datapath", 2),
            (&families.vport, "ovs_vport", 1),
            (&families.flow, "ovs_flow", 1),
            (&families.packet, "ovs_packet", 1),
        ];
        for (family, name, version) in all {
            ensure!(family.name == name && family.version == version, "{family:?}");
            // Ids below 16 are netlink's own.
            ensure!(family.id >= 16, "{family:?}");
            let has_group = name != "ovs_packet";
            ensure!(family.group(name).is_some() == has_group, "{family:?}");
            ensure!(family.groups.len() == usize::from(has_group), "{family:?}");
        }
        Ok(())
    })
}

/// The maxima tell which attributes a kernel has before anything is tried.
#[test]
fn attribute_maxima_tell_what_a_kernel_has() -> TestResult {
    alone(async |control| {
        let families = control.families();
        // Per-CPU port ids (8) came with 5.15, a wished-for interface index (9) with 6.1.
        let datapath = match () {
            () if since(6, 1) => 9,
            () if since(5, 15) => 8,
            () => 7,
        };
        ensure!(families.datapath.attr_max == datapath, "{families:?}");
        // Upcall statistics came with 6.2.
        ensure!(families.vport.attr_max == if since(6, 2) { 10 } else { 9 }, "{families:?}");
        ensure!(families.flow.attr_max == 11, "{families:?}");
        // UPCALL_PID came with 6.17.
        ensure!(families.packet.attr_max == if since(6, 17) { 12 } else { 11 }, "{families:?}");
        Ok(())
    })
}
