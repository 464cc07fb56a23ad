//! The ports that were asked for: which port each is now, whatever its device is called.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ovs_datapath::Link;
use ovs_wire::vport::{Vport, VportType};

use crate::PortSpec;

/// The ports that were asked for, by name or by pattern.
#[derive(Debug, Default)]
pub(crate) struct Members(Mutex<Roll>);

#[derive(Debug, Default)]
struct Roll {
    list: Vec<Member>,
    specs: Vec<PortSpec>,
    /// Interfaces that a pattern matches and that are no ports, by index: each is told of once. No more
    /// than there are interfaces.
    passed_over: HashMap<u32, PassedOver>,
}

/// Why an interface that a pattern matches is no port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassedOver {
    /// It can never be one.
    Unusable,
    /// It is a member of something else, for now.
    InUse,
    /// That failed: to be tried again.
    Failed,
}

#[derive(Debug)]
struct Member {
    /// The interface's name when it was asked for; of one that a pattern found, its name.
    name: String,
    state: State,
    /// We made it a port: it is removed at the end.
    added: bool,
    /// A pattern found it: nobody waits for it when it is gone.
    by_pattern: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not looked up yet.
    New,
    /// A port, with the index of its interface where the kernel tells it.
    Port(u32, Option<u32>),
    /// Its interface vanished: one that appears under this name takes its place.
    Awaited,
    /// Somebody took this interface out of the datapath: that is to be respected.
    Removed(Option<u32>),
}

impl Members {
    /// None of them is looked up yet.
    pub(crate) fn new(specs: Vec<PortSpec>) -> Self {
        let members = Self::default();
        members.ask_for(&specs);
        members.lock().specs = specs;
        members
    }

    /// Those of these that are names are asked for as well. Gives those that are new.
    pub(crate) fn ask_for(&self, specs: &[PortSpec]) -> Vec<String> {
        let mut roll = self.lock();
        let mut new = Vec::new();
        for spec in specs {
            let PortSpec::Name(name) = spec else { continue };
            if let Some(member) = roll.list.iter_mut().find(|member| member.name == *name) {
                member.by_pattern = false;
            } else {
                roll.list.push(Member::new(name, false));
                new.push(name.clone());
            }
        }
        new
    }

    /// From now on these are asked for and nothing else. Gives the ports that are asked for no longer.
    pub(crate) fn keep(&self, specs: Vec<PortSpec>) -> Vec<u32> {
        let mut roll = self.lock();
        if roll.specs != specs {
            // What is asked for anew may be told of anew.
            roll.passed_over.clear();
        }
        roll.specs = specs;
        let mut dismissed = Vec::new();
        let Roll { list, specs, .. } = &mut *roll;
        list.retain_mut(|member| {
            let by_name = |spec: &PortSpec| *spec == PortSpec::Name(member.name.clone());
            member.by_pattern = !specs.iter().any(by_name);
            let stays = specs.iter().any(|spec| spec.matches(&member.name));
            match member.state {
                State::Port(port_no, _) if !stays => dismissed.push(port_no),
                _ => {}
            }
            stays
        });
        dismissed
    }

    /// The interface `name` was made this port by us.
    pub(crate) fn added(&self, name: &str, port: &Vport) {
        let mut roll = self.lock();
        if !roll.list.iter().any(|member| member.name == name) {
            roll.list.push(Member::new(name, true));
        }
        for member in roll.list.iter_mut().filter(|member| member.name == name) {
            member.state = State::Port(port.port_no, port.ifindex);
            member.added = true;
        }
    }

    /// Compares with the ports there are. `removed`: the numbers of those that somebody took out; what
    /// else is missing has lost its interface. Gives the names of the latter that were asked for by name.
    pub(crate) fn compare(&self, ports: &[Vport], removed: &[u32]) -> Vec<String> {
        let mut roll = self.lock();
        let mut vanished = Vec::new();
        roll.list.retain_mut(|member| {
            if member.compare(ports, removed) {
                vanished.extend((!member.by_pattern).then(|| member.name.clone()));
            }
            !(member.by_pattern && member.state == State::Awaited)
        });
        for port in ports {
            roll.adopt(port);
        }
        vanished
    }

    /// Ports that a pattern found and whose names none matches any more.
    pub(crate) fn strays(&self) -> Vec<u32> {
        let roll = self.lock();
        let is_stray = |m: &&Member| m.by_pattern && !roll.matches(&m.name);
        roll.list.iter().filter(is_stray).filter_map(Member::port_no).collect()
    }

    /// Forgets the member with this number, which is no port any more.
    pub(crate) fn forget(&self, port_no: u32) {
        self.lock().list.retain(|member| member.port_no() != Some(port_no));
    }

    /// Is this an interface that a pattern matches, and that is not known yet? Not if all that can be
    /// said of it was said.
    pub(crate) fn wants(&self, link: &Link) -> bool {
        let roll = self.lock();
        let is_known = |member: &Member| match member.state {
            State::Port(_, ifindex) | State::Removed(ifindex) => ifindex == Some(link.ifindex),
            // Waited for by its name.
            State::New | State::Awaited => member.name == link.name,
        };
        let may_be = match roll.passed_over.get(&link.ifindex) {
            Some(PassedOver::Unusable) => false,
            Some(PassedOver::InUse) => link.controller.is_none(),
            Some(PassedOver::Failed) | None => true,
        };
        may_be && roll.matches(&link.name) && !roll.list.iter().any(is_known)
    }

    /// Is there a pattern among what is asked for?
    pub(crate) fn any_pattern(&self) -> bool {
        self.lock().specs.iter().any(|spec| matches!(spec, PortSpec::Pattern(_)))
    }

    /// This interface is no port. `true` if that was not known.
    pub(crate) fn pass_over(&self, ifindex: u32, why: PassedOver) -> bool {
        self.lock().passed_over.insert(ifindex, why) != Some(why)
    }

    /// Forgets interfaces that are gone: their indices may be those of others some day.
    pub(crate) fn retain(&self, links: &[Link]) {
        let there: HashSet<u32> = links.iter().map(|link| link.ifindex).collect();
        let mut roll = self.lock();
        roll.passed_over.retain(|ifindex, _| there.contains(ifindex));
        roll.list.retain(|member| match member.state {
            State::Removed(Some(ifindex)) if member.by_pattern => there.contains(&ifindex),
            _ => true,
        });
    }

    /// Names of the interfaces that are to be looked up, or waited for.
    pub(crate) fn awaited(&self) -> Vec<String> {
        let roll = self.lock();
        let awaited = |member: &&Member| matches!(member.state, State::New | State::Awaited);
        roll.list.iter().filter(awaited).map(|member| member.name.clone()).collect()
    }

    /// Is an interface of this name waited for?
    pub(crate) fn awaits(&self, name: &str) -> bool {
        self.lock().list.iter().any(|m| m.state == State::Awaited && m.name == name)
    }

    /// Numbers of the ports, by the names that they were asked for by.
    pub(crate) fn numbers(&self) -> HashMap<String, u32> {
        let roll = self.lock();
        let by_name = roll.list.iter().filter(|member| !member.by_pattern);
        by_name.filter_map(|member| Some((member.name.clone(), member.port_no()?))).collect()
    }

    /// Numbers of the ports that we made.
    pub(crate) fn ours(&self) -> Vec<u32> {
        let roll = self.lock();
        roll.list.iter().filter(|member| member.added).filter_map(Member::port_no).collect()
    }

    /// Predecessors made these ports: they are ours. Gives those that nobody asks for.
    pub(crate) fn made_before(&self, ports: &BTreeSet<u32>) -> BTreeSet<u32> {
        let mut unclaimed = ports.clone();
        for member in &mut self.lock().list {
            member.added |= member.port_no().is_some_and(|port_no| unclaimed.remove(&port_no));
        }
        unclaimed
    }

    fn lock(&self) -> MutexGuard<'_, Roll> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Roll {
    /// Does a pattern match this name?
    fn matches(&self, name: &str) -> bool {
        let matches = |spec: &PortSpec| matches!(spec, PortSpec::Pattern(_)) && spec.matches(name);
        self.specs.iter().any(matches)
    }

    /// A port that a pattern matches is one of ours, whoever made it.
    fn adopt(&mut self, port: &Vport) {
        let is_it = |member: &&mut Member| match member.state {
            State::Port(port_no, _) => port_no == port.port_no,
            State::Removed(ifindex) => member.by_pattern && ifindex == port.ifindex,
            State::New | State::Awaited => false,
        };
        let state = State::Port(port.port_no, port.ifindex);
        if let Some(member) = self.list.iter_mut().find(is_it) {
            member.state = state;
        } else if port.kind == VportType::Netdev && self.matches(&port.name) {
            self.list.push(Member { state, ..Member::new(&port.name, true) });
        }
    }
}

impl Member {
    fn new(name: &str, by_pattern: bool) -> Self {
        Self { name: name.to_owned(), state: State::New, added: false, by_pattern }
    }

    fn port_no(&self) -> Option<u32> {
        match self.state {
            State::Port(port_no, _) => Some(port_no),
            _ => None,
        }
    }

    /// Follows its port; `true` if its interface has vanished.
    fn compare(&mut self, ports: &[Vport], removed: &[u32]) -> bool {
        match self.state {
            // Somebody else may have made the one that is awaited a port.
            State::New | State::Awaited => {
                if let Some(port) = ports.iter().find(|port| port.name == self.name) {
                    self.state = State::Port(port.port_no, port.ifindex);
                }
                false
            }
            State::Port(port_no, ifindex) => {
                let same = |port: &&Vport| (port.port_no, port.ifindex) == (port_no, ifindex);
                if let Some(port) = ports.iter().find(same) {
                    if self.by_pattern {
                        self.name.clone_from(&port.name);
                    }
                    return false;
                }
                self.added = false;
                let was_removed = removed.contains(&port_no);
                self.state = if was_removed { State::Removed(ifindex) } else { State::Awaited };
                !was_removed
            }
            State::Removed(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_wire::vport::{VportStats, VportType};

    fn port(port_no: u32, name: &str, ifindex: u32) -> Vport {
        Vport {
            dp_ifindex: 1,
            port_no,
            kind: VportType::Netdev,
            name: name.to_owned(),
            ifindex: Some(ifindex),
            upcall_pids: Vec::new(),
            stats: VportStats::default(),
            upcall_stats: None,
            options: None,
        }
    }

    fn specs(texts: &[&str]) -> Vec<PortSpec> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn link(ifindex: u32, name: &str) -> Link {
        Link { ifindex, name: name.to_owned(), up: true, controller: None, loopback: false }
    }

    fn members() -> Members {
        let members = Members::new(specs(&["a", "b"]));
        members.added("a", &port(1, "a", 11));
        assert!(members.compare(&[port(1, "a", 11), port(2, "b", 12)], &[]).is_empty());
        members
    }

    #[test]
    fn a_renamed_port_keeps_the_name_it_was_asked_for_by() {
        let members = members();
        assert!(members.compare(&[port(1, "x", 11), port(2, "b", 12)], &[]).is_empty());
        assert_eq!(members.numbers(), [("a".into(), 1), ("b".into(), 2)].into());
        assert_eq!(members.ours(), [1], "only what we made is removed at the end");
    }

    #[test]
    fn what_a_predecessor_made_is_ours_or_nobodys() {
        let members = Members::new(specs(&["a", "v*"]));
        let ports = [port(1, "a", 11), port(2, "v2", 12), port(3, "c", 13), port(4, "v4", 14)];
        members.compare(&ports, &[]);
        assert!(members.ours().is_empty(), "whoever made them");
        assert_eq!(members.made_before(&[1, 2, 3].into()), [3].into());
        assert_eq!(members.ours(), [1, 2]);
    }

    #[test]
    fn a_vanished_interface_is_awaited_and_a_removed_port_is_not() {
        let members = members();
        assert_eq!(members.compare(&[], &[2]), ["a"]);
        assert_eq!(members.awaited(), ["a"]);
        assert!(members.awaits("a") && !members.awaits("b") && members.ours().is_empty());
        members.added("a", &port(3, "a", 21));
        assert_eq!((members.numbers(), members.ours()), ([("a".into(), 3)].into(), vec![3]));
        assert!(members.awaited().is_empty());
    }

    #[test]
    fn another_device_under_the_same_number_is_another_port() {
        let members = members();
        let ports = [port(1, "a", 99), port(2, "b", 12)];
        assert_eq!(members.compare(&ports, &[]), ["a"]);
    }

    #[test]
    fn a_pattern_takes_ports_and_leaves_them_with_their_interfaces() {
        let members = Members::new(specs(&["v*", "b"]));
        assert!(members.wants(&link(11, "v1")) && !members.wants(&link(12, "b")));
        members.added("v1", &port(1, "v1", 11));
        let made_by_others = port(3, "v3", 13);
        assert!(
            members.compare(&[port(1, "v1", 11), port(2, "b", 12), made_by_others], &[]).is_empty()
        );
        assert!(!members.wants(&link(11, "v1")) && !members.wants(&link(13, "v3")));
        assert_eq!((members.ours(), members.numbers()), (vec![1], [("b".into(), 2)].into()));
        assert!(members.compare(&[port(2, "b", 12)], &[]).is_empty(), "nobody waits for them");
        assert!(members.awaited().is_empty() && members.wants(&link(21, "v1")));
    }

    #[test]
    fn a_port_that_is_renamed_out_of_its_pattern_is_a_stray() {
        let members = Members::new(specs(&["v*"]));
        members.added("v1", &port(1, "v1", 11));
        members.compare(&[port(1, "v2", 11)], &[]);
        assert!(members.strays().is_empty());
        members.compare(&[port(1, "w2", 11)], &[]);
        assert_eq!(members.strays(), [1]);
        members.forget(1);
        assert!(members.ours().is_empty());
    }

    #[test]
    fn what_somebody_took_out_stays_out_as_long_as_it_is_there() {
        let members = Members::new(specs(&["v*"]));
        members.added("v1", &port(1, "v1", 11));
        members.compare(&[], &[1]);
        assert!(!members.wants(&link(11, "v1")), "the same interface");
        members.retain(&[link(12, "v1")]);
        assert!(members.wants(&link(11, "v1")), "another one with an index that is used again");
    }

    #[test]
    fn what_cannot_be_a_port_is_told_of_once_and_tried_when_it_is_free() {
        let members = Members::new(specs(&["*"]));
        let bridged = Link { controller: Some(7), ..link(11, "v1") };
        assert!(members.wants(&bridged) && members.pass_over(11, PassedOver::InUse));
        assert!(!members.wants(&bridged) && !members.pass_over(11, PassedOver::InUse));
        assert!(members.wants(&link(11, "v1")), "it is free");
        members.pass_over(11, PassedOver::Unusable);
        assert!(!members.wants(&link(11, "v1")));
    }

    #[test]
    fn what_is_asked_for_no_longer_is_given_up() {
        let members = Members::new(specs(&["a", "v*"]));
        let ports = [port(1, "a", 11), port(2, "v2", 12), port(3, "v3", 13)];
        members.compare(&ports, &[]);
        assert!(members.ask_for(&specs(&["a", "v2"])).is_empty());
        assert_eq!(members.keep(specs(&["a*", "v2"])), [3]);
        assert_eq!(members.numbers(), [("v2".into(), 2)].into(), "'a' is meant by a pattern now");
        assert_eq!(members.keep(specs(&["v2"])), [1]);
    }
}
