//! The commands: their names, arguments and answers.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::Instant;

use serde_json::{Map, Value};
use upcall::Dispatcher;

use super::{
    Answer, Counts, Format, History, Peer, Question, counters, dpif, fdb, flows, quotas, vlog,
};
use crate::handler::Policy;
use crate::logging::Levels;
use crate::metrics;
use crate::probe;
use crate::reload::Reloader;
use crate::settings::Settings;
use crate::top::snapshot::{self, Looks};
use crate::trace::Traces;

/// Answered where the connection is: it is about the connection.
pub(super) const SET_OPTIONS: &str = "set-options";

/// A command as `list-commands` shows it.
struct Command {
    name: &'static str,
    usage: &'static str,
    /// Fewest and most arguments.
    arguments: (usize, usize),
    /// May its answer be megabytes long?
    large: bool,
}

const fn command(name: &'static str, usage: &'static str, most: usize) -> Command {
    Command { name, usage, arguments: (0, most), large: false }
}

const MANY: usize = 64;

/// Sorted by name.
const COMMANDS: [Command; 26] = [
    command("coverage/show", "", 0),
    Command { large: true, ..command("dpctl/dump-flows", flows::USAGE, MANY) },
    Command { large: true, ..command("dpctl/show", "[-s] [dp...]", MANY) },
    command("dpif-netlink/dispatch-mode", "", 0),
    Command { large: true, ..command("dpif/show", "", 0) },
    command("exit", "", 0),
    command("fdb/flush", "[bridge]", 1),
    Command { large: true, ..command("fdb/show", "[bridge...]", MANY) },
    Command { large: true, ..command("fdb/stats-show", "[bridge]", 1) },
    command("lane/show", "", 0),
    command("latency/show", "", 0),
    command("list-commands", "", 0),
    command("loss/show", "", 0),
    command("memory/show", "", 0),
    command("port/quota", quotas::USAGE, 3),
    command("probe", "", 0),
    command("reload", "", 0),
    Command { arguments: (1, 2), ..command(SET_OPTIONS, "[--format text|json]", 2) },
    Command { large: true, ..command("stats/show", "[flows]", 1) },
    Command { large: true, arguments: (1, 1), ..command("trace/read", "trace", 1) },
    command("trace/start", "[--every N] [--rate N] [--snap BYTES] [filter...]", MANY),
    Command { arguments: (1, 1), ..command("trace/stop", "trace", 1) },
    command("upcall/show", "", 0),
    command("version", "", 0),
    command("vlog/list", "", 0),
    command("vlog/set", "{spec | module[:destination[:level]]}...", MANY),
];

fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// May the answer be megabytes long?
pub(super) fn is_large(name: &str) -> bool {
    find(name).is_some_and(|command| command.large)
}

/// Checks name and arguments; gives the arguments.
///
/// # Errors
///
/// The peer's text, which scripts know.
pub(super) fn check(name: &str, params: &[Value]) -> Result<Vec<String>, String> {
    let Some(command) = find(name) else {
        // What is no name of a command need not come back in full.
        let shown: String = name.chars().take(64).collect();
        return Err(format!(
            "\"{shown}\" is not a valid command (use \"list-commands\" to see a list of valid \
             commands)"
        ));
    };
    let (fewest, most) = command.arguments;
    if params.len() < fewest {
        return Err(format!("\"{name}\" command requires at least {fewest} arguments"));
    }
    if params.len() > most {
        return Err(format!("\"{name}\" command takes at most {most} arguments"));
    }
    let text = |param: &Value| param.as_str().map(str::to_owned);
    let texts = params.iter().map(text).collect::<Option<Vec<_>>>();
    texts.ok_or_else(|| format!("\"{name}\" command has non-string argument"))
}

/// Reads `--format text|json`, in one argument or two.
pub(super) fn format_option(arguments: &[String]) -> Result<Format, String> {
    let words: Vec<&str> = arguments.iter().flat_map(|text| text.splitn(2, '=')).collect();
    match words[..] {
        ["--format" | "-f", "text"] => Ok(Format::Text),
        ["--format" | "-f", "json"] => Ok(Format::Json),
        ["--format" | "-f", other] => Err(format!("option format has invalid value {other}")),
        _ => Err("the only option is --format text|json".to_owned()),
    }
}

/// What commands look at.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) dispatcher: &'a Dispatcher,
    pub(crate) policy: &'a dyn Policy,
    pub(crate) settings: &'a Settings,
    pub(crate) reloader: &'a Reloader<'a>,
    pub(crate) levels: &'a Levels,
    pub(crate) history: &'a RefCell<History>,
    pub(crate) counts: &'a Counts,
    pub(crate) traces: &'a Traces,
    pub(crate) looks: &'a Looks,
    pub(crate) started: Instant,
}

/// What is to be done behind an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing.
    Go,
    /// The daemon is to end.
    Exit,
}

/// Answers a question.
pub(crate) async fn answer(question: Question, view: View<'_>) -> After {
    let (name, arguments, format, peer, reply) = match question {
        Question::Command { name, arguments, format, peer, reply } => {
            (name, arguments, format, peer, reply)
        }
        Question::Metrics { reply } => {
            let View { dispatcher, policy, settings, counts, .. } = view;
            let scrape = metrics::take(&settings.datapath, dispatcher, policy, counts).await;
            let _scraper_is_gone = reply.send(scrape);
            return After::Go;
        }
    };
    let answered = run(&name, &arguments, format, peer, view).await;
    let after = if name == "exit" && answered.is_ok() { After::Exit } else { After::Go };
    let _client_is_gone = reply.send(answered);
    after
}

async fn run(
    name: &str,
    arguments: &[String],
    format: Format,
    peer: Peer,
    view: View<'_>,
) -> Result<Answer, String> {
    match name {
        "coverage/show" => counters::coverage(view, format).await,
        "dpctl/dump-flows" => flows::dump(view, arguments).await,
        "dpctl/show" => dpif::dpctl_show(view, arguments).await,
        "dpif-netlink/dispatch-mode" => dpif::dispatch_mode().await,
        "dpif/show" => dpif::show(view, format).await,
        "exit" => {
            changed(peer, "asked to end");
            Ok(Answer::Text(String::new()))
        }
        "fdb/flush" => {
            changed(peer, "flushed the MAC addresses");
            fdb::flush(view, arguments).await
        }
        "fdb/show" => fdb::show(view, arguments, format),
        "fdb/stats-show" => fdb::stats(view, arguments, format),
        "lane/show" => counters::lanes(view, format).await,
        "list-commands" => Ok(list(format)),
        "loss/show" => counters::losses(view, format).await,
        "memory/show" => counters::memory(view, format).await,
        "port/quota" => {
            if !arguments.is_empty() {
                changed(peer, "sets a quota of a port");
            }
            quotas::quota(view, arguments, format).await
        }
        "probe" => probe_now(view, format).await,
        "reload" => {
            changed(peer, "asked to reload the configuration");
            reload(view).await.map(Answer::Text)
        }
        "latency/show" => counters::latency(view, format).await,
        "stats/show" => stats(view, arguments, format).await,
        "trace/read" => {
            let batch = view.traces.read(view.dispatcher, &arguments[0]).await?;
            Ok(match format {
                Format::Text => Answer::Text(batch.text(view.dispatcher)),
                Format::Json => Answer::Json(batch.json(view.dispatcher)),
            })
        }
        "trace/start" => {
            changed(peer, "follows upcalls");
            let id = view.traces.start(view.dispatcher, arguments).await?;
            Ok(match format {
                Format::Text => Answer::Text(format!("{id}\n")),
                Format::Json => Answer::Json(serde_json::json!({ "trace": id })),
            })
        }
        "trace/stop" => {
            view.traces.stop(view.dispatcher, &arguments[0])?;
            Ok(Answer::Text(String::new()))
        }
        "upcall/show" => dpif::upcall_show(view, format).await,
        "version" => Ok(Answer::Text(concat!("upcalld ", env!("CARGO_PKG_VERSION"), "\n").into())),
        "vlog/list" => Ok(Answer::Text(vlog::list(view.levels))),
        "vlog/set" => {
            changed(peer, "sets what is logged");
            vlog::set(view.levels, arguments)
        }
        _ => Err(format!("\"{name}\" has no answer")),
    }
}

/// Leaves a trace of who steered.
fn changed(peer: Peer, what: &str) {
    tracing::info!(uid = peer.uid, pid = peer.pid, "a client of the control socket {what}");
}

fn list(format: Format) -> Answer {
    if format == Format::Json {
        let usage = |c: &Command| (c.name.to_owned(), Value::from(c.usage));
        return Answer::Json(COMMANDS.iter().map(usage).collect::<Map<_, _>>().into());
    }
    let mut text = "The available commands are:\n".to_owned();
    for command in &COMMANDS {
        let _ = writeln!(text, "  {:<23} {}", command.name, command.usage);
    }
    Answer::Text(text)
}

/// Applies the configuration as it is now, and counts whether that could be done.
///
/// # Errors
///
/// In words, when nothing was changed.
pub(crate) async fn reload(view: View<'_>) -> Result<String, String> {
    let reloaded = view.reloader.reload(view.dispatcher, view.policy).await;
    view.counts.reloaded(reloaded.is_ok());
    reloaded.map(|changes| changes + "\n")
}

/// Everything that `upcalld top` shows.
async fn stats(view: View<'_>, arguments: &[String], format: Format) -> Result<Answer, String> {
    let flows = match arguments {
        [] => false,
        [word] if word == "flows" => true,
        _ => return Err("there is 'flows', and nothing else".to_owned()),
    };
    let snapshot = snapshot::take(view, flows).await?;
    let failed = |err: serde_json::Error| err.to_string();
    Ok(match format {
        Format::Text => {
            Answer::Text(serde_json::to_string_pretty(&snapshot).map_err(failed)? + "\n")
        }
        Format::Json => Answer::Json(serde_json::to_value(&snapshot).map_err(failed)?),
    })
}

async fn probe_now(view: View<'_>, format: Format) -> Result<Answer, String> {
    let report = upcall::features::Probe::new().report(Some(&view.settings.datapath)).await;
    let text = probe::render(&report, format == Format::Json);
    match format {
        Format::Text => Ok(Answer::Text(text)),
        Format::Json => serde_json::from_str(&text).map(Answer::Json).map_err(|e| e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_sorted_and_found() {
        assert!(COMMANDS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(is_large("fdb/show") && !is_large("version") && !is_large("no"));
    }

    #[test]
    fn wrong_calls_get_the_peers_words() {
        let err = check("upcall/sow", &[]).unwrap_err();
        assert!(err.starts_with("\"upcall/sow\" is not a valid command (use \"list-"), "{err}");
        let err = check("version", &[json!("x")]).unwrap_err();
        assert_eq!(err, "\"version\" command takes at most 0 arguments");
        let err = check(SET_OPTIONS, &[]).unwrap_err();
        assert_eq!(err, "\"set-options\" command requires at least 1 arguments");
        let err = check("fdb/show", &[json!(1)]).unwrap_err();
        assert_eq!(err, "\"fdb/show\" command has non-string argument");
        assert!(check(&"x".repeat(60_000), &[]).unwrap_err().len() < 200);
    }

    #[test]
    fn the_format_is_one_argument_or_two() {
        let option = |words: &[&str]| {
            format_option(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(option(&["--format", "json"]), Ok(Format::Json));
        assert_eq!(option(&["--format=text"]), Ok(Format::Text));
        assert!(option(&["--format", "yaml"]).unwrap_err().contains("yaml"));
        assert!(option(&["--color"]).is_err());
    }
}
