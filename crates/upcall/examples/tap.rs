//! A tap: a hub that writes every packet to a pcapng file, with its flow and its CPU in the comment.
//!
//! `tshark -r FILE -T fields -e frame.comment` shows them. No flow is installed, so the kernel forwards
//! nothing by itself and nothing passes unseen. A file may be slower than a network: packets go there by
//! a channel with a limit, and what finds it full is forwarded, not written, and counted.

mod common;

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use upcall::{Assignment, Handler, InstallPolicy, OwnedUpcall, Upcall, Verdict};

/// Packets that may wait for the file.
const WAITING_MAX: usize = 1024;

/// A packet, and when it was seen.
type Seen = (SystemTime, OwnedUpcall);

struct Tap {
    file: SyncSender<Seen>,
    not_written: Arc<AtomicU64>,
}

impl Handler for Tap {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        verdict.flood(upcall.in_port());
        if self.file.try_send((SystemTime::now(), upcall.into())).is_err() {
            self.not_written.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes packets as they come, until the tap is gone.
fn write(file: impl Write, packets: &Receiver<Seen>, sockets: &Assignment) -> Result<()> {
    let mut file = PcapNgWriter::new(file)?;
    file.write_pcapng_block(InterfaceDescriptionBlock {
        linktype: DataLink::ETHERNET,
        snaplen: 0,
        options: vec![InterfaceDescriptionOption::IfTsResol(9)], // 10^-9 s
    })?;
    for (seen, upcall) in packets {
        file.write_pcapng_block(EnhancedPacketBlock {
            interface_id: 0,
            timestamp: seen.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO),
            original_len: upcall.packet().len() as u32,
            data: Cow::Borrowed(upcall.packet()),
            options: vec![EnhancedPacketOption::Comment(comment(&upcall, sockets).into())],
        })?;
    }
    file.into_inner().flush()?;
    Ok(())
}

/// In per-CPU mode the kernel has a socket for each CPU; otherwise nothing tells.
fn comment(upcall: &OwnedUpcall, sockets: &Assignment) -> String {
    let socket = upcall.socket_port_id();
    let cpu = sockets.table.iter().position(|port_id| *port_id == socket);
    let cpu = cpu.map_or("unknown".to_owned(), |cpu| cpu.to_string());
    format!("flow {:016x} cpu {cpu} socket {socket}", upcall.flow())
}

/// Floods every packet, and writes it to a file
#[derive(Parser)]
#[command(
    after_help = "Needs CAP_NET_ADMIN and the openvswitch module. Example:\n  tap --write out.pcapng veth0 veth1"
)]
struct Options {
    #[command(flatten)]
    target: common::Target,
    /// File to write, in the pcapng format; one that exists is overwritten
    #[arg(long, value_name = "FILE")]
    write: PathBuf,
}

fn create(path: &Path) -> Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(BufWriter::new(file))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let out = create(&options.write)?;
    let (file, packets) = sync_channel(WAITING_MAX);
    let not_written = Arc::new(AtomicU64::new(0));
    let tap = Tap { file, not_written: not_written.clone() };
    let builder = options.target.builder().install(InstallPolicy::Never);
    let dispatcher = builder.start(tap).await?;
    let sockets = dispatcher.assignment().await;
    let writer = std::thread::spawn(move || write(out, &packets, &sockets));
    // With the dispatcher goes the tap, and with it the writer.
    let served = common::serve(dispatcher).await;
    writer.join().map_err(|_| anyhow!("the writer panicked"))??;
    println!("{} packets not written", not_written.load(Ordering::Relaxed));
    served.map(drop)
}
