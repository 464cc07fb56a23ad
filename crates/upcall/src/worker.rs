//! Worker threads: each with its own runtime, its own send socket, and the sockets it reads.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use netlink_io::{AsyncSocket, Datagram, Socket};
use tokio::runtime::{LocalOptions, LocalRuntime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use upcall_core::{InstallPlan, Ledger};

use crate::engine::{Engine, Source};
use crate::shared::Shared;
use crate::{Error, Failure, replies};

/// Commands that may wait for a worker: they come one by one from one task.
const COMMANDS_MAX: usize = 16;
/// Bytes for a reply: a header, an errno and the kernel's explanation.
const REPLY_MAX: usize = 8 << 10;
/// Pause after a receive error that is none of the known ones, so that it cannot spin.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Rounds of a last reading: more than the largest receive buffer in use holds.
const DRAIN_ROUNDS_MAX: usize = 1024;

enum Command {
    /// Read this socket too.
    Serve(Arc<Socket>),
    /// Read the socket with this port id empty, then let go of it.
    Retire(u32, oneshot::Sender<()>),
    /// Read all sockets empty, then end.
    Stop,
}

/// A running worker.
pub(crate) struct Worker {
    commands: mpsc::Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    ledger: Arc<Ledger>,
}

impl Worker {
    /// Starts worker `number`, on `cpu` if given. It answers on a socket of its own, opened here: in
    /// the namespace of the calling thread. Sockets are read once `gate` is open.
    pub(crate) fn start(
        number: usize,
        cpu: Option<usize>,
        shared: Arc<Shared>,
        gate: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let tx = Socket::open().map_err(Error::system("open a netlink socket for answers"))?;
        let ledger = Arc::new(Ledger::default());
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (owned_ledger, tx) = (ledger.clone(), Arc::new(tx));
        let (up, is_up) = std::sync::mpsc::sync_channel(1);
        let body = move || {
            let runtime = match prepare(cpu) {
                Ok(runtime) => runtime,
                Err(err) => return drop(up.send(Err(err))),
            };
            let _ = up.send(Ok(()));
            let why = run(&runtime, shared.clone(), owned_ledger, tx, inbox, gate);
            if let Err(err) = why {
                shared.fail(Failure::WorkerEnded { worker: number, why: err.to_string() });
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("upcall-{number}"))
            .spawn(body)
            .map_err(Error::system("start a worker thread"))?;
        // A matter of microseconds; and what it needs, it has, when this returns.
        let prepared = is_up.recv().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        prepared.map_err(Error::system("start a worker's runtime"))?;
        Ok(Self { commands, thread: Mutex::new(Some(thread)), ledger })
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Gives the worker a socket to read. What became of a worker that is gone, its failure says.
    pub(crate) async fn serve(&self, socket: Arc<Socket>) {
        let _ = self.commands.send(Command::Serve(socket)).await;
    }

    /// Takes a socket from the worker, read empty.
    pub(crate) async fn retire(&self, port_id: u32) {
        let (done, wait) = oneshot::channel();
        let _ = self.commands.send(Command::Retire(port_id, done)).await;
        let _ = wait.await;
    }

    /// Ends the worker once its sockets are read empty; once it has ended, does nothing.
    pub(crate) async fn stop(&self) {
        let _ = self.commands.send(Command::Stop).await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// Moves the thread to its CPU and makes its runtime.
fn prepare(cpu: Option<usize>) -> io::Result<LocalRuntime> {
    if let Some(cpu) = cpu
        && let Err(err) = ovs_features::cpu::pin_to(cpu)
    {
        tracing::warn!(cpu, %err, "cannot keep a worker on its CPU; it runs anywhere");
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

fn run(
    runtime: &LocalRuntime,
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    tx: Arc<Socket>,
    inbox: mpsc::Receiver<Command>,
    gate: watch::Receiver<bool>,
) -> io::Result<()> {
    let engine = Engine::new(shared, ledger.clone(), tx.clone());
    let body = async move {
        let answers = AsyncSocket::new(tx.clone())?;
        tokio::task::spawn_local(read_replies(answers, ledger.clone()));
        let ended = serve(Rc::new(RefCell::new(engine)), inbox, gate).await;
        // What the kernel refused of the last batches, it has said by now.
        let mut buf = vec![0; REPLY_MAX];
        replies::drain(&mut buf, &ledger, |buf| tx.recv(buf))?;
        ended
    };
    // A panic here is a bug of the dispatcher's own: handlers' panics are caught at their call.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(body)))
        .unwrap_or_else(|_| Err(io::Error::other("it panicked")))
}

async fn serve(
    engine: Rc<RefCell<Engine>>,
    mut inbox: mpsc::Receiver<Command>,
    gate: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut readers: HashMap<u32, (Rc<Reader>, AbortHandle)> = HashMap::new();
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Serve(socket) => {
                let reader = Rc::new(Reader::new(socket, engine.clone())?);
                let task = tokio::task::spawn_local(reader.clone().run(gate.clone()));
                readers.insert(reader.port_id(), (reader, task.abort_handle()));
            }
            Command::Retire(port_id, done) => {
                if let Some((reader, task)) = readers.remove(&port_id) {
                    task.abort();
                    reader.drain();
                }
                let _ = done.send(());
            }
            Command::Stop => {
                for (reader, task) in readers.into_values() {
                    task.abort();
                    reader.drain();
                }
                return Ok(());
            }
        }
    }
    Ok(())
}

/// One upcall socket and its flows that wait to be installed.
struct Reader {
    socket: AsyncSocket,
    plan: RefCell<InstallPlan>,
    epoch: Cell<u64>,
    engine: Rc<RefCell<Engine>>,
}

impl Reader {
    fn new(socket: Arc<Socket>, engine: Rc<RefCell<Engine>>) -> io::Result<Self> {
        let plan = InstallPlan::new(engine.borrow().install_limits());
        let (plan, epoch) = (RefCell::new(plan), Cell::new(0));
        Ok(Self { socket: AsyncSocket::new(socket)?, plan, epoch, engine })
    }

    fn port_id(&self) -> u32 {
        self.socket.socket().port_id()
    }

    async fn run(self: Rc<Self>, mut gate: watch::Receiver<bool>) {
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
        let mut again = false;
        loop {
            match self.round(|buf| ready.try_recv(buf))? {
                Next::Wait => return Ok(()),
                // At once, but only once: a stream of new flows must not shut the others out.
                Next::ReadAgain if !again => again = true,
                Next::ReadAgain | Next::Yield => {
                    again = false;
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Reads the socket empty without waiting. Nobody else in this process reads it any more; what a
    /// flood adds meanwhile is left to a successor.
    fn drain(&self) {
        let socket = self.socket.socket();
        for _ in 0..DRAIN_ROUNDS_MAX {
            match self.round(|buf| socket.recv(buf)) {
                Ok(Next::Wait) => return,
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
        let mut plan = self.plan.borrow_mut();
        let mut epoch = self.epoch.get();
        let source = Source { port_id: self.port_id(), plan: &mut plan, epoch: &mut epoch };
        let round = self.engine.borrow_mut().round(source, recv);
        self.epoch.set(epoch);
        let drained = round?.drained;
        Ok(match (drained, plan.is_empty()) {
            (true, true) => Next::Wait,
            // The further non-blocking read that contract O3 asks for, at once.
            (true, false) => Next::ReadAgain,
            (false, _) => Next::Yield,
        })
    }
}

/// What to do with a socket after a round.
enum Next {
    Wait,
    ReadAgain,
    Yield,
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
