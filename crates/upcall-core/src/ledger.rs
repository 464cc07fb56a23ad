//! What became of every upcall (contract B3).

use std::sync::atomic::{AtomicU64, Ordering};

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
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Counters of one worker. All counts are since the worker started.
        #[derive(Debug, Default)]
        pub struct Ledger {
            $($(#[$doc])* pub $name: Counter,)+
        }

        /// A reading of one or more [`Ledger`]s, added up.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct LedgerSnapshot {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Ledger {
            /// Reads every counter. Exact when the owner rests; while it works, a reading may be
            /// between two counters of one upcall.
            pub fn snapshot(&self) -> LedgerSnapshot {
                LedgerSnapshot { $($name: self.$name.get(),)+ }
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
            && self.shed == self.shed_handler_panic + self.shed_unwritable + self.shed_send_failed
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
    fn a_shed_upcall_needs_a_reason() {
        let snapshot = LedgerSnapshot { received: 1, shed: 1, ..LedgerSnapshot::default() };
        assert!(!snapshot.balances());
    }
}
