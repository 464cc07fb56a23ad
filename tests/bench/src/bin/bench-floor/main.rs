//! The floor: how cheap an upcall can be. A blocking loop for each CPU receives a batch, answers each
//! upcall with an EXECUTE (and, when asked, with an exact flow) and sends the answers.
//!
//! It refuses everything a slow path needs besides: order, lanes, fairness, limits, checks, counters,
//! ports that come and go. It shares no code with the product on its hot path. It takes those options
//! of `upcalld run` that the benchmark uses, so that both are started alike.

mod message;

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use message::{Target, Upcall};
use netlink_io::Socket;
use ovs_datapath::Control;
use ovs_features::cpu;
use ovs_wire::datapath::{Datapath, UserFeatures};
use ovs_wire::vport::VportType;
use rustix::net::{RecvFlags, SendFlags};
use tokio::signal::unix::{SignalKind, signal};

/// Upcalls that are answered together.
const BATCH: usize = 64;
/// Answers are sent when they have this many bytes. Measured: a third of it costs 4 % more, twenty times
/// as much 1 % less, since the kernel takes messages beyond a page from `vmalloc`.
const BATCH_BYTES: usize = 3500;
/// Receive buffer of each socket, as the peer asks for it.
const RECV_BUFFER_BYTES: usize = 4 << 20;
/// An upcall has at most a packet of 64 KiB and a key.
const MESSAGE_BYTES_MAX: usize = 68 << 10;

/// The cheapest loop that answers upcalls.
#[derive(Debug, Parser)]
enum Cli {
    /// Serve a new datapath until SIGTERM
    Run(Args),
}

#[derive(Debug, clap::Args)]
struct Args {
    /// Name of the datapath to make
    #[arg(long)]
    datapath: String,
    /// Interface to add as a port; repeat for more
    #[arg(long = "port", value_name = "IFACE")]
    ports: Vec<String>,
    /// Two ports to join; repeat for more
    #[arg(long = "cross-connect", value_name = "A=B")]
    cross_connect: Vec<String>,
    /// Which flows to install
    #[arg(long, value_enum, default_value = "never")]
    install: Install,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Install {
    Never,
    Exact,
}

fn main() -> Result<()> {
    let Cli::Run(args) = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> Result<()> {
    let control = Control::open().await?;
    let sockets = open_sockets()?;
    let dp = open_datapath(&control, &args.datapath, &sockets).await?;
    let peers = add_ports(&control, &dp, &args).await?;
    let families = control.families();
    let target = Target {
        packet_family: families.packet.id,
        flow_family: families.flow.id,
        dp_ifindex: dp.ifindex,
    };
    for (cpu, socket) in sockets.into_iter().enumerate() {
        let answers = Socket::open()?;
        let worker = Loop { target, peers: peers.clone(), install: args.install };
        std::thread::Builder::new().name(format!("floor-{cpu}")).spawn(move || {
            // A CPU that is offline has no upcalls either.
            let _ = cpu::pin_to(cpu);
            if let Err(err) = worker.run(&socket, &answers) {
                eprintln!("bench-floor: CPU {cpu}: {err}");
                std::process::exit(1);
            }
        })?;
    }
    sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
    signal(SignalKind::terminate())?.recv().await;
    control.delete_datapath(&dp).await?;
    Ok(())
}

/// A socket for each possible CPU.
fn open_sockets() -> Result<Vec<Socket>> {
    let open = |_| {
        let socket = Socket::open()?;
        socket.set_recv_buffer(RECV_BUFFER_BYTES)?;
        rustix::io::ioctl_fionbio(&socket, false)?;
        Ok(socket)
    };
    (0..cpu::table_len()?).map(open).collect()
}

async fn open_datapath(control: &Control, name: &str, sockets: &[Socket]) -> Result<Datapath> {
    let features = UserFeatures::UNALIGNED | UserFeatures::DISPATCH_UPCALL_PER_CPU;
    let dp = control
        .create_datapath(name, features)
        .await
        .context("the floor needs per-CPU dispatch (Linux 5.15)")?;
    let table: Vec<u32> = sockets.iter().map(Socket::port_id).collect();
    control.set_datapath(&dp, features, Some(&table)).await?;
    Ok(dp)
}

/// Adds the ports; gives the peer of each port number.
async fn add_ports(control: &Control, dp: &Datapath, args: &Args) -> Result<Vec<u32>> {
    let mut numbers = HashMap::new();
    for name in &args.ports {
        let port = control.add_vport(dp, VportType::Netdev, name, None, 0).await?;
        numbers.insert(name.as_str(), port.port_no);
    }
    let mut peers = vec![0; numbers.values().max().map_or(0, |max| *max as usize + 1)];
    for pair in &args.cross_connect {
        let (a, b) = pair.split_once('=').with_context(|| format!("{pair} is not A=B"))?;
        let (Some(a), Some(b)) = (numbers.get(a), numbers.get(b)) else {
            bail!("--cross-connect {pair} names an interface that no --port names")
        };
        peers[*a as usize] = *b;
        peers[*b as usize] = *a;
    }
    Ok(peers)
}

struct Loop {
    target: Target,
    peers: Vec<u32>,
    install: Install,
}

impl Loop {
    fn run(&self, socket: &Socket, answers: &Socket) -> rustix::io::Result<()> {
        let mut buf = vec![0; MESSAGE_BYTES_MAX];
        let mut out = Vec::with_capacity(1 << 17);
        loop {
            let (len, _) = rustix::net::recv(socket, &mut buf, RecvFlags::empty())?;
            self.answer(&buf[..len], &mut out, answers)?;
            for _ in 1..BATCH {
                match rustix::net::recv(socket, &mut buf, RecvFlags::DONTWAIT) {
                    Ok((len, _)) => self.answer(&buf[..len], &mut out, answers)?,
                    Err(_) => break,
                }
            }
            flush(&mut out, answers)?;
        }
    }

    fn answer(&self, message: &[u8], out: &mut Vec<u8>, to: &Socket) -> rustix::io::Result<()> {
        let upcall = Upcall::read(message);
        let Some(&peer) = self.peers.get(upcall.in_port as usize) else { return Ok(()) };
        self.target.execute(out, &upcall, peer);
        if self.install == Install::Exact {
            self.target.install(out, &upcall, peer);
        }
        if out.len() > BATCH_BYTES { flush(out, to) } else { Ok(()) }
    }
}

fn flush(out: &mut Vec<u8>, to: &Socket) -> rustix::io::Result<()> {
    if !out.is_empty() {
        rustix::net::send(to, out, SendFlags::empty())?;
        out.clear();
    }
    Ok(())
}
