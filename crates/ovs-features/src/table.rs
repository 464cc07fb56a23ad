//! Where upcalls go: CPU or port, to port id, to socket, to process.

use std::collections::HashMap;
use std::io;

use ovs_datapath::{Control, ControlError, SocketOwner, live_port_ids, socket_owner};
use ovs_wire::datapath::{Datapath, UserFeatures};
use ovs_wire::vport::Vport;
use rustix::io::Errno;

use crate::DispatchMode;

/// The sockets of a network namespace that upcalls could go to, by port id.
#[derive(Debug, Clone, Default)]
pub struct Sockets {
    inodes: HashMap<u32, u64>,
    owners: HashMap<u64, Option<SocketOwner>>,
}

impl Sockets {
    /// Those of the calling thread's namespace.
    pub fn read() -> io::Result<Self> {
        Ok(Self { inodes: live_port_ids()?, owners: HashMap::new() })
    }

    /// What a port id stands for. Looks for the process through `/proc` once for each socket.
    pub fn target(&mut self, port_id: u32) -> Target {
        let end = match (port_id, self.inodes.get(&port_id).copied()) {
            (0, _) => End::Nowhere,
            (_, None) => End::Dead,
            (_, Some(inode)) => {
                let owner = self.owners.entry(inode).or_insert_with(|| socket_owner(inode));
                End::Alive(owner.clone())
            }
        };
        Target { port_id, end }
    }
}

/// A port id, and who is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The netlink port id; 0 is none.
    pub port_id: u32,
    /// What is there.
    pub end: End,
}

/// What an upcall sent to a port id meets (`ovs_dp_upcall`, `net/openvswitch/datapath.c`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Port id 0: the upcall is lost with `ENOTCONN`.
    Nowhere,
    /// No socket has this id: the upcall is lost with `ECONNREFUSED`. Whoever gets the id next gets
    /// the upcalls.
    Dead,
    /// A socket, and the process that holds it, as far as `/proc` shows it to us.
    Alive(Option<SocketOwner>),
}

impl End {
    /// Are upcalls taken there?
    pub fn is_alive(&self) -> bool {
        matches!(self, Self::Alive(_))
    }
}

/// A per-CPU table, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// By index; the kernel reports at most as many as it has CPU ids.
    pub entries: Vec<Target>,
}

impl Table {
    /// Resolves the port ids of a table.
    pub fn resolve(port_ids: &[u32], sockets: &mut Sockets) -> Self {
        Self { entries: port_ids.iter().map(|id| sockets.target(*id)).collect() }
    }

    /// Where the upcalls of `cpu` go: a CPU beyond the table is served by entry `cpu % n`
    /// (`ovs_dp_get_upcall_portid`, `net/openvswitch/datapath.c`). `None`: the table is empty.
    pub fn of_cpu(&self, cpu: usize) -> Option<&Target> {
        self.entries.get(cpu % self.entries.len().max(1))
    }
}

/// A port and its sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortTargets {
    /// Number in the datapath.
    pub port_no: u32,
    /// Name of its device.
    pub name: String,
    /// Where its upcalls go in per-vport mode; only the first is reported without `VPORT_PIDS`.
    pub targets: Vec<Target>,
}

/// How a datapath delivers its upcalls now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The mode that its features say.
    pub mode: DispatchMode,
    /// The per-CPU table, in force or kept for later; `None`: there is none, or this kernel does not
    /// report it (before 6.1).
    pub table: Option<Table>,
    /// Its ports, by number.
    pub ports: Vec<PortTargets>,
}

impl Delivery {
    /// Resolves what the kernel says of a datapath and its ports.
    pub fn resolve(dp: &Datapath, ports: &[Vport], sockets: &mut Sockets) -> Self {
        let per_cpu = dp.features.contains(UserFeatures::DISPATCH_UPCALL_PER_CPU);
        let resolve = |port: &Vport, sockets: &mut Sockets| PortTargets {
            port_no: port.port_no,
            name: port.name.clone(),
            targets: port.upcall_pids.iter().map(|id| sockets.target(*id)).collect(),
        };
        Self {
            mode: if per_cpu { DispatchMode::PerCpu } else { DispatchMode::PerVport },
            table: dp.per_cpu_pids.as_ref().map(|ids| Table::resolve(ids, sockets)),
            ports: ports.iter().map(|port| resolve(port, sockets)).collect(),
        }
    }

    /// The targets that are in force in this mode; `None` where the kernel does not tell.
    pub fn in_force(&self) -> Option<Vec<&Target>> {
        match self.mode {
            DispatchMode::PerCpu => Some(self.table.as_ref()?.entries.iter().collect()),
            DispatchMode::PerVport => {
                Some(self.ports.iter().flat_map(|port| &port.targets).collect())
            }
        }
    }

    /// The processes that upcalls go to, each once.
    pub fn served_by(&self) -> Vec<SocketOwner> {
        let mut owners = Vec::new();
        for target in self.in_force().unwrap_or_default() {
            if let End::Alive(Some(owner)) = &target.end
                && !owners.contains(owner)
            {
                owners.push(owner.clone());
            }
        }
        owners
    }
}

/// How the datapath `name`, or every datapath of the calling thread's network namespace, delivers its
/// upcalls now. Changes nothing and needs no privilege; none is no error.
///
/// # Errors
///
/// Without the module, and when the kernel does not answer.
pub async fn deliveries(name: Option<&str>) -> Result<Vec<(Datapath, Delivery)>, ControlError> {
    let control = Control::open().await?;
    let datapaths = match name {
        Some(name) => control.datapath(name).await?.into_iter().collect(),
        None => control.datapaths().await?,
    };
    let mut sockets = Sockets::read()
        .map_err(|source| ControlError::Socket { call: "/proc/net/netlink", source })?;
    let mut found = Vec::new();
    for dp in datapaths {
        match control.vports(dp.ifindex).await {
            Ok(ports) => {
                let delivery = Delivery::resolve(&dp, &ports, &mut sockets);
                found.push((dp, delivery));
            }
            // Deleted since it was listed.
            Err(err) if err.is(Errno::NODEV) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets() -> Sockets {
        let owner = |pid| Some(SocketOwner { pid, command: "x".into() });
        Sockets {
            inodes: HashMap::from([(10, 1), (11, 2), (12, 3)]),
            owners: HashMap::from([(1, owner(100)), (2, owner(100)), (3, None)]),
        }
    }

    fn datapath(features: u32, table: Option<&[u32]>) -> Datapath {
        Datapath {
            features: UserFeatures::from_bits_retain(features),
            per_cpu_pids: table.map(<[u32]>::to_vec),
            ..Datapath::default()
        }
    }

    #[test]
    fn each_cpu_has_an_entry_and_the_rest_is_modulo() {
        let table = Table::resolve(&[10, 11, 0], &mut sockets());
        assert_eq!(table.of_cpu(1).unwrap().port_id, 11);
        assert_eq!(table.of_cpu(3).unwrap().port_id, 10);
        assert_eq!(table.of_cpu(5).unwrap().end, End::Nowhere);
        assert_eq!(Table::default().of_cpu(0), None);
    }

    #[test]
    fn the_living_the_dead_and_the_absent_are_told_apart() {
        let dp = datapath(9, Some(&[10, 11, 12, 99, 0]));
        let delivery = Delivery::resolve(&dp, &[], &mut sockets());
        let alive: Vec<_> = delivery.in_force().unwrap().iter().map(|t| t.end.is_alive()).collect();
        assert_eq!(alive, [true, true, true, false, false]);
        let pids: Vec<_> = delivery.served_by().iter().map(|owner| owner.pid).collect();
        assert_eq!(pids, [100]);
    }

    #[test]
    fn a_table_that_is_not_reported_is_not_an_empty_one() {
        let delivery = Delivery::resolve(&datapath(9, None), &[], &mut sockets());
        assert_eq!((delivery.mode, delivery.in_force()), (DispatchMode::PerCpu, None));
    }

    #[test]
    fn in_per_vport_mode_a_kept_table_is_not_in_force() {
        let delivery = Delivery::resolve(&datapath(3, Some(&[10])), &[], &mut sockets());
        assert_eq!((delivery.mode, delivery.in_force()), (DispatchMode::PerVport, Some(vec![])));
        assert!(delivery.served_by().is_empty() && delivery.table.is_some());
    }
}
