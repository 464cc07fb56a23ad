//! Sending: which packets, in which order, how fast, from which CPU.

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::stamp::{STAMP_BYTES, Stamp};
use super::tally::SEQ_MAX;
use crate::error::{Error, Result};
use crate::netns::NetNs;
use crate::raw::RawSocket;

/// Where the packets of a [`Plan`] go.
pub trait Outlet {
    /// Sends one packet of `flow` with this payload.
    ///
    /// # Errors
    /// What the kernel refused; the plan stops there.
    fn send(&mut self, flow: u32, payload: &[u8]) -> Result<()>;
}

impl<F: FnMut(u32, &[u8]) -> Result<()>> Outlet for F {
    fn send(&mut self, flow: u32, payload: &[u8]) -> Result<()> {
        self(flow, payload)
    }
}

/// UDP flows, each from a socket (and so a source port) of its own to one destination.
#[derive(Debug)]
pub struct UdpFlows {
    first_flow: u32,
    sockets: Vec<UdpSocket>,
    destination: SocketAddr,
}

impl UdpFlows {
    /// Opens `flows` sockets in `ns`, for the flows from `first_flow` on. The number is bounded by the
    /// process's limit of open files.
    pub fn open(ns: &NetNs, destination: SocketAddr, first_flow: u32, flows: u32) -> Result<Self> {
        let any = if destination.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let sockets = ns
            .run(|| (0..flows).map(|_| UdpSocket::bind(any)).collect::<std::io::Result<Vec<_>>>())?
            .map_err(Error::system(format!("open {flows} UDP sockets in {}", ns.name())))?;
        Ok(Self { first_flow, sockets, destination })
    }
}

impl Outlet for UdpFlows {
    fn send(&mut self, flow: u32, payload: &[u8]) -> Result<()> {
        let index = flow.checked_sub(self.first_flow);
        let socket = index
            .and_then(|index| self.sockets.get(index as usize))
            .ok_or_else(|| Error::Invalid(format!("no socket was opened for flow {flow}")))?;
        socket
            .send_to(payload, self.destination)
            .map(drop)
            .map_err(Error::system(format!("send UDP to {}", self.destination)))
    }
}

/// Flows of frames that a function builds from flow number and payload.
pub struct RawFlows<'a, F> {
    socket: &'a RawSocket,
    build: F,
}

impl<F> fmt::Debug for RawFlows<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawFlows({:?})", self.socket)
    }
}

impl<'a, F: FnMut(u32, &[u8]) -> Result<Vec<u8>>> RawFlows<'a, F> {
    /// Flows through `socket`; `build` gets the flow and the payload and gives the frame.
    pub fn new(socket: &'a RawSocket, build: F) -> Self {
        Self { socket, build }
    }
}

impl<F: FnMut(u32, &[u8]) -> Result<Vec<u8>>> Outlet for RawFlows<'_, F> {
    fn send(&mut self, flow: u32, payload: &[u8]) -> Result<()> {
        self.socket.send(&(self.build)(flow, payload)?)
    }
}

/// In which order the packets of several flows are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// All packets of a flow, then the next flow: every flow starts with a burst.
    #[default]
    FlowByFlow,
    /// One packet of each flow in turn.
    RoundRobin,
}

/// How fast packets are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// As fast as the kernel takes them.
    #[default]
    Burst,
    /// So many a second over all flows of the plan (0 counts as 1); a late packet is made up for.
    PerSecond(u32),
}

/// What is sent. Every field has a public name and [`Plan::new`] sets the usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Number of the first flow.
    pub first_flow: u32,
    /// Number of flows.
    pub flows: u32,
    /// Sequence number of the first packet of each flow. Default 0.
    pub first_seq: u32,
    /// Packets of each flow.
    pub packets_per_flow: u32,
    /// Default [`Order::FlowByFlow`].
    pub order: Order,
    /// Default [`Pace::Burst`].
    pub pace: Pace,
    /// The CPUs to send from, in turn; none (the default) leaves it to the scheduler.
    pub cpus: Vec<usize>,
    /// Packets sent from one CPU before moving to the next of `cpus`. Default 0: never move.
    pub hop_every: u32,
    /// Length of each payload in bytes, at least [`STAMP_BYTES`]. Default 64.
    pub payload_bytes: usize,
}

/// What a plan has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Packets.
    pub packets: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Plan {
    /// A burst of `packets_per_flow` packets for each of `flows` flows, numbered from 0.
    pub fn new(flows: u32, packets_per_flow: u32) -> Self {
        Self {
            first_flow: 0,
            flows,
            first_seq: 0,
            packets_per_flow,
            order: Order::default(),
            pace: Pace::default(),
            cpus: Vec::new(),
            hop_every: 0,
            payload_bytes: 64,
        }
    }

    /// The same plan for the flows from `first_flow` on.
    #[must_use]
    pub fn flows_from(mut self, first_flow: u32) -> Self {
        self.first_flow = first_flow;
        self
    }

    /// Sends all of it from the calling thread, whose CPU affinity is put back afterwards.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a payload too short, a sequence number too high or a CPU this thread may
    /// not use; and the first error of the outlet.
    pub fn send(&self, outlet: &mut impl Outlet) -> Result<Sent> {
        self.check()?;
        let before = sched_getaffinity(None).map_err(Error::system("read the CPU affinity"))?;
        let result = self.send_all(outlet);
        if !self.cpus.is_empty() {
            sched_setaffinity(None, &before).map_err(Error::system("restore the CPU affinity"))?;
        }
        result
    }

    fn check(&self) -> Result<()> {
        if self.payload_bytes < STAMP_BYTES {
            return Err(Error::Invalid(format!("a payload has at least {STAMP_BYTES} bytes")));
        }
        if u64::from(self.first_seq) + u64::from(self.packets_per_flow) > u64::from(SEQ_MAX) + 1 {
            return Err(Error::Invalid(format!("sequence numbers end at {SEQ_MAX}")));
        }
        Ok(())
    }

    fn send_all(&self, outlet: &mut impl Outlet) -> Result<Sent> {
        let start = Instant::now();
        let mut payload = vec![0u8; self.payload_bytes];
        let mut packets = 0u64;
        for (flow, seq) in self.packets() {
            self.take_cpu(packets)?;
            self.wait_turn(start, packets);
            Stamp::now(flow, seq).write(&mut payload);
            outlet.send(flow, &payload)?;
            packets += 1;
        }
        Ok(Sent { packets, elapsed: start.elapsed() })
    }

    /// Flow and sequence number of each packet in the order of sending.
    fn packets(&self) -> impl Iterator<Item = (u32, u32)> {
        let (outer, inner) = match self.order {
            Order::FlowByFlow => (self.flows, self.packets_per_flow),
            Order::RoundRobin => (self.packets_per_flow, self.flows),
        };
        (0..outer).flat_map(move |a| (0..inner).map(move |b| (a, b))).map(|(a, b)| {
            let (flow, seq) = match self.order {
                Order::FlowByFlow => (a, b),
                Order::RoundRobin => (b, a),
            };
            (self.first_flow + flow, self.first_seq + seq)
        })
    }

    /// Moves the thread to the CPU from which packet number `packet` is to be sent, if it changes.
    fn take_cpu(&self, packet: u64) -> Result<()> {
        let hop_every = u64::from(self.hop_every);
        let due = if hop_every == 0 { packet == 0 } else { packet.is_multiple_of(hop_every) };
        if self.cpus.is_empty() || !due {
            return Ok(());
        }
        let hop = packet.checked_div(hop_every).unwrap_or(0);
        let cpu = self.cpus[hop as usize % self.cpus.len()];
        if cpu >= CpuSet::MAX_CPU {
            return Err(Error::Invalid(format!(
                "CPU {cpu}: the highest is {}",
                CpuSet::MAX_CPU - 1
            )));
        }
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set).map_err(Error::system(format!("move to CPU {cpu}")))
    }

    fn wait_turn(&self, start: Instant, packet: u64) {
        let Pace::PerSecond(rate) = self.pace else { return };
        let due = start + Duration::from_nanos(packet * 1_000_000_000 / u64::from(rate.max(1)));
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(plan: &Plan) -> Vec<Stamp> {
        let mut stamps = Vec::new();
        let mut outlet = |_flow: u32, payload: &[u8]| {
            stamps.push(Stamp::read(payload).unwrap());
            Ok(())
        };
        plan.send(&mut outlet).unwrap();
        stamps
    }

    fn order(stamps: &[Stamp]) -> Vec<(u32, u32)> {
        stamps.iter().map(|stamp| (stamp.flow, stamp.seq)).collect()
    }

    #[test]
    fn flow_by_flow_and_round_robin() {
        let mut plan = Plan::new(2, 2).flows_from(5);
        plan.first_seq = 10;
        assert_eq!(order(&sent(&plan)), [(5, 10), (5, 11), (6, 10), (6, 11)]);
        plan.order = Order::RoundRobin;
        assert_eq!(order(&sent(&plan)), [(5, 10), (6, 10), (5, 11), (6, 11)]);
    }

    #[test]
    fn a_plan_hops_between_the_cpus_it_may_use_and_comes_back() {
        let before = sched_getaffinity(None).unwrap();
        let cpus: Vec<usize> =
            (0..CpuSet::MAX_CPU).filter(|&cpu| before.is_set(cpu)).take(2).collect();
        let plan = Plan { cpus: cpus.clone(), hop_every: 3, ..Plan::new(1, 7) };
        let seen: Vec<usize> = sent(&plan).iter().map(|stamp| usize::from(stamp.cpu)).collect();
        let expected: Vec<usize> = (0..7).map(|packet| cpus[packet / 3 % cpus.len()]).collect();
        assert_eq!(seen, expected);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }

    #[test]
    fn a_pace_is_kept() {
        let plan = Plan { pace: Pace::PerSecond(1000), ..Plan::new(1, 21) };
        let sent = plan.send(&mut |_: u32, _: &[u8]| Ok(())).unwrap();
        assert_eq!(sent.packets, 21);
        assert!(sent.elapsed >= Duration::from_millis(20), "{sent:?}");
    }

    #[test]
    fn bounds_are_checked() {
        let short = Plan { payload_bytes: STAMP_BYTES - 1, ..Plan::new(1, 1) };
        let long = Plan { first_seq: SEQ_MAX, ..Plan::new(1, 2) };
        let nowhere = Plan { cpus: vec![1 << 20], ..Plan::new(1, 1) };
        for plan in [short, long, nowhere] {
            let error = plan.send(&mut |_: u32, _: &[u8]| Ok(())).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{error}");
        }
    }
}
