//! ICMP echo: whether, and how fast, a host answers.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Ipv4Slice};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto,
    socket_with,
};

use crate::error::{Error, Result};
use crate::netns::NetNs;
use crate::raw::readable;

/// What [`ping`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingPlan {
    /// Requests to send. Default 4.
    pub count: u16,
    /// Time between two requests. Default 20 ms.
    pub interval: Duration,
    /// How long each request waits for its answer. Default 5 s.
    pub timeout: Duration,
}

impl Default for PingPlan {
    fn default() -> Self {
        Self { count: 4, interval: Duration::from_millis(20), timeout: Duration::from_secs(5) }
    }
}

/// What came of a [`ping`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Requests answered in time. A second answer to one request counts in `duplicates`.
    pub answered: u32,
    /// Answers beyond the first to one request.
    pub duplicates: u32,
    /// Round-trip time of each request in the order sent; `None` where no answer came.
    pub rtts: Vec<Option<Duration>>,
}

impl PingReport {
    /// Shortest round trip.
    pub fn rtt_min(&self) -> Option<Duration> {
        self.rtts.iter().flatten().min().copied()
    }

    /// Mean round trip.
    pub fn rtt_avg(&self) -> Option<Duration> {
        let total: Duration = self.rtts.iter().flatten().sum();
        (self.answered > 0).then(|| total / self.answered)
    }

    /// Longest round trip.
    pub fn rtt_max(&self) -> Option<Duration> {
        self.rtts.iter().flatten().max().copied()
    }

    /// Round trip of the first request: with ARP and flow set-up on both ways.
    pub fn rtt_first(&self) -> Option<Duration> {
        self.rtts.first().copied().flatten()
    }

    /// Requests after the first that found no answer.
    pub fn unanswered_after_first(&self) -> usize {
        self.rtts.iter().skip(1).filter(|rtt| rtt.is_none()).count()
    }
}

/// Pings `destination` from inside `ns`. Needs `CAP_NET_RAW`.
///
/// Each request is sent at its time whether or not those before it were answered; the call ends when
/// all are answered, or `timeout` after the last.
///
/// # Errors
/// [`Error::System`]. No answer is no error: see [`PingReport::answered`]. Neither is a
/// request that the host could not send for want of a neighbour: it counts as unanswered.
pub fn ping(ns: &NetNs, destination: Ipv4Addr, plan: &PingPlan) -> Result<PingReport> {
    let socket = ns
        .run(|| {
            let flags = SocketFlags::CLOEXEC;
            let protocol = Some(ipproto::ICMP);
            socket_with(AddressFamily::INET, SocketType::RAW, flags, protocol)
        })?
        .map_err(Error::system("open an ICMP socket"))?;
    let mut series = Series::new(socket, destination);
    let start = Instant::now();
    for seq in 0..plan.count {
        series.request(seq)?;
        series.collect_until(start + plan.interval * (u32::from(seq) + 1), plan, seq + 1)?;
    }
    series.collect_until(Instant::now() + plan.timeout, plan, plan.count)?;
    Ok(series.report)
}

/// Distinguishes the series of one process from each other.
static NEXT_ID: AtomicU16 = AtomicU16::new(1);

struct Series {
    socket: OwnedFd,
    destination: Ipv4Addr,
    id: u16,
    sent_at: Vec<Instant>,
    report: PingReport,
}

impl Series {
    fn new(socket: OwnedFd, destination: Ipv4Addr) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { socket, destination, id, sent_at: Vec::new(), report: PingReport::default() }
    }

    fn request(&mut self, seq: u16) -> Result<()> {
        let payload = [0u8; 32];
        let kind = Icmpv4Type::EchoRequest(IcmpEchoHeader { id: self.id, seq });
        let mut packet = Icmpv4Header::with_checksum(kind, &payload).to_bytes().to_vec();
        packet.extend_from_slice(&payload);
        self.sent_at.push(Instant::now());
        self.report.rtts.push(None);
        self.report.sent += 1;
        let to = SocketAddrV4::new(self.destination, 0);
        match sendto(&self.socket, &packet, SendFlags::empty(), &to) {
            Ok(_) | Err(rustix::io::Errno::HOSTUNREACH) => Ok(()),
            Err(error) => Err(Error::system(format!("send a ping to {}", self.destination))(error)),
        }
    }

    /// Takes answers in until `deadline`, or, once `plan.count` are sent, until all have answered.
    fn collect_until(&mut self, deadline: Instant, plan: &PingPlan, sent: u16) -> Result<()> {
        loop {
            let all_answered = self.report.answered == u32::from(plan.count);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || (sent == plan.count && all_answered) {
                return Ok(());
            }
            if readable(&self.socket, left)? {
                self.take_in(plan.timeout)?;
            }
        }
    }

    fn take_in(&mut self, timeout: Duration) -> Result<()> {
        let mut buffer = [0u8; 2048];
        let len = match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((len, _)) => len,
            // A destination-unreachable from the host's own stack is an unanswered request.
            Err(
                rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::HOSTUNREACH,
            ) => return Ok(()),
            Err(error) => return Err(Error::system("receive a ping's answer")(error)),
        };
        let Some(seq) = echo_reply(&buffer[..len], self.destination, self.id) else {
            return Ok(());
        };
        let Some(sent_at) = self.sent_at.get(usize::from(seq)) else { return Ok(()) };
        let rtt = sent_at.elapsed();
        let slot = &mut self.report.rtts[usize::from(seq)];
        if slot.is_some() {
            self.report.duplicates += 1;
        } else if rtt <= timeout {
            *slot = Some(rtt);
            self.report.answered += 1;
        }
        Ok(())
    }
}

/// The sequence number of an echo reply from `source` to the series `id`; `None` for all else.
fn echo_reply(packet: &[u8], source: Ipv4Addr, id: u16) -> Option<u16> {
    let ip = Ipv4Slice::from_slice(packet).ok()?;
    if ip.header().source_addr() != source {
        return None;
    }
    let message = etherparse::Icmpv4Slice::from_slice(ip.payload().payload).ok()?;
    match message.header().icmp_type {
        Icmpv4Type::EchoReply(echo) if echo.id == id => Some(echo.seq),
        _ => None,
    }
}
