//! When upcalls were sent, as the kernel tells it: what is left in several sockets comes in the order in which
//! it was sent, whoever reads first (contract O2).
#![allow(missing_docs, reason = "a test binary")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use netns_tests::{SOON, TestResult, has_per_cpu, skip_ok};
use ovs_features::cpu;
use upcall::{Dispatcher, Handler, InstallPolicy, Limits, QueueLimits, Shape, Upcall, Verdict};
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket, wait_until};

/// Ethertype of the frames.
const ETHERTYPE: u16 = 0x88b5;
/// Where their payload begins: what they say.
const PAYLOAD: usize = 14;
/// A frame that keeps its worker.
const KEEP: u8 = 0xff;

/// Remembers the numbers of frames, and stays with those that are to keep it until the door is open.
#[derive(Default)]
struct Keeper {
    is_open: AtomicBool,
    kept: AtomicU64,
    seen: Mutex<Vec<u8>>,
}

impl Handler for Keeper {
    fn upcall(&self, upcall: &Upcall<'_>, _: &mut Verdict) {
        match upcall.packet().get(PAYLOAD) {
            Some(&KEEP) if upcall.key().eth_type == ETHERTYPE => {
                self.kept.fetch_add(1, Ordering::Relaxed);
                while !self.is_open.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Some(&number) if upcall.key().eth_type == ETHERTYPE => {
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(number);
            }
            _ => {}
        }
    }
}

/// Sends frames from a CPU, where they are handled within the calls.
fn send(
    hosts: &Hosts,
    cpu: usize,
    source: u8,
    numbers: impl IntoIterator<Item = u8>,
) -> TestResult {
    let link = RawSocket::sender(&hosts[0].ns, HOST_LINK)?;
    let frame = Frame::new([0x02, 0x53, 0, 0, 0, source], [0x02, 0x54, 0, 0, 0, 1]);
    let numbers: Vec<u8> = numbers.into_iter().collect();
    let send = || {
        cpu::pin_to(cpu)?;
        numbers.iter().try_for_each(|number| Ok(link.send(&frame.raw(ETHERTYPE, &[*number; 46]))?))
    };
    std::thread::scope(|scope| scope.spawn(send).join()).expect("the sender does not panic")
}

/// The CPU whose worker is not kept.
const FREE: usize = 2;
/// Packets of a turn.
const TURN: u8 = 4;

/// The workers of CPUs 0 and 1 are kept while a new flow sends a few packets from each of these CPUs in turn; that of
/// CPU 2 reads at once. Gives the order in which the handler saw them.
fn seen(turns: &[usize], arrival_times: bool) -> anyhow::Result<Vec<u8>> {
    let hosts = Hosts::new(2)?;
    let ports: Vec<String> = hosts.ports().map(str::to_owned).collect();
    hosts.switch.block_on(async || {
        let handler = Arc::new(Keeper::default());
        let shape = Shape { arrival_times, ..Shape::default() };
        // As long as it takes.
        let queue = QueueLimits { fence_us: SOON.as_micros() as u64, ..QueueLimits::default() };
        let limits = Limits { queue, ..Limits::default() };
        let builder = Dispatcher::builder("dp0").ports(ports).shape(shape).limits(limits);
        let dispatcher = builder.install(InstallPolicy::Never).start(handler.clone()).await?;
        for cpu in [0, 1] {
            send(&hosts, cpu, cpu as u8, [KEEP])?;
            wait_until("the worker to be kept", SOON, || {
                handler.kept.load(Ordering::Relaxed) > cpu as u64
            })?;
        }
        let mut read = 2;
        for (turn, cpu) in turns.iter().enumerate() {
            let first = TURN * turn as u8;
            send(&hosts, *cpu, 9, first..first + TURN)?;
            read += u64::from(TURN) * u64::from(*cpu == FREE);
            let begun = Instant::now();
            while dispatcher.stats().await?.ledger.received < read {
                ensure!(begun.elapsed() < SOON, "the worker of CPU {FREE} reads nothing");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        handler.is_open.store(true, Ordering::Relaxed);
        let stats = dispatcher.stop().await?;
        ensure!(stats.ledger.balances() && stats.kernel.lost == 0, "{stats:?}");
        ensure!(stats.arrival_times == arrival_times, "{stats:?}");
        ensure!(stats.lanes.fence_timeouts == 0, "{stats:?}");
        Ok(std::mem::take(&mut *handler.seen.lock().unwrap_or_else(PoisonError::into_inner)))
    })?
}

/// Seen in order with arrival times, and not without.
fn check(name: &str, turns: &[usize]) -> TestResult {
    if !has_per_cpu() {
        skip_ok(name, "this kernel dispatches by port alone (before 5.15)");
        return Ok(());
    }
    if cpu::usable()?.len() <= FREE {
        skip_ok(name, "there are fewer than three CPUs");
        return Ok(());
    }
    let in_order: Vec<u8> = (0..TURN * turns.len() as u8).collect();
    let (timed, untimed) = (seen(turns, true)?, seen(turns, false)?);
    ensure!(timed == in_order, "{timed:?}");
    // What this test would be worth nothing without.
    ensure!(untimed != in_order && untimed.len() == in_order.len(), "{untimed:?}");
    Ok(())
}

#[test]
fn what_nobody_has_read_comes_in_the_order_in_which_it_was_sent() -> TestResult {
    const NAME: &str = "what_nobody_has_read_comes_in_the_order_in_which_it_was_sent";
    check(NAME, &[0, 1, 0, 1, FREE])
}

#[test]
fn a_flow_that_was_elsewhere_and_is_back_waits_for_what_it_left_there() -> TestResult {
    const NAME: &str = "a_flow_that_was_elsewhere_and_is_back_waits_for_what_it_left_there";
    check(NAME, &[FREE, 0, FREE, 1, FREE])
}
