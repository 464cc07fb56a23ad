//! The control socket: `ovs-appctl -t PATH COMMAND`, or `upcalld ctl COMMAND`, asks and steers a
//! running daemon.
//!
//! It speaks the protocol of the peer's daemons, so that hands that know those find their commands,
//! and programs their formats. Clients are served by a task of their own within bounds (`server`);
//! what they ask comes as [`Question`]s to the one task that does all that is not a worker's. It
//! answers what is about the process (`process`) and hands on what is about a datapath (`route`) to
//! what serves that, which answers several [`Inquiry`]s at a time (`commands`).

pub(crate) mod client;
mod commands;
mod counters;
mod dpif;
mod fdb;
mod flow_filter;
mod flows;
mod frame;
mod history;
mod links;
mod pidfile;
mod process;
mod quotas;
mod route;
mod server;
mod socket;
mod vlog;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::exit::Exit;
use crate::metrics::Scrape;
use crate::reload::{State, Step};
use crate::settings::{AllSettings, ProcessSettings};
pub(crate) use commands::{View, answer};
pub(crate) use history::{History, SAMPLE_INTERVAL};
use links::Links;
use pidfile::PidFile;
pub(crate) use process::{After, Desk, reload};
pub(crate) use route::Handle;
pub(crate) use server::Counts;
pub(crate) use socket::ControlFile;

/// Where control sockets are if nothing else is said; systemd's `RuntimeDirectory=` comes first.
const DIRECTORY: &str = "/run/upcalld";
/// Questions that may wait: there are not more clients.
const QUESTIONS_MAX: usize = 32;
/// Inquiries that may wait for a datapath that is made anew.
pub(crate) const INQUIRIES_MAX: usize = 32;
/// How long the end waits for replies that are on their way.
const FINISH_LIMIT: Duration = Duration::from_millis(50);

/// Where the control socket is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the usual directory, under the name of the (first) datapath. That there can be none is no failure.
    Usual,
    /// Here, or the daemon does not start.
    At(PathBuf),
    /// Nowhere.
    None,
}

/// `none` or a path.
impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a path or 'none' is expected".to_owned()),
            "none" => Ok(Self::None),
            path => Ok(Self::At(path.into())),
        }
    }
}

impl Place {
    fn path(&self, datapath: &str) -> Option<PathBuf> {
        match self {
            Self::Usual => Some(usual_path(datapath)),
            Self::At(path) => Some(path.clone()),
            Self::None => None,
        }
    }
}

/// Writes our process id where clients look for it.
fn pidfile(settings: &ProcessSettings, control: Option<&Path>) -> Result<Option<PidFile>, Exit> {
    let write = |path: &PathBuf| {
        let created = PidFile::create(path, control);
        created.map_err(|err| Exit::Other(format!("cannot write {}: {err}", path.display())))
    };
    settings.pidfile.as_ref().map(write).transpose()
}

/// The usual path for a datapath.
pub(crate) fn usual_path(datapath: &str) -> PathBuf {
    usual_directory().join(format!("{datapath}.ctl"))
}

fn usual_directory() -> PathBuf {
    std::env::var_os("RUNTIME_DIRECTORY").map_or_else(|| DIRECTORY.into(), PathBuf::from)
}

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    /// A text as the peer wraps it where its clients asked for JSON and there is none.
    fn wrap(self, text: String) -> Value {
        match self {
            Self::Text => text.into(),
            Self::Json => json!({ "reply-format": "plain", "reply": text }),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) pid: Option<i32>,
}

/// What a command gives.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    Text(String),
    /// Only where JSON was asked for.
    Json(Value),
}

/// A command, whose number of arguments is right.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    pub(crate) name: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) format: Format,
    pub(crate) peer: Peer,
}

/// Where an answer goes, or why there is none.
type Reply = oneshot::Sender<Result<Answer, String>>;

/// What is asked of the process.
pub(crate) enum Question {
    /// A command; the datapath that it is about if it does not say, where the client said that before.
    Command { command: Command, datapath: Option<String>, reply: Reply },
    /// All metrics, of each datapath.
    Metrics { reply: oneshot::Sender<Vec<Scrape>> },
}

/// What is asked of what serves one datapath.
pub(crate) enum Inquiry {
    Command {
        command: Command,
        reply: Reply,
    },
    Metrics {
        reply: oneshot::Sender<Scrape>,
    },
    /// What a reload is to know.
    State {
        reply: oneshot::Sender<State>,
    },
    /// A change, in two steps.
    Change(Step),
}

/// The daemon's end of everything that asks.
pub(crate) struct Control {
    questions: mpsc::Receiver<Question>,
    /// Kept, so that there is always somebody who could ask.
    shared: Arc<server::Shared>,
    /// The path, or why there is none.
    listening: Result<String, String>,
    task: Option<JoinHandle<()>>,
    /// Kept: the files go with them.
    file: Option<ControlFile>,
    links: Option<Links>,
    pidfile: Option<PidFile>,
}

impl Control {
    /// Listens where the settings say.
    ///
    /// # Errors
    ///
    /// [`Exit::Other`] when a socket was asked for by path and cannot be made, [`Exit::Config`] when
    /// its group is not known.
    pub(crate) fn start(all: &AllSettings) -> Result<Self, Exit> {
        let settings = &all.process;
        let group = settings.control_group.as_deref().map(socket::group_id).transpose();
        let group = group.map_err(Exit::Config)?;
        let (sender, questions) = mpsc::channel(QUESTIONS_MAX);
        let shared = Arc::new(server::Shared::new(sender, group.is_some()));
        let listening = Ok("none".to_owned());
        let mut control = Self {
            questions,
            shared,
            listening,
            task: None,
            file: None,
            links: None,
            pidfile: None,
        };
        let names = all.names();
        let path = settings.control.path(names[0]);
        control.pidfile = pidfile(settings, path.as_deref())?;
        let Some(path) = path else { return Ok(control) };
        let listening = control.listen(&path, group);
        let listening =
            listening.map_err(|err| format!("cannot listen at {}: {err}", path.display()));
        if let (Err(why), false) = (&listening, settings.control == Place::Usual) {
            return Err(Exit::Other(why.clone()));
        }
        control.listening = listening.map(|()| path.display().to_string());
        if control.listening.is_ok() && settings.control == Place::Usual {
            control.links =
                Some(Links::make(&path, names[1..].iter().map(|name| usual_path(name))));
        }
        Ok(control)
    }

    /// Says where to ask.
    pub(crate) fn announce(&self) {
        match &self.listening {
            Ok(path) => tracing::info!(path, "control socket"),
            Err(why) => tracing::warn!("no control socket (--control PATH): {why}"),
        }
    }

    fn listen(&mut self, path: &Path, group: Option<u32>) -> std::io::Result<()> {
        let (file, listener) = ControlFile::listen(path, group)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        self.task = Some(tokio::spawn(server::run(listener, self.shared.clone())));
        self.file = Some(file);
        Ok(())
    }

    /// The next question.
    pub(crate) async fn question(&mut self) -> Question {
        match self.questions.recv().await {
            Some(question) => question,
            // Not while we hold a sender.
            None => std::future::pending().await,
        }
    }

    /// For others that ask.
    pub(crate) fn sender(&self) -> mpsc::Sender<Question> {
        self.shared.questions.clone()
    }

    /// What clients did.
    pub(crate) fn counts(&self) -> &Arc<Counts> {
        &self.shared.counts
    }

    /// Lets replies out that are on their way, and ends.
    pub(crate) async fn finish(mut self) {
        self.questions.close();
        while self.questions.try_recv().is_ok() {}
        if let Some(task) = self.task.take() {
            tokio::time::sleep(FINISH_LIMIT).await;
            task.abort();
        }
        drop((self.pidfile, self.links, self.file));
    }
}
