//! Reading one upcall socket, whenever there is something in it.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use netlink_io::{AsyncSocket, Datagram, Socket};
use tokio::sync::watch;

use super::desk::Desk;
use super::{ERROR_PAUSE, LOOK_AGAIN};
use crate::engine::{Engine, Source};
use crate::shield::Shield;
use crate::sources::Carries;

/// Rounds of a last reading: more than the largest receive buffer in use holds.
const DRAIN_ROUNDS_MAX: usize = 1024;

/// One upcall socket and its flows that wait to be installed.
pub(super) struct Reader {
    socket: AsyncSocket,
    source: RefCell<Source>,
    carries: Carries,
    /// If ports share the socket.
    shield: Option<Rc<RefCell<Shield>>>,
    desk: Rc<Desk>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let id = self.source.get_mut().entry.id;
        self.desk.shared.sources.remove(id);
    }
}

impl Reader {
    pub(super) fn new(socket: Arc<Socket>, carries: Carries, desk: Rc<Desk>) -> io::Result<Self> {
        let shared = desk.shared.clone();
        let async_socket = AsyncSocket::new(socket.clone())?;
        let shielded = shared.limits.load().storm_shield && carries == Carries::AnyFlow;
        let shield = shielded.then(|| desk.engine.borrow().shield(socket.clone()));
        let shield = shield.map(|shield| Rc::new(RefCell::new(shield)));
        let entry = shared.sources.add(Some(socket), carries)?;
        let source = RefCell::new(Source::new(entry, shared.limits.load().install));
        Ok(Self { socket: async_socket, source, carries, shield, desk })
    }

    pub(super) fn port_id(&self) -> u32 {
        self.socket.socket().port_id()
    }

    pub(super) async fn run(self: Rc<Self>, mut gate: watch::Receiver<bool>) {
        // The delivery is gone if this fails, and the worker about to end.
        if gate.wait_for(|open| *open).await.is_err() {
            return;
        }
        loop {
            if let Err(err) = self.wait_and_read().await {
                tracing::warn!(port_id = self.port_id(), %err, "cannot read an upcall socket");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }

    /// Waits for upcalls and reads the socket empty, letting other sockets in between rounds.
    async fn wait_and_read(&self) -> io::Result<()> {
        let mut ready = self.socket.readable().await?;
        let shared = &self.desk.shared;
        self.desk.roamer.borrow_mut().woken(|| shared.clock.now_us());
        if self.carries == Carries::AnyFlow && self.desk.engine.borrow().reads_in_order() {
            ready.clear();
            let all = self.desk.work(Engine::read_in_order)?;
            self.desk.has_read(!all);
            if all {
                return Ok(());
            }
        }
        self.told();
        let mut again = false;
        loop {
            match self.round(|buf| ready.try_recv(buf))? {
                Next::Wait => return Ok(()),
                // At once, but only once: a stream of new flows must not shut the others out.
                Next::ReadAgain if !again => again = true,
                Next::ReadAgain | Next::Yield => {
                    again = false;
                    self.desk.wakes.looks_anew();
                    self.desk.may_leave();
                    tokio::task::yield_now().await;
                }
                Next::Pause => tokio::time::sleep(LOOK_AGAIN).await,
                Next::Linger(pause) => {
                    let readable = tokio::time::timeout(pause, self.socket.readable());
                    if let Ok(readable) = readable.await {
                        ready = readable?;
                        self.told();
                    }
                }
            }
        }
    }

    /// A wake-up told of something in the socket.
    fn told(&self) {
        if let Some(at_us) = self.desk.wakes.last_us() {
            self.source.borrow_mut().told_of(at_us);
        }
    }

    /// Reads the socket empty without waiting. Nobody else in this process reads it any more; what a
    /// flood adds meanwhile is left to a successor.
    pub(super) fn drain(&self) {
        let socket = self.socket.socket();
        for _ in 0..DRAIN_ROUNDS_MAX {
            match self.round(|buf| socket.recv(buf)) {
                Ok(Next::Wait) => return,
                Ok(Next::Pause | Next::Linger(_)) => std::thread::sleep(LOOK_AGAIN),
                Ok(Next::ReadAgain | Next::Yield) => {}
                Err(err) => {
                    tracing::warn!(port_id = self.port_id(), %err, "cannot read a socket empty");
                    return;
                }
            }
        }
    }

    fn round(
        &self,
        recv: impl FnMut(&mut [u8]) -> io::Result<Option<Datagram>>,
    ) -> io::Result<Next> {
        let mut source = self.source.borrow_mut();
        if self.desk.engine.borrow().is_crowded(&source) {
            return Ok(if self.desk.work(Engine::help) { Next::Yield } else { Next::Pause });
        }
        let mut shield = self.shield.as_ref().map(|shield| shield.borrow_mut());
        let tally = shield.as_mut().map(|shield| shield.tally());
        let round = self.desk.work(|engine| engine.round(&mut source, tally, recv));
        drop(shield);
        let round = round?;
        if round.received > 0 {
            self.desk.has_read(!round.drained);
        }
        if round.is_cut_short() {
            return Ok(Next::ReadAgain);
        }
        if !round.drained {
            self.desk.shared.funnel.not_drained(self.socket.socket());
        }
        self.shield.iter().for_each(|shield| Shield::after_round(shield, round.drained));
        Ok(match (round.drained, source.is_settled()) {
            (true, true) => Next::Wait,
            // The further non-blocking read that contract O3 asks for, at once.
            (true, false) if round.received > 0 => Next::ReadAgain,
            (true, false) => {
                let silent_in_us = source.silent_in_us(self.desk.shared.clock.now_us());
                Next::Linger(LOOK_AGAIN.max(Duration::from_micros(silent_in_us)))
            }
            (false, _) => Next::Yield,
        })
    }
}

/// What to do with a socket after a round.
enum Next {
    Wait,
    ReadAgain,
    Yield,
    /// Others have what waits in their hands.
    Pause,
    /// Installs wait for silence, or for upcalls that others have in their hands.
    Linger(Duration),
}
