//! The `ovs_datapath` family (`OVS_DP_CMD_*`, `OVS_DP_ATTR_*` of `include/uapi/linux/openvswitch.h`).

use netlink_bindings::ovs_datapath::Datapath as DpAttr;

use crate::nl::OvsHeader;
pub use crate::nl::object_cmd as cmd;
use crate::{AttrBuilder, Attrs, WireError};

/// Family name and multicast group name.
pub const FAMILY: &str = "ovs_datapath";
/// Version of the family's protocol. A NEW below 2 resets an existing datapath's features.
pub const VERSION: u8 = 2;

/// Longest interface, and so datapath, name in bytes (`IFNAMSIZ` less the NUL).
pub const NAME_LEN_MAX: usize = 15;

/// Attributes.
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod attr {
    pub const NAME: u16 = 1;
    pub const UPCALL_PID: u16 = 2;
    pub const STATS: u16 = 3;
    pub const MEGAFLOW_STATS: u16 = 4;
    pub const USER_FEATURES: u16 = 5;
    pub const PER_CPU_PIDS: u16 = 8;
}

bitflags::bitflags! {
    /// `OVS_DP_F_*`. A SET without features resets them, so requests always carry the full set.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct UserFeatures: u32 {
        /// The last attribute of an upcall may be unaligned: zero-copy upcalls. Since 3.14.
        const UNALIGNED = 1;
        /// Several port ids for each vport. Since 3.17.
        const VPORT_PIDS = 1 << 1;
        /// TC chains share recirculation ids. Since 5.4, with `CONFIG_NET_TC_SKB_EXT`.
        const TC_RECIRC_SHARING = 1 << 2;
        /// Upcalls go to the socket of the CPU that handles the packet. Since 5.15.
        const DISPATCH_UPCALL_PER_CPU = 1 << 3;
        /// No kernel knows this bit: one that accepts it does not check features at all (before 5.4).
        const IMPOSSIBLE = 1 << 31;
    }
}

/// `struct ovs_dp_stats`, in packets and flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatapathStats {
    /// Packets that matched a flow.
    pub hit: u64,
    /// Packets that matched none.
    pub missed: u64,
    /// Upcalls that no socket took: misses and failed userspace actions.
    pub lost: u64,
    /// Flows installed now.
    pub flows: u64,
}

/// A datapath as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Datapath {
    /// Interface index of its local port; the handle in every request.
    pub ifindex: i32,
    /// Name of its local port.
    pub name: String,
    /// Counters.
    pub stats: DatapathStats,
    /// Masks in use, from the megaflow statistics.
    pub masks: u32,
    /// Masks looked at in all lookups (`n_mask_hit`).
    pub masks_looked_at: u64,
    /// Lookups that the mask cache answered; 0 on kernels that do not count them (before 5.9).
    pub masks_cache_hit: u64,
    /// Features in force; unknown bits are kept.
    pub features: UserFeatures,
    /// Entries of the mask cache, on kernels that have it (5.9).
    pub masks_cache_size: Option<u32>,
    /// Port id of each CPU's socket, on kernels that report it (6.1) and if a table was set.
    pub per_cpu_pids: Option<Vec<u32>>,
}

impl Datapath {
    /// Reads a reply or notification: a message's payload. Gives its command too; before 5.4 a reply
    /// to GET and SET has the command NEW.
    pub fn parse(payload: &[u8]) -> Result<(u8, Self), WireError> {
        let (header, attrs) = OvsHeader::split(payload)?;
        Attrs::new(attrs).check_structs(&[
            (attr::STATS, 32, "datapath STATS"),
            (attr::MEGAFLOW_STATS, 32, "datapath MEGAFLOW_STATS"),
        ])?;
        let mut dp = Self { ifindex: header.dp_ifindex, ..Self::default() };
        for attr in DpAttr::new(attrs) {
            let attr = attr.map_err(|_| WireError::Invalid {
                what: "datapath reply",
                offset: 0,
                why: "does not follow the kernel's attribute table",
            })?;
            dp.take(&attr);
        }
        if dp.name.is_empty() {
            return Err(WireError::Missing { what: "datapath name" });
        }
        Ok((header.cmd, dp))
    }

    fn take(&mut self, attr: &DpAttr<'_>) {
        match attr {
            DpAttr::Name(name) => self.name = name.to_string_lossy().into_owned(),
            DpAttr::Stats(s) => {
                self.stats = DatapathStats {
                    hit: s.n_hit,
                    missed: s.n_missed,
                    lost: s.n_lost,
                    flows: s.n_flows,
                }
            }
            DpAttr::MegaflowStats(s) => {
                self.masks = s.n_masks;
                self.masks_looked_at = s.n_mask_hit;
                self.masks_cache_hit = s.n_cache_hit;
            }
            DpAttr::UserFeatures(bits) => self.features = UserFeatures::from_bits_retain(*bits),
            DpAttr::MasksCacheSize(size) => self.masks_cache_size = Some(*size),
            DpAttr::PerCpuPids(bytes) => self.per_cpu_pids = Some(u32s(bytes)),
            _ => {}
        }
    }
}

/// Host-endian u32 array; a trailing partial element is left out.
pub(crate) fn u32s(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32::from_ne_bytes([c[0], c[1], c[2], c[3]])).collect()
}

fn write(
    buf: &mut Vec<u8>,
    cmd: u8,
    dp_ifindex: i32,
    fill: impl FnOnce(&mut AttrBuilder<'_>),
) -> Result<(), WireError> {
    OvsHeader { cmd, version: VERSION, dp_ifindex }.write(buf, fill)
}

/// Request for the datapath `name`, or for all of them as a dump when `None`.
pub fn write_get(buf: &mut Vec<u8>, name: Option<&str>) -> Result<(), WireError> {
    write(buf, cmd::GET, 0, |b| {
        if let Some(name) = name {
            b.str(attr::NAME, name);
        }
    })
}

/// Request to create a datapath whose local port has no upcall socket yet.
pub fn write_new(buf: &mut Vec<u8>, name: &str, features: UserFeatures) -> Result<(), WireError> {
    write(buf, cmd::NEW, 0, |b| {
        b.str(attr::NAME, name).u32(attr::UPCALL_PID, 0).u32(attr::USER_FEATURES, features.bits());
    })
}

/// Request to set the features, and with them the per-CPU table: the kernel takes a table only from
/// the SET that has the per-CPU bit (`ovs_dp_change`, `net/openvswitch/datapath.c`).
pub fn write_set(
    buf: &mut Vec<u8>,
    dp_ifindex: i32,
    features: UserFeatures,
    per_cpu_pids: Option<&[u32]>,
) -> Result<(), WireError> {
    write(buf, cmd::SET, dp_ifindex, |b| {
        b.u32(attr::USER_FEATURES, features.bits());
        if let Some(pids) = per_cpu_pids {
            b.u32s(attr::PER_CPU_PIDS, pids);
        }
    })
}

/// Request to delete the datapath with all its ports and flows.
pub fn write_del(buf: &mut Vec<u8>, dp_ifindex: i32) -> Result<(), WireError> {
    write(buf, cmd::DEL, dp_ifindex, |_| {})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(fill: impl FnOnce(&mut AttrBuilder<'_>)) -> Vec<u8> {
        let mut buf = Vec::new();
        write(&mut buf, cmd::GET, 7, fill).unwrap();
        buf
    }

    #[test]
    fn reads_a_reply() {
        let mut stats = Vec::new();
        for v in [1u64, 2, 3, 4] {
            stats.extend(v.to_ne_bytes());
        }
        let buf = reply(|b| {
            b.str(attr::NAME, "dp0")
                .bytes(attr::STATS, &stats)
                .u32(attr::USER_FEATURES, 9)
                .u32s(attr::PER_CPU_PIDS, &[10, 11]);
        });
        let (cmd, dp) = Datapath::parse(&buf).unwrap();
        assert_eq!(cmd, cmd::GET);
        assert_eq!((dp.ifindex, dp.name.as_str()), (7, "dp0"));
        assert_eq!(dp.stats, DatapathStats { hit: 1, missed: 2, lost: 3, flows: 4 });
        assert!(dp.features.contains(UserFeatures::DISPATCH_UPCALL_PER_CPU));
        assert_eq!(dp.per_cpu_pids, Some(vec![10, 11]));
    }

    #[test]
    fn unknown_feature_bits_survive() {
        let buf = reply(|b| {
            b.str(attr::NAME, "dp0").u32(attr::USER_FEATURES, 0x101);
        });
        assert_eq!(Datapath::parse(&buf).unwrap().1.features.bits(), 0x101);
    }

    #[test]
    fn a_short_or_nameless_reply_is_refused() {
        assert!(Datapath::parse(&[1, 2, 3]).is_err());
        assert_eq!(
            Datapath::parse(&reply(|_| {})),
            Err(WireError::Missing { what: "datapath name" })
        );
        let bad_stats = reply(|b| {
            b.str(attr::NAME, "dp0").bytes(attr::STATS, &[0; 5]);
        });
        assert!(Datapath::parse(&bad_stats).is_err());
    }

    #[test]
    fn table_and_features_travel_together() {
        let mut buf = Vec::new();
        let features = UserFeatures::UNALIGNED | UserFeatures::DISPATCH_UPCALL_PER_CPU;
        write_set(&mut buf, 7, features, Some(&[1, 2])).unwrap();
        let (header, attrs) = OvsHeader::split(&buf).unwrap();
        assert_eq!((header.cmd, header.dp_ifindex), (cmd::SET, 7));
        let all: Vec<_> = Attrs::new(attrs).collect::<Result<_, _>>().unwrap();
        assert_eq!(all[0].u32("features"), Ok(9));
        assert_eq!(u32s(all[1].payload), [1, 2]);
    }
}
