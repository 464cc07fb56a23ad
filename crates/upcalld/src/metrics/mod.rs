//! Metrics for Prometheus and whatever reads `OpenMetrics`, with health and readiness, over HTTP.
//!
//! The task that owns the dispatcher takes the readings (`readings`), which are encoded (`exposition`)
//! and served (`server`) apart from it.

mod exposition;
mod readings;
mod server;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::control::{ControlFile, Question};
use crate::exit::Exit;
pub(crate) use readings::{Scrape, take};

/// How long readings may take to be taken: longer, and the daemon does not count as healthy.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// Nowhere.
    Nowhere,
    Tcp(SocketAddr),
    /// A file, for root and the daemon's own user.
    Unix(PathBuf),
}

/// `none`, a port (on the loopback address), `ADDRESS:PORT`, or a path with a `/` in it.
impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Nowhere);
        }
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        if let Ok(port) = text.trim_start_matches(':').parse::<u16>() {
            return Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            format!("'{text}' is no address: write PORT, ADDRESS:PORT, /PATH/OF/SOCKET or none")
        })
    }
}

/// What is served as long as this lives.
pub(crate) struct Exporter {
    task: Option<JoinHandle<()>>,
    /// Kept: the file goes with it.
    _file: Option<ControlFile>,
}

impl Exporter {
    /// Listens at `address`; readings are asked for over `questions`.
    ///
    /// # Errors
    ///
    /// [`Exit::Other`] when it cannot listen there.
    pub(crate) async fn start(
        address: &Address,
        questions: mpsc::Sender<Question>,
    ) -> Result<Self, Exit> {
        let failed = |at: &dyn std::fmt::Display, err: std::io::Error| {
            Exit::Other(format!("cannot serve metrics at {at}: {err}"))
        };
        match address {
            Address::Nowhere => Ok(Self { task: None, _file: None }),
            Address::Tcp(address) => {
                let listening = TcpListener::bind(address).await;
                let listener = listening.map_err(|err| failed(address, err))?;
                let at = listener.local_addr().map_err(|err| failed(address, err))?;
                tracing::info!("metrics at http://{at}/metrics");
                let task = tokio::spawn(server::run(listener, questions));
                Ok(Self { task: Some(task), _file: None })
            }
            Address::Unix(path) => {
                let listen = || {
                    let (file, listener) = ControlFile::listen(path, None)?;
                    Ok((file, UnixListener::from_std(listener)?))
                };
                let (file, listener) = listen().map_err(|err| failed(&path.display(), err))?;
                tracing::info!(path = %path.display(), "metrics");
                let task = tokio::spawn(server::run(listener, questions));
                Ok(Self { task: Some(task), _file: Some(file) })
            }
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_port_an_address_or_a_path() {
        let tcp = |text: &str| Ok(Address::Tcp(text.parse().unwrap()));
        assert_eq!(Address::from_str("9477"), tcp("127.0.0.1:9477"));
        assert_eq!(Address::from_str(":9477"), tcp("127.0.0.1:9477"));
        assert_eq!(Address::from_str("[::1]:80"), tcp("[::1]:80"));
        assert_eq!(Address::from_str("./x"), Ok(Address::Unix("./x".into())));
        assert_eq!(Address::from_str("none"), Ok(Address::Nowhere));
        for text in ["", "localhost", "1.2.3.4", "99999"] {
            assert!(Address::from_str(text).unwrap_err().contains("ADDRESS:PORT"), "{text}");
        }
    }
}
