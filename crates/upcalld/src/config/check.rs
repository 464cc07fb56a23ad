//! `upcalld check-config`: every mistake of a configuration file at once, each with its place and what
//! was meant.

mod part;
mod place;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::file::{Key, Mistake, OwnTable, Split, over};
use super::{Config, ConfigFile, position};
use crate::cli::RunArgs;
use crate::exit::Exit;
use crate::settings::AllSettings;
use part::{keys, parts, plain, read};
use place::{notes, places};

/// Appended to `upcalld check-config --help`.
pub(crate) const HELP: &str = "\
Nothing is started or changed, and no interface is looked for. Flags of 'run' that the file is to be
used with do not count; a datapath may be left to them. Of several datapaths each is looked at.

Exit status: 0 when all is in order, whatever is noted; 3 when there are mistakes, which are printed one a
line.";

/// Prints all mistakes.
///
/// # Errors
///
/// [`Exit::Config`] if there are any, or the file cannot be read.
pub(crate) fn run(path: &Path) -> Result<(), Exit> {
    let shown = path.display();
    let text = super::read_text(path)?;
    let found = mistakes(&text);
    let mut out = String::new();
    for mistake in &found {
        let _ = writeln!(out, "{shown}{}: {}", position(&text, mistake.at), mistake.text);
    }
    if found.is_empty() {
        for note in notes(&text) {
            let _ = writeln!(out, "{shown}{}: note: {}", position(&text, note.at), note.text);
        }
        let _ = writeln!(out, "{shown}: in order");
    }
    // That nobody reads it any more ('| head') is no failure.
    let _nobody_reads = std::io::stdout().write_all(out.as_bytes());
    match found.len() {
        0 => Ok(()),
        1 => Err(Exit::Config(format!("{shown} has a mistake"))),
        many => Err(Exit::Config(format!("{shown} has {many} mistakes"))),
    }
}

/// All mistakes, in the order of the file.
fn mistakes(text: &str) -> Vec<Mistake> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut found = of_syntax(text, table.get_ref(), &errors);
    let broken = found.iter().map(|mistake| line_of(text, mistake.at)).collect();
    let check = Check { text, broken, whole: table.span() };
    let Split { top, mut tables, mistakes } = Split::of(table.into_inner());
    found.extend(mistakes.into_iter().filter(|mistake| !check.is_broken(mistake.at, mistake.at)));
    let top = check.good(None, top, &mut found);
    for (name, table) in &mut tables {
        table.own = check.good(Some(name), std::mem::take(&mut table.own), &mut found);
    }
    found.extend(check.together(&top, &tables));
    found.sort_by_key(|mistake| mistake.at);
    found
}

/// What is looked at.
struct Check<'t> {
    text: &'t str,
    /// Lines that are no TOML, of which that was told.
    broken: Vec<usize>,
    whole: Range<usize>,
}

impl Check<'_> {
    /// Is one of the lines between these bytes no TOML?
    fn is_broken(&self, from: usize, to: usize) -> bool {
        let lines = line_of(self.text, from)..=line_of(self.text, to);
        self.broken.iter().any(|line| lines.contains(line))
    }

    /// What of a table, that of a datapath or the one above all tables, is right by itself. Keys are read one by
    /// one, so that a mistake hides no other.
    fn good<'a>(
        &self,
        datapath: Option<&str>,
        table: DeTable<'a>,
        found: &mut Vec<Mistake>,
    ) -> DeTable<'a> {
        let mut good = DeTable::new();
        for (key, value) in table {
            if self.is_broken(key.span().start, value.span().end) {
                continue;
            }
            let before = found.len();
            let parts = parts(datapath, &key, &value);
            found.extend(parts.iter().filter_map(|part| part.mistake(&self.whole)));
            if found.len() == before {
                good.insert(key, value);
            }
        }
        good
    }

    /// What is wrong only beside another key. What is above all tables is wrong for each datapath alike, and told
    /// once.
    fn together(&self, top: &DeTable<'_>, tables: &BTreeMap<String, OwnTable<'_>>) -> Vec<Mistake> {
        let mut found = Vec::new();
        let read_own = |(name, table): (&String, &OwnTable<'_>)| {
            let config = read(&self.whole, over(top, table.own.clone())).ok()?;
            Some((name.clone(), Config { datapath: Some(name.clone()), ..config }))
        };
        let datapaths = tables.iter().map(read_own).collect::<Option<_>>();
        let config = read(&self.whole, top.clone()).ok();
        let file = config.zip(datapaths).map(|(top, datapaths)| ConfigFile { top, datapaths });
        let problems = file.map(|file| AllSettings::problems_of_file(&RunArgs::default(), file));
        let above = places(top);
        for problem in problems.unwrap_or_default() {
            let table = problem.datapath.as_ref().and_then(|name| tables.get(name));
            let own = table.and_then(|table| places(&table.own).of(problem.key, &problem.text));
            let at = own.or_else(|| above.of(problem.key, &problem.text));
            let at = at.or(table.map(|table| table.at)).unwrap_or(0);
            let mistake = Mistake { at, text: problem.text };
            if !found.contains(&mistake) {
                found.push(mistake);
            }
        }
        found
    }
}

/// The first mistake of a file that cannot be read, with its place.
pub(super) fn first_mistake(text: &str) -> Option<String> {
    let first = mistakes(text).into_iter().next();
    first.map(|mistake| format!("{}: {}", position(text, mistake.at), mistake.text))
}

/// What is no TOML: the first thing of each line, with the key that it is the value of or the line begins
/// with.
fn of_syntax(text: &str, table: &DeTable<'_>, errors: &[toml::de::Error]) -> Vec<Mistake> {
    let mut found: Vec<Mistake> = Vec::new();
    for err in errors {
        let at = err.span().map_or(0, |span| span.start);
        if found.iter().any(|mistake| line_of(text, mistake.at) == line_of(text, at)) {
            continue;
        }
        let line = text.lines().nth(line_of(text, at)).unwrap_or_default().trim();
        let key = match key_of(table, at) {
            Some(key) => key.get_ref().to_string(),
            None => line.split('=').next().unwrap_or_default().trim().to_owned(),
        };
        let message = plain(err);
        let remedy = match keys().find(|(known, _)| *known == key) {
            _ if message.contains("duplicate key") => "; leave one of them".to_owned(),
            Some((_, example)) => format!("; an example: {example}"),
            None => String::new(),
        };
        found.push(Mistake { at, text: format!("{key}: {message}{remedy}") });
    }
    found
}

/// The key whose value, which is no table, is there.
fn key_of<'t, 'a>(table: &'t DeTable<'a>, at: usize) -> Option<&'t Key<'a>> {
    table.iter().find_map(|(key, value)| match value.get_ref() {
        DeValue::Table(table) => key_of(table, at),
        _ => value.span().contains(&at).then_some(key),
    })
}

/// The number of the line of a byte, from 0.
fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].split(|byte| *byte == b'\n').count() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let line = |m: &Mistake| format!("{}: {}", position(text, m.at), m.text);
        mistakes(text).iter().map(line).collect()
    }

    #[test]
    fn every_mistake_is_told_at_once_with_its_place() {
        let text = "\
datapath = 'a-name-that-is-too-long'
prots = ['veth0']
workers = 0
mac_age = '5 parsecs'
dispatch = 'per-cup'
storm_shield = true
handler = 'cross-connect'
cross_connect = ['a=b', 'b=c', 'd']
stats = '1ms'
metrics = 'here'
";
        let found = found(text);
        let wanted = [
            (":1:1:", "at most 15"),
            (":2:1:", "did you mean 'ports'?"),
            (":3:1:", "from 1 to 1024"),
            (":4:11:", "expected a duration"),
            (":5:12:", "per-cpu"),
            (":6:16:", "expected a text"),
            (":8:1:", "'d' is no pair"),
            (":8:1:", "'b' is cross-connected twice"),
            (":9:1:", "at least 10ms"),
            (":10:11:", "ADDRESS:PORT"),
        ];
        for (at, what) in wanted {
            let told = found.iter().any(|line| line.starts_with(at) && line.contains(what));
            assert!(told, "no {at} {what} in {found:#?}");
        }
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
    }

    #[test]
    fn every_mistake_of_a_port_is_told_too() {
        let text = "\
[port.a]
access = 50
acess = 5
mac_max = 'many'
[port.\"a.b\"]
broadcast_rate = '1/s'
";
        let found = found(text);
        for (at, what) in [
            (":3:1:", "did you mean 'access'?"),
            (":4:11:", "expected a number"),
            (":6:18:", "5000:500"),
        ] {
            let told = found.iter().any(|line| line.starts_with(at) && line.contains(what));
            assert!(told, "no {at} {what} in {found:#?}");
        }
        let right_one_by_one =
            "[port.a]\naccess = 5000\nnative = 7\n[port.b]\nstatic_macs = ['x']\n";
        let found = self::found(right_one_by_one);
        assert!(found.iter().any(|line| line.contains("[port.a] VLAN 5000")), "{found:#?}");
        assert!(found.iter().any(|line| line.contains("[port.b] static_macs")), "{found:#?}");
    }

    /// Mistakes that people make: each is told with its place, its key and what to write.
    #[test]
    fn typical_mistakes_are_told_with_a_remedy() {
        for (text, at, words) in [
            // A near key is meant, which the value is right for.
            ("port = ['veth0']", ":1:8:", &["port: ", "did you mean 'ports'?"][..]),
            ("[ports.veth0]\naccess = 1", ":1:2:", &["ports: ", "did you mean 'port'?"]),
            (
                "recv_buffer_bytes_total = 999999",
                ":1:1:",
                &["did you mean 'recv_buffer_total_bytes'?"],
            ),
            // Units and types.
            ("mac_age = 300", ":1:11:", &["mac_age: ", "a duration", "mac_age = \"5m\""]),
            ("flow_idle = '10'", ":1:13:", &["flow_idle: ", "flow_idle = \"10s\""]),
            ("recv_buffer_bytes = '2M'", ":1:21:", &["recv_buffer_bytes: ", "= 2097152"]),
            ("port_rate = 20000", ":1:13:", &["port_rate: ", "port_rate = \"20000:2000\""]),
            ("storm_shield = true", ":1:16:", &["storm_shield: ", "storm_shield = \"on\""]),
            ("keep = 'yes'", ":1:8:", &["keep: ", "keep = false"]),
            ("workers = '4'", ":1:11:", &["workers: ", "workers = 4"]),
            ("ports = 'veth0'", ":1:9:", &["ports: ", "ports = [\"eth1\", \"veth*\"]"]),
            // Values.
            ("dispatch = 'percpu'", ":1:12:", &["dispatch: ", "per-cpu"]),
            ("handler = 'switch'", ":1:11:", &["handler: ", "learning-switch"]),
            ("[port.a]\ntrunk = [1, '9-5']", ":2:13:", &["trunk: ", "write \"5-9\""]),
            // Places.
            ("workers = 1\nworkers = 2", ":2:1:", &["workers: duplicate key", "leave one of them"]),
            (
                "[port.a]\naccess = 1\nworkers = 2",
                ":3:1:",
                &["'workers'", "above the first [port.NAME]"],
            ),
            ("access = 1", ":1:1:", &["'access'", "below a line [port.NAME]"]),
            ("[limits]\nflow_max = 1", ":1:2:", &["no table [limits]", "in no table"]),
            ("[[port]]\nname = 'a'", ":1:1:", &["port: ", "[port.veth0]"]),
            ("[port]\na = 10", ":2:5:", &["port: ", "[port.veth0]"]),
            ("[port.a]\n[port.a]", ":2:7:", &["[port.a]: duplicate key", "leave one of them"]),
            ("datapath = dp0", ":1:12:", &["datapath: ", "quoted", "datapath = \"dp0\""]),
            ("[prot.a]\naccess = 1", ":1:2:", &["'prot'", "did you mean 'port'?"]),
            ("ports = ['a'\nworkers = 1", ":2:1:", &["ports: missing comma", "ports = ["]),
            (
                "[port.a]\naccess = 1\n[port.b]\nnative = 7",
                ":3:7:",
                &["[port.b] native needs a trunk"],
            ),
        ] {
            let found = found(text);
            let told = |line: &String| {
                line.starts_with(at) && words.iter().all(|word| line.contains(word))
            };
            assert!(found.iter().any(told), "{text:?} at {at}, {words:?}: {found:#?}");
        }
    }

    #[test]
    fn a_table_of_a_port_that_is_not_asked_for_is_noted() {
        let text = "ports = ['veth0', 'eth*']\n[port.vteh0]\n[port.eth7]\n[port.veth0]\n";
        let notes = notes(text);
        assert_eq!((notes.len(), position(text, notes[0].at).as_str()), (1, ":2:7"));
        assert!(notes[0].text.contains("did you mean 'veth0'?"), "{notes:?}");
        assert!(super::notes("[port.a]\n").is_empty(), "ports may be on the command line");
    }

    #[test]
    fn a_datapath_of_several_is_looked_at_as_the_only_one_is() {
        let head = "workers = 2\n[datapath.dp0]\n";
        for (text, at, words) in [
            ("port = ['veth0']", ":3:8:", &["port: ", "did you mean 'ports'?"][..]),
            ("mac_age = 300", ":3:11:", &["mac_age: ", "a duration", "mac_age = \"5m\""]),
            ("workers = ", ":3:", &["workers: ", "workers = 4"]),
            ("access = 1", ":3:1:", &["'access'", "below a line [datapath.dp0.port.NAME]"]),
            ("[datapath.dp0.limits]\nx = 1", ":3:15:", &["no table [datapath.dp0.limits]"]),
            ("[datapath.dp0.port.a]\nacess = 5", ":4:1:", &["did you mean 'access'?"]),
            ("[datapath.dp0.port.a]\naccess = 'x'", ":4:10:", &["access: ", "access = 10"]),
            (
                "[datapath.dp0.port.a]\nhandler = 'hub'",
                ":4:1:",
                &["'handler'", "above the first [datapath.dp0.port.NAME]"],
            ),
            ("[datapath.dp0.port.a]\nnative = 7", ":3:20:", &["[port.a] native needs a trunk"]),
            ("flow_hard = '1s'", ":3:1:", &["flow_hard must be at least twice sweep_interval"]),
            ("funnel = true", ":3:10:", &["funnel: ", "funnel = \"on\""]),
        ] {
            let found = found(&format!("{head}{text}\n"));
            let told = |line: &String| {
                line.starts_with(at) && words.iter().all(|word| line.contains(word))
            };
            assert!(found.iter().any(told), "{text:?} at {at}, {words:?}: {found:#?}");
            assert_eq!(found.len(), 1, "{text:?}: {found:#?}");
        }
        let text = format!("{head}ports = ['veth0']\n[datapath.dp0.port.vteh0]\n");
        let notes = notes(&text);
        assert_eq!((notes.len(), position(&text, notes[0].at).as_str()), (1, ":4:20"));
    }

    #[test]
    fn every_mistake_of_several_datapaths_is_told_once() {
        let text = "\
workers = 0
metrics = 'here'
[datapath.dp0]
ports = ['a']
stats = '1s'
mac_agee = '1s'
[datapath.dp1]
ports = ['b', 'a']
handler = 'hub'
[datapath.dp1.port.b]
access = 10
";
        let found = found(text);
        let wanted = [
            (":1:1:", "from 1 to 1024"),
            (":2:11:", "ADDRESS:PORT"),
            (":5:1:", "above all tables"),
            (":6:1:", "did you mean 'mac_age'?"),
            (":8:1:", "'a' of datapath 'dp0' is asked for here as well"),
            (":10:15:", "needs the learning-switch"),
        ];
        for (at, what) in wanted {
            let told = found.iter().any(|line| line.starts_with(at) && line.contains(what));
            assert!(told, "no {at} {what} in {found:#?}");
        }
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
    }

    #[test]
    fn syntax_is_told_too_and_hides_little() {
        let found = found("datapath = \nworkers = 0\n");
        assert!(found.len() >= 2 && found[0].starts_with(":1:"), "{found:?}");
        assert!(found.iter().any(|line| line.contains("from 1 to 1024")), "{found:?}");
    }

    #[test]
    fn the_file_we_ship_and_one_without_a_datapath_are_in_order() {
        assert!(found(part::EXPLAINED).is_empty());
        assert!(found("workers = 2\n").is_empty());
        assert!(keys().count() > 20);
    }
}
