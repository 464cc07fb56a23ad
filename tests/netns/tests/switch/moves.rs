//! Sixty-four hosts in four VLANs, whose stations move about: no packet leaves its VLAN, every request is
//! answered, no flow outlives what it was right for, and memory stays as it is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_tests::{Lab, TestResult, ctl, ctl_json, tell};
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, RawSocket, VlanTag};

use super::{BROADCAST, lab};

const HOSTS: usize = 64;
const VLANS: usize = 4;
const STATIONS: usize = 96;
/// One step in so many is a move; one in so many others sends what its port does not carry.
const MOVE_EVERY: u64 = 8;
const STRAY_EVERY: u64 = 16;
/// How long a request may go unanswered: after a move flows are wrong until they are looked at.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long one attempt waits.
const ATTEMPT: Duration = Duration::from_millis(100);
/// A station that moved is followed by flows within this time; emulated machines are slow.
const SETTLED: Duration = Duration::from_secs(2);
/// Names how long this test runs, in seconds: `UPCALL_MOVES_SECONDS=300 cargo xtask test --filter moves::`, which
/// passes it on to guests.
const SECONDS: &str = "UPCALL_MOVES_SECONDS";
const SECONDS_DEFAULT: u64 = 8;

fn vlan_of(host: usize) -> u16 {
    10 * (1 + (host % VLANS) as u16)
}

fn config() -> String {
    let port = |host| format!("[port.p{host}]\naccess = {}\n", vlan_of(host));
    (0..HOSTS).map(port).collect::<Vec<_>>().concat()
}

/// Numbers that are as good as random, the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// A station, and where it is.
#[derive(Clone, Copy)]
struct Station {
    mac: [u8; 6],
    host: usize,
    moved: Option<Instant>,
}

/// The network, as it should be.
struct World {
    links: Vec<RawSocket>,
    stations: Vec<Station>,
    dice: Dice,
    number: u32,
    figures: Figures,
}

#[derive(Debug, Default)]
struct Figures {
    requests: u64,
    moves: u64,
    strays: u64,
    /// Attempts beyond the first.
    repeated: u64,
    longest: Duration,
    heard: u64,
}

impl World {
    fn new(lab: &Lab) -> Result<Self> {
        let open = |host: &upcall_testkit::Host| RawSocket::open(&host.ns, HOST_LINK);
        let links = lab.hosts.iter().map(open).collect::<upcall_testkit::Result<_>>()?;
        let station = |number: usize| Station {
            mac: [2, 0x53, 0, 0, 0, number as u8],
            host: number % HOSTS,
            moved: None,
        };
        let stations = (0..STATIONS).map(station).collect();
        Ok(Self {
            links,
            stations,
            dice: Dice(0x9e37_79b9_7f4a_7c15),
            number: 0,
            figures: Figures::default(),
        })
    }

    fn frame(&self, from: usize, to: [u8; 6]) -> Vec<u8> {
        let (station, mut payload) = (self.stations[from], [0; 46]);
        payload[..4].copy_from_slice(&self.number.to_be_bytes());
        payload[4..6].copy_from_slice(&vlan_of(station.host).to_be_bytes());
        Frame::new(station.mac, to).raw(ETHERTYPE_EXPERIMENTAL, &payload)
    }

    /// Hears what has arrived anywhere; did `wanted` arrive at `host`?
    fn listen(&mut self, host: usize, wanted: &[u8]) -> Result<bool> {
        let mut found = false;
        for (at, link) in self.links.iter_mut().enumerate() {
            while let Some(bytes) = link.receive(Duration::ZERO)? {
                if bytes.get(12..14) != Some(&ETHERTYPE_EXPERIMENTAL.to_be_bytes()) {
                    ensure!(bytes.get(12..14) != Some(&[0x81, 0]), "a tag at p{at}: {bytes:02x?}");
                    continue;
                }
                let vlan = u16::from_be_bytes([bytes[18], bytes[19]]);
                ensure!(vlan == vlan_of(at), "a packet of VLAN {vlan} at p{at}: {bytes:02x?}");
                self.figures.heard += 1;
                found |= at == host && bytes == wanted;
            }
        }
        Ok(found)
    }

    /// Sends from one station to another until it arrives.
    fn deliver(&mut self, from: usize, to: usize) -> TestResult {
        let settled = |s: &Station| s.moved.is_none_or(|at| at.elapsed() > SETTLED);
        let is_settled = settled(&self.stations[from]) && settled(&self.stations[to]);
        let started = Instant::now();
        loop {
            self.number += 1;
            let frame = self.frame(from, self.stations[to].mac);
            self.links[self.stations[from].host].send(&frame)?;
            let attempt = Instant::now();
            let limit = if is_settled { ANSWER_LIMIT } else { ATTEMPT };
            while attempt.elapsed() < limit {
                if self.listen(self.stations[to].host, &frame)? {
                    self.figures.longest = self.figures.longest.max(started.elapsed());
                    return Ok(());
                }
            }
            ensure!(!is_settled, "lost between stations {from} and {to}, neither of which moved");
            ensure!(started.elapsed() < ANSWER_LIMIT, "station {to} is not followed from {from}");
            self.figures.repeated += 1;
        }
    }

    /// A station turns up behind another port of its VLAN and says so.
    fn relocate(&mut self) -> TestResult {
        let at = self.dice.roll(STATIONS as u64) as usize;
        let hop = VLANS * (1 + self.dice.roll((HOSTS / VLANS - 1) as u64) as usize);
        self.stations[at].host = (self.stations[at].host + hop) % HOSTS;
        self.stations[at].moved = Some(Instant::now());
        self.number += 1;
        let hello = self.frame(at, BROADCAST);
        self.figures.moves += 1;
        Ok(self.links[self.stations[at].host].send(&hello)?)
    }

    /// Somebody sends with the tag of another VLAN, which nobody may hear.
    fn stray(&mut self) -> TestResult {
        let host = self.dice.roll(HOSTS as u64) as usize;
        let other = vlan_of(host + 1 + self.dice.roll(VLANS as u64 - 1) as usize);
        // It says a VLAN that no port is in: heard anywhere, it is a leak.
        let frame = Frame::new([2, 0x53, 0, 0, 1, host as u8], BROADCAST).vlan(VlanTag::new(other));
        self.figures.strays += 1;
        Ok(self.links[host].send(&frame.raw(ETHERTYPE_EXPERIMENTAL, &[0xff; 46]))?)
    }

    fn step(&mut self) -> TestResult {
        if self.dice.roll(MOVE_EVERY) == 0 {
            self.relocate()?;
        }
        if self.dice.roll(STRAY_EVERY) == 0 {
            self.stray()?;
        }
        let from = self.dice.roll(STATIONS as u64) as usize;
        let others = (STATIONS / VLANS - 1) as u64;
        let to = (from + VLANS * (1 + self.dice.roll(others) as usize)) % STATIONS;
        if self.stations[from].host == self.stations[to].host {
            // They hear each other without a switch.
            return Ok(());
        }
        self.deliver(from, to)?;
        self.deliver(to, from)?;
        self.figures.requests += 1;
        Ok(())
    }

    /// What the switch believes, for the one who asks why a step failed.
    fn beside(&self, lab: &Lab) -> String {
        let wrong = lab.flows().map(|mut flows| {
            flows.retain(|flow| !self.is_right(flow));
            flows
        });
        let known = ctl(lab, &["fdb/show"]).unwrap_or_else(|err| err.to_string());
        format!("{:?}; wrong flows: {wrong:#?}; stations:\n{known}", self.figures)
    }

    /// A flow is right if both its stations are where it says.
    fn is_right(&self, flow: &netns_tests::FlowText) -> bool {
        let port = |mac: &str| {
            let text = |s: &&Station| s.mac.map(|byte| format!("{byte:02x}")).join(":") == mac;
            self.stations.iter().find(text).map(|station| (station.host + 1).to_string())
        };
        let value = |name: &str| flow.key.split(name).nth(1)?.split([',', ')']).next();
        if flow.actions == "drop" {
            // Of strays; or between two stations behind one port.
            return flow.key.contains("vlan(")
                || value("src=").and_then(port) == value("dst=").and_then(port);
        }
        value("in_port(").map(str::to_owned) == value("src=").and_then(port)
            && Some(flow.actions.clone()) == value("dst=").and_then(port)
    }
}

fn resident_kb(lab: &Lab) -> Result<u64> {
    ctl_json(lab, "memory/show")?["resident-kB"].as_u64().context("no resident-kB")
}

/// From then on all that is made once has been made by a third of the time.
const LONG: Duration = Duration::from_mins(2);

#[test]
fn stations_that_move_among_vlans_are_followed_and_kept_apart() -> TestResult {
    let seconds = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok());
    let length = Duration::from_secs(seconds.unwrap_or(SECONDS_DEFAULT));
    let lab = lab(HOSTS, &config(), |builder| builder.option("--flow-idle", "1m"))?;
    let mut world = World::new(&lab)?;
    let (started, mut early_kb) = (Instant::now(), None);
    while started.elapsed() < length {
        world.step().with_context(|| world.beside(&lab))?;
        if early_kb.is_none() && started.elapsed() > length / 3 {
            early_kb = Some(resident_kb(&lab)?);
        }
    }
    let (early_kb, late_kb) = (early_kb.context("it was too short")?, resident_kb(&lab)?);
    tell(&format!("{:?} in {length:?}; resident {early_kb} kB, then {late_kb} kB", world.figures));
    // What workers touch for the first time, they may touch late in a short run.
    let growth_kb = if length < LONG { 4096 } else { 1024 };
    ensure!(late_kb < early_kb + growth_kb, "memory grows: {early_kb} kB, then {late_kb} kB");
    ensure!(world.figures.moves > 10 && world.figures.strays > 5, "{:?}", world.figures);
    let flows = lab
        .wait_flows("no flow to be wrong", |flows| flows.iter().all(|flow| world.is_right(flow)))?;
    ensure!(flows.len() > STATIONS / 4, "{} flows", flows.len());
    let stats = lab.finish_after_races()?;
    ensure!(stats.kernel_lost == 0 && stats.shed == 0, "{stats:?}");
    Ok(())
}
