//! `upcalld trace`: the client.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use serde::Deserialize;

use super::seen::Told;
use crate::control::client::Target;
use crate::exit::Exit;
use crate::settings::parse_hex;

/// Appended to `upcalld trace --help`.
pub(crate) const HELP: &str = "\
Filters; all of them must hold:
  port=NAME|NUMBER    the port it came in by
  cpu=N               the CPU that the kernel handled it on (per-CPU dispatch)
  kind=miss|action    why it came up
  mac=MAC src=MAC dst=MAC
  vlan=ID             the outermost tag; 0 is none
  eth=0x0806          the Ethernet type behind the tags
  ip=ADDR[/LEN]       source or destination, of ARP too
  proto=arp|ip|ipv6|tcp|udp|sctp|icmp|icmp6|NUMBER
  l4=N                source or destination port

Examples:
  upcalld trace port=veth0 proto!=arp
      what comes up of a port, one line each: time, CPU, port, reason, key, and what was answered
  upcalld trace --pcapng up.pcapng --count 1000 ip=10.0.0.0/8
      the first thousand of a network as a capture, with the lines as comments
  upcalld trace --every 100 --for 1m
      one of a hundred for a minute

Only packets without a flow come up. Traces cost nothing while there is none; at most 4 run at once. The
daemon goes on if the trace cannot follow: what is left out is counted, and told at the end.

Exit status: 0 at the end; 1 when no daemon answers; 2 when it refuses the filter.";

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a packet in a capture, if nothing else is said.
const SNAP: usize = 2048;

/// Options of `trace`.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    target: Target,
    /// Write packets to a file in the pcapng format, in place of lines; one that exists is overwritten
    #[arg(long, value_name = "FILE")]
    pcapng: Option<PathBuf>,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after this time [default: at Ctrl-C]
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    limit: Option<Duration>,
    #[command(flatten)]
    options: super::Options,
}

/// What `trace/read` gives.
#[derive(Debug, Deserialize)]
struct Batch {
    matched: u64,
    left_out: u64,
    upcalls: Vec<Told>,
}

/// Where upcalls are shown.
enum Sink {
    Lines,
    File(Box<PcapNgWriter<BufWriter<File>>>),
}

/// Follows until the end.
pub(crate) fn run(args: &TraceArgs) -> Result<(), Exit> {
    let mut sink = args.pcapng.as_deref().map_or(Ok(Sink::Lines), create)?;
    let mut client = args.target.connect()?;
    client.ask("set-options", &["--format".into(), "json".into()])?;
    let started = client.ask("trace/start", &words(args))?;
    let id = started["trace"].to_string();
    let deadline = args.limit.map(|limit| Instant::now() + limit);
    let mut left = args.count.unwrap_or(u64::MAX);
    let last = loop {
        client.renew();
        let batch = client.ask("trace/read", std::slice::from_ref(&id))?;
        let batch: Batch = serde_json::from_value(batch)
            .map_err(|err| Exit::Other(format!("an answer that is none of trace/read: {err}")))?;
        let show = batch.upcalls.iter().take(usize::try_from(left).unwrap_or(usize::MAX));
        for told in show {
            if !sink.show(told).map_err(|err| Exit::Other(format!("cannot write: {err}")))? {
                return Ok(());
            }
            left -= 1;
        }
        if left == 0 || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break batch;
        }
        std::thread::sleep(PAUSE);
    };
    client.ask("trace/stop", &[id])?;
    eprintln!("{} matched, {} left out over the rate", last.matched, last.left_out);
    Ok(())
}

/// The words of `trace/start`.
fn words(args: &TraceArgs) -> Vec<String> {
    let super::Options { every, rate, snap, filter } = &args.options;
    let snap = snap.unwrap_or(if args.pcapng.is_some() { SNAP } else { 0 });
    let options = [
        ("--every", every.to_string()),
        ("--rate", rate.to_string()),
        ("--snap", snap.to_string()),
    ];
    let options = options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    options.chain(filter.iter().cloned()).collect()
}

fn create(path: &Path) -> Result<Sink, Exit> {
    let make = || -> Result<Sink, Box<dyn std::error::Error>> {
        let mut file = PcapNgWriter::new(BufWriter::new(File::create(path)?))?;
        file.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0,
            options: vec![InterfaceDescriptionOption::IfTsResol(9)], // 10^-9 s
        })?;
        Ok(Sink::File(Box::new(file)))
    };
    make().map_err(|err| Exit::Other(format!("cannot write {}: {err}", path.display())))
}

impl Sink {
    /// `false` when nobody reads any more ('| head').
    fn show(&mut self, told: &Told) -> Result<bool, Box<dyn std::error::Error>> {
        match self {
            Self::Lines => Ok(writeln!(std::io::stdout(), "{}", told.line).is_ok()),
            Self::File(file) => {
                file.write_pcapng_block(EnhancedPacketBlock {
                    interface_id: 0,
                    timestamp: Duration::from_nanos(told.at_ns),
                    original_len: told.len as u32,
                    data: Cow::Owned(parse_hex(&told.packet)?.to_vec()),
                    options: vec![EnhancedPacketOption::Comment(Cow::Borrowed(&told.line))],
                })?;
                // So that a capture that is cut off is whole up to then.
                file.get_mut().flush()?;
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_has_the_grammar() {
        assert!(HELP.contains(super::super::filter::GRAMMAR));
    }
}
