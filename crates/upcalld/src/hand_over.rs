//! Upcall sockets that outlive the process: a restart loses no upcall.
//!
//! While it serves, the daemon keeps a copy of each upcall socket with the service manager (systemd's
//! file-descriptor store: `FDSTORE=1`), and the record of what its workers have in their hands and of what it
//! made. When a run with `--hand-over` ends with SIGUSR2 the kernel goes on queueing upcalls in the sockets, and
//! so it does after a crash. The next run is given all of it, counts what was lost in a crash, serves what is
//! queued, moves the datapath to sockets of its own and removes the old ones from the store. SIGTERM and SIGINT
//! mean that nobody comes: then all is removed, what earlier runs made with it.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use sd_notify::NotifyState;
use upcall::{Dispatcher, InFlight, Socket};

use crate::exit::Exit;
use crate::settings::Settings;

/// Names of our descriptors in the store begin with this; others are not ours to take.
const NAME_PREFIX: &str = "upcall-";

/// What follows the prefix in the name of a record; in that of a socket, its port id.
const RECORD: &str = "in-flight-";

/// What a predecessor left, and the names of it in the store.
#[derive(Default)]
pub(crate) struct Inherited {
    pub(crate) sockets: Vec<Socket>,
    /// One, or more if there were crashes in a row.
    pub(crate) in_flight: Vec<InFlight>,
    names: Vec<String>,
}

impl Inherited {
    /// Takes what `--adopt` names and what the service manager passed.
    pub(crate) fn take(settings: &Settings) -> Result<Self, Exit> {
        let mut inherited = Self::default();
        for fd in &settings.adopt {
            inherited.adopt(*fd).map_err(Exit::Usage)?;
        }
        let passed = sd_notify::listen_fds_with_names()
            .map_err(|err| Exit::Other(format!("cannot read LISTEN_FDS: {err}")))?;
        for (fd, name) in passed.filter(|(_, name)| name.starts_with(NAME_PREFIX)) {
            if let Err(err) = inherited.adopt(fd) {
                tracing::warn!(name, err, "the service manager passed something odd");
            }
            inherited.names.push(name);
        }
        Ok(inherited)
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

/// The copies that the service manager holds.
pub(crate) struct Store {
    enabled: bool,
    /// Names of what is there, from this run or the one before.
    held: HashSet<String>,
}

impl Store {
    /// A store that is used only if sockets are to be handed over.
    pub(crate) fn new(settings: &Settings, inherited: &Inherited) -> Self {
        Self { enabled: settings.hand_over, held: inherited.names.iter().cloned().collect() }
    }

    /// Brings the store in line with the sockets there are. An inherited one is among them until it
    /// was read empty; an inherited record was read when the dispatcher started.
    pub(crate) async fn update(&mut self, dispatcher: &Dispatcher) {
        if !self.enabled {
            return;
        }
        let sockets = dispatcher.sockets().await;
        let named = |socket: &Arc<Socket>| format!("{NAME_PREFIX}{}", socket.port_id());
        let mut there: HashMap<String, BorrowedFd<'_>> =
            sockets.iter().map(|socket| (named(socket), socket.as_fd())).collect();
        let record = dispatcher.in_flight();
        match record.id() {
            Ok(id) => drop(there.insert(format!("{NAME_PREFIX}{RECORD}{id}"), record.as_fd())),
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
