//! Who sends what, from which CPU, and how fast.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{SOON, TestResult};
use ovs_features::cpu;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::{STAMP_BYTES, Stamp};
use upcall_testkit::{Frame, Hosts, RawSocket};

use crate::handler::Soaked;
use crate::order::Kind;

/// Packets of a flow that is set up.
const BURST: u32 = 20;
/// Flows whose sender hops, and packets between two hops.
const HOPPERS: u32 = 3;
const HOP_EVERY: u64 = 10;
/// Hopping packets on their way at most: with many more, a flow comes back to where packets of it are
/// still unread, and no order is to be seen.
const WINDOW: u64 = 4;
/// How long such a packet is waited for.
const WINDOW_LIMIT: Duration = Duration::from_millis(100);
/// Flows of slow packets, and of those that are answered later.
const FLOWS: u32 = 20;

/// Source ports that flows have in turn.
const PORTS: u32 = 60_000;
/// 10.9.0.0: the flood's source addresses, so that each of its packets is of another flow.
const FLOOD_NET: u32 = 0x0a09_0000;

/// One who sends.
struct Sender {
    link: RawSocket,
    frame: Frame,
    from: SocketAddr,
    to: SocketAddr,
    kind: Kind,
    payload: [u8; 64],
}

impl Sender {
    fn open(hosts: &Hosts, host: usize, kind: Kind) -> Result<Self> {
        let (own, to) = (&hosts[host], &hosts[1]);
        Ok(Self {
            link: RawSocket::sender(&own.ns, HOST_LINK)?,
            frame: Frame::new(own.mac, to.mac),
            from: SocketAddr::from((own.ip4, 0)),
            to: SocketAddr::from((to.ip4, kind.port())),
            kind,
            payload: [0; 64],
        })
    }

    fn send(&mut self, flow: u32, seq: u32) -> TestResult {
        const { assert!(STAMP_BYTES <= 64) };
        Stamp::now(flow, seq).write(&mut self.payload);
        self.from.set_port(1024 + (flow % PORTS) as u16);
        if self.kind == Kind::Flood {
            self.from.set_ip(Ipv4Addr::from_bits(FLOOD_NET + flow / PORTS).into());
        }
        Ok(self.link.send(&self.frame.udp(self.from, self.to, &self.payload)?)?)
    }
}

/// What senders and their commander share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    rests: AtomicBool,
    floods: AtomicBool,
    resting: AtomicUsize,
    sent: [AtomicU64; 5],
}

impl Shared {
    /// Waits while everybody rests; `false` at the end.
    fn goes_on(&self) -> bool {
        self.wait_while(&self.rests)
    }

    fn wait_while(&self, held: &AtomicBool) -> bool {
        if held.load(Ordering::SeqCst) {
            self.resting.fetch_add(1, Ordering::SeqCst);
            while held.load(Ordering::SeqCst) && !self.stop.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.resting.fetch_sub(1, Ordering::SeqCst);
        }
        !self.stop.load(Ordering::SeqCst)
    }

    fn sent(&self, kind: Kind) -> u64 {
        self.sent[kind as usize].fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Threads that send until they are stopped.
pub(crate) struct Senders {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<TestResult>>,
}

impl Senders {
    /// The last CPU is the flood's alone, if there are several.
    pub(crate) fn start(hosts: &Hosts, handler: &Arc<Soaked>) -> Result<Self> {
        let cpus = cpu::usable()?;
        let (last, others) = cpus.split_last().context("no CPU")?;
        let others = if others.is_empty() { &cpus[..] } else { others };
        let shared = Arc::<Shared>::default();
        let mut senders = Self { shared: shared.clone(), threads: Vec::new() };
        let mut spawn = |cpu: usize, send: Box<dyn FnOnce() -> TestResult + Send>| {
            senders.threads.push(std::thread::spawn(move || {
                cpu::pin_to(cpu)?;
                send()
            }));
        };
        let at = |number: usize| others[number % others.len()];
        let (of, to) = (Sender::open(hosts, 0, Kind::Hop)?, others.to_vec());
        let (with, seen) = (shared.clone(), handler.clone());
        spawn(at(0), Box::new(move || hop(of, &to, &with, &seen)));
        let (of, with) = (Sender::open(hosts, 0, Kind::Burst)?, shared.clone());
        spawn(at(1), Box::new(move || burst(of, &with)));
        for (number, kind) in [(2, Kind::Slow), (0, Kind::Later)] {
            let (of, with) = (Sender::open(hosts, 0, kind)?, shared.clone());
            spawn(at(number), Box::new(move || steady(of, &with)));
        }
        let (of, with) = (Sender::open(hosts, 2, Kind::Flood)?, shared.clone());
        spawn(*last, Box::new(move || flood(of, &with)));
        Ok(senders)
    }

    /// Goes on; there is a flood in every second round.
    pub(crate) fn go_on(&self, round: usize) {
        self.shared.floods.store(round % 2 == 1, Ordering::SeqCst);
        self.shared.rests.store(false, Ordering::SeqCst);
    }

    /// Nobody sends any more when this returns.
    ///
    /// # Errors
    /// When one of them hangs.
    pub(crate) fn rest(&self) -> TestResult {
        let begun = Instant::now();
        self.shared.rests.store(true, Ordering::SeqCst);
        let all = || self.shared.resting.load(Ordering::SeqCst) == self.threads.len();
        while !all() && !self.threads.iter().any(JoinHandle::is_finished) {
            ensure!(begun.elapsed() < SOON, "a sender hangs");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends the threads; gives how many packets each kind had.
    pub(crate) fn stop(self) -> Result<[u64; 5]> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut ended = self.threads.into_iter().map(JoinHandle::join);
        ended.try_for_each(|end| end.ok().context("a sender panicked")?)?;
        Ok(std::array::from_fn(|kind| self.shared.sent[kind].load(Ordering::Relaxed)))
    }
}

/// Three flows in turn, from one CPU after the other.
fn hop(mut sender: Sender, cpus: &[usize], shared: &Shared, handler: &Soaked) -> TestResult {
    for number in 0.. {
        if !shared.goes_on() {
            break;
        }
        if number % HOP_EVERY == 0 {
            cpu::pin_to(cpus[(number / HOP_EVERY) as usize % cpus.len()])?;
        }
        let begun = Instant::now();
        while handler.seen(Kind::Hop).packets() + WINDOW <= number && begun.elapsed() < WINDOW_LIMIT
        {
            std::thread::sleep(Duration::from_micros(200));
        }
        sender.send(number as u32 % HOPPERS, number as u32 / HOPPERS)?;
        shared.sent(sender.kind);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Flow after flow, each with a burst.
fn burst(mut sender: Sender, shared: &Shared) -> TestResult {
    for flow in 0.. {
        if !shared.goes_on() {
            break;
        }
        for seq in 0..BURST {
            sender.send(flow, seq)?;
            shared.sent(sender.kind);
        }
        std::thread::sleep(Duration::from_millis(40));
    }
    Ok(())
}

/// Some flows in turn, without haste.
fn steady(mut sender: Sender, shared: &Shared) -> TestResult {
    for number in 0.. {
        if !shared.goes_on() {
            break;
        }
        sender.send(number % FLOWS, number / FLOWS)?;
        shared.sent(sender.kind);
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// As fast as it goes, of ever new flows.
fn flood(mut sender: Sender, shared: &Shared) -> TestResult {
    while shared.goes_on() {
        if shared.floods.load(Ordering::SeqCst) {
            let number = shared.sent(sender.kind) as u32;
            sender.send(number, 0)?;
        } else {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}
