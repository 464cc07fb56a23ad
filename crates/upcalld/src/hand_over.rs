//! Upcall sockets that outlive the process: a restart loses no upcall.
//!
//! While it serves, the daemon keeps a copy of each upcall socket with the service manager (systemd's
//! file-descriptor store: `FDSTORE=1`). At the end of a run with `--hand-over` the kernel goes on
//! queueing upcalls in them, and so it does after a crash. The next run is given the sockets, serves
//! what is queued, moves the datapath to sockets of its own and removes the old ones from the store.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use sd_notify::NotifyState;
use upcall::{Dispatcher, Socket};

use crate::exit::Exit;
use crate::settings::Settings;

/// Names of our descriptors in the store begin with this; others are not ours to take.
const NAME_PREFIX: &str = "upcall-";

/// The sockets of a predecessor, and their names in the store.
#[derive(Default)]
pub(crate) struct Inherited {
    pub(crate) sockets: Vec<Socket>,
    names: Vec<String>,
}

impl Inherited {
    /// Takes what `--adopt` names and what the service manager passed.
    pub(crate) fn take(settings: &Settings) -> Result<Self, Exit> {
        let mut inherited = Self::default();
        for fd in &settings.adopt {
            inherited.sockets.push(adopt(*fd).map_err(Exit::Usage)?);
        }
        let passed = sd_notify::listen_fds_with_names()
            .map_err(|err| Exit::Other(format!("cannot read LISTEN_FDS: {err}")))?;
        for (fd, name) in passed.filter(|(_, name)| name.starts_with(NAME_PREFIX)) {
            match adopt(fd) {
                Ok(socket) => inherited.sockets.push(socket),
                Err(err) => tracing::warn!(name, err, "the service manager passed something odd"),
            }
            inherited.names.push(name);
        }
        Ok(inherited)
    }
}

fn adopt(fd: i32) -> Result<Socket, String> {
    Socket::inherit(fd).map_err(|err| format!("descriptor {fd} is no upcall socket: {err}"))
}

/// The copies that the service manager holds.
pub(crate) struct Store {
    enabled: bool,
    held: HashSet<u32>,
    /// Names from the run before, removed once their sockets are served.
    stale: Vec<String>,
}

impl Store {
    /// A store that is used only if sockets are to be handed over.
    pub(crate) fn new(settings: &Settings, inherited: &Inherited) -> Self {
        Self { enabled: settings.hand_over, held: HashSet::new(), stale: inherited.names.clone() }
    }

    /// Brings the store in line with the sockets there are.
    pub(crate) async fn update(&mut self, dispatcher: &Dispatcher) {
        if !self.enabled {
            return;
        }
        let sockets = dispatcher.sockets().await;
        for socket in &sockets {
            if self.held.insert(socket.port_id()) {
                store(socket);
            }
        }
        let there = |port_id: u32| sockets.iter().any(|s| s.port_id() == port_id);
        self.held.retain(|port_id| there(*port_id) || !remove(&name(*port_id)));
        // An inherited socket is among the sockets until it was read empty.
        self.stale.retain(|name| {
            let port_id = name.trim_start_matches(NAME_PREFIX).parse();
            port_id.is_ok_and(there) || !remove(name)
        });
    }
}

fn name(port_id: u32) -> String {
    format!("{NAME_PREFIX}{port_id}")
}

fn store(socket: &Arc<Socket>) {
    let name = name(socket.port_id());
    // FDPOLL=0: an error condition on the socket must not make the service manager drop it.
    let state = [NotifyState::FdStore, NotifyState::FdName(&name), NotifyState::Custom("FDPOLL=0")];
    if let Err(err) = sd_notify::notify_with_fds(&state, &[socket.as_fd()]) {
        tracing::warn!(%err, "cannot leave an upcall socket with the service manager");
    }
}

/// Always `true`: what cannot be removed now cannot be removed later.
fn remove(name: &str) -> bool {
    let state = [NotifyState::Custom("FDSTOREREMOVE=1"), NotifyState::FdName(name)];
    if let Err(err) = sd_notify::notify(&state) {
        tracing::warn!(%err, name, "cannot remove an upcall socket from the service manager");
    }
    true
}
