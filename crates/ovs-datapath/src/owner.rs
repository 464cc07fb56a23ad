//! Who holds a netlink socket: a datapath has no owner in the kernel, only sockets that listen.

use std::collections::HashMap;
use std::fs;

/// `NETLINK_GENERIC`, second column of `/proc/net/netlink`.
const GENERIC: &str = "16";

/// A process that holds a netlink socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOwner {
    /// Process id.
    pub pid: u32,
    /// Its command name.
    pub command: String,
}

/// Port ids of all generic-netlink sockets in this namespace, with the inode of each.
pub fn live_port_ids() -> std::io::Result<HashMap<u32, u64>> {
    // Sockets of this namespace alone: the file is per network namespace of the reading thread.
    Ok(parse(&fs::read_to_string("/proc/thread-self/net/netlink")?))
}

/// The process that holds the socket with this inode, as far as `/proc` shows it to us.
pub fn socket_owner(inode: u64) -> Option<SocketOwner> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?;
    processes.filter_map(Result::ok).find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut fds = fs::read_dir(entry.path().join("fd")).ok()?.filter_map(Result::ok);
        fds.any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()))
            .then(|| SocketOwner { pid, command: command_of(pid) })
    })
}

fn command_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Columns: sk, Eth (protocol), Pid (port id), …, Inode last.
fn parse(table: &str) -> HashMap<u32, u64> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split_whitespace().skip(1);
            if columns.next()? != GENERIC {
                return None;
            }
            let port_id = columns.next()?.parse().ok()?;
            Some((port_id, columns.last()?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_generic_sockets_alone() {
        let table = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                     00000000f1a2b3c4 0   1234       00000000 0        0        0     2        0        111\n\
                     00000000f1a2b3c5 16  4294962950 00000000 0        0        0     2        7        222\n\
                     garbage\n";
        assert_eq!(parse(table), HashMap::from([(4_294_962_950, 222)]));
    }

    #[tokio::test]
    async fn finds_this_process_as_the_owner() {
        let before = live_port_ids().unwrap();
        let _connection = crate::connection::open(&[], std::time::Duration::from_secs(1)).unwrap();
        let mut found = live_port_ids().unwrap();
        found.retain(|id, _| !before.contains_key(id));
        let ours = found.values().filter_map(|inode| socket_owner(*inode));
        assert!(ours.map(|o| o.pid).any(|pid| pid == std::process::id()));
    }
}
