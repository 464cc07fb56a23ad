//! Who has nothing to do and may be called to help.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

/// A worker, as the others see it.
#[derive(Debug, Default)]
pub(crate) struct Mate {
    /// Its thread's name.
    thread: String,
    busy: AtomicBool,
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
    pub(crate) fn join(&self) -> Arc<Mate> {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        let mate = Arc::new(Mate { thread, ..Mate::default() });
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

    /// Calls up to `wanted` of those that do nothing. `true` if somebody helps: work that waits will
    /// find a worker.
    pub(crate) fn call(&self, wanted: usize) -> bool {
        let mates = self.mates.load();
        let idle = mates.iter().filter(|mate| !mate.busy.load(Ordering::Relaxed));
        let mut any = self.helping.load(Ordering::Relaxed) > 0;
        for mate in idle.take(wanted.max(1)) {
            any = true;
            mate.begin();
            mate.call.notify_one();
        }
        any
    }

    /// Is there a worker that does nothing?
    pub(crate) fn anyone_idle(&self) -> bool {
        self.mates.load().iter().any(|mate| !mate.busy.load(Ordering::Relaxed))
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

/// See [`Crew::help`].
pub(crate) struct Helping<'a>(&'a Crew);

impl Drop for Helping<'_> {
    fn drop(&mut self) {
        self.0.helping.fetch_sub(1, Ordering::Relaxed);
    }
}
