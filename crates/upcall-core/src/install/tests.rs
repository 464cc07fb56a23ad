//! Installs that wait, round by round.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn plan(limits: InstallLimits) -> InstallPlan {
    InstallPlan::new(limits)
}

fn offer(plan: &mut InstallPlan, flow: u64, now_us: u64) -> Offer {
    let write = |out: &mut Vec<u8>| {
        out.extend(flow.to_ne_bytes());
        Ok::<(), ()>(())
    };
    plan.offer(Wanted { flow, lane: flow, alike: flow as usize }, now_us, write).unwrap()
}

fn end_round(plan: &mut InstallPlan, now_us: u64) -> Vec<u64> {
    end_round_with(plan, now_us, true)
}

fn end_round_with(plan: &mut InstallPlan, now_us: u64, drained: bool) -> Vec<u64> {
    let mut sent = Vec::new();
    let note = |m: &[u8], _| sent.push(u64::from_ne_bytes(m.try_into().unwrap()));
    plan.end_round(Observed { now_us, drained, busy: false }, |_| false, |_| false, note);
    sent
}

#[test]
fn a_round_that_left_packets_in_the_socket_proves_nothing() {
    let limits = InstallLimits { wait_us_max: 10, ..InstallLimits::default() };
    let mut plan = plan(limits);
    offer(&mut plan, 1, 0);
    for _ in 0..8 {
        assert_eq!(end_round_with(&mut plan, 0, false), [0u64; 0]);
    }
    assert_eq!(end_round(&mut plan, 0), [1]);
    offer(&mut plan, 2, 0);
    let waited =
        (0..100).take_while(|now| end_round_with(&mut plan, *now, false).is_empty()).count();
    assert_eq!(waited, 10, "a backlog without an end does not hold an install for ever");
}

#[test]
fn an_install_waits_while_upcalls_of_its_lane_do() {
    let limits = InstallLimits { wait_us_max: 10, ..InstallLimits::default() };
    let mut plan = plan(limits);
    (1..=2).for_each(|flow| assert_eq!(offer(&mut plan, flow, 0), Offer::Planned));
    let mut round = |now_us| {
        let mut sent = Vec::new();
        let seen = Observed { now_us, drained: true, busy: false };
        let end =
            plan.end_round(seen, |lane| lane == 1, |_| false, |m, _| sent.extend_from_slice(m));
        (sent, end.forced)
    };
    assert_eq!(round(0), (vec![], 0));
    assert_eq!(round(0), (2u64.to_ne_bytes().to_vec(), 0), "the lane of the other is free");
    let waited = (0..100).take_while(|now| round(*now).0.is_empty()).count();
    assert_eq!(waited, 10, "what waits for ever does not hold an install for ever");
}

#[test]
fn what_is_cleared_is_not_sent_and_can_be_asked_for_again() {
    let mut plan = plan(InstallLimits::default());
    offer(&mut plan, 1, 0);
    plan.clear();
    assert_eq!(end_round(&mut plan, 0), [0u64; 0]);
    assert_eq!(offer(&mut plan, 1, 0), Offer::Planned);
    end_round(&mut plan, 0);
    assert_eq!(end_round(&mut plan, 0), [1]);
    plan.clear();
    assert_eq!(offer(&mut plan, 1, 0), Offer::Planned, "a sent install is forgotten too");
}

#[test]
fn an_install_waits_for_a_round_without_its_flow() {
    let mut plan = plan(InstallLimits::default());
    assert_eq!(offer(&mut plan, 1, 0), Offer::Planned);
    assert_eq!(offer(&mut plan, 1, 0), Offer::Duplicate);
    assert_eq!(end_round(&mut plan, 0), [0u64; 0]);
    assert_eq!(offer(&mut plan, 1, 0), Offer::Duplicate);
    assert_eq!(offer(&mut plan, 2, 0), Offer::Planned);
    assert_eq!(end_round(&mut plan, 0), [0u64; 0]);
    assert_eq!(end_round(&mut plan, InstallLimits::default().silence_us), [1, 2]);
    assert!(plan.is_empty());
}

#[test]
fn a_flow_that_is_sending_is_installed_when_it_is_silent() {
    let mut plan = plan(InstallLimits { silence_us: 50, ..InstallLimits::default() });
    (1..=3).for_each(|flow| assert_eq!(offer(&mut plan, flow, 0), Offer::Planned));
    plan.touch(1);
    assert_eq!(end_round(&mut plan, 10), [0u64; 0]);
    assert_eq!(offer(&mut plan, 2, 20), Offer::Duplicate);
    assert_eq!(end_round(&mut plan, 20), [3], "one upcall is no reason to expect another");
    assert_eq!(end_round(&mut plan, 59), [0u64; 0]);
    assert_eq!(end_round(&mut plan, 60), [1]);
    assert_eq!(end_round(&mut plan, 70), [2]);
}

#[test]
fn it_is_known_when_the_next_has_been_silent_for_long_enough() {
    let mut plan = plan(InstallLimits { silence_us: 50, ..InstallLimits::default() });
    assert_eq!(plan.silent_in_us(0), 0, "nothing waits");
    (1..=2).for_each(|flow| assert_eq!(offer(&mut plan, flow, 0), Offer::Planned));
    (1..=2).for_each(|flow| plan.touch(flow));
    end_round(&mut plan, 10);
    plan.touch(2);
    end_round(&mut plan, 30);
    assert_eq!([30, 59, 60, 70].map(|now_us| plan.silent_in_us(now_us)), [30, 1, 0, 0]);
    assert_eq!(end_round(&mut plan, 60), [1]);
    assert_eq!(plan.silent_in_us(60), 20, "of the other");
    (0..32).for_each(|_| plan.touch(2));
    assert_eq!(plan.silent_in_us(60), 0, "one that has seen many waits for an empty socket alone");
}

#[test]
fn what_waits_stays_what_it_is_when_others_go() {
    let mut plan = plan(InstallLimits { silence_us: 50, ..InstallLimits::default() });
    let message = |flow: u64| vec![flow as u8; flow as usize];
    for flow in 1..=40 {
        let wanted = Wanted { flow, lane: flow, alike: 0 };
        let write = |buf: &mut Vec<u8>| {
            buf.extend(message(flow));
            Ok::<_, ()>(())
        };
        assert_eq!(plan.offer(wanted, 0, write), Ok(Offer::Planned));
        plan.touch(flow);
    }
    let mut left: Vec<u64> = (1..=40).collect();
    for turn in 1..=6u64 {
        // All but some are silent.
        let sending: Vec<u64> = left.iter().copied().filter(|flow| flow % 7 >= turn).collect();
        for flow in &sending {
            plan.touch(*flow);
        }
        let mut sent = Vec::new();
        let seen = Observed { now_us: turn * 60, drained: true, busy: true };
        plan.end_round(seen, |_| false, |_| false, |bytes, _| sent.push(bytes.to_vec()));
        let silent = left.iter().filter(|flow| !sending.contains(flow) && turn > 1);
        assert_eq!(sent, silent.map(|flow| message(*flow)).collect::<Vec<_>>(), "turn {turn}");
        if turn > 1 {
            left = sending;
        }
        for flow in 1..=40 {
            let waits = left.contains(&flow).then(|| message(flow));
            assert_eq!(plan.waiting(flow).map(<[u8]>::to_vec), waits, "{flow} in turn {turn}");
        }
    }
}

#[test]
fn a_flow_of_packets_with_pauses_is_installed_right_behind_one() {
    let mut plan = plan(InstallLimits { pause_us: 50, ..InstallLimits::default() });
    offer(&mut plan, 1, 0);
    let end = |plan: &mut InstallPlan, now_us| {
        let seen = Observed { now_us, drained: true, busy: true };
        plan.end_round(seen, |_| false, |_| false, |_, _| ()).sent
    };
    assert_eq!(end(&mut plan, 10), 0);
    plan.touch(1);
    assert_eq!([end(&mut plan, 59), end(&mut plan, 60)], [0, 0], "too soon after the first");
    plan.touch(1);
    assert_eq!([end(&mut plan, 120), end(&mut plan, 121)], [0, 0], "once may be by chance");
    (0..2).for_each(|_| plan.touch(1));
    assert_eq!([end(&mut plan, 180), end(&mut plan, 181)], [0, 0], "a burst begins");
    plan.touch(1);
    assert_eq!(
        [end(&mut plan, 240), end(&mut plan, 241)],
        [0, 0],
        "its sender was kept from running"
    );
    plan.touch(1);
    assert_eq!([end(&mut plan, 290), end(&mut plan, 291)], [0, 1]);
}

#[test]
fn a_flow_that_is_never_silent_is_installed_all_the_same() {
    let mut plan = plan(InstallLimits::default());
    offer(&mut plan, 1, 0);
    let sent = (1..100u64).take_while(|pair| {
        (0..2).for_each(|_| plan.touch(1));
        end_round(&mut plan, pair * 800);
        end_round(&mut plan, pair * 800 + 150).is_empty()
    });
    assert_eq!(sent.count(), 15, "behind 32 upcalls");
}

#[test]
fn what_a_reader_took_of_more_did_not_come_alone() {
    let mut plan = plan(InstallLimits::default());
    offer(&mut plan, 1, 0);
    end_round(&mut plan, 0);
    let mut now_us = 0;
    let mut alone = |plan: &mut InstallPlan, drained| {
        now_us += 1_500;
        plan.touch(1);
        end_round_with(plan, now_us, false);
        end_round_with(plan, now_us + 50, drained)
    };
    for drained in [true, false, true] {
        assert_eq!(alone(&mut plan, drained), [0u64; 0]);
    }
    assert_eq!(alone(&mut plan, true), [1]);
}

#[test]
fn while_others_send_an_install_waits_for_silence_too() {
    let mut plan = plan(InstallLimits { silence_us: 50, ..InstallLimits::default() });
    offer(&mut plan, 1, 0);
    let mut sent = 0;
    let mut round = |now_us, busy| {
        let seen = Observed { now_us, drained: true, busy };
        plan.end_round(seen, |_| false, |_| false, |_, _| sent += 1).sent
    };
    assert_eq!([round(0, true), round(49, false), round(50, false)], [0, 0, 1]);
}

#[test]
fn behind_a_burst_a_flow_that_comes_alone_is_taken_for_another() {
    let mut plan = plan(InstallLimits { silence_us: 50, ..InstallLimits::default() });
    let mut now_us = 0;
    let mut waits = |upcalls: u64, flow: u64| {
        (0..upcalls).for_each(|_| _ = offer(&mut plan, flow, now_us));
        end_round(&mut plan, now_us);
        let waits = end_round(&mut plan, now_us + 1).is_empty();
        now_us += 50;
        end_round(&mut plan, now_us);
        assert!(plan.is_empty(), "silent for long enough");
        waits
    };
    assert!(!waits(1, 1), "nothing has come in a burst so far");
    assert!(waits(2, 2));
    let waited = (3..100).take_while(|flow| waits(1, *flow)).count();
    assert_eq!(waited, 16, "of those that come alone, one is taken for that again");
    assert!(!waits(1, 100));
}

#[test]
fn behind_a_straggler_the_next_flow_is_taken_for_a_burst() {
    let mut plan = plan(InstallLimits { silence_us: 50, ..InstallLimits::default() });
    offer(&mut plan, 1, 0);
    end_round(&mut plan, 0);
    assert_eq!(end_round(&mut plan, 1), [1]);
    assert_eq!(offer(&mut plan, 1, 2), Offer::Straggler);
    offer(&mut plan, 2, 3);
    end_round(&mut plan, 3);
    assert_eq!(end_round(&mut plan, 52), [0u64; 0]);
    assert_eq!(end_round(&mut plan, 53), [2]);
}

#[test]
fn an_elephant_is_installed_at_the_limit_of_rounds_or_upcalls() {
    let limits = InstallLimits { rounds_max: 3, upcalls_max: 100, ..InstallLimits::default() };
    for (upcalls, expected) in [(1, 3), (40, 2)] {
        let mut plan = plan(limits);
        let mut rounds = 0;
        loop {
            (0..upcalls).for_each(|_| _ = offer(&mut plan, 1, 0));
            if end_round(&mut plan, 0) == [1] {
                break;
            }
            rounds += 1;
        }
        assert_eq!(rounds, expected, "{upcalls} in a round");
    }
}

#[test]
fn upcalls_after_the_install_are_stragglers_for_a_while() {
    let mut plan = plan(InstallLimits { recent_us: 100, ..InstallLimits::default() });
    offer(&mut plan, 1, 0);
    end_round(&mut plan, 0);
    assert_eq!(end_round(&mut plan, 10), [1]);
    assert_eq!(offer(&mut plan, 1, 110), Offer::Straggler);
    assert_eq!(offer(&mut plan, 1, 111), Offer::Planned);
}

#[test]
fn limits_hold() {
    let limits = InstallLimits { pending_max: 2, recent_max: 1, ..InstallLimits::default() };
    let mut plan = plan(limits);
    assert_eq!(offer(&mut plan, 1, 0), Offer::Planned);
    assert_eq!(offer(&mut plan, 2, 0), Offer::Planned);
    assert_eq!(offer(&mut plan, 3, 0), Offer::Full);
    end_round(&mut plan, 0);
    assert_eq!(end_round(&mut plan, 0), [1, 2]);
    assert_eq!(offer(&mut plan, 2, 0), Offer::Straggler);
    assert_eq!(offer(&mut plan, 1, 0), Offer::Planned, "only one flow is remembered");
}

#[test]
fn a_message_that_cannot_be_written_is_not_planned() {
    let mut plan = plan(InstallLimits::default());
    let failed = plan.offer(Wanted { flow: 1, lane: 1, alike: 1 }, 0, |out| {
        out.push(1);
        Err("no")
    });
    assert_eq!(failed, Err("no"));
    assert!(plan.is_empty());
    offer(&mut plan, 2, 0);
    end_round(&mut plan, 0);
    assert_eq!(end_round(&mut plan, 0), [2]);
}

proptest! {
    /// Whatever the order of events: every planned install is sent once, in its own bytes, in no
    /// round that saw an upcall of its flow unless the limit forced it, and within the limit.
    #[test]
    fn every_planned_install_is_sent_once_and_behind_its_packets(
        rounds in prop::collection::vec(
            (prop::collection::vec(0u64..6, 0..8), any::<bool>(), prop::bool::weighted(0.1)),
            1..40,
        ),
    ) {
        let limits = InstallLimits {
            rounds_max: 3,
            wait_us_max: 9_000,
            silence_us: 2_000,
            recent_us: 0,
            ..InstallLimits::default()
        };
        let mut plan = plan(limits);
        // Flow to rounds waited, and of these those with an upcall of it.
        let mut waiting: HashMap<u64, (u16, u8)> = HashMap::new();
        let last = (0..2).map(|_| (vec![], true, false));
        for (now, (round, drained, learned)) in rounds.into_iter().chain(last).enumerate() {
            let now = now as u64 * 1_000;
            if learned {
                // What was decided before is neither sent nor answered from.
                plan.clear();
                waiting.clear();
            }
            for flow in &round {
                let planned = plan.waiting(*flow).map(<[u8]>::to_vec);
                let expected = waiting.contains_key(flow).then(|| flow.to_ne_bytes().to_vec());
                prop_assert_eq!(&planned, &expected, "flow {}", flow);
                if planned.is_some() && flow % 2 == 0 {
                    // Answered from the plan.
                    plan.touch(*flow);
                    continue;
                }
                match offer(&mut plan, *flow, now) {
                    Offer::Planned => prop_assert!(waiting.insert(*flow, (0, 0)).is_none()),
                    Offer::Duplicate => prop_assert!(waiting.contains_key(flow)),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            for flow in end_round_with(&mut plan, now, drained) {
                let (waited, touched) = waiting.remove(&flow).expect("sent but not planned");
                let proven = drained && !round.contains(&flow);
                prop_assert!(proven || touched == 3 || waited == 9);
            }
            for (flow, (waited, touched)) in &mut waiting {
                *waited += 1;
                *touched += u8::from(round.contains(flow));
                prop_assert!(*waited <= 9 && *touched <= 3);
            }
        }
        prop_assert!(plan.is_empty() && waiting.is_empty());
    }
}

#[test]
fn an_install_waits_for_what_is_known_to_be_unread_however_long_it_has_waited() {
    let limits = InstallLimits { wait_us_max: 100, ..InstallLimits::default() };
    let mut plan = InstallPlan::new(limits);
    (1..=2).for_each(|flow| assert_eq!(offer(&mut plan, flow, 0), Offer::Planned));
    let mut end = |now_us, drained, unread: &[usize]| {
        let mut sent = Vec::new();
        let seen = Observed { now_us, drained, busy: false };
        let is_unread = |alike: usize| unread.contains(&alike);
        plan.end_round(seen, |_| false, is_unread, |m, _| sent.push(m[0]));
        sent
    };
    assert_eq!(end(10, true, &[1, 2]), [0u8; 0]);
    assert_eq!(end(20, true, &[1, 2]), [0u8; 0], "an empty socket is not all that is asked for");
    assert_eq!(end(100, false, &[1]), [2], "the one of which nothing is unread has waited enough");
    assert_eq!(end(399, false, &[1]), [0u8; 0]);
    assert_eq!(end(400, false, &[1]), [1], "not forever");
}
