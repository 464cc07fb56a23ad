//! Receiving: a thread that reads and tallies until it is stopped.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::stamp::monotonic_ns;
use super::tally::{Tally, Totals};
use crate::error::{Error, Result};
use crate::netns::NetNs;
use crate::raw::{RawSocket, udp_payload};
use crate::wait::wait_until;

/// How long a receiver that is told to stop may still be waiting for a packet.
const TICK: Duration = Duration::from_millis(20);
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// A thread that tallies what arrives at a socket, until [`Receiver::stop`] or drop.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    tally: Mutex<Tally>,
    stop: AtomicBool,
}

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Tally) -> T) -> T {
        // A tally is whole after each packet, so a panic elsewhere leaves it usable.
        work(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Receiver {
    /// Receives UDP at `address` of `ns`.
    pub fn udp(ns: &NetNs, address: SocketAddr) -> Result<Self> {
        let socket = ns.udp_socket(address)?;
        socket.set_read_timeout(Some(TICK)).map_err(Error::system("set a socket's timeout"))?;
        Self::start(move |shared| read_udp(&socket, &shared))
    }

    /// Receives the UDP datagrams among the frames that arrive on `link` of `ns`, whoever they are
    /// addressed to; all other frames are passed over.
    pub fn raw(ns: &NetNs, link: &str) -> Result<Self> {
        let socket = RawSocket::open(ns, link)?;
        Self::start(move |shared| read_raw(socket, &shared))
    }

    fn start(read: impl FnOnce(Arc<Shared>) -> Result<()> + Send + 'static) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("receiver".to_owned())
            .spawn(move || read(theirs))
            .map_err(Error::system("start a thread"))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// See [`Tally::expect`].
    pub fn expect(&self, flow: u32, packets: u32) {
        self.shared.with(|tally| tally.expect(flow, packets));
    }

    /// The sums so far.
    pub fn totals(&self) -> Totals {
        self.shared.with(|tally| tally.totals())
    }

    /// Waits until `packets` have been received, duplicates included; at most for as long as no more
    /// than `patience` passes without one.
    ///
    /// # Errors
    /// [`Error::Timeout`] that says how many have.
    pub fn wait_received(&self, packets: u64, patience: Duration) -> Result<()> {
        let what = format!("{packets} packets");
        let mut before = self.totals().received;
        loop {
            let waited = wait_until(&what, patience, || {
                let received = self.totals().received;
                received >= packets || received > before
            });
            let totals = self.totals();
            if totals.received >= packets {
                return Ok(());
            }
            before = totals.received;
            waited.map_err(|error| match error {
                Error::Timeout { what, waited } => {
                    Error::Timeout { what: format!("{what} (there are {totals:?})"), waited }
                }
                other => other,
            })?;
        }
    }

    /// Ends the thread and gives its tally. What is in the socket by then has been read.
    ///
    /// # Errors
    /// [`Error::System`] when reading failed.
    pub fn stop(mut self) -> Result<Tally> {
        self.end()?;
        Ok(self.shared.with(std::mem::take))
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => resume_unwind(panic),
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // The thread is waited for, so that its socket and namespace are gone with the value.
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_) | Ok(Err(_))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("a traffic receiver failed and nobody asked for its tally");
        }
    }
}

fn read_udp(socket: &UdpSocket, shared: &Shared) -> Result<()> {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        match socket.recv(&mut buffer) {
            Ok(len) => {
                let now_ns = monotonic_ns();
                shared.with(|tally| tally.record_payload(&buffer[..len], now_ns));
            }
            // Only an empty socket ends the thread.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if shared.stopped() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::system("receive UDP")(error)),
        }
    }
}

fn read_raw(mut socket: RawSocket, shared: &Shared) -> Result<()> {
    loop {
        match socket.receive(TICK)? {
            Some(frame) => {
                let now_ns = monotonic_ns();
                if let Some(payload) = udp_payload(&frame) {
                    shared.with(|tally| tally.record_payload(payload, now_ns));
                }
            }
            None if shared.stopped() => return Ok(()),
            None => {}
        }
    }
}

/// What the UDP stack of a namespace counted; to tell a lossy switch from a late reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// Datagrams given to sockets.
    pub received: u64,
    /// Datagrams to a port nobody listens on.
    pub no_port: u64,
    /// Datagrams with a wrong checksum or length, and those counted in `buffer_full`.
    pub errors: u64,
    /// Datagrams refused because the receiving socket was full.
    pub buffer_full: u64,
}

impl std::ops::Add for UdpCounters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            no_port: self.no_port + other.no_port,
            errors: self.errors + other.errors,
            buffer_full: self.buffer_full + other.buffer_full,
        }
    }
}

/// Reads the counters of UDP over IPv4 in `ns`.
pub fn udp_counters(ns: &NetNs) -> Result<UdpCounters> {
    let text = ns
        .run(|| fs::read_to_string("/proc/thread-self/net/snmp"))?
        .map_err(Error::system("read the UDP counters"))?;
    parse_snmp(&text).ok_or_else(|| Error::Invalid("no UDP counters in net/snmp".to_owned()))
}

fn parse_snmp(text: &str) -> Option<UdpCounters> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let names = lines.next()?.split_whitespace();
    let values: Vec<(&str, u64)> = names
        .zip(lines.next()?.split_whitespace().map(|value| value.parse().unwrap_or(0)))
        .collect();
    let value = |name| values.iter().find(|(n, _)| *n == name).map(|&(_, value)| value);
    Some(UdpCounters {
        received: value("InDatagrams")?,
        no_port: value("NoPorts")?,
        errors: value("InErrors")?,
        buffer_full: value("RcvbufErrors")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snmp_is_read_by_names_not_by_columns() {
        let text = "Tcp: A\nTcp: 1\nUdp: NoPorts InDatagrams RcvbufErrors InErrors New\n\
                    Udp: 2 1 4 3 9\nUdpLite: InDatagrams\nUdpLite: 7\n";
        let counters = parse_snmp(text).unwrap();
        let expected = UdpCounters { received: 1, no_port: 2, errors: 3, buffer_full: 4 };
        assert_eq!(counters, expected);
        assert_eq!(parse_snmp("Udp: InDatagrams\nUdp: 1\n"), None);
    }
}
