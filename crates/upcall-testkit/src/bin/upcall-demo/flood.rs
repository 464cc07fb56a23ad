//! A flood: packets to a station that nobody has heard of. The switch cannot install a flow for them, so each
//! is an upcall.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::traffic::{Plan, RawFlows};
use upcall_testkit::{Error, Frame, Host, RawSocket};

/// Each takes as much of the CPU as the worker that reads there gets, so that more is sent than is read.
const SENDERS: u8 = 2;
/// Packets between two looks at the clock.
const SLICE: u32 = 256;
/// Theirs are the flow numbers above all others; no receiver counts them.
const FIRST_FLOW: u32 = 1 << 30;

/// Floods from one host and one CPU until `over`.
pub(crate) fn flood(from: &Host, cpu: usize, over: impl Fn() -> bool + Sync) -> Result<(), Error> {
    let failed = AtomicBool::new(false);
    let send = |sender: u8| {
        let socket = RawSocket::sender(&from.ns, HOST_LINK)?;
        let mut outlet = RawFlows::new(&socket, |_, payload: &[u8]| frame(from, sender, payload));
        let plan = Plan { cpus: vec![cpu], ..Plan::new(1, SLICE).flows_from(FIRST_FLOW) };
        while !over() && !failed.load(Ordering::Relaxed) {
            plan.send(&mut outlet).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    };
    let send = &send;
    thread::scope(|scope| {
        let senders: Vec<_> =
            (0..SENDERS).map(|sender| scope.spawn(move || send(sender))).collect();
        senders.into_iter().try_for_each(crate::scenario::join)
    })
}

fn frame(from: &Host, sender: u8, payload: &[u8]) -> Result<Vec<u8>, Error> {
    let nobody = [2, 2, 0, 0, 0, sender];
    let source = [2, 1, from.index as u8, 1, 0, sender];
    // The discard port; the packets reach no socket anyway.
    Frame::new(source, nobody).udp((from.ip4, 9).into(), ([10, 9, 9, 9], 9).into(), payload)
}
