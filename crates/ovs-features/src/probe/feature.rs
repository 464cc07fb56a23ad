//! The features that are asked about: one row each.

use crate::finding::{Cause, Finding, Support};

/// A heading of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "their titles say it")]
pub enum Group {
    Module,
    Families,
    Dispatch,
    Attributes,
    Actions,
    Sockets,
}

impl Group {
    /// As a heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Families => "generic-netlink families",
            Self::Dispatch => "dispatch and datapath features",
            Self::Attributes => "attributes",
            Self::Actions => "actions",
            Self::Sockets => "sockets",
        }
    }
}

/// A feature of the kernel's datapath, or of this process towards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "`Feature::title` says it")]
pub enum Feature {
    Module,
    DatapathFamily,
    VportFamily,
    FlowFamily,
    PacketFamily,
    MeterFamily,
    CtLimitFamily,
    Negotiation,
    PerCpu,
    TableReported,
    Unaligned,
    VportPids,
    TcRecircSharing,
    Hash,
    UpcallPid,
    UpcallStats,
    MasksCache,
    DpIfindex,
    Drop,
    Psample,
    CheckPktLen,
    DecTtl,
    Ct,
    Meters,
    ForcedBuffer,
}

/// What is said of a feature.
struct Row {
    feature: Feature,
    group: Group,
    key: &'static str,
    title: &'static str,
    /// What follows when it is there.
    yes: &'static str,
    /// What follows when it is not.
    no: &'static str,
}

/// Every feature, in the order of the report.
#[rustfmt::skip]
const ROWS: [Row; 25] = {
    use Feature as F;
    use Group as G;
    const fn row(feature: F, group: G, key: &'static str, title: &'static str,
                 yes: &'static str, no: &'static str) -> Row {
        Row { feature, group, key, title, yes, no }
    }
    [
        row(F::Module, G::Module, "module", "openvswitch module",
            "there is a datapath to serve",
            "nothing can be served: install the kernel's module package (linux-image, linux-modules-extra)"),
        row(F::DatapathFamily, G::Families, "ovs_datapath", "family ovs_datapath",
            "datapaths can be made and changed", "no datapath"),
        row(F::VportFamily, G::Families, "ovs_vport", "family ovs_vport",
            "ports can be added and followed", "no ports"),
        row(F::FlowFamily, G::Families, "ovs_flow", "family ovs_flow",
            "flows can be installed", "no flows"),
        row(F::PacketFamily, G::Families, "ovs_packet", "family ovs_packet",
            "upcalls come up and packets go back", "no upcalls"),
        row(F::MeterFamily, G::Families, "ovs_meter", "family ovs_meter",
            "meters can be configured", "no meters (before Linux 4.15)"),
        row(F::CtLimitFamily, G::Families, "ovs_ct_limit", "family ovs_ct_limit",
            "connections can be limited by zone", "no limits on connections by zone"),
        row(F::Negotiation, G::Dispatch, "negotiation", "feature negotiation",
            "a feature the kernel agrees to is there",
            "agreement to a feature means nothing: only what all kernels have is used"),
        row(F::PerCpu, G::Dispatch, "per_cpu_dispatch", "per-CPU dispatch",
            "one upcall socket for each CPU, however many ports",
            "one upcall socket for each port (per-vport dispatch)"),
        row(F::TableReported, G::Dispatch, "per_cpu_table_reported", "per-CPU table reported",
            "a change of the table by others is seen and undone",
            "the table cannot be read back: it is set again when in doubt"),
        row(F::Unaligned, G::Dispatch, "unaligned", "UNALIGNED upcalls",
            "packets come up without being copied first", "each packet is copied on its way up"),
        row(F::VportPids, G::Dispatch, "vport_pids", "VPORT_PIDS",
            "all sockets of a port are reported", "the first socket of a port is reported"),
        row(F::TcRecircSharing, G::Dispatch, "tc_recirc_sharing", "TC_RECIRC_SHARING",
            "tc chains and recirculation share ids",
            "no recirculation across tc offload (CONFIG_NET_TC_SKB_EXT); not needed here"),
        row(F::Hash, G::Attributes, "hash", "packet HASH",
            "a packet that comes up keeps its hash when it goes back",
            "the hash of a packet is lost on its way up (before Linux 5.5)"),
        row(F::UpcallPid, G::Attributes, "upcall_pid", "packet UPCALL_PID",
            "upcalls of an executed packet come to the socket of the first one: order holds",
            "upcalls of an executed packet go to the CPU that executes: workers stay on their CPUs"),
        row(F::UpcallStats, G::Attributes, "upcall_stats", "port UPCALL_STATS",
            "lost upcalls are told apart by port and cause",
            "lost upcalls are counted for the whole datapath only (before Linux 6.2)"),
        row(F::MasksCache, G::Attributes, "masks_cache", "datapath MASKS_CACHE_SIZE",
            "the mask cache can be resized and its hits read", "no figures of the mask cache"),
        row(F::DpIfindex, G::Attributes, "dp_ifindex", "datapath IFINDEX",
            "a datapath can be restored with its interface index",
            "a datapath that is made again has another interface index"),
        row(F::Drop, G::Actions, "drop", "DROP",
            "drops can carry a reason for drop monitors",
            "drops are empty action lists, without a reason (before Linux 6.6)"),
        row(F::Psample, G::Actions, "psample", "PSAMPLE",
            "samples need no upcall", "samples are upcalls (before Linux 6.11)"),
        row(F::CheckPktLen, G::Actions, "check_pkt_len", "CHECK_PKT_LEN",
            "flows can branch on a packet's length", "no branch on a packet's length"),
        row(F::DecTtl, G::Actions, "dec_ttl", "DEC_TTL",
            "flows can decrement any TTL", "each TTL value needs its own flow"),
        row(F::Ct, G::Actions, "ct", "CT",
            "flows can track connections", "no connection tracking (CONFIG_NF_CONNTRACK)"),
        row(F::Meters, G::Actions, "meters", "METER",
            "flows can limit rates", "no rate limits in flows (before Linux 4.15)"),
        row(F::ForcedBuffer, G::Sockets, "forced_recv_buffer", "forced receive buffer",
            "any receive buffer that is asked for is had",
            "receive buffers end at twice net.core.rmem_max"),
    ]
};

impl Feature {
    /// Every feature, in the order of the report.
    pub fn all() -> impl Iterator<Item = Self> {
        ROWS.iter().map(|row| row.feature)
    }

    fn row(self) -> &'static Row {
        ROWS.iter().find(|row| row.feature == self).expect("every feature has a row")
    }

    /// Its heading.
    pub fn group(self) -> Group {
        self.row().group
    }

    /// A name for programs; never changes.
    pub fn key(self) -> &'static str {
        self.row().key
    }

    /// A name for people.
    pub fn title(self) -> &'static str {
        self.row().title
    }

    /// What follows from an answer.
    pub fn consequence(self, support: Support) -> &'static str {
        match support {
            Support::Available => self.row().yes,
            Support::Unavailable => self.row().no,
            Support::Undetermined(Cause::Needs(_)) => "run the probe with that capability to know",
            Support::Undetermined(Cause::NoModule) => "load it: modprobe openvswitch",
            Support::Undetermined(Cause::AgreesToAnything) => {
                "used if all kernels of this age have it"
            }
            Support::Undetermined(_) => "not relied upon",
        }
    }

    pub(super) fn finding(self, support: Support, evidence: impl Into<String>) -> Finding {
        Finding::new(self.title(), support, evidence)
    }

    /// Does a datapath of our own have to be asked?
    pub(super) fn needs_scratch(self) -> bool {
        matches!(self.group(), Group::Dispatch | Group::Actions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_one_row_and_a_key_of_its_own() {
        let mut keys: Vec<_> = Feature::all().map(Feature::key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), ROWS.len());
        assert!(keys.iter().all(|k| k.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
    }
}
