//! The order of flows in any interleaving of sockets, readers, helpers, handlers and installs (contract
//! O1 to O3, F1, B3).
//!
//! A model of a host: packets of a few flows arrive in sockets, flows hop from one to another, readers
//! read in rounds, helpers take what waits, handlers answer at once or later, and flows are installed and
//! forgotten. Every step of everybody is one step of the model, so that proptest can put them in any
//! order.
#![cfg(not(loom))]
#![allow(missing_docs, reason = "a test binary")]

mod handling;
mod host;
mod kernel;
mod sockets;
mod steps;

use proptest::prelude::*;
use upcall_core::QueueLimits;

use crate::host::{Host, Reads};
use crate::steps::{Answer, Step, mixed_steps, ordered_steps, steps};

/// No fence is given up.
fn patient() -> QueueLimits {
    QueueLimits { fence_us: u64::MAX, ..QueueLimits::default() }
}

const CASES: u32 = if cfg!(miri) { 2 } else { 256 };

/// A flow that asked for an install hops, and the other socket's reader has its next packet in its hands.
#[test]
fn an_install_waits_for_whoever_has_a_packet_of_the_flow() -> Result<(), TestCaseError> {
    let mut host = Host::new(patient());
    let before = [
        Step::Arrive { flow: 0 },
        Step::Round { socket: 0, answer: Answer::Install },
        Step::Hop { flow: 0, socket: 1 },
        Step::Arrive { flow: 0 },
        Step::BeginRound { socket: 1 },
        Step::Read { socket: 1, defer: false, answer: Answer::Execute },
        Step::Round { socket: 0, answer: Answer::Execute },
    ];
    before.into_iter().try_for_each(|step| host.step(step))?;
    prop_assert_eq!((host.kernel.in_flight.len(), host.kernel.puts), (1, 0));
    host.step(Step::EndRound { socket: 1 })?;
    host.step(Step::Round { socket: 0, answer: Answer::Execute })?;
    prop_assert_eq!((host.kernel.in_flight.len(), host.kernel.puts), (0, 1));
    Ok(())
}

/// With room for all, and fences that are never given up.
fn keep_their_order(
    (reads, is_timed): (Reads, bool),
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    let mut host = Host::new(patient());
    (host.reads, host.is_timed) = (reads, is_timed);
    for step in steps {
        host.step(step)?;
    }
    host.settle()?;
    host.check_order()?;
    prop_assert_eq!((host.kernel.shed, host.unfenced), (0, 0));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flows_keep_their_order_in_any_interleaving(steps in steps()) {
        keep_their_order((Reads::Own, false), steps)?;
    }

    /// Where it is told when packets were sent, flows may hop before anybody has looked, new ones too.
    #[test]
    fn flows_keep_their_order_where_it_is_told_when_packets_were_sent(steps in steps()) {
        keep_their_order((Reads::Own, true), steps)?;
    }

    /// Where sockets are read in order, flows may hop faster than anybody looks.
    #[test]
    fn flows_that_hop_fast_keep_their_order_where_sockets_are_read_in_order(
        steps in ordered_steps(),
        is_timed: bool,
    ) {
        keep_their_order((Reads::InOrder, is_timed), steps)?;
    }

    /// Where sockets are read in order, a reader may still be at its own.
    #[test]
    fn flows_keep_their_order_while_readers_read_on(steps in mixed_steps(), is_timed: bool) {
        keep_their_order((Reads::Both, is_timed), steps)?;
    }

    /// With next to no room, upcalls are shed or go without a fence, but none is lost track of, and none
    /// is shed of a port that has less than its share.
    #[test]
    fn a_queue_without_room_loses_track_of_nothing(steps in steps(), upcalls_max in 0..6usize) {
        let limits = QueueLimits { upcalls_max, fence_us: 50, ..QueueLimits::default() };
        let mut host = Host::new(limits);
        host.is_roomy = false;
        for step in steps {
            host.step(step)?;
        }
        host.settle()?;
        // What goes back to its lane to wait for the handler had its place there.
        let most = upcalls_max + 2 * crate::steps::TAKE_MAX;
        prop_assert!(host.lanes.stats().upcalls_peak as usize <= most);
    }
}
