//! Onlookers: who wants to see what becomes of upcalls while the dispatcher runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use ovs_wire::action::Actions;

use crate::Upcall;

/// Sees what becomes of upcalls, without a part in it ([`Dispatcher::observe`](crate::Dispatcher)).
pub trait Observer: Send + Sync + 'static {
    /// An upcall was answered. Called on the thread of the worker, which reads nothing meanwhile: what
    /// takes long, and every copy that is kept, must be bounded by the observer. Upcalls that are shed are
    /// not shown. An observer that panics is shown nothing more.
    fn answered(&self, upcall: &Upcall<'_>, answer: &Answer<'_>);
}

/// What was answered to an upcall.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// What the packet is sent through; none drops it.
    pub actions: Actions<'a>,
    /// Was a flow asked for? That it was installed is not known yet.
    pub install: bool,
    /// Was it answered as an earlier one of its flow, without asking the handler?
    pub from_plan: bool,
}

/// The one that looks on.
pub(crate) type Onlooker = Option<Arc<dyn Observer>>;

/// Who looks on, for workers that ask once a round.
#[derive(Default)]
pub(crate) struct Observers {
    any: AtomicBool,
    current: ArcSwapOption<Arc<dyn Observer>>,
}

impl Observers {
    pub(crate) fn set(&self, observer: Onlooker) {
        self.any.store(observer.is_some(), Ordering::Relaxed);
        self.current.store(observer.map(Arc::new));
    }

    /// Costs a relaxed load when nobody looks on.
    pub(crate) fn current(&self) -> Onlooker {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        self.current.load().as_deref().cloned()
    }
}

/// Shows an answer to who looks on.
pub(crate) fn show(onlooker: &mut Onlooker, upcall: &Upcall<'_>, answer: &Answer<'_>) {
    let Some(observer) = onlooker else { return };
    let shown = catch_unwind(AssertUnwindSafe(|| observer.answered(upcall, answer)));
    if shown.is_err() {
        tracing::error!("an observer of upcalls panicked; it is shown nothing more in this round");
        *onlooker = None;
    }
}
