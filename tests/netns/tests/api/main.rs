//! The library's two faces on a real kernel: a handler that answers later, and a listener.
#![allow(missing_docs, reason = "a test binary")]

mod later;
mod listen;
mod stall;

use anyhow::{Result, ensure};
use netns_tests::{SOON, station};
use upcall::{Dispatch, Shape, Stats};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket, raw::ETHERTYPE_EXPERIMENTAL};

/// A frame of a flow, with its number in it.
type Numbered = (u8, u8);

/// Header of an Ethernet frame without a tag, in bytes.
const ETHERNET_LEN: usize = 14;

fn frame((flow, number): Numbered) -> Vec<u8> {
    let payload: Vec<u8> = [flow, number].into_iter().chain([0; 44]).collect();
    Frame::new(station(2 * flow + 1), station(2 * flow + 2)).raw(ETHERTYPE_EXPERIMENTAL, &payload)
}

/// Flow and number of one of our frames; `None` for what a host says by itself.
fn number(frame: &[u8]) -> Option<Numbered> {
    let ours = frame.get(12..14)? == ETHERTYPE_EXPERIMENTAL.to_be_bytes();
    ours.then_some((*frame.get(ETHERNET_LEN)?, *frame.get(ETHERNET_LEN + 1)?))
}

fn shape(mode: &str) -> Result<Shape> {
    let dispatch: Dispatch = mode.parse().map_err(anyhow::Error::msg)?;
    Ok(Shape { dispatch, ..Shape::default() })
}

/// From one CPU: what hops before anybody has read its first packet has no order to be kept.
fn send(hosts: &Hosts, frames: impl IntoIterator<Item = Numbered>) -> Result<()> {
    ovs_features::cpu::pin_to(0)?;
    let link = RawSocket::sender(&hosts[0].ns, HOST_LINK)?;
    frames.into_iter().try_for_each(|numbered| Ok(link.send(&frame(numbered))?))
}

/// Our frames that arrive at a host, as many as are expected, on a thread of its own: the runtime of
/// the test goes on.
async fn arrivals(mut link: RawSocket, count: usize) -> Result<Vec<Numbered>> {
    let read = move || {
        let mut all = Vec::new();
        while all.len() < count {
            let what = format!("frame {} of {count}, behind {all:?}", all.len());
            let frame = link.receive_matching(&what, SOON, |bytes| number(bytes).is_some())?;
            all.extend(number(&frame));
        }
        Ok(all)
    };
    tokio::task::spawn_blocking(read).await?
}

/// Numbers of a flow's frames, in the order of their arrival.
fn of(flow: u8, all: &[Numbered]) -> Vec<u8> {
    all.iter().filter(|(of, _)| *of == flow).map(|(_, number)| *number).collect()
}

/// Contract B3 at rest, with nothing of ours refused by the kernel.
fn balanced(stats: &Stats) -> Result<()> {
    ensure!(stats.ledger.balances() && stats.ledger.in_flight() == 0, "{stats:?}");
    ensure!(stats.handler_pending == 0 && stats.ledger.execute_errors == 0, "{stats:?}");
    Ok(())
}
