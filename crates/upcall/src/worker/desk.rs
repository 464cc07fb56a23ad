//! What the tasks of a worker share: its engine, and how others reach it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::LOOK_AGAIN;
use crate::crew::Mate;
use crate::engine::Engine;
use crate::roam::Roamer;
use crate::shared::Shared;
use crate::wakes::Wakes;

/// How long a worker that ends waits for what others still have to answer.
const CLEAR_LIMIT: Duration = Duration::from_secs(1);

/// What a worker works with: its engine, and how others reach it.
pub(super) struct Desk {
    pub(super) shared: Arc<Shared>,
    pub(super) engine: RefCell<Engine>,
    pub(super) mate: Arc<Mate>,
    /// Something waits that only the passing of time will settle.
    pub(super) look_again: Notify,
    pub(super) wakes: Arc<Wakes>,
    pub(super) roamer: RefCell<Roamer>,
}

impl Desk {
    /// Runs `work` on the engine, seen as busy by the other workers.
    pub(super) fn work<T>(&self, work: impl FnOnce(&mut Engine) -> T) -> T {
        self.mate.begin();
        let mut engine = self.engine.borrow_mut();
        let done = work(&mut engine);
        self.mate.end();
        if engine.must_look_again() {
            self.look_again.notify_one();
        }
        done
    }

    /// Says that the last work was to read, and whether there is more.
    pub(super) fn has_read(&self, has_more: bool) {
        self.mate.has_read(self.engine.borrow().last_read_us(), has_more);
    }

    /// Leaves the worker's CPU for a while if others keep it from running there.
    pub(super) fn may_leave(self: &Rc<Self>) {
        let shared = &self.shared;
        let stay = self.roamer.borrow_mut().busy(shared.clock.now_us(), &shared.crew);
        if let Some(stay) = stay {
            let desk = self.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(stay).await;
                desk.roamer.borrow_mut().woken(|| desk.shared.clock.now_us());
            });
        }
    }

    /// Helps other workers when they call.
    pub(super) async fn come_when_called(self: Rc<Self>) {
        loop {
            self.mate.called().await;
            let _helping = self.mate.help();
            while self.work(Engine::help) {
                // The worker's own sockets come first.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Looks after what waits for time to pass.
    pub(super) async fn look_again(self: Rc<Self>) {
        loop {
            self.look_again.notified().await;
            tokio::time::sleep(LOOK_AGAIN).await;
            while self.work(Engine::help) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Answers what waits before the worker ends, in the time that a fence may take.
    pub(super) async fn clear(&self) {
        let deadline = Instant::now() + CLEAR_LIMIT;
        while self.shared.lanes.any_queued() && Instant::now() < deadline {
            if !self.work(Engine::help) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
}
