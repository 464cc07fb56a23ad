//! Answers that the handler gives later.
//!
//! The handler's future runs on the runtime that the dispatcher was started on, not on a worker: what is
//! slow must not keep a socket from being read. Meanwhile the upcall stays at the head of its lane
//! (`upcall_core`, [`Ticket`]); when the future ends, however it ends, its [`Promise`] lets the lane run
//! again, and whichever worker takes it carries the answer out.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::watch;
use upcall_core::Ticket;

use crate::shared::Shared;
use crate::{Limits, Verdict};

/// A handler's answer on its way. A panic of the future's destructor is caught.
pub(crate) struct Later(Option<BoxFuture<'static, Verdict>>);

impl Later {
    pub(crate) fn new(answer: impl Future<Output = Verdict> + Send + 'static) -> Self {
        Self(Some(answer.boxed()))
    }

    /// Waits for the answer; for one that comes later still, if the answer says so.
    async fn wait(mut self) -> Option<Verdict> {
        loop {
            let mut verdict = self.0.as_mut()?.await;
            match verdict.later.take() {
                Some(later) => self = later,
                None => return Some(verdict),
            }
        }
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        let answer = self.0.take();
        if catch_unwind(AssertUnwindSafe(|| drop(answer))).is_err() {
            tracing::error!("the destructor of a handler's future panicked");
        }
    }
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Later")
    }
}

/// How a handler's future ended.
pub(crate) enum Outcome {
    /// With this verdict; decided when [`Shared::epoch`] was this.
    Answer(Box<Verdict>, u64),
    Panicked,
    TimedOut,
    /// It was dropped: the dispatcher is stopping, or the runtime is gone.
    Stopped,
}

/// What is still done for a handler that wants to answer later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Open,
    /// What is on its way may arrive; nothing new is waited for.
    Closing,
    /// Nothing is waited for, and nothing is asked.
    Closed,
}

/// Why an answer is not waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Stopping,
}

/// The answers that a dispatcher waits for.
pub(crate) struct Deferred {
    /// `None` in tests of the engine that have none.
    runtime: Option<Handle>,
    pending_max: usize,
    timeout: Duration,
    pending: AtomicUsize,
    /// Of those that have ended and that no worker has taken yet.
    outcomes: Mutex<HashMap<Ticket, Outcome>>,
    stage: watch::Sender<Stage>,
    /// Is it [`Stage::Closed`]? Looked at for every upcall.
    closed: AtomicBool,
}

impl Deferred {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            runtime: Handle::try_current().ok(),
            pending_max: limits.pending_max,
            timeout: limits.handler_timeout,
            pending: AtomicUsize::new(0),
            outcomes: Mutex::default(),
            stage: watch::Sender::new(Stage::Open),
            closed: AtomicBool::new(false),
        }
    }

    /// Answers that are waited for now.
    pub(crate) fn pending(&self) -> usize {
        self.pending.load(Ordering::SeqCst)
    }

    /// Goes on to a stage; there is no way back.
    pub(crate) fn advance(&self, stage: Stage) {
        self.closed.fetch_or(stage == Stage::Closed, Ordering::Relaxed);
        self.stage.send_if_modified(|now| {
            let goes_on = stage > *now;
            *now = stage.max(*now);
            goes_on
        });
    }

    /// Is nothing asked any more?
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Takes the place of one answer.
    pub(crate) fn reserve(shared: &Arc<Shared>) -> Result<Promise, Refused> {
        let deferred = &shared.deferred;
        if deferred.runtime.is_none() {
            return Err(Refused::Stopping);
        }
        let one_more = |pending| (pending < deferred.pending_max).then_some(pending + 1);
        deferred
            .pending
            .fetch_update(Ordering::SeqCst, Ordering::Relaxed, one_more)
            .map_err(|_| Refused::Full)?;
        let promise = Promise { shared: shared.clone(), ticket: None, outcome: Outcome::Stopped };
        // Whoever goes on to the next stage looks at what is pending behind that.
        if *deferred.stage.borrow() == Stage::Open { Ok(promise) } else { Err(Refused::Stopping) }
    }

    /// Waits for an answer, no longer than is allowed.
    async fn wait(&self, later: Later, epoch: u64) -> Outcome {
        let mut stage = self.stage.subscribe();
        let closed = async move { stage.wait_for(|stage| *stage == Stage::Closed).await.is_ok() };
        let answer = tokio::time::timeout(self.timeout, later.wait());
        tokio::select! {
            biased;
            answer = AssertUnwindSafe(answer).catch_unwind() => match answer {
                Ok(Ok(Some(verdict))) => Outcome::Answer(Box::new(verdict), epoch),
                Ok(Ok(None)) => Outcome::Stopped,
                Ok(Err(_)) => Outcome::TimedOut,
                Err(_) => Outcome::Panicked,
            },
            _ = closed => Outcome::Stopped,
        }
    }

    /// How the future behind a ticket ended.
    pub(crate) fn take(&self, ticket: Ticket) -> Outcome {
        self.outcomes().remove(&ticket).unwrap_or(Outcome::Stopped)
    }

    fn outcomes(&self) -> MutexGuard<'_, HashMap<Ticket, Outcome>> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one answer; dropping it tells its lane how that ended.
pub(crate) struct Promise {
    shared: Arc<Shared>,
    /// The upcall, once it is detained.
    ticket: Option<Ticket>,
    outcome: Outcome,
}

impl Promise {
    /// Waits for the answer to the upcall behind `ticket`, elsewhere.
    pub(crate) fn keep(mut self, ticket: Ticket, later: Later) {
        self.ticket = Some(ticket);
        let shared = self.shared.clone();
        let Some(runtime) = shared.deferred.runtime.clone() else { return };
        let epoch = shared.epoch();
        runtime.spawn(async move {
            let mut promise = self;
            promise.outcome = shared.deferred.wait(later, epoch).await;
            drop(promise);
        });
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let Self { shared, ticket, outcome } = self;
        if let Some(ticket) = *ticket {
            let outcome = std::mem::replace(outcome, Outcome::Stopped);
            shared.deferred.outcomes().insert(ticket, outcome);
            if shared.lanes.answered(ticket) {
                shared.crew.summon();
            } else {
                shared.deferred.outcomes().remove(&ticket);
            }
        }
        shared.deferred.pending.fetch_sub(1, Ordering::SeqCst);
    }
}
