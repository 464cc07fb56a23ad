//! Who connects, how many, how fast: no client costs more than its share, or stops another.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::commands::ConnectionOption;
use super::frame::{Bad, Framer, Reply, Request};
use super::{Answer, Command, Format, Peer, Question, commands};
use crate::counting::{count, counts};

/// Clients at once. One more takes the place of the one that has been idle longest.
const CLIENTS_MAX: usize = 32;
/// How long a client may be silent between two requests.
const IDLE_MAX: Duration = Duration::from_mins(5);
/// How long a request may take to arrive, and its reply to leave.
const TRANSFER_LIMIT: Duration = Duration::from_secs(5);
/// How long an answer may take; a probe takes longest.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long that of a reload may take: sockets that are replaced are read empty first, on a busy host.
const RELOAD_LIMIT: Duration = Duration::from_mins(5);
/// Answers at once that may be megabytes long.
const LARGE_MAX: usize = 1;
/// Bytes read at once.
const READ_BYTES: usize = 4 << 10;
/// Pause after an error of `accept`: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

counts! {
    /// What clients did, since the start.
    Counts, "control_",
    /// Connections to the control socket that were taken.
    accepted,
    /// Connections refused because all places were taken by clients that were being answered.
    refused,
    /// Connections of users that may not ask.
    forbidden,
    /// Connections that were idle and had to make room for another.
    evicted,
    /// Connections that ended with bytes that are no request.
    malformed,
    /// Connections that ended with a request that is too long.
    oversized,
    /// Connections that ended because the client was too slow, or silent for too long.
    slow,
    /// Configurations that were applied while the daemon ran.
    reloads,
    /// Configurations that were not applied because they were wrong or could not be changed to.
    reloads_refused,
    /// Commands.
    commands,
    /// Of these, refused or failed.
    errors,
}

/// What all clients share.
pub(super) struct Shared {
    pub(super) questions: mpsc::Sender<Question>,
    pub(super) counts: Arc<Counts>,
    large: Semaphore,
    /// May members of the socket's group ask, whatever their user?
    pub(super) group: bool,
}

impl Counts {
    pub(super) fn reloaded(&self, applied: bool) {
        count(if applied { &self.reloads } else { &self.reloads_refused });
    }
}

impl Shared {
    pub(super) fn new(questions: mpsc::Sender<Question>, group: bool) -> Self {
        let large = Semaphore::new(LARGE_MAX);
        Self { questions, counts: Arc::default(), large, group }
    }

    /// Waits for the turn of a command whose answer may be large.
    async fn large_if(&self, name: &str) -> Result<Option<SemaphorePermit<'_>>, String> {
        if !commands::is_large(name) {
            return Ok(None);
        }
        let busy = || "another client is being given a long answer; try again".to_owned();
        let turn = timeout(ANSWER_LIMIT, self.large.acquire()).await;
        turn.ok().and_then(Result::ok).map(Some).ok_or_else(busy)
    }
}

/// The clients that there are, oldest first.
#[derive(Default)]
struct Clients {
    tasks: JoinSet<u64>,
    by_number: BTreeMap<u64, (AbortHandle, Arc<AtomicBool>)>,
    next: u64,
}

impl Clients {
    /// Makes room for one more; `false` if all are being answered.
    fn make_room(&mut self, counts: &Counts) -> bool {
        while let Some(ended) = self.tasks.try_join_next() {
            // One that was aborted is off the list already.
            if let Ok(number) = ended {
                self.by_number.remove(&number);
            }
        }
        if self.by_number.len() < CLIENTS_MAX {
            return true;
        }
        let idle = |(_, (_, busy)): &(&u64, &(AbortHandle, Arc<AtomicBool>))| {
            !busy.load(Ordering::Relaxed)
        };
        let Some(number) = self.by_number.iter().find(idle).map(|(number, _)| *number) else {
            return false;
        };
        if let Some((task, _)) = self.by_number.remove(&number) {
            task.abort();
            count(&counts.evicted);
        }
        true
    }

    fn admit(&mut self, stream: UnixStream, peer: Peer, shared: Arc<Shared>) {
        let (number, busy) = (self.next, Arc::new(AtomicBool::new(false)));
        self.next += 1;
        let client =
            Client { shared, peer, busy: busy.clone(), format: Format::Text, datapath: None };
        let task = self.tasks.spawn(async move {
            client.serve(stream).await;
            number
        });
        self.by_number.insert(number, (task, busy));
    }
}

/// Serves clients until the task is aborted; with it end its clients.
pub(super) async fn run(listener: UnixListener, shared: Arc<Shared>) {
    let mut clients = Clients::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let counts = &shared.counts;
        match admitted(&stream, shared.group) {
            None => count(&counts.forbidden),
            Some(peer) if clients.make_room(counts) => {
                count(&counts.accepted);
                clients.admit(stream, peer, shared.clone());
            }
            Some(_) => count(&counts.refused),
        }
    }
}

/// Who it is, if it may ask: root, our own user, or, where a group was named, whoever the mode of the
/// file let in.
fn admitted(stream: &UnixStream, group: bool) -> Option<Peer> {
    let peer = stream.peer_cred().ok()?;
    let ours = rustix::process::geteuid().as_raw();
    let may = peer.uid() == 0 || peer.uid() == ours || group;
    may.then(|| Peer { uid: peer.uid(), pid: peer.pid() })
}

/// Why a connection ends.
enum End {
    Closed,
    Slow,
    Bad(Bad),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// One connection.
struct Client {
    shared: Arc<Shared>,
    peer: Peer,
    busy: Arc<AtomicBool>,
    format: Format,
    /// What its commands are about that do not say it.
    datapath: Option<String>,
}

impl Client {
    async fn serve(mut self, mut stream: UnixStream) {
        let mut framer = Framer::default();
        let end = loop {
            let request = match receive(&mut stream, &mut framer).await {
                Ok(request) => request,
                Err(end) => break end,
            };
            self.busy.store(true, Ordering::Relaxed);
            if let Err(end) = self.answer(&mut stream, request).await {
                break end;
            }
            self.busy.store(false, Ordering::Relaxed);
        };
        self.ended(stream, end).await;
    }

    async fn answer(&mut self, stream: &mut UnixStream, request: Request) -> Result<(), End> {
        let shared = self.shared.clone();
        let id = request.id.clone();
        count(&shared.counts.commands);
        // Held until the reply is away: that is how long its memory lasts.
        let permit = shared.large_if(&request.method).await;
        let asked = match &permit {
            Ok(_) => self.ask(request).await,
            Err(why) => Err(why.clone()),
        };
        let reply = match asked {
            Ok(result) => Reply { id, result, error: Value::Null },
            Err(error) => {
                count(&self.shared.counts.errors);
                Reply { id, result: Value::Null, error: error.into() }
            }
        };
        send(stream, &reply).await
    }

    /// The result, or the text of an error.
    async fn ask(&mut self, request: Request) -> Result<Value, String> {
        let arguments = commands::check(&request.method, &request.params)?;
        if request.method == commands::SET_OPTIONS {
            match commands::connection_option(&arguments)? {
                ConnectionOption::Format(format) => self.format = format,
                ConnectionOption::Datapath(name) => self.datapath = Some(name),
            }
            return Ok(self.format.wrap(String::new()));
        }
        let limit = answer_limit(&request.method);
        let (reply, answered) = oneshot::channel();
        let (format, peer) = (self.format, self.peer);
        let command = Command { name: request.method, arguments, format, peer };
        let question = Question::Command { command, datapath: self.datapath.clone(), reply };
        let asking = async {
            self.shared.questions.send(question).await.ok()?;
            answered.await.ok()
        };
        match timeout(limit, asking).await {
            Ok(Some(Ok(Answer::Text(text)))) => Ok(self.format.wrap(text)),
            Ok(Some(Ok(Answer::Json(value)))) => Ok(value),
            Ok(Some(Err(error))) => Err(error),
            Ok(None) => Err("upcalld is ending".to_owned()),
            Err(_) => Err(format!(
                "no answer within {} seconds; it goes on, and the log tells what becomes of it",
                limit.as_secs()
            )),
        }
    }

    /// Counts why it ended, and says so to a client that made a mistake.
    async fn ended(&self, mut stream: UnixStream, end: End) {
        let counts = &self.shared.counts;
        match end {
            End::Closed => {}
            End::Slow => count(&counts.slow),
            End::Bad(bad) => {
                count(if bad == Bad::Oversized { &counts.oversized } else { &counts.malformed });
                let error = bad.to_string().into();
                let reply = Reply { id: Value::Null, result: Value::Null, error };
                // Whether it is read is the client's affair.
                let _told = send(&mut stream, &reply).await;
            }
        }
    }
}

/// How long the answer to a command may take.
pub(super) fn answer_limit(command: &str) -> Duration {
    if command == "reload" { RELOAD_LIMIT } else { ANSWER_LIMIT }
}

/// Reads until a request is whole.
async fn receive(stream: &mut UnixStream, framer: &mut Framer) -> Result<Request, End> {
    let mut bytes = [0; READ_BYTES];
    let transfer = async |stream: &mut UnixStream, framer: &mut Framer, bytes: &mut [u8]| loop {
        if let Some(request) = framer.next().map_err(End::Bad)? {
            return Ok(request);
        }
        match stream.read(bytes).await? {
            0 => return Err(End::Closed),
            len => framer.push(&bytes[..len]),
        }
    };
    if framer.is_empty() {
        match timeout(IDLE_MAX, stream.read(&mut bytes)).await {
            Ok(Ok(len @ 1..)) => framer.push(&bytes[..len]),
            Ok(_) => return Err(End::Closed),
            Err(_) => return Err(End::Slow),
        }
    }
    timeout(TRANSFER_LIMIT, transfer(stream, framer, &mut bytes)).await.unwrap_or(Err(End::Slow))
}

async fn send(stream: &mut UnixStream, reply: &Reply) -> Result<(), End> {
    let text = serde_json::to_vec(reply).expect("values and strings can be written as JSON");
    match timeout(TRANSFER_LIMIT, stream.write_all(&text)).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(End::Slow),
    }
}
