//! A worker leaves its CPU while others keep it from running there and there is room elsewhere: where another
//! worker has time. Two that are both kept from running would only change places, or share one CPU. One that is
//! kept from running where it went comes back.
//!
//! Near the CPU whose upcalls it reads a wake-up is cheap. But what sends the packets may run there too
//! and take all of it; then the scheduler shares the CPU between the two, however idle the others are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ovs_features::cpu;
use rustix::process::Pid;

use crate::crew::Crew;

/// How long a busy worker is watched before it is judged, in microseconds: some turns of the scheduler.
const WATCH_US: u64 = 20_000;
/// Looks that are further apart say nothing: the worker slept in between.
const APART_US: u64 = 100_000;
/// It is kept from running if it waits for its CPU for more than one part in so many.
const WAITS_PART: u64 = 4;
/// How long it stays away at first, in microseconds; twice as long each time it had to leave again
/// soon after it came back.
const AWAY_US: u64 = 1_000_000;
const AWAY_MAX_US: u64 = 16_000_000;

/// CPUs of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Room {
    /// Where it belongs.
    pub(crate) near: Vec<usize>,
    /// Where it may go while it is kept from running there; the same, if nowhere.
    pub(crate) far: Vec<usize>,
}

/// Where one worker thread is, for itself and for those who move it.
#[derive(Debug, Default)]
pub(crate) struct Roam {
    room: Mutex<Room>,
    /// Written by who holds the room.
    away: AtomicBool,
}

impl Roam {
    pub(crate) fn new(room: Room) -> Self {
        Self { room: Mutex::new(room), away: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is the thread away from where it belongs?
    pub(crate) fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// Keeps the calling thread near.
    pub(crate) fn settle(&self) -> io::Result<()> {
        cpu::set_affinity(None, &self.lock().near)
    }

    /// Moves the thread to other CPUs for good.
    pub(crate) fn move_to(&self, thread: Pid, room: &Room) -> io::Result<()> {
        let mut is = self.lock();
        cpu::set_affinity(Some(thread), &room.near)?;
        is.clone_from(room);
        self.away.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// CPUs where the thread belongs, as the kernel has them; while it is away, those that it will
    /// come back to.
    pub(crate) fn belongs_to(&self, thread: Pid) -> io::Result<Vec<usize>> {
        let room = self.lock();
        if self.is_away() { Ok(room.near.clone()) } else { cpu::affinity(Some(thread)) }
    }

    /// Lets the calling thread go far, or brings it back. `false` if it may not, or is there.
    pub(crate) fn be_away(&self, away: bool) -> bool {
        let room = self.lock();
        let Room { near, far } = &*room;
        if self.is_away() == away || near == far {
            return false;
        }
        // Not the CPU it leaves: a running thread stays where it may until the scheduler finds it.
        let elsewhere = far.iter().filter(|cpu| !near.contains(cpu)).copied().collect();
        let cpus = if away { elsewhere } else { near.clone() };
        let moved = cpu::set_affinity(None, &cpus);
        let cpus = cpu::list_text(&cpus);
        tracing::debug!(away, cpus, ?moved, "a worker goes where it can run");
        self.away.store(away && moved.is_ok(), Ordering::Relaxed);
        moved.is_ok()
    }
}

/// Watches over the thread that made it.
#[derive(Debug)]
pub(crate) struct Roamer {
    pub(crate) roam: Arc<Roam>,
    /// What the scheduler says of the thread (`/proc/PID/task/TID/schedstat`); `None` if it does not.
    schedstat: Option<File>,
    judge: Judge,
}

impl Roamer {
    pub(crate) fn new(roam: Arc<Roam>) -> Self {
        let schedstat = File::open("/proc/thread-self/schedstat").ok();
        Self { roam, schedstat, judge: Judge::default() }
    }

    /// To be called when the worker is woken, and when it has stayed away for as long as it wanted: comes back
    /// when it is time.
    pub(crate) fn woken(&mut self, now_us: impl FnOnce() -> u64) {
        if self.judge.is_away && self.judge.is_over(now_us()) {
            self.roam.be_away(false);
        }
    }

    /// To be called when there is more to do than one round does. Gives how long the worker stays away, if it
    /// leaves: what it reads may come by another's socket by then, and nobody wake it.
    pub(crate) fn busy(&mut self, now_us: u64, crew: &Crew) -> Option<Duration> {
        let schedstat = self.schedstat.as_ref().filter(|_| self.judge.is_due(now_us))?;
        if !self.judge.is_kept_from_running(now_us, waited_us(schedstat)?) {
            return None;
        }
        if self.judge.is_away {
            self.judge.gave_up(now_us);
            self.roam.be_away(false);
            return None;
        }
        if !(crew.has_room(&self.roam, now_us) && self.roam.be_away(true)) {
            return None;
        }
        self.judge.left(now_us);
        Some(Duration::from_micros(self.judge.stay_us))
    }
}

/// How long the thread has waited for a CPU since it began, in microseconds: the second figure
/// (`Documentation/scheduler/sched-stats.rst`).
fn waited_us(schedstat: &File) -> Option<u64> {
    let mut text = [0; 80];
    let len = schedstat.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..len]).ok()?;
    Some(text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()? / 1000)
}

/// Decides when to leave and when to come back; the time is passed in.
#[derive(Debug, Default)]
struct Judge {
    /// The last look: when, and how long the thread had waited until then.
    looked: Option<(u64, u64)>,
    is_away: bool,
    /// When it comes back, if it is away; otherwise before that it does not leave.
    until_us: u64,
    /// How long it wanted to stay away when it last left.
    stay_us: u64,
}

impl Judge {
    fn is_due(&self, now_us: u64) -> bool {
        (self.is_away || now_us >= self.until_us)
            && self.looked.is_none_or(|(at_us, _)| now_us.saturating_sub(at_us) >= WATCH_US)
    }

    fn is_kept_from_running(&mut self, now_us: u64, waited_us: u64) -> bool {
        let Some((at_us, before_us)) = self.looked.replace((now_us, waited_us)) else {
            return false;
        };
        let (passed, waited) = (now_us - at_us, waited_us.saturating_sub(before_us));
        passed < APART_US && waited * WAITS_PART > passed
    }

    fn left(&mut self, now_us: u64) {
        let soon = self.stay_us > 0 && now_us - self.until_us < AWAY_US;
        self.stay_us = if soon { (self.stay_us * 2).min(AWAY_MAX_US) } else { AWAY_US };
        (self.is_away, self.until_us, self.looked) = (true, now_us + self.stay_us, None);
    }

    /// Is its time away over? Then it is at home.
    fn is_over(&mut self, now_us: u64) -> bool {
        let over = now_us >= self.until_us;
        if over {
            (self.is_away, self.until_us) = (false, now_us);
        }
        over
    }

    /// It was no better there: it is at home, for as long as it wanted to be away.
    fn gave_up(&mut self, now_us: u64) {
        (self.is_away, self.until_us) = (false, now_us + self.stay_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_for_its_cpu_is_kept_from_running() {
        let mut judge = Judge::default();
        assert!(judge.is_due(1) && !judge.is_kept_from_running(1, 500), "nothing to compare with");
        assert!(!judge.is_due(WATCH_US), "too early");
        assert!(judge.is_due(1 + WATCH_US));
        assert!(!judge.is_kept_from_running(1 + WATCH_US, 500 + WATCH_US / 4));
        let (at, waited) = (1 + 2 * WATCH_US, 500 + WATCH_US);
        assert!(judge.is_kept_from_running(at, waited));
        assert!(!judge.is_kept_from_running(at + APART_US, waited + APART_US), "it slept");
    }

    #[test]
    fn who_must_leave_again_soon_stays_away_longer() {
        let mut judge = Judge::default();
        let (mut now, mut stays) = (5, Vec::new());
        for _ in 0..6 {
            judge.left(now);
            stays.push((judge.until_us - now) / AWAY_US);
            assert!(!judge.is_over(judge.until_us - 1));
            now = judge.until_us;
            assert!(judge.is_over(now) && judge.is_due(now));
            now += WATCH_US;
        }
        assert_eq!(stays, [1, 2, 4, 8, 16, 16]);
        now += AWAY_US;
        judge.left(now);
        assert_eq!(judge.until_us - now, AWAY_US, "it had peace for a while");
    }

    #[test]
    fn who_is_kept_from_running_elsewhere_too_stays_at_home_for_a_while() {
        let mut judge = Judge::default();
        let (mut now, mut homes) = (5, Vec::new());
        for _ in 0..3 {
            judge.left(now);
            assert!(judge.is_due(now) && !judge.is_kept_from_running(now, 0));
            now += WATCH_US;
            assert!(judge.is_due(now) && judge.is_kept_from_running(now, WATCH_US));
            judge.gave_up(now);
            homes.push((judge.until_us - now) / AWAY_US);
            assert!(!judge.is_due(judge.until_us - 1));
            now = judge.until_us;
        }
        assert_eq!(homes, [1, 2, 4]);
    }

    #[test]
    fn the_scheduler_says_how_long_a_thread_waited() {
        let schedstat = File::open("/proc/thread-self/schedstat").unwrap();
        let before = waited_us(&schedstat).unwrap();
        assert!(waited_us(&schedstat).unwrap() >= before);
        let none = File::open("/dev/null").unwrap();
        assert_eq!(waited_us(&none), None);
    }

    #[test]
    fn a_thread_goes_far_and_comes_back() {
        let all = cpu::usable().unwrap();
        let room = Room { near: all[..1].to_vec(), far: all.clone() };
        let on = |room: Room| {
            std::thread::spawn(move || {
                let own = Roam::new(room.clone());
                own.settle().unwrap();
                let thread = rustix::thread::gettid();
                let left = own.be_away(true);
                assert_eq!(left, room.near != room.far);
                assert!(!own.be_away(true), "it is away, or may not be");
                let there = if left { &room.far[1..] } else { &room.far };
                assert_eq!(cpu::usable().unwrap(), there);
                assert_eq!(own.belongs_to(thread).unwrap(), room.near);
                assert_eq!(own.be_away(false), left);
                assert_eq!(cpu::usable().unwrap(), room.near);
            })
        };
        on(Room { near: all.clone(), far: all }).join().unwrap();
        on(room).join().unwrap();
    }
}
