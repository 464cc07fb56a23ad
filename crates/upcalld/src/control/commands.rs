//! The commands: their names, arguments and answers.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::Instant;

use serde_json::{Map, Value};
use upcall::Dispatcher;

use super::process::changed;
use super::route::{Scope, scope};
use super::{Answer, Counts, Format, History, Inquiry, Peer, counters, dpif, fdb, flows, quotas};
use crate::handler::Policy;
use crate::metrics;
use crate::probe;
use crate::reload;
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

impl Command {
    /// Says its usage where the datapath may be named?
    fn names_datapath(&self) -> bool {
        self.usage.contains("[dp") || self.usage.starts_with("[bridge")
    }

    /// With the datapath, which may be named before all other arguments.
    fn usage(&self) -> String {
        match scope(self.name) {
            Scope::One | Scope::Each if !self.names_datapath() => {
                format!("[dp] {}", self.usage).trim_end().to_owned()
            }
            _ => self.usage.to_owned(),
        }
    }

    /// Most arguments, the name of a datapath among them.
    fn most(&self) -> usize {
        let most = self.arguments.1;
        if scope(self.name) == Scope::Process || self.names_datapath() { most } else { most + 1 }
    }
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
    Command { large: true, ..command("fdb/show", "[bridge]", 1) },
    Command { large: true, ..command("fdb/stats-show", "[bridge]", 1) },
    command("lane/show", "", 0),
    command("latency/show", "", 0),
    command("list-commands", "", 0),
    command("loss/show", "", 0),
    command("memory/show", "", 0),
    command("port/quota", quotas::USAGE, 3),
    command("probe", "", 0),
    command("reload", "", 0),
    Command {
        arguments: (1, 2),
        ..command(SET_OPTIONS, "[--format text|json | --datapath dp]", 2)
    },
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
    let (fewest, most) = (command.arguments.0, command.most());
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

/// What a client says of its connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ConnectionOption {
    Format(Format),
    /// What its commands are about that do not say it.
    Datapath(String),
}

/// Reads `--format text|json` or `--datapath NAME`, in one argument or two.
pub(super) fn connection_option(arguments: &[String]) -> Result<ConnectionOption, String> {
    let words: Vec<&str> = match arguments {
        [word] => word.splitn(2, '=').collect(),
        words => words.iter().map(String::as_str).collect(),
    };
    match words[..] {
        ["--format" | "-f", "text"] => Ok(ConnectionOption::Format(Format::Text)),
        ["--format" | "-f", "json"] => Ok(ConnectionOption::Format(Format::Json)),
        ["--format" | "-f", other] => Err(format!("option format has invalid value {other}")),
        ["--datapath", name] => Ok(ConnectionOption::Datapath(name.to_owned())),
        _ => Err("the options are --format text|json and --datapath NAME".to_owned()),
    }
}

/// What commands look at.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) dispatcher: &'a Dispatcher,
    pub(crate) policy: &'a dyn Policy,
    pub(crate) settings: &'a Settings,
    pub(crate) history: &'a RefCell<History>,
    pub(crate) counts: &'a Counts,
    pub(crate) traces: &'a Traces,
    pub(crate) looks: &'a Looks,
    pub(crate) started: Instant,
}

/// What is left of the arguments when the datapath's name is taken out must be what the command takes.
fn check_rest(name: &str, arguments: &[String], view: View<'_>) -> Result<(), String> {
    let (fewest, most) = find(name).map_or((0, 0), |command| command.arguments);
    if arguments.len() < fewest {
        return Err(format!("\"{name}\" command requires at least {fewest} arguments"));
    }
    match arguments.get(most) {
        Some(more) => Err(format!("'{more}' is not served here; '{}' is", view.settings.datapath)),
        None => Ok(()),
    }
}

/// Answers what is asked of a datapath.
pub(crate) async fn answer(inquiry: Inquiry, view: View<'_>) {
    match inquiry {
        Inquiry::Command { command, reply } => {
            let super::Command { name, arguments, format, peer } = command;
            let answered = run(&name, &arguments, format, peer, view).await;
            let _client_is_gone = reply.send(answered);
        }
        Inquiry::Metrics { reply } => {
            let View { dispatcher, policy, settings, counts, .. } = view;
            let scrape = metrics::take(&settings.datapath, dispatcher, policy, counts).await;
            let _scraper_is_gone = reply.send(scrape);
        }
        Inquiry::State { reply } => {
            let _nobody_waits = reply.send(reload::State::of(view.dispatcher).await);
        }
        Inquiry::Change(step) => reload::take(step, view.dispatcher, view.policy).await,
    }
}

async fn run(
    name: &str,
    arguments: &[String],
    format: Format,
    peer: Peer,
    view: View<'_>,
) -> Result<Answer, String> {
    check_rest(name, arguments, view)?;
    match name {
        "coverage/show" => counters::coverage(view, format).await,
        "dpctl/dump-flows" => flows::dump(view, arguments).await,
        "dpctl/show" => dpif::dpctl_show(view, arguments).await,
        "dpif/show" => dpif::show(view, format).await,
        "fdb/flush" => {
            changed(peer, "flushed the MAC addresses");
            fdb::flush(view, arguments).await
        }
        "fdb/show" => fdb::show(view, arguments, format),
        "fdb/stats-show" => fdb::stats(view, arguments, format),
        "lane/show" => counters::lanes(view, format).await,
        "loss/show" => counters::losses(view, format).await,
        "memory/show" => counters::memory(view, format).await,
        "port/quota" => {
            if !arguments.is_empty() {
                changed(peer, "sets a quota of a port");
            }
            quotas::quota(view, arguments, format).await
        }
        "probe" => probe_now(view, format).await,
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
        _ => Err(format!("\"{name}\" has no answer")),
    }
}

pub(super) fn list(format: Format) -> Answer {
    if format == Format::Json {
        let usage = |c: &Command| (c.name.to_owned(), Value::from(c.usage()));
        return Answer::Json(COMMANDS.iter().map(usage).collect::<Map<_, _>>().into());
    }
    let mut text = "The available commands are:\n".to_owned();
    for command in &COMMANDS {
        let _ = writeln!(text, "  {:<23} {}", command.name, command.usage());
    }
    Answer::Text(text)
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
        let usage = |name| find(name).unwrap().usage();
        assert_eq!(
            [usage("lane/show"), usage("exit"), usage("stats/show")],
            ["[dp]", "", "[dp] [flows]"]
        );
        assert_eq!([usage("fdb/show"), usage("dpctl/show")], ["[bridge]", "[-s] [dp...]"]);
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
        assert!(check("lane/show", &[json!("dp0")]).is_ok());
        let err = check("fdb/show", &[json!("dp0"), json!("dp1")]).unwrap_err();
        assert_eq!(err, "\"fdb/show\" command takes at most 1 arguments");
    }

    #[test]
    fn an_option_is_one_argument_or_two() {
        let option = |words: &[&str]| {
            connection_option(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        let json = ConnectionOption::Format(Format::Json);
        assert_eq!(option(&["--format", "json"]), Ok(json));
        assert_eq!(option(&["--format=text"]), Ok(ConnectionOption::Format(Format::Text)));
        assert_eq!(option(&["--datapath=a=b"]), Ok(ConnectionOption::Datapath("a=b".to_owned())));
        assert!(option(&["--format", "yaml"]).unwrap_err().contains("yaml"));
        assert!(option(&["--color"]).is_err());
    }
}
