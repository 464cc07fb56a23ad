//! Access and trunk ports: no packet leaves its VLAN, and each arrives in the form of its port.

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::{FlowText, Lab, SOON, TestResult, ctl, modes};
use upcall_testkit::{PingPlan, VlanTag, ping};

use super::{Arrivals, BROADCAST, Links, lab, mac};

/// p0 and p1 are in VLAN 10, p2 in 20, p3 a trunk of both, p4 one whose untagged packets are in 10, and p5
/// is as nobody said anything.
const CONFIG: &str = "
[port.p0]
access = 10
[port.p1]
access = 10
[port.p2]
access = 20
[port.p3]
trunk = ['9-10', 20]
[port.p4]
trunk = ['18-20']
native = 10
";

/// Who is heard by whom: p5 by those that carry VLANs, p3 by p5.
fn marks() -> [(usize, Option<VlanTag>); 6] {
    let from_p5 = |id| (5, tag(id));
    [from_p5(10), from_p5(10), from_p5(20), from_p5(20), from_p5(20), (3, tag(20))]
}

/// What each may send that reaches another one.
fn behind() -> [(Option<VlanTag>, usize); 6] {
    [(None, 1), (None, 0), (None, 3), (tag(10), 0), (None, 0), (tag(10), 0)]
}

#[expect(clippy::unnecessary_wraps, reason = "what has a tag is told from what has none")]
fn tag(id: u16) -> Option<VlanTag> {
    Some(VlanTag::new(id))
}

/// What is sent from a port, and where and how it arrives.
type Case = (usize, Option<VlanTag>, Arrivals);

fn cases() -> Vec<Case> {
    let urgent = |id| Some(VlanTag::new(id).priority(5));
    vec![
        (0, None, vec![(1, None), (3, tag(10)), (4, None), (5, tag(10))]),
        (0, tag(10), vec![]),
        (0, tag(20), vec![]),
        (0, urgent(0), vec![(1, None), (3, urgent(10)), (4, None), (5, urgent(10))]),
        (2, None, vec![(3, tag(20)), (4, tag(20)), (5, tag(20))]),
        (3, None, vec![]),
        (3, tag(30), vec![]),
        (3, tag(10), vec![(0, None), (1, None), (4, None), (5, tag(10))]),
        (3, urgent(20), vec![(2, None), (4, urgent(20)), (5, urgent(20))]),
        (4, None, vec![(0, None), (1, None), (3, tag(10)), (5, tag(10))]),
        (4, tag(10), vec![(0, None), (1, None), (3, tag(10)), (5, tag(10))]),
        (4, tag(20), vec![(2, None), (3, tag(20)), (5, tag(20))]),
        (5, None, vec![]),
        (5, tag(30), vec![]),
        (5, tag(10), vec![(0, None), (1, None), (3, tag(10)), (4, None)]),
        (5, tag(20), vec![(2, None), (3, tag(20)), (4, tag(20))]),
        (5, Some(VlanTag::service(10)), vec![]),
    ]
}

#[test]
fn what_is_flooded_stays_in_its_vlan_and_has_the_form_of_its_port() -> TestResult {
    for mode in modes() {
        let lab = lab(6, CONFIG, |builder| builder.dispatch(mode))?;
        let mut links = Links::new(&lab, &behind())?;
        for (from, tag, wanted) in cases() {
            for to in [BROADCAST, mac(77), [1, 0, 0x5e, 0, 0, 1]] {
                let packet = links.packet(mac(from), to);
                let got = links.reach((from, tag), packet, &marks())?;
                ensure!(
                    got == wanted,
                    "{mode}: {tag:?} from p{from} to {to:x?}: {got:?}, not {wanted:?}"
                );
            }
        }
        refused_flows_count(&lab, &mut links)?;
        let shown = ctl(&lab, &["fdb/stats-show"])?;
        for (port, vlans) in
            [("p2", "  20\n"), ("p3", "  trunk 9-10,20\n"), ("p4", "  trunk 18-20 native 10\n")]
        {
            let line = shown.split_inclusive('\n').find(|line| line.contains(port));
            ensure!(
                line.is_some_and(|line| line.ends_with(vlans)),
                "no {port} with{vlans} in\n{shown}"
            );
        }
        lab.finish()?;
    }
    Ok(())
}

/// Packets of a VLAN that their port does not carry are dropped by the kernel once it has the flow.
fn refused_flows_count(lab: &Lab, links: &mut Links) -> TestResult {
    let drops = |flow: &FlowText| flow.actions == "drop";
    lab.wait_flows("flows that drop", |flows| {
        flows.iter().filter(|flow| drops(flow)).count() >= 4
    })?;
    let refused = [(0, 10, "in_port(1)"), (0, 20, "in_port(1)"), (3, 30, "in_port(4)")];
    for (from, id, _) in refused {
        let packet = links.packet(mac(from), BROADCAST);
        links.reach((from, tag(id)), packet, &marks())?;
    }
    let counts = |flows: &[FlowText], (_, id, port): &(usize, u16, &str)| {
        let vlan = format!("vlan(vid={id}");
        let is_it = |flow: &&FlowText| flow.key.contains(port) && flow.key.contains(&vlan);
        flows.iter().filter(is_it).any(|flow| drops(flow) && flow.packets > 0)
    };
    lab.wait_flows("flows that count", |flows| refused.iter().all(|one| counts(flows, one)))?;
    Ok(())
}

#[test]
fn flows_change_the_tag_and_are_right_when_they_are_looked_at() -> TestResult {
    for mode in modes() {
        let lab = lab(6, CONFIG, |builder| builder.dispatch(mode))?;
        let mut links = Links::new(&lab, &behind())?;
        // Everybody is known in VLAN 10, p3 and p5 with a tag.
        let voices = [(0, None), (1, None), (3, tag(10)), (4, None), (5, tag(10))];
        for (from, tag) in voices {
            let packet = links.packet(mac(from), BROADCAST);
            links.reach((from, tag), packet, &marks())?;
        }
        let pairs = || {
            voices
                .iter()
                .flat_map(|a| voices.iter().map(move |b| (a, b)))
                .filter(|(a, b)| a.0 != b.0)
        };
        for _ in 0..3 {
            for ((from, tag), (to, form)) in pairs() {
                let packet = links.packet(mac(*from), mac(*to));
                let got = links.reach((*from, *tag), packet, &marks())?;
                ensure!(got == [(*to, *form)], "{mode}: from p{from} to p{to}: {got:?}");
            }
            // The sweep leaves them alone.
            let flows = lab.wait_flows("a flow for each pair", |flows| flows.len() == 20)?;
            let count = |actions: &str| flows.iter().filter(|flow| flow.actions == actions).count();
            // To p3 (port 4) from the three without a tag; from p3 to p0 (port 1).
            ensure!(count("push_vlan(vid=10,pcp=0),4") == 3 && count("4") == 1, "{flows:#?}");
            ensure!(count("pop_vlan,1") == 2 && count("1") == 2, "{flows:#?}");
        }
        // The same address in another VLAN is nobody that is known.
        let stranger = links.packet(mac(2), mac(0));
        let got = links.reach((2, None), stranger, &marks())?;
        ensure!(got == [(3, tag(20)), (4, tag(20)), (5, tag(20))], "{mode}: {got:?}");
        // A priority without a VLAN goes into the tag that is pushed, by packet and by flow.
        for _ in 0..2 {
            let urgent = Some(VlanTag::new(0).priority(5));
            let packet = links.packet(mac(0), mac(3));
            let got = links.reach((0, urgent), packet, &marks())?;
            ensure!(got == [(3, Some(VlanTag::new(10).priority(5)))], "{mode}: {got:?}");
            lab.wait_flows("its flow", |flows| {
                flows.iter().any(|flow| flow.actions.contains("pcp=5"))
            })?;
        }
        let stats = lab.finish()?;
        ensure!(stats.kernel_lost == 0, "{stats:?}");
    }
    Ok(())
}

#[test]
fn hosts_of_one_vlan_talk_and_others_do_not() -> TestResult {
    let lab = lab(6, CONFIG, |builder| builder)?;
    let pinged = |from: usize, to: usize, timeout: Duration| -> Result<(u32, u32)> {
        let plan = PingPlan { count: 3, timeout, ..PingPlan::default() };
        let report = ping::ping(&lab.hosts[from].ns, lab.hosts[to].ip4, &plan)?;
        Ok((report.answered, report.sent))
    };
    for (from, to) in [(0, 1), (1, 4), (4, 0)] {
        let (answered, sent) = pinged(from, to, SOON)?;
        ensure!(answered == sent, "h{from} to h{to}: {answered} of {sent}");
    }
    for (from, to) in [(0, 2), (2, 4), (5, 0), (3, 1)] {
        ensure!(pinged(from, to, Duration::from_secs(1))?.0 == 0, "h{from} reaches h{to}");
    }
    lab.finish_after_races()?;
    Ok(())
}
