//! What may happen to the host, one step at a time.

use proptest::prelude::*;

use crate::host::{FLOWS, HELPERS, SOCKETS};

/// Upcalls that a helper takes at a time, at most.
pub(crate) const TAKE_MAX: usize = 4;

/// What the handler says when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Send the packet on.
    Execute,
    /// And install its flow.
    Install,
    /// It answers later ([`Step::Answer`]).
    Later,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Arrive {
        flow: usize,
    },
    Hop {
        flow: usize,
        socket: usize,
    },
    BeginRound {
        socket: usize,
    },
    Read {
        socket: usize,
        defer: bool,
        answer: Answer,
    },
    EndRound {
        socket: usize,
    },
    /// A whole round that nobody comes between, or the rest of one.
    Round {
        socket: usize,
        answer: Answer,
    },
    Take {
        helper: usize,
        max: usize,
    },
    /// A helper handles the next of what it took; after the last, it is done with it.
    Handle {
        helper: usize,
        answer: Answer,
    },
    /// The handler gives one of the answers that it owes.
    Answer {
        which: prop::sample::Index,
        install: bool,
    },
    /// Somebody looks after the installs whose packets may be anywhere: the readers', then the helpers'.
    Settle {
        who: usize,
    },
    /// What was decided before may be wrong.
    Learn,
    /// The kernel forgets a flow.
    Expire {
        flow: usize,
    },
    /// Somebody looks in which order sockets got something, if nobody takes it out yet.
    Look {
        by: usize,
    },
    /// Who looked takes one packet out.
    TakeInOrder,
}

fn answers() -> impl Strategy<Value = Answer> {
    prop_oneof![
        3 => Just(Answer::Execute),
        2 => Just(Answer::Install),
        1 => Just(Answer::Later),
    ]
}

/// What happens whatever way sockets are read.
fn any_step() -> impl Strategy<Value = Step> {
    let (socket, helper) = (0..SOCKETS, 0..HELPERS);
    prop_oneof![
        6 => (0..FLOWS).prop_map(|flow| Step::Arrive { flow }),
        4 => socket.prop_map(|socket| Step::EndRound { socket }),
        4 => (helper.clone(), 1..=TAKE_MAX).prop_map(|(helper, max)| Step::Take { helper, max }),
        8 => (helper, answers()).prop_map(|(helper, answer)| Step::Handle { helper, answer }),
        2 => (any::<prop::sample::Index>(), any::<bool>())
            .prop_map(|(which, install)| Step::Answer { which, install }),
        3 => (0..SOCKETS + HELPERS).prop_map(|who| Step::Settle { who }),
        1 => prop_oneof![
            Just(Step::Learn),
            (0..FLOWS).prop_map(|flow| Step::Expire { flow })
        ],
    ]
}

/// Readers read their own sockets.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let socket = 0..SOCKETS;
    let step = prop_oneof![
        30 => any_step(),
        3 => (0..FLOWS, socket.clone()).prop_map(|(flow, socket)| Step::Hop { flow, socket }),
        4 => socket.clone().prop_map(|socket| Step::BeginRound { socket }),
        5 => (socket.clone(), answers()).prop_map(|(socket, answer)| Step::Round { socket, answer }),
        8 => (socket, prop::bool::weighted(0.2), answers())
            .prop_map(|(socket, defer, answer)| Step::Read { socket, defer, answer }),
    ];
    prop::collection::vec(step, 1..500)
}

/// Somebody reads sockets in order, while their readers, which have not heard of it, read on.
pub(crate) fn mixed_steps() -> impl Strategy<Value = Vec<Step>> {
    let socket = 0..SOCKETS;
    let step = prop_oneof![
        30 => any_step(),
        3 => (0..FLOWS, socket.clone()).prop_map(|(flow, socket)| Step::Hop { flow, socket }),
        4 => socket.clone().prop_map(|socket| Step::BeginRound { socket }),
        8 => (socket.clone(), prop::bool::weighted(0.2), answers())
            .prop_map(|(socket, defer, answer)| Step::Read { socket, defer, answer }),
        4 => socket.prop_map(|by| Step::Look { by }),
        9 => Just(Step::TakeInOrder),
    ];
    prop::collection::vec(step, 1..500)
}

/// While sockets are read in order, nobody reads them otherwise.
pub(crate) fn ordered_steps() -> impl Strategy<Value = Vec<Step>> {
    let socket = 0..SOCKETS;
    let step = prop_oneof![
        28 => any_step(),
        6 => (0..FLOWS, socket.clone()).prop_map(|(flow, socket)| Step::Hop { flow, socket }),
        4 => socket.prop_map(|by| Step::Look { by }),
        9 => Just(Step::TakeInOrder),
    ];
    prop::collection::vec(step, 1..500)
}
