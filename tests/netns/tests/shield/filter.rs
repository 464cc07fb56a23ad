//! Both programs that refuse upcalls, on messages of a real kernel: the filter, and the one that records arrivals.

use anyhow::{Context as _, Result, ensure};
use netlink_io::{Alike, FilterInsn};
use netns_tests::{Bench, Got, TestResult, bench_with, has_per_cpu, station};
use ovs_features::DispatchMode;
use ovs_wire::action::USERSPACE_PID_PER_CPU;
use ovs_wire::filter::{Insn, PortShare, sample_ports};
use ovs_wire::key::{KeyAttr, kind};
use ovs_wire::packet::Execute;
use ovs_wire::{Action, ActionBuf, AttrBuilder, FlowKey};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use upcall_testkit::{Frame, HostsConfig, VlanTag};

/// Enough for a frame that does not fit a page, whose upcall is not copied.
const MTU: u32 = 9000;
/// Where an upcall has its key, and what of it.
const UPCALL: Alike = Alike { at: 24, max: 132, word: kind::IN_PORT };
/// Payload of a frame larger than a page.
const LARGE_BYTES: usize = 8000;

fn mode() -> DispatchMode {
    if has_per_cpu() { DispatchMode::PerCpu } else { DispatchMode::PerVport }
}

/// Runs a test on two hosts whose links carry large frames.
fn bench(test: impl AsyncFnOnce(&mut Bench) -> Result<()> + Send) -> TestResult {
    bench_with(&HostsConfig { mtu: MTU, ..HostsConfig::new(2) }, mode(), test)
}

fn attach(bench: &Bench, program: &[FilterInsn]) -> TestResult {
    bench.sockets.iter().try_for_each(|socket| Ok(socket.attach_filter(program)?))
}

/// What refuses upcalls, in the order in which a socket can have them.
#[derive(Debug, Clone, Copy)]
enum By {
    Filter,
    Record,
}

impl By {
    /// Those that there are: before CPUs had sockets, nothing could count in a map's memory (`BPF_FETCH`, 5.12).
    fn all() -> &'static [Self] {
        if has_per_cpu() { &[Self::Filter, Self::Record] } else { &[Self::Filter] }
    }

    /// Has every socket admit so many of 2^32 upcalls of port 1.
    fn sample_port_1(self, bench: &Bench, admit: u32) -> TestResult {
        match self {
            Self::Filter => {
                let program = sample_ports(&[PortShare { port: 1, admit }]);
                let insn = |i: &Insn| FilterInsn { code: i.code, jt: i.jt, jf: i.jf, k: i.k };
                attach(bench, &program.iter().map(insn).collect::<Vec<_>>())
            }
            Self::Record => {
                for socket in &bench.sockets {
                    if !socket.records_arrivals() {
                        socket.detach_filter()?;
                        socket.record_arrivals(UPCALL)?;
                    }
                    socket.sample([(1, admit)].into_iter());
                }
                Ok(())
            }
        }
    }

    fn admit_all(self, bench: &Bench) -> TestResult {
        for socket in &bench.sockets {
            match self {
                Self::Filter => socket.detach_filter()?,
                Self::Record => ensure!(socket.sample(std::iter::empty())),
            }
        }
        Ok(())
    }
}

fn in_port(got: &Got) -> Result<Option<u32>> {
    Ok(FlowKey::new(got.upcall().key).summary()?.in_port)
}

/// Frames whose keys differ in what they hold, each with a name.
fn frames() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let plain = || Frame::new(station(1), station(2));
    let v4 = |host| SocketAddr::from((Ipv4Addr::new(10, 9, 0, host), 53));
    let v6 = |host| SocketAddr::from((Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, host), 53));
    let tag = VlanTag::new(7);
    Ok(vec![
        ("IPv4", plain().udp(v4(1), v4(2), &[3; 40])?),
        ("IPv6", plain().udp(v6(1), v6(2), &[3; 40])?),
        ("VLAN", plain().vlan(tag).udp(v4(1), v4(2), &[3; 40])?),
        ("two tags", plain().vlan(VlanTag::service(8)).vlan(tag).udp(v4(1), v4(2), &[3; 40])?),
        ("ARP", plain().arp_request(Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2))?),
        ("unknown type", plain().raw(0x88b5, &[3; 46])),
        ("large", plain().udp(v4(1), v4(2), &[3; LARGE_BYTES])?),
        ("large with a tag", plain().vlan(tag).udp(v4(1), v4(2), &[3; LARGE_BYTES])?),
    ])
}

#[test]
fn a_port_is_refused_whatever_its_key_and_no_other() -> TestResult {
    bench(async |bench| {
        for by in By::all() {
            by.sample_port_1(bench, 0)?;
            for (name, frame) in frames()? {
                bench.links[0].send(&frame)?;
                bench.links[1].send(&frame)?;
                let got = bench.fence(1)?;
                let ports: Vec<_> = got.iter().map(in_port).collect::<Result<_>>()?;
                ensure!(ports == [Some(2)], "{by:?}, {name}: upcalls of the ports {ports:?}");
            }
            let stats = bench.stats().await?;
            ensure!(stats.lost == 0, "what is refused is no loss to the kernel: {stats:?}");
            for socket in &bench.sockets {
                ensure!(socket.mem_info()?.drops == 0, "nor to the socket");
            }
            by.admit_all(bench)?;
            for (name, frame) in frames()? {
                bench.links[0].send(&frame)?;
                let got = bench.fence(1)?;
                let is_in = got.len() == 1 && in_port(&got[0])? == Some(1);
                ensure!(is_in, "{by:?}, {name}: it is gone");
            }
        }
        Ok(())
    })
}

/// The attribute extensions of classic BPF do not look into a message whose packet was not copied.
/// That is why the program does without them, and how this test knows which message is which.
#[test]
fn large_packets_come_in_messages_that_only_plain_loads_can_read() -> TestResult {
    bench(async |bench| {
        // A = offset of KEY among the attributes from 24 on, 0 if it is not found; refused if it is.
        let nlattr = (-0x1000_i32 + 12).cast_unsigned();
        let insn = |code, jt, k| FilterInsn { code, jt, jf: 0, k };
        let (load_imm, load_x, load, equals, ret) = (0x00, 0x01, 0x20, 0x15, 0x06);
        let key = ovs_wire::packet::attr::KEY.into();
        let program = [
            insn(load_imm, 0, 24),
            insn(load_x, 0, key),
            insn(load, 0, nlattr),
            insn(equals, 1, 0),
            insn(ret, 0, 0),
            insn(ret, 0, u32::MAX),
        ];
        attach(bench, &program)?;
        for (name, frame) in frames()? {
            bench.links[0].send(&frame)?;
            let large = frame.len() > LARGE_BYTES;
            let fits = bench.pending()?.len() == usize::from(large);
            ensure!(fits, "{name}: a message of {} bytes is not as expected", frame.len());
        }
        Ok(())
    })
}

/// A packet as if it had come out of a tunnel with this many bytes of Geneve options.
fn from_tunnel(options: usize, in_port: u32) -> Result<Vec<u8>> {
    let mut key = Vec::new();
    let mut b = AttrBuilder::new(&mut key);
    b.nest(kind::TUNNEL, |b| {
        b.u64(0, 5).be32(1, 0x0a09_0001).be32(2, 0x0a09_0002).u8(3, 0).u8(4, 64);
        if options > 0 {
            // Class, type, length in words behind the header.
            let mut option = vec![1, 2, 3, (options / 4 - 1) as u8];
            option.resize(options, 3);
            b.bytes(8, &option);
        }
    });
    KeyAttr::InPort(in_port).write(&mut b);
    b.finish()?;
    Ok(key)
}

/// Executes a packet with this key, so that it comes up.
async fn bring_up(bench: &Bench, key: &[u8], action: &Action<'_>) -> TestResult {
    let (mut actions, packet) = (ActionBuf::new(), frames()?.swap_remove(0).1);
    actions.push(action)?;
    let execute = Execute {
        dp_ifindex: bench.dp.ifindex,
        packet: &packet,
        key,
        actions: actions.as_bytes(),
        mru: None,
        hash: None,
        upcall_pid: None,
    };
    bench.control.execute(&execute).await.context("execute")
}

#[test]
fn a_tunnel_before_the_port_hides_it_not() -> TestResult {
    bench(async |bench| {
        let pid = match mode() {
            DispatchMode::PerCpu => USERSPACE_PID_PER_CPU,
            DispatchMode::PerVport => bench.sockets[0].port_id(),
        };
        let userspace = Action::Userspace {
            pid,
            userdata: Some(&[3; 5]),
            egress_tun_port: None,
            actions: true,
        };
        for by in By::all() {
            by.sample_port_1(bench, 0)?;
            behind_tunnels(bench, &userspace).await.with_context(|| format!("{by:?}"))?;
            recirculated_and_without_a_port(bench, &userspace)
                .await
                .with_context(|| format!("{by:?}"))?;
        }
        Ok(())
    })
}

async fn behind_tunnels(bench: &mut Bench, userspace: &Action<'_>) -> TestResult {
    for options in [0, 4, 12, 120] {
        for (port, expected) in [(1, 0), (2, 1)] {
            bring_up(bench, &from_tunnel(options, port)?, userspace).await?;
            let got = bench.fence(1)?;
            ensure!(got.len() == expected, "port {port}, {options} bytes: {}", got.len());
            for got in &got {
                let kinds: Vec<_> =
                    ovs_wire::Attrs::new(got.upcall().key).flatten().map(|a| a.kind).collect();
                ensure!(kinds.contains(&kind::TUNNEL), "no tunnel came up: {kinds:?}");
            }
        }
    }
    Ok(())
}

async fn recirculated_and_without_a_port(bench: &mut Bench, userspace: &Action<'_>) -> TestResult {
    for (port, expected) in [(Some(1), 0), (Some(2), 1), (None, 1)] {
        let mut key = Vec::new();
        let mut b = AttrBuilder::new(&mut key);
        if let Some(port) = port {
            KeyAttr::InPort(port).write(&mut b);
        }
        b.finish()?;
        bring_up(bench, &key, userspace).await?;
        let got = bench.fence(1)?;
        ensure!(got.len() == expected, "port {port:?}: {} came up", got.len());
        if port.is_some() {
            bring_up(bench, &key, &Action::Recirc(9)).await?;
            let got = bench.fence(1)?;
            ensure!(got.len() == expected, "recirculated, port {port:?}: {}", got.len());
        }
    }
    Ok(())
}

#[test]
fn the_kernel_draws_the_share_it_is_told() -> TestResult {
    const SENT: usize = 1000;
    bench(async |bench| {
        for by in By::all() {
            // A quarter; the bounds are six standard deviations off.
            by.sample_port_1(bench, 1 << 30)?;
            let (_, frame) = frames()?.swap_remove(0);
            for _ in 0..SENT {
                bench.links[0].send(&frame)?;
            }
            let admitted = bench.fence(1)?.len();
            ensure!((168..=332).contains(&admitted), "{by:?}: {admitted} of {SENT}");
            ensure!(bench.stats().await?.lost == 0);
        }
        Ok(())
    })
}
