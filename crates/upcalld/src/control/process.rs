//! What is asked of the process: it answers what is about itself, and hands on the rest.

use futures::future::join_all;

use super::route::{self, Handle, Scope};
use super::{Answer, Command, Counts, Inquiry, Peer, Question, commands, dpif, vlog};
use crate::logging::Levels;
use crate::metrics::Scrape;
use crate::reload::Reloader;

/// Who answers questions to the process, with what they look at.
#[derive(Clone, Copy)]
pub(crate) struct Desk<'a> {
    pub(crate) datapaths: &'a [Handle],
    pub(crate) reloader: &'a Reloader<'a>,
    pub(crate) levels: &'a Levels,
    pub(crate) counts: &'a Counts,
}

/// What is to be done behind an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing.
    Go,
    /// The daemon is to end.
    Exit,
}

impl Desk<'_> {
    /// Answers a question.
    pub(crate) async fn answer(self, question: Question) -> After {
        match question {
            Question::Metrics { reply } => {
                let scrapes = join_all(self.datapaths.iter().map(scrape)).await;
                let _scraper_is_gone = reply.send(scrapes);
                After::Go
            }
            Question::Command { command, datapath, reply } => {
                let ends = command.name == "exit";
                let answered = match route::scope(&command.name) {
                    Scope::Process => self.run(&command).await,
                    _ => route::ask(self.datapaths, command, datapath.as_deref()).await,
                };
                let after = if ends && answered.is_ok() { After::Exit } else { After::Go };
                let _client_is_gone = reply.send(answered);
                after
            }
        }
    }

    async fn run(self, command: &Command) -> Result<Answer, String> {
        let Command { name, arguments, format, peer } = command;
        match name.as_str() {
            "dpif-netlink/dispatch-mode" => dpif::dispatch_mode().await,
            "exit" => {
                changed(*peer, "asked to end");
                Ok(Answer::Text(String::new()))
            }
            "list-commands" => Ok(commands::list(*format)),
            "reload" => {
                changed(*peer, "asked to reload the configuration");
                reload(self).await.map(Answer::Text)
            }
            "version" => {
                Ok(Answer::Text(concat!("upcalld ", env!("CARGO_PKG_VERSION"), "\n").into()))
            }
            "vlog/list" => Ok(Answer::Text(vlog::list(self.levels))),
            "vlog/set" => {
                changed(*peer, "sets what is logged");
                vlog::set(self.levels, arguments)
            }
            _ => Err(format!("\"{name}\" has no answer")),
        }
    }
}

async fn scrape(handle: &Handle) -> Scrape {
    // What is made anew is not up: that is a reading, too.
    let asked = handle.ask(false, |reply| Inquiry::Metrics { reply }).await;
    asked.unwrap_or_else(|why| Scrape::without(&handle.name, why))
}

/// Leaves a trace of who steered.
pub(super) fn changed(peer: Peer, what: &str) {
    tracing::info!(uid = peer.uid, pid = peer.pid, "a client of the control socket {what}");
}

/// Applies the configuration as it is now, and counts whether that could be done.
///
/// # Errors
///
/// In words, when nothing was changed.
pub(crate) async fn reload(desk: Desk<'_>) -> Result<String, String> {
    let reloaded = desk.reloader.reload(desk.datapaths).await;
    desk.counts.reloaded(reloaded.is_ok());
    reloaded.map(|changes| changes + "\n")
}
