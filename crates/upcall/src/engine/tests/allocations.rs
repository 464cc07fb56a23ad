//! What an upcall on the fast path allocates: nothing, once buffers have the size they need.

use allocation_counter::measure;

use super::*;

/// Sends everything to port 2.
struct Forward;

impl Handler for Forward {
    fn upcall(&self, _: &Upcall<'_>, verdict: &mut Verdict) {
        verdict.output(2).install(MatchFields::IN_PORT | MatchFields::ETH_SRC);
    }
}

#[test]
fn an_upcall_in_steady_state_allocates_nothing() {
    let all = [InstallPolicy::Never, InstallPolicy::Exact, InstallPolicy::Wildcard];
    for (install, answer_from_plan) in all.into_iter().flat_map(|i| [(i, false), (i, true)]) {
        let mut limits = Limits::default();
        // However slow the machine is, the flow is not planned again.
        limits.install.recent_us = u64::MAX;
        let mut bench = Bench::build(Box::new(Forward), install, limits, answer_from_plan);
        let datagrams: Vec<_> = (60..).take(ROUND_MAX).map(upcall).collect();
        // Buffers grow, the flow's install is planned and sent.
        let mut rounds =
            |count| (0..count).map(|_| bench.round(&datagrams).received).sum::<usize>();
        rounds(8);
        let mut received = 0;
        let made = measure(|| received = rounds(16));
        let ledger = bench.ledger.snapshot();
        assert_eq!(made.count_total, 0, "{install:?}: {made:?} {ledger:?}");
        // The rounds were what they are meant to be.
        assert_eq!(received, 16 * ROUND_MAX);
        assert_eq!(ledger.executed, ledger.received, "{install:?}");
        let (known, flows) =
            (ledger.duplicate_misses + ledger.install_stragglers, ledger.flows_put);
        let expected = if install == InstallPolicy::Never { (false, 0) } else { (true, 1) };
        assert_eq!((known > 0, flows), expected, "{install:?}");
    }
}
