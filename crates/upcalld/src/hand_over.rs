//! Upcall sockets that outlive the process: a restart loses no upcall.
//!
//! While it serves, the daemon keeps a copy of each upcall socket with the service manager (systemd's
//! file-descriptor store: `FDSTORE=1`), and the record of what its workers have in their hands and of what it
//! made. When a run with `--hand-over` ends with SIGUSR2 the kernel goes on queueing upcalls in the sockets, and
//! so it does after a crash. The next run is given all of it, counts what was lost in a crash, serves what is
//! queued, moves the datapath to sockets of its own and removes the old ones from the store. SIGTERM and SIGINT
//! mean that nobody comes: then all is removed, what earlier runs made with it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use sd_notify::NotifyState;
use upcall::{Dispatcher, InFlight, Socket};

use crate::exit::Exit;
use crate::settings::AllSettings;

/// Names of our descriptors in the store begin with this; others are not ours to take.
const NAME_PREFIX: &str = "upcall-";

/// What is behind the datapath's name in the name of a record; in that of a socket, its port id.
const RECORD: &str = "in-flight-";

/// What begins the names of a datapath's descriptors: no device has a `/` in its name, so that it is clear
/// where that ends. The service manager takes printable ASCII without `:` alone.
fn prefix(datapath: &str) -> String {
    let mut prefix = NAME_PREFIX.to_owned();
    for byte in datapath.bytes() {
        let _ = match byte {
            b'%' => write!(prefix, "%25"),
            0x21..=0x7e => write!(prefix, "{}", char::from(byte)),
            _ => write!(prefix, "%{byte:02x}"),
        };
    }
    prefix + "/"
}

/// What a predecessor left of one datapath, and the names of it in the store.
#[derive(Default)]
pub(crate) struct Inherited {
    pub(crate) sockets: Vec<Socket>,
    /// One, or more if there were crashes in a row.
    pub(crate) in_flight: Vec<InFlight>,
    names: Vec<String>,
}

impl Inherited {
    /// Takes what `--adopt` names and what the service manager passed, for each datapath by name.
    pub(crate) fn take(settings: &AllSettings) -> Result<BTreeMap<String, Self>, Exit> {
        let names = settings.names();
        let mut all: BTreeMap<String, Self> =
            names.iter().map(|name| ((*name).to_owned(), Self::default())).collect();
        for adopted in &settings.process.adopt {
            let name = adopted.datapath.as_deref().or(only(&names));
            let inherited = name.and_then(|name| all.get_mut(name)).ok_or_else(|| {
                let (fd, names) = (adopted.fd, names.join(", "));
                Exit::Usage(format!("--adopt {fd}: say whose it is, as NAME={fd}, of {names}"))
            })?;
            inherited.adopt(adopted.fd).map_err(Exit::Usage)?;
        }
        let passed = sd_notify::listen_fds_with_names()
            .map_err(|err| Exit::Other(format!("cannot read LISTEN_FDS: {err}")))?;
        for (fd, name) in passed.filter(|(_, name)| name.starts_with(NAME_PREFIX)) {
            match owner(&names, &name).and_then(|owner| all.get_mut(owner)) {
                Some(inherited) => inherited.passed(fd, name),
                None => forsake(fd, &name),
            }
        }
        Ok(all)
    }

    fn passed(&mut self, fd: i32, name: String) {
        if let Err(err) = self.adopt(fd) {
            tracing::warn!(name, err, "the service manager passed something odd");
        }
        self.names.push(name);
    }

    fn adopt(&mut self, fd: i32) -> Result<(), String> {
        match Socket::inherit(fd) {
            Ok(socket) => self.sockets.push(socket),
            Err(no_socket) => self.in_flight.push(InFlight::inherit(fd).map_err(|no_record| {
                format!(
                    "descriptor {fd} is no upcall socket ({no_socket}) and no record of upcalls in flight ({no_record})"
                )
            })?),
        }
        Ok(())
    }
}

fn only<'a>(names: &[&'a str]) -> Option<&'a str> {
    if let [name] = names { Some(name) } else { None }
}

/// The datapath whose descriptor has this name in the store. Names without one are of the only datapath: so
/// were they written before there could be several.
fn owner<'a>(names: &[&'a str], stored: &str) -> Option<&'a str> {
    if !stored.contains('/') {
        return only(names);
    }
    names.iter().copied().find(|name| stored.starts_with(&prefix(name)))
}

/// Lets go of what is of a datapath that is not served any more.
fn forsake(fd: i32, name: &str) {
    tracing::warn!(
        name,
        "the service manager holds what is of no datapath that is served; letting it go"
    );
    let mut nobodys = Inherited::default();
    // What it is does not matter: it is closed.
    let _closed = nobodys.adopt(fd);
    remove(name);
}

/// The copies that the service manager holds of one datapath.
pub(crate) struct Store {
    enabled: bool,
    prefix: String,
    /// Names of what is there, from this run or the one before.
    held: HashSet<String>,
}

impl Store {
    /// A store that is used only if sockets are to be handed over.
    pub(crate) fn new(enabled: bool, datapath: &str, inherited: &Inherited) -> Self {
        let held = inherited.names.iter().cloned().collect();
        Self { enabled, prefix: prefix(datapath), held }
    }

    /// Are sockets handed over?
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Brings the store in line with the sockets there are. An inherited one is among them until it
    /// was read empty; an inherited record was read when the dispatcher started.
    pub(crate) async fn update(&mut self, dispatcher: &Dispatcher) {
        if !self.enabled {
            return;
        }
        let sockets = dispatcher.sockets().await;
        let prefix = &self.prefix;
        let named = |socket: &Arc<Socket>| format!("{prefix}{}", socket.port_id());
        let mut there: HashMap<String, BorrowedFd<'_>> =
            sockets.iter().map(|socket| (named(socket), socket.as_fd())).collect();
        let record = dispatcher.in_flight();
        match record.id() {
            Ok(id) => drop(there.insert(format!("{prefix}{RECORD}{id}"), record.as_fd())),
            Err(err) => tracing::warn!(%err, "cannot keep the record of upcalls in flight"),
        }
        for (name, fd) in &there {
            if self.held.insert(name.clone()) {
                store(name, *fd);
            }
        }
        self.held.retain(|name| there.contains_key(name) || !remove(name));
    }
}

fn store(name: &str, fd: BorrowedFd<'_>) {
    // FDPOLL=0: an error condition on a socket must not make the service manager drop it.
    let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    if let Err(err) = sd_notify::notify_with_fds(&state, &[fd]) {
        tracing::warn!(%err, name, "cannot leave a descriptor with the service manager");
    }
}

/// Always `true`: what cannot be removed now cannot be removed later.
fn remove(name: &str) -> bool {
    let state = [NotifyState::Custom("FDSTOREREMOVE=1"), NotifyState::FdName(name)];
    if let Err(err) = sd_notify::notify(&state) {
        tracing::warn!(%err, name, "cannot remove a descriptor from the service manager");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_the_store_tells_whose_it_is() {
        let names = ["a", "a-1", "in-flight"];
        for name in names {
            assert_eq!(owner(&names, &format!("{}77", prefix(name))), Some(name));
            assert_eq!(owner(&names, &format!("{}{RECORD}77", prefix(name))), Some(name));
        }
        assert_eq!(owner(&names, "upcall-b/77"), None);
        assert_eq!(owner(&names, "upcall-77"), None);
        assert_eq!(owner(&["a"], "upcall-77"), Some("a"));
        assert_eq!(owner(&["a"], "upcall-b/77"), None);
        assert_eq!(prefix("br\u{f6}%"), "upcall-br%c3%b6%25/");
    }
}
