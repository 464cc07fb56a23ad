//! From options to a datapath that is ours: each step checked, each undone if a later one fails.

use std::sync::Arc;

use netlink_io::Socket;
use ovs_datapath::{Control, ControlError, Link, Links, live_port_ids, socket_owner};
use ovs_wire::datapath::{Datapath, NAME_LEN_MAX, UserFeatures};
use ovs_wire::vport::{Vport, VportType};
use rustix::io::Errno;

use crate::members::Members;
use crate::{Builder, Error, PortSpec};

/// What was created, to be removed on an error or at the end.
#[derive(Debug, Default)]
pub(crate) struct Created {
    /// The datapath itself; its ports and flows go with it.
    pub(crate) datapath: bool,
    /// Ports that were asked for, those that we made among them: removed one by one from a datapath
    /// that was there before.
    pub(crate) members: Arc<Members>,
}

impl Created {
    /// Removes it all. What cannot be removed is logged: there is nobody left to handle it.
    pub(crate) async fn remove(&self, control: &Control, dp: &Datapath) {
        let warn =
            |what: &str, err: &ControlError| tracing::warn!(%err, "cannot remove the {what}");
        if self.datapath {
            match control.delete_datapath(dp).await {
                Err(err) if !err.is(Errno::NODEV) => warn("datapath", &err),
                _ => {}
            }
            return;
        }
        for port in self.members.ours() {
            match control.delete_vport(dp.ifindex, port).await {
                Err(err) if !err.is(Errno::NODEV) => warn("port", &err),
                _ => {}
            }
        }
    }
}

/// Refuses names that can be refused without asking the kernel; gives the ports that are asked for.
pub(crate) fn check_names(builder: &Builder) -> Result<Vec<PortSpec>, Error> {
    check_name("datapath", &builder.datapath)?;
    builder.ports.iter().map(|text| text.parse()).collect()
}

/// Checks the name of a datapath or an interface (`what`) without asking the kernel, by its rule for device names
/// (`dev_valid_name`, `net/core/dev.c`).
///
/// # Errors
///
/// [`Error::BadName`].
pub fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    let bad = |why: String| Err(Error::BadName { what, name: name.to_owned(), why });
    if name.is_empty() || name == "." || name == ".." {
        return bad("it is reserved or empty".to_owned());
    }
    if name.len() > NAME_LEN_MAX {
        return bad(format!("it has {} bytes, at most {NAME_LEN_MAX} are allowed", name.len()));
    }
    match name.chars().find(|c| c.is_whitespace() || matches!(c, '/' | ':' | '\0')) {
        Some(c) => bad(format!("it contains {c:?}")),
        None => Ok(()),
    }
}

/// Opens the datapath or creates it; the flag says which.
pub(crate) async fn open_or_create(
    control: &Control,
    builder: &Builder,
) -> Result<(Datapath, bool), Error> {
    let name = &builder.datapath;
    if let Some(dp) = control.datapath(name).await? {
        if !builder.takeover {
            refuse_if_served(control, &dp, &builder.inherited).await?;
        }
        return Ok((dp, false));
    }
    match control.create_datapath(name, UserFeatures::UNALIGNED).await {
        Ok(dp) => Ok((dp, true)),
        Err(err) if err.is(Errno::EXIST) || err.is(Errno::BUSY) => {
            match control.datapath(name).await? {
                // Made by somebody else since it was looked up.
                Some(_) => Err(Error::Served { name: name.clone(), owner: "its creator".into() }),
                None => Err(Error::NameTaken { name: name.clone() }),
            }
        }
        Err(err) => Err(err.into()),
    }
}

/// The kernel knows no owner of a datapath, but a socket that its upcalls go to and that is alive has
/// one. (Kernels from 5.15 to 6.0 do not report the per-CPU table: there only ports tell.)
/// Sockets that we inherited are no one else's.
async fn refuse_if_served(
    control: &Control,
    dp: &Datapath,
    inherited: &[Arc<Socket>],
) -> Result<(), Error> {
    let mut targets = dp.per_cpu_pids.clone().unwrap_or_default();
    if !dp.features.contains(UserFeatures::DISPATCH_UPCALL_PER_CPU) {
        targets.clear();
        let ports = control.vports(dp.ifindex).await?;
        targets.extend(ports.iter().flat_map(|p| &p.upcall_pids));
    }
    let live = live_port_ids().map_err(Error::system("read /proc/net/netlink"))?;
    // Port id 0 is the kernel's own socket, always alive; as a target it means: no socket.
    let ours = |id: u32| id == 0 || inherited.iter().any(|socket| socket.port_id() == id);
    let mut targets = targets.iter().filter(|id| !ours(**id));
    let Some((port_id, inode)) = targets.find_map(|id| Some((id, live.get(id)?))) else {
        return Ok(());
    };
    let owner = socket_owner(*inode).map_or_else(
        || format!("another process (netlink port id {port_id})"),
        |owner| format!("{} (pid {})", owner.command, owner.pid),
    );
    Err(Error::Served { name: dp.name.clone(), owner })
}

/// What an interface is to a datapath.
pub(crate) enum Candidate {
    /// A port of it already.
    Port,
    /// It can be made one.
    Free(Link),
}

/// Looks whether an interface can become a port; changes nothing.
pub(crate) async fn check_port(
    control: &Control,
    links: &Links,
    dp: &Datapath,
    name: &str,
) -> Result<Candidate, Error> {
    let Some(link) = links.by_name(name).await? else {
        return Err(Error::NoInterface { name: name.to_owned() });
    };
    if link.loopback {
        let why = "it is a loopback device".to_owned();
        return Err(Error::InterfaceUnusable { name: name.to_owned(), why });
    }
    match owner_of(control, links, &link).await? {
        Some((index, _)) if index == dp.ifindex.cast_unsigned() => Ok(Candidate::Port),
        Some((_, by)) => Err(Error::InterfaceInUse { name: name.to_owned(), by }),
        None => Ok(Candidate::Free(link)),
    }
}

/// Adds an interface as a port, or gives `None` if it is one already.
pub(crate) async fn add_port(
    control: &Control,
    links: &Links,
    dp: &Datapath,
    name: &str,
    upcall_pid: u32,
) -> Result<Option<Vport>, Error> {
    let Candidate::Free(link) = check_port(control, links, dp, name).await? else {
        return Ok(None);
    };
    match control.add_vport(dp, VportType::Netdev, name, None, upcall_pid).await {
        Ok(port) => {
            if !link.up {
                tracing::warn!(port = name, "interface is down; 'ip link set {name} up' to use it");
            }
            Ok(Some(port))
        }
        Err(err) => Err(explain_refused_port(name, err)),
    }
}

/// What a device is a member of: interface index and description.
async fn owner_of(
    control: &Control,
    links: &Links,
    link: &Link,
) -> Result<Option<(u32, String)>, Error> {
    let Some(index) = link.controller else { return Ok(None) };
    let Some(controller) = links.by_index(index).await? else {
        return Ok(Some((index, format!("interface {index}"))));
    };
    let datapaths = control.datapaths().await?;
    let kind = if datapaths.iter().any(|dp| dp.ifindex.cast_unsigned() == index) {
        "datapath"
    } else {
        "bridge or bond"
    };
    Ok(Some((index, format!("{kind} '{}'", controller.name))))
}

fn explain_refused_port(name: &str, err: ControlError) -> Error {
    let name = name.to_owned();
    match err.errno().map(Errno::from_raw_os_error) {
        Some(Errno::NODEV) => Error::NoInterface { name },
        Some(Errno::EXIST | Errno::BUSY) => {
            Error::InterfaceInUse { name, by: "another datapath or device".to_owned() }
        }
        Some(Errno::INVAL) => {
            let why = "it is not an Ethernet device, or it is a datapath's own".to_owned();
            Error::InterfaceUnusable { name, why }
        }
        _ => err.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_kernel_is_asked() {
        assert!(check_name("port", "veth0").is_ok());
        for name in ["", ".", "sixteen-bytes-xx", "a b", "a/b", "a:b"] {
            assert!(matches!(check_name("port", name), Err(Error::BadName { .. })), "{name}");
        }
        let err = check_name("datapath", "sixteen-bytes-xx").unwrap_err();
        assert!(err.to_string().contains("16 bytes, at most 15"), "{err}");
    }
}
