//! Worker threads: each with its own runtime, its own send socket, and the sockets it reads.

mod desk;
mod reader;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use netlink_io::{AsyncSocket, Socket};
use ovs_features::cpu;
use rustix::process::Pid;
use rustix::thread::gettid;
use tokio::runtime::{LocalOptions, LocalRuntime};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use upcall_core::Ledger;

use self::desk::Desk;
use self::reader::Reader;
use crate::clock::Clock;
use crate::engine::Engine;
use crate::roam::{Roam, Roamer, Room};
use crate::shared::Shared;
use crate::sources::Carries;
use crate::wakes::Wakes;
use crate::{Error, Failure, replies};

/// Commands that may wait for a worker: they come one by one from one task.
const COMMANDS_MAX: usize = 16;
/// Bytes for a reply: a header, an errno and the kernel's explanation.
const REPLY_MAX: usize = 8 << 10;
/// Pause after a receive error that is none of the known ones, so that it cannot spin.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Time between two looks at what waits.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

enum Command {
    /// Read this socket too.
    Serve(Arc<Socket>, Carries),
    /// Read the socket with this port id empty now, whether or not the gate is open.
    Drain(u32, oneshot::Sender<()>),
    /// Read the socket with this port id empty, then let go of it.
    Retire(u32, oneshot::Sender<()>),
    /// Read no socket any more, and answer what was read.
    Rest(oneshot::Sender<()>),
    /// Read all sockets empty, then end.
    Stop,
}

/// Name of the thread of worker `number`, as `/proc/PID/task/TID/comm` has it.
pub(crate) fn thread_name(number: usize) -> String {
    format!("upcall-{number}")
}

/// A running worker.
pub(crate) struct Worker {
    commands: mpsc::Sender<Command>,
    thread: Mutex<JoinHandle<()>>,
    /// The thread's id in the kernel.
    tid: Pid,
    roam: Arc<Roam>,
    ledger: Arc<Ledger>,
}

impl Worker {
    /// Starts worker `number` near its CPUs. It answers on `tx`, which is its own. Sockets are read once
    /// `gate` is open.
    pub(crate) fn start(
        (number, room): (usize, Room),
        tx: Socket,
        shared: Arc<Shared>,
        gate: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let ledger = Arc::new(Ledger::default());
        let in_flight = shared.in_flight.slot();
        let in_flight = in_flight.map_err(Error::system("add a worker"))?;
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (owned_ledger, tx) = (ledger.clone(), Arc::new(tx));
        let wherever = Arc::new(Roam::new(room));
        let its = wherever.clone();
        let (up, is_up) = std::sync::mpsc::sync_channel(1);
        // What it logs is about whatever its starter is about.
        let span = tracing::Span::current();
        let body = move || {
            let _about = span.enter();
            let prepared = match prepare(its, shared.clock) {
                Ok(prepared) => prepared,
                Err(err) => return drop(up.send(Err(err))),
            };
            let _ = up.send(Ok(gettid()));
            let engine = Engine::new(shared.clone(), owned_ledger.clone(), in_flight, tx.clone());
            let why = run(prepared, engine, owned_ledger, tx, inbox, gate);
            if let Err(err) = why {
                shared.fail(Failure::WorkerEnded { worker: number, why: err.to_string() });
            }
        };
        let thread = std::thread::Builder::new()
            .name(thread_name(number))
            .spawn(body)
            .map_err(Error::system("start a worker thread"))?;
        // A matter of microseconds; and what it needs, it has, when this returns.
        let prepared = is_up.recv().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        let tid = prepared.map_err(Error::system("start a worker's runtime"))?;
        Ok(Self { commands, thread: Mutex::new(thread), tid, roam: wherever, ledger })
    }

    /// CPUs that the thread may run on now; none once it has ended.
    pub(crate) fn runs_on(&self) -> Vec<usize> {
        self.while_alive(|tid| cpu::affinity(Some(tid))).and_then(Result::ok).unwrap_or_default()
    }

    /// CPUs that the thread belongs to, whether or not it is away for a while; none once it has ended.
    pub(crate) fn belongs_to(&self) -> Vec<usize> {
        let cpus = self.while_alive(|tid| self.roam.belongs_to(tid));
        cpus.and_then(Result::ok).unwrap_or_default()
    }

    /// Moves the thread; once it has ended, does nothing.
    pub(crate) fn move_to(&self, room: &Room) -> io::Result<()> {
        self.while_alive(|tid| self.roam.move_to(tid, room)).unwrap_or(Ok(()))
    }

    /// Ids of threads that have ended are given to others.
    fn while_alive<T>(&self, call: impl FnOnce(Pid) -> T) -> Option<T> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        (!thread.is_finished()).then(|| call(self.tid))
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Gives the worker a socket to read. What became of a worker that is gone, its failure says.
    pub(crate) async fn serve(&self, socket: Arc<Socket>, carries: Carries) {
        let _ = self.commands.send(Command::Serve(socket, carries)).await;
    }

    /// Reads a socket empty, before the gate is open.
    pub(crate) async fn drain(&self, port_id: u32) {
        let (done, wait) = oneshot::channel();
        let _ = self.commands.send(Command::Drain(port_id, done)).await;
        let _ = wait.await;
    }

    /// Takes a socket from the worker, read empty.
    pub(crate) async fn retire(&self, port_id: u32) {
        let (done, wait) = oneshot::channel();
        let _ = self.commands.send(Command::Retire(port_id, done)).await;
        let _ = wait.await;
    }

    /// Leaves what is in the worker's sockets to whoever reads them next.
    pub(crate) async fn rest(&self) {
        let (done, wait) = oneshot::channel();
        let _ = self.commands.send(Command::Rest(done)).await;
        let _ = wait.await;
    }

    /// Ends the worker once the sockets that it reads are empty; once it has ended, does nothing.
    /// `false` if it has not within `limit`: the handler keeps it, and nothing can take it away from that.
    pub(crate) async fn stop(&self, limit: Duration) -> bool {
        let ended = async {
            let _ = self.commands.send(Command::Stop).await;
            // Not a thread that joins it: the caller's runtime would wait for that when it ends.
            while self.while_alive(|_| ()).is_some() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(limit, ended).await.is_ok()
    }
}

/// What a worker thread makes of itself before it works.
struct Prepared {
    runtime: LocalRuntime,
    wakes: Arc<Wakes>,
    roamer: Roamer,
}

/// Moves the thread to its CPUs, so that its memory is near them, and makes its runtime.
fn prepare(roam: Arc<Roam>, clock: Clock) -> io::Result<Prepared> {
    if let Err(err) = roam.settle() {
        tracing::warn!(?roam, %err, "cannot keep a worker on its CPUs; it runs anywhere");
    }
    let wakes = Arc::new(Wakes::default());
    let woken = wakes.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_unpark(move || woken.woken(clock))
        .build_local(LocalOptions::default())?;
    Ok(Prepared { runtime, wakes, roamer: Roamer::new(roam) })
}

fn run(
    prepared: Prepared,
    engine: Engine,
    ledger: Arc<Ledger>,
    tx: Arc<Socket>,
    inbox: mpsc::Receiver<Command>,
    gate: watch::Receiver<bool>,
) -> io::Result<()> {
    let shared = engine.shared().clone();
    let Prepared { runtime, wakes, roamer } = prepared;
    let desk = Rc::new(Desk {
        shared: shared.clone(),
        engine: RefCell::new(engine),
        mate: shared.crew.join(roamer.roam.clone()),
        look_again: Notify::new(),
        wakes,
        roamer: RefCell::new(roamer),
    });
    let mate = desk.mate.clone();
    let body = async move {
        let answers = AsyncSocket::new(tx.clone())?;
        let mut tasks = JoinSet::new();
        tasks.spawn_local(read_replies(answers, ledger.clone()));
        tasks.spawn_local(desk.clone().come_when_called());
        tasks.spawn_local(desk.clone().look_again());
        let ended = serve(desk, tasks, inbox, gate).await;
        // What the kernel refused of the last batches, it has said by now.
        let mut buf = vec![0; REPLY_MAX];
        replies::drain(&mut buf, &ledger, |buf| tx.recv(buf))?;
        ended
    };
    // A panic here is a bug of the dispatcher's own: handlers' panics are caught at their call.
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(body)))
        .unwrap_or_else(|_| Err(io::Error::other("it panicked")));
    shared.crew.leave(&mate);
    if shared.lanes.any_queued() {
        // It may have been this worker that was called.
        shared.crew.summon();
    }
    ended
}

async fn serve(
    desk: Rc<Desk>,
    mut tasks: JoinSet<()>,
    mut inbox: mpsc::Receiver<Command>,
    gate: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut readers: HashMap<u32, (Rc<Reader>, AbortHandle)> = HashMap::new();
    // Kept to the end: what waits may be from their sockets.
    let mut resting = Vec::new();
    while let Some(command) = next_command(&mut inbox, &mut tasks).await? {
        match command {
            Command::Serve(socket, carries) => {
                let reader = Rc::new(Reader::new(socket, carries, desk.clone())?);
                let task = tasks.spawn_local(reader.clone().run(gate.clone()));
                readers.insert(reader.port_id(), (reader, task));
            }
            Command::Drain(port_id, done) => {
                if let Some((reader, _)) = readers.get(&port_id) {
                    reader.drain();
                }
                let _ = done.send(());
            }
            Command::Retire(port_id, done) => {
                if let Some((reader, task)) = readers.remove(&port_id) {
                    task.abort();
                    reader.drain();
                }
                let _ = done.send(());
            }
            Command::Rest(done) => {
                resting.extend(readers.drain().map(|(_, (reader, task))| {
                    task.abort();
                    reader
                }));
                let _ = done.send(());
            }
            Command::Stop => {
                for (reader, task) in readers.into_values() {
                    task.abort();
                    reader.drain();
                }
                desk.clear().await;
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The next command; an error if a task of the worker panicked, which must not go unnoticed: its socket
/// would fill, and its flows' upcalls wait for it elsewhere.
async fn next_command(
    inbox: &mut mpsc::Receiver<Command>,
    tasks: &mut JoinSet<()>,
) -> io::Result<Option<Command>> {
    loop {
        tokio::select! {
            command = inbox.recv() => return Ok(command),
            Some(ended) = tasks.join_next() => if ended.is_err_and(|end| end.is_panic()) {
                return Err(io::Error::other("a task of it panicked"));
            },
        }
    }
}

async fn read_replies(socket: AsyncSocket, ledger: Arc<Ledger>) {
    let mut buf = vec![0; REPLY_MAX];
    loop {
        let read = async {
            let mut ready = socket.readable().await?;
            replies::drain(&mut buf, &ledger, |buf| ready.try_recv(buf))
        };
        if let Err(err) = read.await {
            tracing::warn!(%err, "cannot read the kernel's replies");
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_panics_is_noticed_and_one_that_ends_is_not() {
        let builder = || tokio::runtime::Builder::new_current_thread();
        let runtime = builder().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async {
            let (commands, mut inbox) = mpsc::channel(1);
            let mut tasks = JoinSet::new();
            tasks.spawn_local(async {});
            tasks.spawn_local(std::future::pending()).abort();
            commands.send(Command::Stop).await.unwrap();
            let stop = next_command(&mut inbox, &mut tasks).await;
            assert!(matches!(stop, Ok(Some(Command::Stop))));
            tasks.spawn_local(async { panic!("a mistake of the dispatcher's own") });
            assert!(next_command(&mut inbox, &mut tasks).await.is_err());
        });
    }
}
