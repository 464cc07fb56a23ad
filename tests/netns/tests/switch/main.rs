//! What keeps ports of the learning switch apart and within bounds: VLANs, limits of addresses, static
//! addresses, flood control.
#![allow(missing_docs, reason = "a test binary")]

mod bounds;
mod latest;
mod moves;
mod vlans;

use anyhow::Result;
use netns_tests::{Lab, SOON, station};
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket, UpcalldBuilder, VlanTag};

/// A switch whose configuration file is `config`.
fn lab(
    hosts: usize,
    config: &str,
    configure: impl FnOnce(UpcalldBuilder) -> UpcalldBuilder,
) -> Result<Lab> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), config)?;
    let path = file.path().display().to_string();
    // Read by the time that it is ready.
    Lab::start(Hosts::new(hosts)?, |builder| configure(builder.option("--config", &path)))
}

/// A frame between two stations; its number tells it from others.
#[derive(Clone, Copy, Debug)]
struct Packet {
    from: [u8; 6],
    to: [u8; 6],
    number: u32,
}

impl Packet {
    fn bytes(self, tag: Option<VlanTag>) -> Vec<u8> {
        let mut payload = [0; 46];
        payload[..4].copy_from_slice(&self.number.to_be_bytes());
        let frame = Frame::new(self.from, self.to);
        let frame = tag.into_iter().fold(frame, Frame::vlan);
        frame.raw(ETHERTYPE_EXPERIMENTAL, &payload)
    }
}

/// Ears and a voice on the link of every host.
struct Links {
    ends: Vec<RawSocket>,
    /// What each may send that reaches another one, and which.
    behind: Vec<(Option<VlanTag>, usize)>,
    number: u32,
}

/// Where a packet arrived, and with which tag.
type Arrivals = Vec<(usize, Option<VlanTag>)>;

impl Links {
    /// The thread stays on CPU 0, so that frames are switched in the order they were sent.
    fn new(lab: &Lab, behind: &[(Option<VlanTag>, usize)]) -> Result<Self> {
        ovs_features::cpu::pin_to(0)?;
        let open = |host: &upcall_testkit::Host| RawSocket::open(&host.ns, HOST_LINK);
        let ends = lab.hosts.iter().map(open).collect::<upcall_testkit::Result<_>>()?;
        Ok(Self { ends, behind: behind.to_vec(), number: 0 })
    }

    fn packet(&mut self, from: [u8; 6], to: [u8; 6]) -> Packet {
        self.number += 1;
        Packet { from, to, number: self.number }
    }

    fn send(&self, from: usize, frame: &[u8]) -> Result<()> {
        Ok(self.ends[from].send(frame)?)
    }

    /// Sends a packet and tells where it arrives and how. `marks` are, for each host, who broadcasts to
    /// it behind the packet and with which tag: when that has come, what has not come does not come.
    fn reach(
        &mut self,
        (from, tag): (usize, Option<VlanTag>),
        packet: Packet,
        marks: &[(usize, Option<VlanTag>)],
    ) -> Result<Arrivals> {
        self.send(from, &packet.bytes(tag))?;
        let mut arrivals = Vec::new();
        // Ports may have workers of their own: first what the same port sends behind it.
        if let Some(&(tag, to)) = self.behind.get(from) {
            self.mark((from, tag), to, packet, &mut arrivals)?;
        }
        for (host, voice) in marks.iter().enumerate() {
            self.mark(*voice, host, packet, &mut arrivals)?;
        }
        arrivals.sort_by_key(|(host, _)| *host);
        Ok(arrivals)
    }

    /// Sends a broadcast, and reads what comes to a host until that does.
    fn mark(
        &mut self,
        (voice, tag): (usize, Option<VlanTag>),
        host: usize,
        packet: Packet,
        arrivals: &mut Arrivals,
    ) -> Result<()> {
        let mark = self.packet([2, 0x4d, 0, 0, 0, voice as u8], BROADCAST);
        self.send(voice, &mark.bytes(tag))?;
        // It may come with any tag or none; its number is that of no other.
        let bytes = mark.bytes(None);
        let end = &bytes[12..];
        self.ends[host].receive_matching("the broadcast behind a packet", SOON, |got| {
            let form = forms().into_iter().find(|tag| got == packet.bytes(*tag));
            arrivals.extend(form.map(|tag| (host, tag)));
            got.ends_with(end)
        })?;
        Ok(())
    }

    /// Waits until a packet arrives at a host.
    fn wait(&mut self, host: usize, packet: Packet) -> Result<()> {
        let bytes = packet.bytes(None);
        self.ends[host].receive_matching("a packet", SOON, |got| got == bytes)?;
        Ok(())
    }
}

/// Every form that a packet may arrive in.
fn forms() -> Vec<Option<VlanTag>> {
    let tags = [10, 20, 30].map(VlanTag::new);
    let urgent = [0, 10, 20, 30].map(|id| VlanTag::new(id).priority(5));
    let all = tags.into_iter().chain(urgent).chain([VlanTag::service(10)]);
    std::iter::once(None).chain(all.map(Some)).collect()
}

const BROADCAST: [u8; 6] = [0xff; 6];

fn mac(number: usize) -> [u8; 6] {
    station(number as u8 + 1)
}
