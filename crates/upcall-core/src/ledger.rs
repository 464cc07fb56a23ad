//! What became of every upcall (contract B3).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Latency;

/// A counter with one writer and any number of readers.
///
/// The writer loads and stores, it does not lock the bus: a second writer would lose counts.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; from the one thread that owns the counter.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Reads it; from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! ledger {
    ($($(#[doc = $doc:literal])* $name:ident,)+) => {
        /// Counters of one worker. All counts are since the worker started.
        #[derive(Debug, Default)]
        pub struct Ledger {
            $($(#[doc = $doc])* pub $name: Counter,)+
            /// How long it took, stage by stage.
            pub latency: Latency,
        }

        /// A reading of one or more [`Ledger`]s, added up.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct LedgerSnapshot {
            $($(#[doc = $doc])* pub $name: u64,)+
        }

        impl Ledger {
            /// Counts an upcall as shed, for the reason that `reason` counts.
            pub fn shed_for(&self, reason: &Counter) {
                self.shed.add(1);
                reason.add(1);
            }

            /// Reads every counter. Exact when the owner rests; while it works, a reading may be
            /// between two counters of one upcall.
            pub fn snapshot(&self) -> LedgerSnapshot {
                LedgerSnapshot { $($name: self.$name.get(),)+ }
            }
        }

        impl LedgerSnapshot {
            /// Every counter: its name, what it counts (in one line), and the count.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($doc),*).trim_ascii(), self.$name),)+].into_iter()
            }
        }

        impl std::ops::AddAssign for LedgerSnapshot {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)+
            }
        }
    };
}

ledger! {
    /// Messages taken from upcall sockets.
    received,
    /// Upcalls whose verdict was carried out: executed, dropped by the handler, or consumed by it.
    completed,
    /// Upcalls refused by us; the reasons add up to it.
    shed,
    /// Messages that are no well-formed upcall.
    malformed,
    /// Messages of another family or datapath, or not from the kernel.
    foreign,
    /// Shed because the handler panicked.
    shed_handler_panic,
    /// Shed because the verdict could not be written as a message.
    shed_unwritable,
    /// Shed because the kernel did not take the batch with the packet.
    shed_send_failed,
    /// Shed because its port had taken its share of the room for upcalls that wait.
    shed_no_room,
    /// Shed because the answer of the handler took longer than allowed.
    shed_handler_timeout,
    /// Shed because the handler had as many answers outstanding as it may.
    shed_pending_full,
    /// Shed because a listener had no room: flows to be accepted, flows, or an upcall that was not taken.
    shed_listener_full,
    /// Shed because the dispatcher was stopped before they were answered.
    shed_stopped,
    /// Upcalls that the handler answered later, or has yet to answer.
    deferred,
    /// Shed because its port had as many waiting as it may.
    shed_quota,
    /// Shed because its port, or its port's class, had more than its rate.
    shed_rate,
    /// Upcalls that came by another socket than the one before of their flow, and had not to wait.
    hops,
    /// Messages taken out of their sockets early, because a flow had hopped.
    gathered,
    /// Upcalls that waited: for packets of their flow in another socket, or for a worker.
    queued,
    /// Upcalls that did not wait for all that other sockets held, because there was no room to wait.
    fences_without_room,
    /// Packets given back with actions to apply.
    executed,
    /// Of these, refused by the kernel.
    execute_errors,
    /// Upcalls whose handler wanted the packet dropped.
    dropped,
    /// Flows sent to be installed.
    flows_put,
    /// Of these, refused by the kernel.
    put_errors,
    /// Of the refused, those whose flow another worker had installed already.
    put_raced,
    /// Upcalls of a flow whose installation was waiting already.
    duplicate_misses,
    /// Of these, answered with the actions of that, without asking the handler.
    answered_from_plan,
    /// Upcalls of a flow read after its installation was sent.
    install_stragglers,
    /// Installs put off because packets of the flow kept coming.
    install_deferrals,
    /// Installs sent at the limit of rounds, with packets of the flow still coming.
    install_forced,
    /// Installs given up because the plan was full.
    install_overflow,
    /// Installs not tried because the flow limit was reached.
    flow_limit_hits,
    /// Upcalls of ports that flood, refused by the storm shield before they were received: an estimate
    /// from those it let through, as the kernel counts none of them.
    shield_refused,
}

impl LedgerSnapshot {
    /// Upcalls received of which nothing has become yet.
    pub fn in_flight(&self) -> u64 {
        let done = self.completed + self.shed + self.malformed + self.foreign;
        self.received.saturating_sub(done)
    }

    /// Does the law of conservation hold for a dispatcher at rest?
    pub fn balances(&self) -> bool {
        self.received == self.completed + self.shed + self.malformed + self.foreign
            && self.shed
                == self.shed_handler_panic
                    + self.shed_unwritable
                    + self.shed_send_failed
                    + self.shed_no_room
                    + self.shed_handler_timeout
                    + self.shed_pending_full
                    + self.shed_listener_full
                    + self.shed_stopped
                    + self.shed_quota
                    + self.shed_rate
    }

    /// Flows the kernel took.
    pub fn flows_installed(&self) -> u64 {
        self.flows_put.saturating_sub(self.put_errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_add_up_and_balance() {
        let (a, b) = (Ledger::default(), Ledger::default());
        a.received.add(3);
        a.completed.add(2);
        b.received.add(1);
        b.shed.add(1);
        b.shed_handler_panic.add(1);
        let mut sum = a.snapshot();
        sum += b.snapshot();
        assert_eq!((sum.received, sum.in_flight()), (4, 1));
        assert!(!sum.balances());
        a.malformed.add(1);
        let mut sum = a.snapshot();
        sum += b.snapshot();
        assert!(sum.balances());
    }

    #[test]
    fn counters_have_names_and_say_what_they_count() {
        let snapshot = LedgerSnapshot { received: 3, ..LedgerSnapshot::default() };
        let all: Vec<_> = snapshot.counters().collect();
        assert_eq!(all[0], ("received", "Messages taken from upcall sockets.", 3));
        assert!(all.iter().all(|(_, help, _)| !help.is_empty() && help.ends_with('.')), "{all:?}");
    }

    #[test]
    fn a_shed_upcall_needs_a_reason() {
        let snapshot = LedgerSnapshot { received: 1, shed: 1, ..LedgerSnapshot::default() };
        assert!(!snapshot.balances());
    }
}
