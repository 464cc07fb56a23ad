//! Which datapath a command is about, and what becomes of the answers if it is about several.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use futures::future::join_all;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Command, Format, Inquiry, quotas};
use crate::settings::Settings;

/// Commands that are about the process, or say themselves of which datapaths they tell.
const OF_PROCESS: [&str; 8] = [
    "dpif-netlink/dispatch-mode",
    "exit",
    "list-commands",
    "reload",
    "set-options",
    "version",
    "vlog/list",
    "vlog/set",
];

/// Commands that tell of all datapaths if none is named; each answer says of which it is.
const OF_EACH: [&str; 3] = ["dpctl/show", "dpif/show", "upcall/show"];

/// What a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Process,
    /// The datapath that the first argument names; it need not be said where there is one alone.
    One,
    Each,
}

pub(super) fn scope(command: &str) -> Scope {
    if OF_PROCESS.contains(&command) {
        Scope::Process
    } else if OF_EACH.contains(&command) {
        Scope::Each
    } else {
        Scope::One
    }
}

/// A datapath, as those reach it that have something to ask of what serves it.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) name: String,
    /// The settings in force, also for when it is made anew.
    pub(crate) settings: Arc<ArcSwap<Settings>>,
    pub(crate) inquiries: mpsc::Sender<Inquiry>,
    /// Is it served now? Not while it is made anew.
    pub(crate) is_served: Arc<AtomicBool>,
    /// When its duties were last attended to, in milliseconds since the process began.
    pub(crate) attended_ms: Arc<AtomicU64>,
}

impl Handle {
    /// Asks; `patient` waits while the datapath is made anew.
    ///
    /// # Errors
    ///
    /// In words, when it is not served.
    pub(crate) async fn ask<T>(
        &self,
        patient: bool,
        inquiry: impl FnOnce(oneshot::Sender<T>) -> Inquiry,
    ) -> Result<T, String> {
        if !patient && !self.is_served.load(Ordering::Relaxed) {
            return Err(format!("datapath '{}' is being made anew; try again", self.name));
        }
        let (reply, answered) = oneshot::channel();
        let ended = || format!("datapath '{}' is not served any more", self.name);
        self.inquiries.send(inquiry(reply)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())
    }

    async fn command(&self, patient: bool, command: Command) -> Result<Answer, String> {
        self.ask(patient, |reply| Inquiry::Command { command, reply }).await?
    }

    /// Is this its name? The peer writes `system@` before it.
    fn is_called(&self, name: &str) -> bool {
        name.strip_prefix("system@").unwrap_or(name) == self.name
    }
}

/// Has a command answered by those that it is about. `default`: the datapath that the client named before.
///
/// # Errors
///
/// In words, when it is not clear which is meant, or what those say.
pub(super) async fn ask(
    datapaths: &[Handle],
    mut command: Command,
    default: Option<&str>,
) -> Result<Answer, String> {
    let named = if scope(&command.name) == Scope::Each {
        named(datapaths, &mut command.arguments, default)?
    } else {
        let at = place_of_name(&command);
        vec![one(datapaths, &mut command.arguments, at, default)?]
    };
    let patient = datapaths.len() == 1;
    if let [handle] = named[..] {
        return handle.command(patient, command).await;
    }
    let format = command.format;
    let asking = named
        .iter()
        .map(async |handle| (handle.name.as_str(), handle.command(patient, command.clone()).await));
    Ok(join(join_all(asking).await, format))
}

fn find<'a>(datapaths: &'a [Handle], name: &str) -> Result<&'a Handle, String> {
    let found = datapaths.iter().find(|handle| handle.is_called(name));
    found.ok_or_else(|| format!("'{name}' is not served here; {} served", names(datapaths)))
}

/// `'dp0' is`, or `dp0, dp1 are`.
fn names(datapaths: &[Handle]) -> String {
    let names: Vec<_> = datapaths.iter().map(|handle| handle.name.as_str()).collect();
    if let [name] = names[..] {
        format!("'{name}' is")
    } else {
        format!("{} are", names.join(", "))
    }
}

/// Which argument may name the datapath: the first one, where no option or port is.
fn place_of_name(command: &Command) -> Option<usize> {
    let is_name = |word: &String| !word.starts_with('-') && !word.contains('=');
    match command.name.as_str() {
        "dpctl/dump-flows" => command.arguments.iter().position(is_name),
        "port/quota" if quotas::begin_with_port(&command.arguments) => None,
        _ => Some(0),
    }
}

/// The datapath that the argument at this place names, which is taken out.
fn one<'a>(
    datapaths: &'a [Handle],
    arguments: &mut Vec<String>,
    at: Option<usize>,
    default: Option<&str>,
) -> Result<&'a Handle, String> {
    let named = |at: usize| Some((at, find(datapaths, arguments.get(at)?).ok()?));
    if let Some((at, handle)) = at.and_then(named) {
        arguments.remove(at);
        return Ok(handle);
    }
    match (default, datapaths) {
        (Some(name), _) => find(datapaths, name),
        (None, [handle]) => Ok(handle),
        _ => Err(format!("name a datapath behind the command: {} served", names(datapaths))),
    }
}

/// The datapaths that are named among the arguments, or all; options stay.
fn named<'a>(
    datapaths: &'a [Handle],
    arguments: &mut Vec<String>,
    default: Option<&str>,
) -> Result<Vec<&'a Handle>, String> {
    let is_option = |word: &String| word.starts_with('-');
    let (options, mut named): (Vec<_>, Vec<_>) = arguments.drain(..).partition(is_option);
    *arguments = options;
    if named.is_empty() {
        named.extend(default.map(str::to_owned));
    }
    if named.is_empty() {
        return Ok(datapaths.iter().collect());
    }
    named.iter().map(|name| find(datapaths, name)).collect()
}

/// Answers that say of which datapath they are become one. That one is missing is no reason to hide the others.
fn join(answers: Vec<(&str, Result<Answer, String>)>, format: Format) -> Answer {
    let (mut text, mut object) = (String::new(), Map::new());
    for (name, answer) in answers {
        match answer {
            Ok(Answer::Text(part)) => text += &part,
            Ok(Answer::Json(Value::Object(part))) => object.extend(part),
            Ok(Answer::Json(part)) => drop(object.insert(name.to_owned(), part)),
            Err(err) if format == Format::Text => {
                let _ = writeln!(text, "{name}: {err}");
            }
            Err(err) => drop(object.insert(name.to_owned(), json!({ "error": err }))),
        }
    }
    if object.is_empty() { Answer::Text(text) } else { Answer::Json(object.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Peer;

    fn handles(names: &[&str]) -> Vec<Handle> {
        let settings = Settings::for_tests();
        let handle = |name: &&str| Handle {
            name: (*name).to_owned(),
            settings: Arc::new(ArcSwap::from_pointee(settings.clone())),
            inquiries: mpsc::channel(1).0,
            is_served: Arc::default(),
            attended_ms: Arc::default(),
        };
        names.iter().map(handle).collect()
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_command_is_about_the_datapath_it_names() {
        let both = handles(&["dp0", "dp1"]);
        let pick = |text: &str, default| {
            let mut words = words(text);
            one(&both, &mut words, Some(0), default)
                .map(|handle| (handle.name.clone(), words.join(" ")))
        };
        assert_eq!(pick("dp1 flows", None), Ok(("dp1".into(), "flows".into())));
        assert_eq!(pick("system@dp0", None), Ok(("dp0".into(), String::new())));
        assert_eq!(pick("flows", Some("dp1")), Ok(("dp1".into(), "flows".into())));
        assert_eq!(pick("dp0 flows", Some("dp1")), Ok(("dp0".into(), "flows".into())));
        assert!(
            pick("flows", None).unwrap_err().ends_with("behind the command: dp0, dp1 are served")
        );
        assert!(pick("", Some("dp7")).unwrap_err().contains("'dp7' is not served here"));
    }

    #[test]
    fn a_datapath_is_named_behind_options_and_before_a_port() {
        let place = |name: &str, arguments: &str| {
            place_of_name(&Command {
                name: name.to_owned(),
                arguments: words(arguments),
                format: Format::Text,
                peer: Peer { uid: 0, pid: None },
            })
        };
        assert_eq!(place("dpctl/dump-flows", "-m filter=ip dp0"), Some(2));
        assert_eq!(place("dpctl/dump-flows", "-m"), None);
        // The datapath's own port has its name.
        assert_eq!(place("port/quota", "dp0 5000"), None);
        assert_eq!(place("port/quota", "dp0 miss 5000"), None);
        assert_eq!(place("port/quota", "dp0 waiting none"), None);
        assert_eq!(place("port/quota", "dp0 dp0 5000"), Some(0));
        assert_eq!(place("port/quota", "dp0 veth0 miss 5000"), Some(0));
        assert_eq!(place("port/quota", "dp0"), Some(0));
    }

    #[test]
    fn where_there_is_one_it_need_not_be_named() {
        let single = handles(&["dp0"]);
        let mut left = words("flows");
        assert_eq!(one(&single, &mut left, Some(0), None).unwrap().name, "dp0");
        assert_eq!(left, ["flows"]);
        let err = named(&single, &mut words("-s dp9"), None).err().unwrap();
        assert_eq!(err, "'dp9' is not served here; 'dp0' is served");
    }

    #[test]
    fn some_commands_are_about_all_or_those_that_are_named() {
        let both = handles(&["dp0", "dp1"]);
        let pick = |text: &str, default| {
            let mut left = words(text);
            let named = named(&both, &mut left, default).unwrap();
            (named.iter().map(|handle| handle.name.clone()).collect::<Vec<_>>().join(" "), left)
        };
        assert_eq!(pick("-s", None), ("dp0 dp1".into(), words("-s")));
        assert_eq!(pick("dp1 -s", None), ("dp1".into(), words("-s")));
        assert_eq!(pick("", Some("dp0")), ("dp0".into(), words("")));
    }

    #[test]
    fn answers_of_several_are_one() {
        let text = |text: &str| Ok(Answer::Text(text.to_owned()));
        let gone = || Err("gone".to_owned());
        let answers = vec![("dp0", text("dp0: x\n")), ("dp1", gone())];
        assert_eq!(join(answers, Format::Text), Answer::Text("dp0: x\ndp1: gone\n".to_owned()));
        let object = Ok(Answer::Json(json!({ "system@dp0": 1 })));
        let wanted = json!({ "system@dp0": 1, "dp1": { "error": "gone" } });
        assert_eq!(
            join(vec![("dp0", object), ("dp1", gone())], Format::Json),
            Answer::Json(wanted)
        );
    }
}
