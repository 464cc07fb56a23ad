//! The traffic of the demo: bursts of new flows, and a steady stream between all hosts.

use std::f64::consts::TAU;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::{Order, Outlet, Pace, Plan, RawFlows, Receiver};
use upcall_testkit::{Error, Frame, Host, Hosts, RawSocket};

use crate::flood::flood;

/// Where every host listens.
pub(crate) const UDP_PORT: u16 = 7000;

/// Packets of each burst.
pub(crate) const BURST_PACKETS: u32 = 8;

/// Flows of bursts are numbered from here on, so that a flow's number tells what it is.
pub(crate) const FIRST_BURST_FLOW: u32 = 1 << 16;

/// New flows in each round, over all pairs of hosts, and the time of a round.
const BURSTS_PER_ROUND: u32 = 40;
const ROUND: Duration = Duration::from_millis(250);

/// Waves of varied traffic: how long one takes, and by which part rounds are more and fewer than without.
const WAVE: Duration = Duration::from_secs(25);
const WAVE_HEIGHT: f64 = 0.7;

/// Packets a second of the steady stream: for each pair, and at most in all.
const STEADY_RATE_PER_PAIR: u32 = 100;
const STEADY_RATE_MAX: u32 = 2000;

/// What senders and receivers share.
pub(crate) struct Load<'a> {
    hosts: &'a Hosts,
    receivers: &'a [Receiver],
    stop: &'a AtomicBool,
    started: Instant,
    deadline: Instant,
    pub(crate) varied: bool,
    sent: AtomicU64,
    /// The word on the packets of each flow (receiver, flow, packets), kept back until the last has
    /// been sent: until then what is on its way is not lost.
    told: Mutex<Vec<(usize, u32, u32)>>,
}

impl<'a> Load<'a> {
    /// Traffic for this time or until `stop`; receiver `i` is that of host `i`. It is varied where a
    /// picture shall show something: bursts in waves, and a flood.
    pub(crate) fn new(
        hosts: &'a Hosts,
        receivers: &'a [Receiver],
        stop: &'a AtomicBool,
        length: Duration,
        varied: bool,
    ) -> Self {
        let (started, sent, told) = (Instant::now(), AtomicU64::new(0), Mutex::default());
        Self { hosts, receivers, stop, started, deadline: started + length, varied, sent, told }
    }

    /// Packets sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Tells the receivers what was sent.
    pub(crate) fn tell_receivers(&self) {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (receiver, flow, packets) in told.drain(..) {
            self.receivers[receiver].expect(flow, packets);
        }
    }

    fn tell(&self, receiver: usize, flow: u32, packets: u32) {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        told.push((receiver, flow, packets));
    }

    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || Instant::now() >= self.deadline
    }

    /// Bursts of new flows, spread evenly over all pairs: each from an Ethernet address that the
    /// switch has not seen (as if behind the host there were many machines), all packets of a flow at
    /// once and from one CPU, the next flow from the next CPU.
    pub(crate) fn bursts(&self) -> Result<(), Error> {
        let sockets = self.hosts.iter().map(|host| RawSocket::sender(&host.ns, HOST_LINK));
        let senders = sockets.collect::<Result<Vec<_>, _>>()?;
        let pairs: Vec<(usize, usize)> =
            self.hosts.pairs().map(|(from, to)| (from.index, to.index)).collect();
        // How many addresses each host's bursts have come from.
        let mut stations = vec![0u16; senders.len()];
        let cpus = usable_cpus();
        let mut flow = FIRST_BURST_FLOW;
        let mut next_round = Instant::now();
        while !self.over() {
            for _ in 0..BURSTS_PER_ROUND {
                let number = flow - FIRST_BURST_FLOW;
                let (from, to) = pairs[number as usize % pairs.len()];
                let station = stations[from];
                stations[from] = station.wrapping_add(1);
                let (host, peer) = (&self.hosts[from], &self.hosts[to]);
                let build = |_: u32, payload: &[u8]| burst_frame(host, peer, station, payload);
                let cpu = cpus[number as usize % cpus.len()];
                let plan = Plan { cpus: vec![cpu], ..Plan::new(1, BURST_PACKETS).flows_from(flow) };
                let mut outlet = RawFlows::new(&senders[from], build);
                self.sent.fetch_add(plan.send(&mut outlet)?.packets, Ordering::Relaxed);
                self.tell(to, flow, BURST_PACKETS);
                flow += 1;
            }
            next_round += self.round();
            std::thread::sleep(next_round.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    /// How long the round is that begins now.
    fn round(&self) -> Duration {
        let waves = self.started.elapsed().as_secs_f64() / WAVE.as_secs_f64();
        let height = if self.varied { WAVE_HEIGHT * (waves * TAU).sin() } else { 0.0 };
        ROUND.div_f64(1.0 + height)
    }

    /// The last host floods for a fifth of the time, in the midst of it.
    pub(crate) fn flood(&self) -> Result<(), Error> {
        let fifth = (self.deadline - self.started) / 5;
        while self.started.elapsed() < 2 * fifth {
            if self.over() {
                return Ok(());
            }
            std::thread::sleep(ROUND);
        }
        let cpu = usable_cpus().pop().unwrap_or_default();
        let over = || self.over() || self.started.elapsed() >= 3 * fifth;
        flood(&self.hosts[self.hosts.len() - 1], cpu, over)
    }

    /// A steady stream from one host to each other, in slices of about a tenth of a second.
    pub(crate) fn steady(&self, from: &Host) -> Result<(), Error> {
        let mut outlet = Steady::open(from, self.hosts)?;
        let flows = outlet.destinations.len() as u32;
        let hosts = self.hosts.len() as u32;
        let rate = (STEADY_RATE_PER_PAIR * flows).min(STEADY_RATE_MAX / hosts).max(flows);
        let mut plan = Plan {
            order: Order::RoundRobin,
            pace: Pace::PerSecond(rate),
            packets_per_flow: (rate / flows / 10).max(1),
            ..Plan::new(flows, 0).flows_from(outlet.first_flow)
        };
        while !self.over() {
            self.sent.fetch_add(plan.send(&mut outlet)?.packets, Ordering::Relaxed);
            plan.first_seq += plan.packets_per_flow;
        }
        for (number, to) in (outlet.first_flow..).zip(&outlet.destinations) {
            self.tell(to.0, number, plan.first_seq);
        }
        Ok(())
    }
}

/// One socket of one host, a flow to each other host.
struct Steady {
    socket: UdpSocket,
    first_flow: u32,
    destinations: Vec<(usize, SocketAddr)>,
}

impl Steady {
    fn open(from: &Host, hosts: &Hosts) -> Result<Self, Error> {
        let others = hosts.iter().filter(|to| to.index != from.index);
        Ok(Self {
            socket: from.ns.udp_socket((from.ip4, 0).into())?,
            first_flow: (from.index * hosts.len()) as u32,
            destinations: others.map(|to| (to.index, (to.ip4, UDP_PORT).into())).collect(),
        })
    }
}

impl Outlet for Steady {
    fn send(&mut self, flow: u32, payload: &[u8]) -> Result<(), Error> {
        let (_, to) = self.destinations[(flow - self.first_flow) as usize];
        let sent = self.socket.send_to(payload, to).map(drop);
        sent.map_err(|cause| Error::System { what: format!("send UDP to {to}"), cause })
    }
}

fn burst_frame(from: &Host, to: &Host, station: u16, payload: &[u8]) -> Result<Vec<u8>, Error> {
    let [high, low] = station.to_be_bytes();
    let source = [2, 1, from.index as u8, 0, high, low];
    let from = (from.ip4, 20_000 + station % 40_000).into();
    Frame::new(source, to.mac).udp(from, (to.ip4, UDP_PORT).into(), payload)
}

/// The CPUs this process may use; CPU 0 if that cannot be found out.
fn usable_cpus() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| {
        let mut set = CpuSet::new();
        set.set(0);
        set
    });
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}
