//! Who has nothing to do and may be called to help.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::roam::Roam;

/// How far back it is remembered what part of its time a worker reads, in microseconds.
const SPAN_US: u64 = 8_000;
/// Who reads for less than one part in so many has time for others. Time is that of the wall: of a worker whose CPU
/// others use too, much goes by while it reads, and it has none.
const FREE_PART: u64 = 4;

/// A worker, as the others see it.
#[derive(Debug, Default)]
pub(crate) struct Mate {
    /// Its thread's name.
    thread: String,
    roam: Arc<Roam>,
    busy: AtomicBool,
    /// How long it has read since then, what is older faded.
    read_us: AtomicU64,
    since_us: AtomicU64,
    /// There is more than it read. One that is kept from running reads little, and has no time for all that.
    has_more: AtomicBool,
    /// It came when called and is still at it.
    helps: AtomicBool,
    /// Pieces of work that it has done.
    works: AtomicU64,
    call: Notify,
}

impl Mate {
    /// Says that this worker works; to be said around everything that it does.
    pub(crate) fn begin(&self) {
        self.busy.store(true, Ordering::Relaxed);
    }

    /// Says that it does no more.
    pub(crate) fn end(&self) {
        self.works.store(self.works.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.busy.store(false, Ordering::Relaxed);
    }

    /// Says that it read its own sockets in that time, and whether there is more in them. What it does for others
    /// does not count.
    pub(crate) fn has_read(&self, (from_us, now_us): (u64, u64), has_more: bool) {
        self.has_more.store(has_more, Ordering::Relaxed);
        let mut read_us = self.read_us.load(Ordering::Relaxed) + now_us.saturating_sub(from_us);
        let mut span_us = now_us.saturating_sub(self.since_us.load(Ordering::Relaxed));
        if span_us > 2 * SPAN_US {
            read_us = read_us * SPAN_US / span_us;
            span_us = SPAN_US;
        }
        self.read_us.store(read_us, Ordering::Relaxed);
        self.since_us.store(now_us - span_us, Ordering::Relaxed);
    }

    fn is_free(&self, now_us: u64) -> bool {
        self.has_time(now_us) && !self.busy.load(Ordering::Relaxed)
    }

    /// Do its own sockets leave it time?
    fn has_time(&self, now_us: u64) -> bool {
        let span_us = now_us.saturating_sub(self.since_us.load(Ordering::Relaxed)).max(SPAN_US);
        let reads_little = self.read_us.load(Ordering::Relaxed) * FREE_PART < span_us;
        reads_little && !self.has_more.load(Ordering::Relaxed)
    }

    /// Holds it among those that help.
    pub(crate) fn help(&self) -> Helping<'_> {
        self.helps.store(true, Ordering::Relaxed);
        Helping(self)
    }

    /// The number of the piece of work that it is at, if it is.
    pub(crate) fn at_work(&self) -> Option<u64> {
        self.busy.load(Ordering::Relaxed).then(|| self.works.load(Ordering::Relaxed))
    }

    pub(crate) fn thread(&self) -> &str {
        &self.thread
    }

    /// Waits until somebody calls for help.
    pub(crate) async fn called(&self) {
        self.call.notified().await;
    }
}

/// The workers of a dispatcher.
#[derive(Debug, Default)]
pub(crate) struct Crew {
    mates: ArcSwap<Vec<Arc<Mate>>>,
}

impl Crew {
    pub(crate) fn join(&self, roam: Arc<Roam>) -> Arc<Mate> {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        let mate = Arc::new(Mate { thread, roam, ..Mate::default() });
        self.change(|mates| mates.push(mate.clone()));
        mate
    }

    pub(crate) fn leave(&self, mate: &Arc<Mate>) {
        self.change(|mates| mates.retain(|other| !Arc::ptr_eq(other, mate)));
    }

    fn change(&self, change: impl Fn(&mut Vec<Arc<Mate>>)) {
        self.mates.rcu(|mates| {
            let mut mates = Vec::clone(mates);
            change(&mut mates);
            mates
        });
    }

    /// The workers there are now.
    pub(crate) fn mates(&self) -> Arc<Vec<Arc<Mate>>> {
        self.mates.load_full()
    }

    /// Calls up to `wanted` of those that are free, one for each CPU that has room. `true` if somebody helps who has
    /// time for it: work that waits will find a worker. Two that both have more to read than they can would only
    /// do each other's.
    pub(crate) fn call(&self, wanted: usize, now_us: u64) -> bool {
        let mates = self.mates.load();
        let helps = |mate: &Mate| mate.helps.load(Ordering::Relaxed) && mate.has_time(now_us);
        let mut any = mates.iter().any(|mate| helps(mate));
        let room = room(mates.iter(), now_us);
        let free = mates.iter().filter(|mate| mate.is_free(now_us));
        for mate in free.take(wanted.max(1).min(room)) {
            any = true;
            mate.begin();
            mate.call.notify_one();
        }
        any
    }

    /// Is there a CPU of a worker that has nothing to do, beside that of the one that asks?
    pub(crate) fn has_room(&self, asks: &Arc<Roam>, now_us: u64) -> bool {
        let mates = self.mates.load();
        room(mates.iter().filter(|mate| !Arc::ptr_eq(&mate.roam, asks)), now_us) > 0
    }

    /// Calls one worker, whatever it does: there is something to do that its last look did not find.
    pub(crate) fn summon(&self) {
        let mates = self.mates.load();
        let idle = mates.iter().find(|mate| !mate.busy.load(Ordering::Relaxed));
        if let Some(mate) = idle.or_else(|| mates.first()) {
            mate.call.notify_one();
        }
    }
}

/// CPUs of workers that are free; one that is not, and away from its own, uses another's.
fn room<'a>(mates: impl Iterator<Item = &'a Arc<Mate>>, now_us: u64) -> usize {
    let (free, others): (Vec<_>, Vec<_>) = mates.partition(|mate| mate.is_free(now_us));
    let guests = others.iter().filter(|mate| mate.roam.is_away()).count();
    free.len().saturating_sub(guests)
}

/// See [`Mate::help`].
pub(crate) struct Helping<'a>(&'a Mate);

impl Drop for Helping<'_> {
    fn drop(&mut self) {
        self.0.helps.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roam::Room;

    const NOW_US: u64 = 10 * SPAN_US;

    /// Reads for `read_us` of each millisecond, up to [`NOW_US`].
    fn reads(mate: &Mate, read_us: u64) {
        (0..NOW_US).step_by(1_000).for_each(|us| mate.has_read((us, us + read_us), false));
    }

    #[test]
    fn only_who_has_time_is_called() {
        let crew = Crew::default();
        let [busy, reader, free] = [(); 3].map(|()| crew.join(Arc::default()));
        busy.begin();
        reads(&reader, 300);
        reads(&free, 200);
        assert!(crew.call(3, NOW_US));
        assert!(free.at_work().is_some() && reader.at_work().is_none());
        assert!(!crew.call(3, NOW_US), "nobody is left");
        let _helping = free.help();
        assert!(crew.call(1, NOW_US), "somebody is at it");
        free.has_read((NOW_US, NOW_US + 1), true);
        assert!(!crew.call(1, NOW_US + 1), "it has more to read than time");
    }

    #[test]
    fn what_a_worker_read_fades() {
        let mate = Mate::default();
        assert!(mate.is_free(0), "it has not read yet");
        reads(&mate, 1_000);
        assert!(!mate.is_free(NOW_US) && mate.is_free(NOW_US + 8 * SPAN_US));
        let later_us = NOW_US + 8 * SPAN_US;
        mate.has_read((later_us, later_us + 100), false);
        assert!(mate.is_free(later_us + 100));
        mate.has_read((later_us, later_us + 100), true);
        assert!(!mate.is_free(later_us + 100), "there is more, which it has no time for");
    }

    #[test]
    fn who_asks_for_room_is_not_the_room() {
        let (crew, asks) = (Crew::default(), Arc::default());
        let own = crew.join(Arc::clone(&asks));
        assert!(own.is_free(NOW_US) && !crew.has_room(&asks, NOW_US));
        crew.join(Arc::default());
        assert!(crew.has_room(&asks, NOW_US));
    }

    #[test]
    fn a_worker_that_is_away_uses_the_cpu_of_another() {
        let crew = Crew::default();
        let cpus = ovs_features::cpu::usable().unwrap();
        let roam = Arc::new(Roam::new(Room { near: cpus[..1].to_vec(), far: cpus.clone() }));
        let own = crew.join(roam.clone());
        own.begin();
        let mates = [(); 2].map(|()| crew.join(Arc::default()));
        std::thread::spawn(move || assert_eq!(roam.be_away(true), cpus.len() > 1)).join().unwrap();
        assert!(crew.has_room(&Arc::default(), NOW_US) && crew.call(2, NOW_US));
        let called = mates.iter().filter(|mate| mate.at_work().is_some()).count();
        assert_eq!(called, if own.roam.is_away() { 1 } else { 2 });
    }
}
