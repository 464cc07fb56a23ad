//! What the module and its families tell without any privilege.

use std::fs;
use std::path::Path;

use ovs_datapath::ControlError;
use ovs_wire::datapath::attr;
use ovs_wire::family::Family;

use super::Feature;
use crate::finding::{Cause, Facts, Finding, Support};

/// Where the module's code is, by the indices that `depmod` writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OnDisk {
    /// In this file, relative to the modules directory.
    File(String),
    /// In the kernel itself.
    BuiltIn,
    /// Nowhere: the index does not list it.
    Absent,
    /// There is no index, as in a container: it cannot be told.
    NoIndex,
}

/// Looks in `modules.dep` and `modules.builtin` of `release` below `root`.
pub(super) fn module_on_disk(root: &Path, release: &str) -> OnDisk {
    let dirs = ["lib/modules", "usr/lib/modules"].map(|dir| root.join(dir).join(release));
    let read = |file: &str| dirs.iter().find_map(|dir| fs::read_to_string(dir.join(file)).ok());
    let is_it =
        |path: &str| path.rsplit('/').next().is_some_and(|file| file.starts_with("openvswitch.ko"));
    if read("modules.builtin").is_some_and(|list| list.lines().any(is_it)) {
        return OnDisk::BuiltIn;
    }
    let Some(index) = read("modules.dep") else { return OnDisk::NoIndex };
    let mut paths = index.lines().filter_map(|line| line.split(':').next());
    paths.find(|path| is_it(path)).map_or(OnDisk::Absent, |path| OnDisk::File(path.to_owned()))
}

/// Was it there before anyone was asked? Asking for a family makes the kernel load its module.
pub(super) fn module_is_loaded(root: &Path) -> bool {
    root.join("sys/module/openvswitch").exists()
}

/// The module, from what the family lookup said, and where it could be loaded from.
pub(super) fn conclude_module(
    was_loaded: bool,
    lookup: Result<(), &ControlError>,
    on_disk: &OnDisk,
    release: &str,
) -> Finding {
    let feature = Feature::Module;
    let facts = Facts::request("find the family 'ovs_datapath' (CTRL_CMD_GETFAMILY)");
    let no = |support, why: String| {
        let errno = Some(rustix::io::Errno::NOENT.raw_os_error());
        let why = format!("kernel {release} has no family 'ovs_datapath' (ENOENT), {why}");
        feature.finding(support, why).with(Facts { errno, ..facts.clone() })
    };
    match (lookup, on_disk) {
        (Ok(()), _) => {
            let how = if was_loaded { "is loaded" } else { "was loaded by asking for its family" };
            feature.finding(Support::Available, format!("kernel {release}: it {how}")).with(facts)
        }
        (Err(ControlError::NoFamily { .. }), OnDisk::File(path)) => no(
            Support::Undetermined(Cause::NoModule),
            format!("but the module can be loaded from {path}"),
        ),
        (Err(ControlError::NoFamily { .. }), OnDisk::NoIndex) => no(
            Support::Undetermined(Cause::NoModule),
            format!("and there is no /lib/modules/{release} here to look for the module"),
        ),
        (Err(ControlError::NoFamily { .. }), OnDisk::Absent) => {
            no(Support::Unavailable, format!("and /lib/modules/{release} has no such module"))
        }
        (Err(ControlError::NoFamily { .. }), OnDisk::BuiltIn) => {
            no(Support::Unavailable, "though it is built in: its start failed".to_owned())
        }
        (Err(err), _) => Finding::open(feature.title(), err),
    }
}

/// A family: its id, version, attributes and multicast groups.
pub(super) fn conclude_family(
    feature: Feature,
    name: &str,
    lookup: Result<Option<&Family>, &ControlError>,
) -> Finding {
    let request = format!("find the family '{name}' (CTRL_CMD_GETFAMILY)");
    match lookup {
        Ok(Some(family)) => {
            let groups: Vec<_> =
                family.groups.iter().map(|(name, id)| format!("{name} (id {id})")).collect();
            let groups = if groups.is_empty() { "no group".to_owned() } else { groups.join(", ") };
            let Family { id, version, attr_max, .. } = family;
            let evidence =
                format!("id {id}, version {version}, attributes to {attr_max}, {groups}");
            feature.finding(Support::Available, evidence).with(of_family(request, family))
        }
        Ok(None) => feature
            .finding(Support::Unavailable, "the kernel has no family of that name (ENOENT)")
            .with(Facts { errno: Some(2), ..Facts::request(request) }),
        Err(err) => Finding::open(feature.title(), err),
    }
}

fn of_family(request: String, family: &Family) -> Facts {
    let (attr_max, version) = (Some(family.attr_max), Some(family.version));
    Facts { attr_max, version, ..Facts::request(request) }
}

/// Features that came with an attribute: a kernel knows the attribute exactly if it has the feature.
/// Feature, attribute number, and the release that brought it.
pub(super) const PACKET_ATTRS: [(Feature, u32, &str); 2] =
    [(Feature::Hash, 11, "5.5"), (Feature::UpcallPid, 12, "6.17")];
pub(super) const VPORT_ATTRS: [(Feature, u32, &str); 1] = [(Feature::UpcallStats, 10, "6.2")];
pub(super) const DATAPATH_ATTRS: [(Feature, u32, &str); 2] =
    [(Feature::MasksCache, 7, "5.9"), (Feature::DpIfindex, 9, "6.1")];

pub(super) fn conclude_attr(
    family: &Family,
    (feature, need, since): (Feature, u32, &str),
) -> Finding {
    let Family { name, attr_max, .. } = family;
    let (support, evidence) = if *attr_max >= need {
        (Support::Available, format!("attribute {need} of {name}, which knows up to {attr_max}"))
    } else {
        let why = format!("attribute {need} of {name} (Linux {since}), which ends at {attr_max}");
        (Support::Unavailable, why)
    };
    let request = format!("find the family '{name}' (CTRL_CMD_GETFAMILY)");
    feature.finding(support, evidence).with(of_family(request, family))
}

/// The per-CPU table is an attribute too, so an older kernel is found out without a privilege. That a
/// newer kernel has the feature is left to asking it.
pub(super) fn rule_out_per_cpu(datapath: &Family) -> Vec<(Feature, Finding)> {
    let need = u32::from(attr::PER_CPU_PIDS);
    if datapath.attr_max >= need {
        return Vec::new();
    }
    let conclude = |feature| (feature, conclude_attr(datapath, (feature, need, "5.15")));
    vec![conclude(Feature::PerCpu), conclude(Feature::TableReported)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_FAMILY: ControlError = ControlError::NoFamily { family: "ovs_datapath" };

    fn family(name: &str, attr_max: u32) -> Family {
        let groups = vec![(name.to_owned(), 9)];
        Family { id: 33, name: name.to_owned(), version: 2, attr_max, groups }
    }

    #[test]
    fn a_module_is_present_loadable_or_absent() {
        let conclude = |lookup, on_disk| conclude_module(false, lookup, &on_disk, "6.1.0");
        let found = conclude(Ok(()), OnDisk::NoIndex);
        assert_eq!(found.support, Support::Available);
        assert!(found.evidence.contains("loaded by asking"), "{}", found.evidence);
        let path = "kernel/net/openvswitch/openvswitch.ko.xz";
        let loadable = conclude(Err(&NO_FAMILY), OnDisk::File(path.into()));
        assert_eq!(loadable.support.cause(), Some(Cause::NoModule));
        assert!(loadable.evidence.contains(path));
        assert_eq!(conclude(Err(&NO_FAMILY), OnDisk::Absent).support, Support::Unavailable);
        let unknown = conclude(Err(&NO_FAMILY), OnDisk::NoIndex);
        assert!(!unknown.support.is_conclusive(), "a container cannot tell");
        assert!(!conclude(Err(&ControlError::Closed), OnDisk::Absent).support.is_conclusive());
    }

    #[test]
    fn the_module_is_found_in_the_indices() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(module_on_disk(root.path(), "6.1"), OnDisk::NoIndex);
        let dir = root.path().join("lib/modules/6.1");
        fs::create_dir_all(&dir).unwrap();
        let write = |file: &str, text: &str| fs::write(dir.join(file), text).unwrap();
        write("modules.dep", "kernel/net/openvswitch/vport-gre.ko: kernel/a/openvswitch.ko\n");
        assert_eq!(module_on_disk(root.path(), "6.1"), OnDisk::Absent);
        write(
            "modules.dep",
            "kernel/x.ko:\nkernel/net/openvswitch/openvswitch.ko.zst: kernel/x.ko\n",
        );
        let path = "kernel/net/openvswitch/openvswitch.ko.zst";
        assert_eq!(module_on_disk(root.path(), "6.1"), OnDisk::File(path.into()));
        write("modules.builtin", "kernel/net/openvswitch/openvswitch.ko\n");
        assert_eq!(module_on_disk(root.path(), "6.1"), OnDisk::BuiltIn);
    }

    #[test]
    fn attribute_maxima_of_real_kernels_tell_features() {
        // Linux 5.10, 6.1, 6.12 and 7.2: maxima of datapath, vport and packet family, as they answer.
        let kernels = [(7, 9, 11), (9, 9, 11), (9, 10, 11), (9, 10, 12)];
        let expected = [
            [true, false, false, true, false],
            [true, false, false, true, true],
            [true, false, true, true, true],
            [true, true, true, true, true],
        ];
        for ((datapath, vport, packet), expected) in kernels.into_iter().zip(expected) {
            let packet = PACKET_ATTRS.map(|row| conclude_attr(&family("ovs_packet", packet), row));
            let vport = VPORT_ATTRS.map(|row| conclude_attr(&family("ovs_vport", vport), row));
            let dp =
                DATAPATH_ATTRS.map(|row| conclude_attr(&family("ovs_datapath", datapath), row));
            let all = packet.iter().chain(&vport).chain(&dp);
            let found: Vec<_> = all.map(|f| f.support == Support::Available).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_attribute_maximum_rules_per_cpu_out_and_never_in() {
        let found = rule_out_per_cpu(&family("ovs_datapath", 7));
        assert_eq!(found[0].0, Feature::PerCpu);
        assert!(found.iter().all(|(_, finding)| finding.support == Support::Unavailable));
        assert_eq!(found[0].1.facts.attr_max, Some(7));
        assert!(rule_out_per_cpu(&family("ovs_datapath", 8)).is_empty());
    }

    #[test]
    fn a_family_is_described_with_its_groups() {
        let family = family("ovs_vport", 10);
        let found = conclude_family(Feature::VportFamily, "ovs_vport", Ok(Some(&family)));
        assert_eq!(found.evidence, "id 33, version 2, attributes to 10, ovs_vport (id 9)");
        assert_eq!((found.facts.version, found.facts.attr_max), (Some(2), Some(10)));
        let absent = conclude_family(Feature::MeterFamily, "ovs_meter", Ok(None));
        assert_eq!((absent.support, absent.facts.errno), (Support::Unavailable, Some(2)));
    }
}
