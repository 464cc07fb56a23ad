//! Steady traffic between two hosts, counted.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns_tests::SOON;
use ovs_features::cpu;
use upcall_testkit::traffic::{Order, Pace, Plan, Receiver, UdpFlows};
use upcall_testkit::{Hosts, PingPlan, Totals, ping};

const FLOWS: u32 = 300;
const PACKETS: u32 = 4;
/// Packets a second over all flows.
const RATE: u32 = 1000;

/// The traffic of one test: flows of a few packets each, one flow after the other, at a steady rate.
pub(crate) struct Traffic {
    receiver: Receiver,
    sender: thread::JoinHandle<Result<()>>,
}

impl Traffic {
    /// From one CPU: a flow that changes its CPU changes its socket, and no order across sockets is
    /// promised yet.
    pub(crate) fn pinned(hosts: &Hosts) -> Result<Self> {
        Self::start(hosts, vec![*cpu::usable()?.last().context("no CPU")?])
    }

    /// From the CPUs that the scheduler chooses.
    pub(crate) fn roaming(hosts: &Hosts) -> Result<Self> {
        Self::start(hosts, Vec::new())
    }

    /// From the first host to the second, which know each other already.
    fn start(hosts: &Hosts, cpus: Vec<usize>) -> Result<Self> {
        let plan = PingPlan { count: 3, timeout: Duration::from_secs(5), ..PingPlan::default() };
        let pings = ping::ping(&hosts[0].ns, hosts[1].ip4, &plan)?;
        ensure!(pings.answered > 0, "{pings:?}");
        let to = SocketAddr::from((hosts[1].ip4, 7000));
        let receiver = Receiver::udp(&hosts[1].ns, to)?;
        let mut flows = UdpFlows::open(&hosts[0].ns, to, 0, FLOWS)?;
        let (order, pace) = (Order::FlowByFlow, Pace::PerSecond(RATE));
        let plan = Plan { order, pace, cpus, ..Plan::new(FLOWS, PACKETS) };
        let sender = thread::spawn(move || plan.send(&mut flows).map(drop).map_err(Into::into));
        Ok(Self { receiver, sender })
    }

    /// Waits until this share of the packets has arrived.
    pub(crate) fn wait(&self, percent: u64) -> Result<()> {
        let packets = u64::from(FLOWS * PACKETS) * percent / 100;
        Ok(self.receiver.wait_received(packets, SOON)?)
    }

    /// Does it go on?
    pub(crate) fn goes_on(&self) -> bool {
        !self.sender.is_finished()
    }

    pub(crate) fn finish(self) -> Result<Totals> {
        self.sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        for flow in 0..FLOWS {
            self.receiver.expect(flow, PACKETS);
        }
        // What does not come is told by the tally.
        let _ = self.receiver.wait_received(u64::from(FLOWS * PACKETS), SOON);
        Ok(self.receiver.stop()?.totals())
    }
}

pub(crate) fn ensure_all(totals: &Totals) -> Result<()> {
    let packets = u64::from(FLOWS * PACKETS);
    ensure!(totals.received == packets && totals.lost == 0, "{totals:?}");
    ensure!(totals.duplicates == 0, "{totals:?}");
    Ok(())
}
