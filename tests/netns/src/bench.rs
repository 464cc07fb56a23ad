//! A datapath whose upcalls the test itself reads.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use netlink_io::Socket;
use ovs_datapath::Control;
use ovs_features::{DispatchMode, cpu};
use ovs_wire::datapath::{Datapath, DatapathStats, UserFeatures};
use ovs_wire::key::{FlowKey, KeyAttr};
use ovs_wire::nl::NlMsgs;
use ovs_wire::packet::{Execute, Upcall};
use ovs_wire::vport::VportType;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, HostsConfig, RawSocket, wait_until};

use crate::{SOON, station};

/// Receive buffer of each upcall socket in bytes.
const RECV_BUFFER_BYTES: usize = 1 << 20;
/// Ethertype of [`Bench::fence`].
const ETHERTYPE_FENCE: u16 = 0x88b6;

/// A datapath `dp0` with the ports `p0` (number 1), `p1` (number 2), … and a host behind each; its
/// upcalls go to [`Bench::sockets`] and nobody answers them but the test.
///
/// The test's thread runs in the switch namespace and stays on CPU 0, where its frames are handled
/// within the call that sends them.
#[derive(Debug)]
pub struct Bench {
    /// The namespaces.
    pub hosts: Hosts,
    /// Control plane.
    pub control: Control,
    /// The datapath as it was created.
    pub dp: Datapath,
    /// How upcalls are dispatched.
    pub mode: DispatchMode,
    /// One for each CPU, or one for each port from port 1 on.
    pub sockets: Vec<Socket>,
    /// A packet socket on each host's link.
    pub links: Vec<RawSocket>,
    buffer: Vec<u8>,
}

/// An upcall that was read, with the index of its socket.
#[derive(Debug)]
pub struct Got {
    /// Index in [`Bench::sockets`].
    pub socket: usize,
    payload: Vec<u8>,
}

impl Got {
    /// Its parts.
    ///
    /// # Panics
    /// If it is none.
    pub fn upcall(&self) -> Upcall<'_> {
        Upcall::parse(&self.payload).expect("the kernel sends an upcall")
    }

    /// Attribute types of the message, in the kernel's order.
    ///
    /// # Panics
    /// If it is malformed.
    pub fn attributes(&self) -> Vec<u16> {
        let attrs = ovs_wire::Attrs::new(&self.payload[ovs_wire::nl::OVS_HDR_LEN..]);
        attrs.map(|attr| attr.expect("well-formed").kind).collect()
    }

    /// The same message with its attributes in the opposite order.
    ///
    /// # Panics
    /// If it is malformed.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let (header, body) = self.payload.split_at(ovs_wire::nl::OVS_HDR_LEN);
        let attrs: Vec<_> =
            ovs_wire::Attrs::new(body).map(|attr| attr.expect("well-formed")).collect();
        let mut payload = header.to_vec();
        let mut builder = ovs_wire::AttrBuilder::new(&mut payload);
        for attr in attrs.iter().rev() {
            builder.bytes(attr.kind, attr.payload);
        }
        Self { socket: self.socket, payload }
    }
}

/// Runs a test on a datapath with `hosts` hosts.
///
/// # Errors
/// What the test fails with.
pub fn bench(
    hosts: usize,
    mode: DispatchMode,
    test: impl AsyncFnOnce(&mut Bench) -> Result<()> + Send,
) -> Result<()> {
    bench_with(&HostsConfig::new(hosts), mode, test)
}

/// Runs a test on a datapath among such hosts.
///
/// # Errors
/// What the test fails with.
pub fn bench_with(
    config: &HostsConfig,
    mode: DispatchMode,
    test: impl AsyncFnOnce(&mut Bench) -> Result<()> + Send,
) -> Result<()> {
    let hosts = Hosts::with(config)?;
    let switch = hosts.switch.clone();
    switch.block_on(async move || {
        cpu::pin_to(0).context("stay on CPU 0")?;
        let mut bench = Bench::open(hosts, mode).await?;
        test(&mut bench).await
    })?
}

impl Bench {
    async fn open(hosts: Hosts, mode: DispatchMode) -> Result<Self> {
        let control = Control::open().await?;
        let dp = control.create_datapath("dp0", UserFeatures::UNALIGNED).await?;
        let count = match mode {
            DispatchMode::PerCpu => cpu::table_len()?,
            DispatchMode::PerVport => hosts.len(),
        };
        let mut sockets = Vec::new();
        for _ in 0..count {
            let socket = Socket::open()?;
            socket.set_recv_buffer(RECV_BUFFER_BYTES)?;
            sockets.push(socket);
        }
        let links = hosts
            .iter()
            .map(|host| RawSocket::open(&host.ns, HOST_LINK))
            .collect::<Result<_, _>>()?;
        let bench = Self { hosts, control, dp, mode, sockets, links, buffer: vec![0; 72 << 10] };
        bench.dispatch().await?;
        for (index, host) in bench.hosts.iter().enumerate() {
            let pid = match mode {
                DispatchMode::PerCpu => 0,
                DispatchMode::PerVport => bench.sockets[index].port_id(),
            };
            let kind = VportType::Netdev;
            let port = bench.control.add_vport(&bench.dp, kind, &host.port, None, pid).await?;
            ensure!(port.port_no == index as u32 + 1, "ports are numbered from 1: {port:?}");
        }
        Ok(bench)
    }

    async fn dispatch(&self) -> Result<()> {
        if self.mode == DispatchMode::PerCpu {
            let table: Vec<u32> = self.sockets.iter().map(Socket::port_id).collect();
            self.set_table(&table).await?;
        }
        Ok(())
    }

    /// Replaces the per-CPU table.
    ///
    /// # Errors
    /// What the kernel refuses it with.
    pub async fn set_table(&self, table: &[u32]) -> Result<()> {
        let features = UserFeatures::UNALIGNED | UserFeatures::DISPATCH_UPCALL_PER_CPU;
        Ok(self.control.set_datapath(&self.dp, features, Some(table)).await?)
    }

    /// The datapath's counters now.
    ///
    /// # Errors
    /// If it is gone.
    pub async fn stats(&self) -> Result<DatapathStats> {
        Ok(self.control.datapath("dp0").await?.context("the datapath is gone")?.stats)
    }

    /// Asks for the datapath's counters until they satisfy `wanted`.
    ///
    /// # Errors
    /// When they do not in time.
    pub async fn wait_stats(
        &self,
        what: &str,
        wanted: impl Fn(&DatapathStats) -> bool,
    ) -> Result<DatapathStats> {
        let deadline = Instant::now() + SOON;
        loop {
            let stats = self.stats().await?;
            if wanted(&stats) {
                return Ok(stats);
            }
            ensure!(Instant::now() < deadline, "waited for {what}, in vain: {stats:?}");
        }
    }

    /// Everything that has come up and was not read yet.
    ///
    /// # Errors
    /// When a socket cannot be read, or holds what is no message from the kernel's packet family.
    pub fn pending(&mut self) -> Result<Vec<Got>> {
        let family = self.control.families().packet.id;
        let mut all = Vec::new();
        for (index, socket) in self.sockets.iter().enumerate() {
            while let Some(datagram) = socket.recv(&mut self.buffer)? {
                ensure!(!datagram.is_truncated(), "an upcall of {} bytes", datagram.full_len);
                for msg in NlMsgs::new(&self.buffer[..datagram.len]) {
                    let msg = msg?;
                    ensure!((msg.kind, msg.portid) == (family, 0), "not an upcall: {msg:?}");
                    all.push(Got { socket: index, payload: msg.payload.to_vec() });
                }
            }
        }
        Ok(all)
    }

    /// Waits until `count` upcalls have come up.
    ///
    /// # Errors
    /// When they do not, or more do.
    pub fn upcalls(&mut self, what: &str, count: usize) -> Result<Vec<Got>> {
        let (mut got, mut failed) = (Vec::new(), None);
        let waited = wait_until(what, SOON, || match self.pending() {
            Ok(more) => {
                got.extend(more);
                got.len() >= count
            }
            Err(err) => {
                failed = Some(err);
                true
            }
        });
        failed.map_or(Ok(()), Err)?;
        waited.with_context(|| format!("{} upcalls of {count} came up", got.len()))?;
        ensure!(got.len() == count, "{what}: {} upcalls instead of {count}", got.len());
        Ok(got)
    }

    /// Waits for the one upcall that is on its way.
    ///
    /// # Errors
    /// When none or several come up.
    pub fn upcall(&mut self, what: &str) -> Result<Got> {
        Ok(self.upcalls(what, 1)?.remove(0))
    }

    /// Sends a frame from a host and reads the upcall that it causes.
    ///
    /// # Errors
    /// When it causes none or several.
    pub fn miss(&mut self, host: usize, frame: &[u8]) -> Result<Got> {
        self.links[host].send(frame)?;
        self.upcall("the upcall of a frame that no flow matches")
    }

    /// What came up before a frame that comes up for sure: sent from `host` now, with an ethertype
    /// of its own. What was sent before from this thread has been dealt with when it returns.
    ///
    /// # Errors
    /// When the fence does not come up.
    pub fn fence(&mut self, host: usize) -> Result<Vec<Got>> {
        let frame = Frame::new(station(0xfe), station(0xff)).raw(ETHERTYPE_FENCE, &[0; 46]);
        self.links[host].send(&frame)?;
        let (mut got, mut failed) = (Vec::new(), None);
        wait_until("the fence's upcall", SOON, || match self.pending() {
            Ok(more) => {
                got.extend(more);
                got.iter().any(is_fence)
            }
            Err(err) => {
                failed = Some(err);
                true
            }
        })?;
        failed.map_or(Ok(()), Err)?;
        got.retain(|got| !is_fence(got));
        Ok(got)
    }

    /// Gives a packet to the datapath as if it had come in by the port of `host`.
    ///
    /// # Errors
    /// What the kernel refuses it with.
    pub async fn execute(
        &self,
        host: usize,
        packet: &[u8],
        actions: &[u8],
    ) -> Result<(), ovs_datapath::ControlError> {
        let mut key = Vec::new();
        KeyAttr::InPort(host as u32 + 1).write(&mut ovs_wire::AttrBuilder::new(&mut key));
        let execute = Execute {
            dp_ifindex: self.dp.ifindex,
            packet,
            key: &key,
            actions,
            mru: None,
            hash: None,
            upcall_pid: None,
        };
        self.control.execute(&execute).await
    }

    /// The next frame that reaches `host`.
    ///
    /// # Errors
    /// When none does.
    pub fn arrival(&mut self, host: usize) -> Result<Vec<u8>> {
        self.links[host].receive(SOON)?.with_context(|| format!("no frame reaches host {host}"))
    }
}

fn is_fence(got: &Got) -> bool {
    let key = FlowKey::new(got.upcall().key).summary();
    key.is_ok_and(|key| key.eth_type == ETHERTYPE_FENCE)
}
