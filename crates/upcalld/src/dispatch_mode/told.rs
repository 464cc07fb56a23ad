//! What a running daemon tells of itself: the kernel knows the sockets, but not who reads them, nor why.
//!
//! It listens on an abstract Unix socket that bears the datapath's name. Such a name belongs to the
//! network namespace, as the datapath does, and is gone with the process: nothing can be stale, and
//! nothing is left to remove. Whoever connects and is of the same user, or root, is given one JSON
//! object.

use std::collections::BTreeMap;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use upcall::Dispatcher;

/// How long a question may take: a client that does not read must not hold the daemon up.
const LIMIT: Duration = Duration::from_millis(200);
/// How long a client waits for the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer a client reads: some 100 bytes for each of 65,535 ports would fit.
const BYTES_MAX: u64 = 8 << 20;

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) mode: String,
    pub(crate) reason: String,
    /// Port id by CPU id; empty where the kernel has no per-CPU dispatch.
    pub(crate) table: Vec<u32>,
    /// Name of the thread that reads the socket, by port id.
    pub(crate) workers: BTreeMap<u32, String>,
}

impl Told {
    async fn of(dispatcher: &Dispatcher) -> Self {
        let (info, assignment) = (dispatcher.info().await, dispatcher.assignment().await);
        let workers = assignment.readers.into_iter().map(|r| (r.port_id, r.thread)).collect();
        let mode = info.mode.to_string();
        Self { mode, reason: info.reason, table: assignment.table, workers }
    }
}

/// `\0upcalld/NAME`: shown as `@upcalld/NAME` by `ss -xl`.
fn address(datapath: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("upcalld/{datapath}"))
}

/// The end that answers.
pub(crate) struct Teller(Option<UnixListener>);

impl Teller {
    /// Listens in the network namespace of the calling thread. Without it the daemon works as well, so
    /// that it cannot listen is logged.
    pub(crate) fn listen(datapath: &str) -> Self {
        let listen = || {
            let listener = StdListener::bind_addr(&address(datapath)?)?;
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        let warn = |err: &io::Error| {
            tracing::warn!(%err, "'upcalld dispatch-mode' will not know workers and reason");
        };
        Self(listen().inspect_err(warn).ok())
    }

    /// The next question that may be asked; for ever if there is none.
    pub(crate) async fn question(&self) -> UnixStream {
        let Some(listener) = &self.0 else { return std::future::pending().await };
        loop {
            match listener.accept().await {
                Ok((stream, _)) if may_ask(&stream) => return stream,
                Ok(_) => {}
                // Out of descriptors, most likely: not to be asked again at once.
                Err(_) => tokio::time::sleep(LIMIT).await,
            }
        }
    }
}

fn may_ask(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == ours)
}

/// Answers a question within bounds.
pub(crate) async fn answer(mut stream: UnixStream, dispatcher: &Dispatcher) {
    let told = Told::of(dispatcher).await;
    let text = serde_json::to_vec(&told).expect("numbers and strings can be written as JSON");
    // The client sees a text that ends early, and says so.
    let _too_slow = tokio::time::timeout(LIMIT, stream.write_all(&text)).await;
}

/// Asks the daemon that serves `datapath`; `Ok(None)` if none listens. Only a process that is among
/// `owners` of the datapath's sockets, or is root's or our own, is believed: the name is free for all.
///
/// # Errors
///
/// In words: what answered and is not to be believed, or did not make sense.
pub(crate) async fn ask(datapath: &str, owners: &[u32]) -> Result<Option<Told>, String> {
    let connected = address(datapath).and_then(|address| StdStream::connect_addr(&address));
    let Ok(stream) = connected else { return Ok(None) };
    let said = |err: io::Error| format!("upcalld does not answer: {err}");
    stream.set_nonblocking(true).map_err(said)?;
    let stream = UnixStream::from_std(stream).map_err(said)?;
    let peer = stream.peer_cred().map_err(said)?;
    let pid = peer.pid().unwrap_or_default();
    let owner = owners.iter().any(|owner| i32::try_from(*owner) == Ok(pid));
    if !owner && !may_ask(&stream) {
        return Err(format!("process {pid} of user {} answers in upcalld's name", peer.uid()));
    }
    let mut text = Vec::new();
    let mut limited = stream.take(BYTES_MAX);
    let read = tokio::time::timeout(PATIENCE, limited.read_to_end(&mut text)).await;
    read.map_err(|_| said(io::ErrorKind::TimedOut.into()))?.map_err(said)?;
    serde_json::from_slice(&text).map(Some).map_err(|err| format!("upcalld's answer: {err}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_listens_and_nonsense_are_told_apart() {
        let name = format!("test{}", std::process::id());
        assert_eq!(ask(&name, &[]).await, Ok(None));
        let teller = Teller::listen(&name);
        let answering = async {
            let mut stream = teller.question().await;
            stream.write_all(b"{\"mode\":").await.unwrap();
        };
        let (asked, ()) = tokio::join!(ask(&name, &[]), answering);
        assert!(asked.unwrap_err().contains("upcalld's answer"));
    }
}
