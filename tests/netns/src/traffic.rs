//! Steady traffic of new flows between two hosts, counted.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ovs_features::cpu;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::{Order, Pace, Plan, RawFlows, Receiver, Sent};
use upcall_testkit::{Frame, Host, Hosts, PingPlan, RawSocket, Tally, Totals, ping};

use crate::SOON;

/// Where the packets go: a port of the second host.
const PORT: u16 = 7000;
/// Source port of the first flow; each flow has its own.
const FIRST_SOURCE_PORT: u16 = 10_000;

/// Time without an arrival behind the end of sending after which what is missing is lost, on a busy machine as well.
const AT_REST: Duration = Duration::from_secs(8);

/// Flows of a few packets each, one flow after the other, at a steady rate.
#[derive(Clone, Debug)]
pub struct Load {
    /// Flows, each with a source port of its own: at most 50,000.
    pub flows: u16,
    /// Packets of each, one behind the other.
    pub packets_per_flow: u32,
    /// Flows that begin each second.
    pub flows_per_second: u32,
    /// The CPU to send from; `None` leaves it to the scheduler.
    pub cpu: Option<usize>,
}

impl Default for Load {
    /// 300 flows of four packets, 250 new flows a second.
    fn default() -> Self {
        Self { flows: 300, packets_per_flow: 4, flows_per_second: 250, cpu: None }
    }
}

/// Traffic that is being sent.
#[derive(Debug)]
pub struct Traffic {
    load: Load,
    receiver: Receiver,
    sender: thread::JoinHandle<Result<Sent>>,
}

impl Traffic {
    /// From one CPU, so that no packet of a flow overtakes another on its way to the datapath.
    ///
    /// # Errors
    /// As [`Traffic::start`].
    pub fn pinned(hosts: &Hosts) -> Result<Self> {
        Self::start(hosts, Load { cpu: Some(last_cpu()?), ..Load::default() })
    }

    /// From the CPUs that the scheduler chooses.
    ///
    /// # Errors
    /// As [`Traffic::start`].
    pub fn roaming(hosts: &Hosts) -> Result<Self> {
        Self::start(hosts, Load::default())
    }

    /// From the first host to the second, which know each other already.
    ///
    /// # Errors
    /// When the hosts do not reach each other, and what the kernel refuses.
    pub fn start(hosts: &Hosts, load: Load) -> Result<Self> {
        Self::between(&hosts[0], &hosts[1], load)
    }

    /// From one host to another, which know each other already.
    ///
    /// # Errors
    /// As [`Traffic::start`].
    pub fn between(from: &Host, to: &Host, load: Load) -> Result<Self> {
        let plan = PingPlan { count: 3, ..PingPlan::default() };
        let pings = ping::ping(&from.ns, to.ip4, &plan)?;
        ensure!(pings.answered > 0, "{pings:?}");
        let address = SocketAddr::from((to.ip4, PORT));
        // Two CPUs that answer could otherwise deliver in another order than they answered in.
        to.ns.receive_on(HOST_LINK, 0)?;
        let receiver = Receiver::udp(&to.ns, address)?;
        let link = RawSocket::sender(&from.ns, HOST_LINK)?;
        let (frame, ip) = (Frame::new(from.mac, to.mac), from.ip4);
        let plan = load.plan();
        let sender = thread::spawn(move || {
            let mut flows = RawFlows::new(&link, |flow, payload: &[u8]| {
                let from = SocketAddr::from((ip, FIRST_SOURCE_PORT + flow as u16));
                frame.udp(from, address, payload)
            });
            Ok(plan.send(&mut flows)?)
        });
        Ok(Self { load, receiver, sender })
    }

    /// Waits until this share of the packets has arrived.
    ///
    /// # Errors
    /// When they do not.
    pub fn wait(&self, percent: u64) -> Result<()> {
        Ok(self.receiver.wait_received(self.load.packets() * percent / 100, SOON)?)
    }

    /// Does it go on?
    pub fn goes_on(&self) -> bool {
        !self.sender.is_finished()
    }

    /// Waits for the end, and for what is under way; what never came is in the totals.
    ///
    /// # Errors
    /// When sending or receiving failed.
    pub fn finish(self) -> Result<Totals> {
        Ok(self.finish_whole()?.0.totals())
    }

    /// As [`Traffic::finish`], with all that is known of each flow, and how long sending took.
    ///
    /// # Errors
    /// As [`Traffic::finish`].
    pub fn finish_whole(self) -> Result<(Tally, Sent)> {
        let sent = self.sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        for flow in 0..self.load.flows {
            self.receiver.expect(flow.into(), self.load.packets_per_flow);
        }
        // What does not come is told by the tally.
        let _ = self.receiver.wait_received(self.load.packets(), AT_REST);
        Ok((self.receiver.stop()?, sent))
    }
}

impl Load {
    fn packets(&self) -> u64 {
        u64::from(self.flows) * u64::from(self.packets_per_flow)
    }

    fn plan(&self) -> Plan {
        let pace = Pace::PerSecond(self.flows_per_second * self.packets_per_flow);
        let cpus = self.cpu.into_iter().collect();
        let plan = Plan::new(self.flows.into(), self.packets_per_flow);
        Plan { order: Order::FlowByFlow, pace, cpus, ..plan }
    }
}

/// The highest CPU that the test may use.
///
/// # Errors
/// When the kernel does not tell.
pub fn last_cpu() -> Result<usize> {
    cpu::usable()?.last().copied().context("no CPU")
}

/// All packets arrived, each once.
///
/// # Errors
/// When they did not.
pub fn ensure_all(totals: &Totals) -> Result<()> {
    ensure!(totals.received > 0 && totals.lost == 0, "{totals:?}");
    ensure!(totals.duplicates == 0, "{totals:?}");
    Ok(())
}
