//! Who has nothing to do and may be called to help.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::roam::Roam;

/// Who has read nothing for so long, in microseconds, has time for others. Not who rests between two rounds of
/// its own: its CPU is in use, and what it does for others it keeps from its own sockets.
pub(crate) const FREE_US: u64 = 2_000;

/// A worker, as the others see it.
#[derive(Debug, Default)]
pub(crate) struct Mate {
    /// Its thread's name.
    thread: String,
    roam: Arc<Roam>,
    busy: AtomicBool,
    /// When it last read something; 0 if it never did.
    read_us: AtomicU64,
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

    /// Says that it read something out of its own sockets.
    pub(crate) fn has_read(&self, now_us: u64) {
        self.read_us.store(now_us, Ordering::Relaxed);
    }

    fn is_free(&self, now_us: u64) -> bool {
        let read_us = self.read_us.load(Ordering::Relaxed);
        let rests = read_us == 0 || now_us.saturating_sub(read_us) >= FREE_US;
        rests && !self.busy.load(Ordering::Relaxed)
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
    /// Those that came when called and are still at it.
    helping: AtomicUsize,
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

    /// Calls up to `wanted` of those that are free, one for each CPU that has room. `true` if somebody helps:
    /// work that waits will find a worker.
    pub(crate) fn call(&self, wanted: usize, now_us: u64) -> bool {
        let mates = self.mates.load();
        let mut any = self.helping.load(Ordering::Relaxed) > 0;
        let room = room(&mates, now_us);
        let free = mates.iter().filter(|mate| mate.is_free(now_us));
        for mate in free.take(wanted.max(1).min(room)) {
            any = true;
            mate.begin();
            mate.call.notify_one();
        }
        any
    }

    /// Is there a CPU of a worker that has nothing to do?
    pub(crate) fn has_room(&self, now_us: u64) -> bool {
        room(&self.mates.load(), now_us) > 0
    }

    /// Calls one worker, whatever it does: there is something to do that its last look did not find.
    pub(crate) fn summon(&self) {
        let mates = self.mates.load();
        let idle = mates.iter().find(|mate| !mate.busy.load(Ordering::Relaxed));
        if let Some(mate) = idle.or_else(|| mates.first()) {
            mate.call.notify_one();
        }
    }

    /// Holds a worker among those that help.
    pub(crate) fn help(&self) -> Helping<'_> {
        self.helping.fetch_add(1, Ordering::Relaxed);
        Helping(self)
    }
}

/// CPUs of workers that are free; a worker that is away from its own uses another's.
fn room(mates: &[Arc<Mate>], now_us: u64) -> usize {
    let free = mates.iter().filter(|mate| mate.is_free(now_us)).count();
    free.saturating_sub(mates.iter().filter(|mate| mate.roam.is_away()).count())
}

/// See [`Crew::help`].
pub(crate) struct Helping<'a>(&'a Crew);

impl Drop for Helping<'_> {
    fn drop(&mut self) {
        self.0.helping.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roam::Room;

    const NOW_US: u64 = 10 * FREE_US;

    #[test]
    fn only_who_has_read_nothing_for_a_while_is_called() {
        let crew = Crew::default();
        let [busy, reads, free] = [(); 3].map(|()| crew.join(Arc::default()));
        busy.begin();
        reads.has_read(NOW_US - FREE_US + 1);
        assert!(crew.call(3, NOW_US));
        assert!(free.at_work().is_some() && reads.at_work().is_none());
        assert!(!crew.call(3, NOW_US), "nobody is left");
        free.end();
        let _helping = crew.help();
        free.has_read(NOW_US);
        assert!(crew.call(1, NOW_US), "somebody is at it");
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
        assert!(crew.has_room(NOW_US) && crew.call(2, NOW_US));
        let called = mates.iter().filter(|mate| mate.at_work().is_some()).count();
        assert_eq!(called, if own.roam.is_away() { 1 } else { 2 });
    }
}
