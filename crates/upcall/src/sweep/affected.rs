//! Stations that have moved: whose flows are wrong, while all others are right.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ovs_wire::MacAddr;

use crate::flow_id::{self, Tag, Told};

/// Stations at a time: beyond, every flow is asked about.
const STATIONS_MAX: usize = 64;

/// A station, and when it moved: what was decided later is right.
#[derive(Debug, Clone, Copy)]
struct Move {
    tag: Tag,
    at_ms: u64,
}

/// Those that no sweep has looked for yet.
#[derive(Debug, Default)]
pub(crate) struct Affected(Mutex<Vec<Move>>);

impl Affected {
    /// At `now_ms` of `CLOCK_MONOTONIC`. `false` if there is no room for it.
    pub(crate) fn add(&self, station: MacAddr, now_ms: u64) -> bool {
        let (mut moves, tag) = (self.lock(), flow_id::tag(station));
        if let Some(known) = moves.iter_mut().find(|known| known.tag == tag) {
            known.at_ms = now_ms;
            return true;
        }
        let has_room = moves.len() < STATIONS_MAX;
        if has_room {
            moves.push(Move { tag, at_ms: now_ms });
        }
        has_room
    }

    fn take(&self) -> Vec<Move> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Move>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stations that a sweep looks for.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Those that moved since the last sweep.
    new: Vec<Move>,
    /// Those that the last one looked for: what a worker decided before may have been installed behind it.
    old: Vec<Move>,
}

impl Moved {
    /// Begins the next sweep.
    pub(super) fn follow(&mut self, affected: &Affected) {
        self.old = std::mem::replace(&mut self.new, affected.take());
    }

    pub(super) fn any(&self) -> bool {
        !self.new.is_empty() || !self.old.is_empty()
    }

    /// May a flow of this id be wrong because one of them moved?
    pub(super) fn affects(&self, told: Told) -> bool {
        let wrong = |m: &Move| told.tags.contains(&m.tag) && told.installed_ms <= m.at_ms;
        self.new.iter().chain(&self.old).any(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn station(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    fn told(from: u8, to: u8, installed_ms: u64) -> Told {
        Told { installed_ms, tags: [station(from), station(to)].map(flow_id::tag) }
    }

    #[test]
    fn two_sweeps_look_for_a_station_that_moved_and_for_no_other() {
        let (affected, mut moved) = (Affected::default(), Moved::default());
        assert!(affected.add(station(1), 5) && affected.add(station(1), 7));
        for expected in [true, true, false] {
            moved.follow(&affected);
            assert_eq!(moved.any(), expected);
            assert_eq!([(1, 2), (2, 1)].map(|(a, b)| moved.affects(told(a, b, 7))), [expected; 2]);
            assert!(!moved.affects(told(2, 3, 7)), "others");
            assert!(!moved.affects(told(1, 2, 8)), "decided since");
        }
    }

    #[test]
    fn there_is_a_limit_of_stations() {
        let affected = Affected::default();
        let added = (0..=255).take_while(|last| affected.add(station(*last), 0)).count();
        assert_eq!((added, affected.take().len()), (STATIONS_MAX, STATIONS_MAX));
        assert!(affected.add(station(255), 0), "they have been looked for");
    }
}
