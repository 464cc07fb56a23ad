//! The `ovs_vport` family (`OVS_VPORT_CMD_*`, `OVS_VPORT_ATTR_*`).

use netlink_bindings::ovs_vport::{UpcallStats as UpcallStatsAttr, Vport as VportAttr};

use crate::datapath::u32s;
use crate::nl::OvsHeader;
pub use crate::nl::object_cmd as cmd;
use crate::{AttrBuilder, Attrs, WireError};

/// Family name and multicast group name.
pub const FAMILY: &str = "ovs_vport";
/// Version of the family's protocol.
pub const VERSION: u8 = 1;
/// Port number of the datapath's own, internal port (`OVSP_LOCAL`).
pub const PORT_LOCAL: u32 = 0;

/// Attributes.
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod attr {
    pub const PORT_NO: u16 = 1;
    pub const TYPE: u16 = 2;
    pub const NAME: u16 = 3;
    pub const OPTIONS: u16 = 4;
    pub const UPCALL_PID: u16 = 5;
    pub const STATS: u16 = 6;
}

/// `OVS_VPORT_TYPE_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum VportType {
    /// A network device.
    Netdev,
    /// A device that the datapath made for itself.
    Internal,
    /// A GRE tunnel.
    Gre,
    /// A VXLAN tunnel.
    Vxlan,
    /// A Geneve tunnel.
    Geneve,
    /// A type this crate does not know, kept as the kernel's number.
    Other(u32),
}

impl VportType {
    /// The kernel's number.
    pub fn number(self) -> u32 {
        match self {
            Self::Netdev => 1,
            Self::Internal => 2,
            Self::Gre => 3,
            Self::Vxlan => 4,
            Self::Geneve => 5,
            Self::Other(n) => n,
        }
    }
}

impl From<u32> for VportType {
    fn from(number: u32) -> Self {
        match number {
            1 => Self::Netdev,
            2 => Self::Internal,
            3 => Self::Gre,
            4 => Self::Vxlan,
            5 => Self::Geneve,
            n => Self::Other(n),
        }
    }
}

/// `struct ovs_vport_stats`, in packets and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the kernel's own names")]
pub struct VportStats {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
}

/// `OVS_VPORT_ATTR_UPCALL_STATS`, since 6.2: upcalls of this port that a socket took or refused.
/// A missing socket (port id 0) is in neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UpcallStats {
    /// Taken, or refused by the socket's own filter.
    pub success: u64,
    /// Refused: socket gone or full, or packet too long.
    pub fail: u64,
}

/// A port of a datapath as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vport {
    /// Interface index of its datapath's local port.
    pub dp_ifindex: i32,
    /// Number in the datapath, 0 to 65,534.
    pub port_no: u32,
    /// Type.
    pub kind: VportType,
    /// Name of its device.
    pub name: String,
    /// Interface index of its device, on kernels that report it.
    pub ifindex: Option<u32>,
    /// Port ids of the sockets that take its upcalls in per-vport mode; 0 is none. Without the
    /// `VPORT_PIDS` feature the kernel reports the first alone.
    pub upcall_pids: Vec<u32>,
    /// Counters.
    pub stats: VportStats,
    /// Upcall counters, since 6.2.
    pub upcall_stats: Option<UpcallStats>,
    /// `OVS_VPORT_ATTR_OPTIONS` of a tunnel port, as it came.
    pub options: Option<Vec<u8>>,
}

impl Vport {
    /// Reads a reply or notification: a message's payload. Gives its command too; before 5.4 a reply
    /// to GET and SET has the command NEW.
    pub fn parse(payload: &[u8]) -> Result<(u8, Self), WireError> {
        let (header, attrs) = OvsHeader::split(payload)?;
        Attrs::new(attrs).check_structs(&[(attr::STATS, 64, "vport STATS")])?;
        let mut vport = Self {
            dp_ifindex: header.dp_ifindex,
            port_no: u32::MAX,
            kind: VportType::Other(0),
            name: String::new(),
            ifindex: None,
            upcall_pids: Vec::new(),
            stats: VportStats::default(),
            upcall_stats: None,
            options: None,
        };
        for attr in VportAttr::new(attrs) {
            vport.take(attr.map_err(|_| INVALID)?)?;
        }
        if vport.port_no == u32::MAX {
            return Err(WireError::Missing { what: "port number" });
        }
        Ok((header.cmd, vport))
    }

    fn take(&mut self, attr: VportAttr<'_>) -> Result<(), WireError> {
        match attr {
            VportAttr::PortNo(n) => self.port_no = n,
            VportAttr::Type(n) => self.kind = n.into(),
            VportAttr::Name(name) => self.name = name.to_string_lossy().into_owned(),
            VportAttr::Options(options) => self.options = Some(options.get_buf().to_vec()),
            VportAttr::UpcallPid(bytes) => self.upcall_pids = u32s(bytes),
            VportAttr::Stats(s) => {
                self.stats = VportStats {
                    rx_packets: s.rx_packets,
                    tx_packets: s.tx_packets,
                    rx_bytes: s.rx_bytes,
                    tx_bytes: s.tx_bytes,
                    rx_errors: s.rx_errors,
                    tx_errors: s.tx_errors,
                    rx_dropped: s.rx_dropped,
                    tx_dropped: s.tx_dropped,
                }
            }
            VportAttr::Ifindex(n) => self.ifindex = Some(n),
            VportAttr::UpcallStats(stats) => {
                let mut sum = UpcallStats::default();
                for stat in stats {
                    match stat.map_err(|_| INVALID)? {
                        UpcallStatsAttr::Success(n) => sum.success = n,
                        UpcallStatsAttr::Fail(n) => sum.fail = n,
                    }
                }
                self.upcall_stats = Some(sum);
            }
            VportAttr::Netnsid(_) => {}
        }
        Ok(())
    }
}

const INVALID: WireError = WireError::Invalid {
    what: "vport reply",
    offset: 0,
    why: "does not follow the kernel's attribute table",
};

fn write(
    buf: &mut Vec<u8>,
    cmd: u8,
    dp_ifindex: i32,
    fill: impl FnOnce(&mut AttrBuilder<'_>),
) -> Result<(), WireError> {
    OvsHeader { cmd, version: VERSION, dp_ifindex }.write(buf, fill)
}

/// Request for a dump of all ports of a datapath.
pub fn write_dump(buf: &mut Vec<u8>, dp_ifindex: i32) -> Result<(), WireError> {
    write(buf, cmd::GET, dp_ifindex, |_| {})
}

/// Request for the port `name`, in any datapath of the namespace when `dp_ifindex` is 0.
pub fn write_get(buf: &mut Vec<u8>, dp_ifindex: i32, name: &str) -> Result<(), WireError> {
    write(buf, cmd::GET, dp_ifindex, |b| {
        b.str(attr::NAME, name);
    })
}

/// Request to add a port; `port_no` `None` lets the kernel choose the lowest free number from 1.
/// One port id at most: more than the kernel has CPUs oopses old kernels (ABI page A.3).
pub fn write_new(
    buf: &mut Vec<u8>,
    dp_ifindex: i32,
    kind: VportType,
    name: &str,
    port_no: Option<u32>,
    upcall_pid: u32,
) -> Result<(), WireError> {
    write(buf, cmd::NEW, dp_ifindex, |b| {
        b.str(attr::NAME, name).u32(attr::TYPE, kind.number()).u32(attr::UPCALL_PID, upcall_pid);
        if let Some(port_no) = port_no {
            b.u32(attr::PORT_NO, port_no);
        }
    })
}

/// Request to send a port's upcalls to the socket with this port id; 0 sends them nowhere.
pub fn write_set_upcall_pid(
    buf: &mut Vec<u8>,
    dp_ifindex: i32,
    port_no: u32,
    upcall_pid: u32,
) -> Result<(), WireError> {
    write(buf, cmd::SET, dp_ifindex, |b| {
        b.u32(attr::PORT_NO, port_no).u32(attr::UPCALL_PID, upcall_pid);
    })
}

/// Request to remove a port.
pub fn write_del(buf: &mut Vec<u8>, dp_ifindex: i32, port_no: u32) -> Result<(), WireError> {
    write(buf, cmd::DEL, dp_ifindex, |b| {
        b.u32(attr::PORT_NO, port_no);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_reply_with_upcall_statistics() {
        let mut buf = Vec::new();
        write(&mut buf, cmd::NEW, 5, |b| {
            b.u32(attr::PORT_NO, 3).u32(attr::TYPE, 2).str(attr::NAME, "br0");
            b.u32s(attr::UPCALL_PID, &[77]).u32(8, 12).nest(10, |b| {
                b.u64(0, 40).u64(1, 2);
            });
        })
        .unwrap();
        let (cmd, vport) = Vport::parse(&buf).unwrap();
        assert_eq!((cmd, vport.dp_ifindex, vport.port_no), (cmd::NEW, 5, 3));
        assert_eq!((vport.kind, vport.name.as_str()), (VportType::Internal, "br0"));
        assert_eq!((vport.upcall_pids, vport.ifindex), (vec![77], Some(12)));
        assert_eq!(vport.upcall_stats, Some(UpcallStats { success: 40, fail: 2 }));
    }

    #[test]
    fn a_reply_without_a_port_number_is_refused() {
        let mut buf = Vec::new();
        write(&mut buf, cmd::NEW, 5, |b| {
            b.str(attr::NAME, "br0");
        })
        .unwrap();
        assert_eq!(Vport::parse(&buf), Err(WireError::Missing { what: "port number" }));
    }

    #[test]
    fn types_round_trip() {
        for n in 0..9 {
            assert_eq!(VportType::from(n).number(), n);
        }
    }
}
