//! A datapath of our own to ask: what changes a datapath never touches one that somebody uses.
//!
//! It is made in a network namespace of its own, on a thread that moves there. The kernel has one set
//! of features for all namespaces, so the answers hold; no datapath, notification or device of the
//! host is touched, and the kernel removes the datapath with the namespace when the thread's sockets
//! are closed, even if the process is killed. A namespace needs `CAP_SYS_ADMIN`; with `CAP_NET_ADMIN`
//! alone the datapath is made beside the others, under a free name, and deleted on every path but
//! the sudden death of the process.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use ovs_datapath::{Control, ControlError};
use ovs_wire::datapath::{Datapath, UserFeatures};
use rustix::io::Errno;
use tokio::sync::oneshot;

/// Names that are tried.
const NAMES_MAX: u32 = 16;

/// Where the datapath that was asked had been made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a network namespace of its own.
    OwnNamespace,
    /// Beside the others: there was no permission to make a namespace.
    Beside,
}

/// Runs `work` on a new datapath and removes it. The future may be dropped: the work is done to its
/// end all the same.
pub(super) async fn with_datapath<T: Send + 'static>(
    work: impl AsyncFnOnce(&Control, &Datapath) -> T + Send + 'static,
) -> Result<(T, Place), ControlError> {
    let (send, receive) = oneshot::channel();
    let on_thread = move || {
        let _nobody_waits = send.send(on_this_thread(work));
    };
    thread::Builder::new()
        .name("probe".to_owned())
        .spawn(on_thread)
        .map_err(|source| ControlError::Socket { call: "clone", source })?;
    receive.await.map_err(|_| ControlError::Closed)?
}

fn on_this_thread<T>(
    work: impl AsyncFnOnce(&Control, &Datapath) -> T,
) -> Result<(T, Place), ControlError> {
    let place = match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => Place::OwnNamespace,
        Err(_) => Place::Beside,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ControlError::Socket { call: "epoll_create", source })?;
    let control = runtime.block_on(Control::open())?;
    let dp = runtime.block_on(create(&control))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(work(&control, &dp))));
    let deleted = runtime.block_on(control.delete_datapath(&dp));
    let answers = outcome.unwrap_or_else(|panic| resume_unwind(panic));
    match deleted {
        // In a namespace of its own it goes with the namespace.
        Err(err) if place == Place::Beside && !err.is(Errno::NODEV) => Err(err),
        _ => Ok((answers, place)),
    }
}

/// Creates it under the first free name.
async fn create(control: &Control) -> Result<Datapath, ControlError> {
    let mut number = 0;
    loop {
        let name = name(std::process::id(), number);
        match control.create_datapath(&name, UserFeatures::empty()).await {
            Err(err) if (err.is(Errno::EXIST) || err.is(Errno::BUSY)) && number < NAMES_MAX => {
                number += 1;
            }
            other => return other,
        }
    }
}

/// At most 15 bytes: process ids end at 2^22 (`PID_MAX_LIMIT`).
fn name(pid: u32, number: u32) -> String {
    format!("probe{pid:x}.{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let longest = name((1 << 22) - 1, NAMES_MAX);
        assert!(longest.len() <= ovs_wire::datapath::NAME_LEN_MAX, "{longest}");
        assert_ne!(name(1, 0), name(1, 1));
    }
}
