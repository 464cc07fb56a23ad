//! `upcalld check-config`: every mistake of a configuration file at once, each with its place and what
//! was meant.

mod part;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use upcall::PortSpec;

use super::position;
use crate::cli::RunArgs;
use crate::exit::Exit;
use crate::settings::Settings;
use part::{Key, keys, parts, plain, read};

/// Appended to `upcalld check-config --help`.
pub(crate) const HELP: &str = "\
Nothing is started or changed, and no interface is looked for. Flags of 'run' that the file is to be
used with do not count; a datapath may be left to them.

Exit status: 0 when all is in order, whatever is noted; 3 when there are mistakes, which are printed one a
line.";

/// Something that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mistake {
    /// Byte offset in the file.
    at: usize,
    text: String,
}

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
    let broken: Vec<usize> = found.iter().map(|mistake| line_of(text, mistake.at)).collect();
    let whole = table.span();
    // Keys are read one by one, so that a mistake hides no other.
    let mut good = DeTable::new();
    for (key, value) in table.into_inner() {
        let lines = line_of(text, key.span().start)..=line_of(text, value.span().end);
        if broken.iter().any(|line| lines.contains(line)) {
            continue;
        }
        let before = found.len();
        found.extend(parts(&key, &value).iter().filter_map(|part| part.mistake(&whole)));
        if found.len() == before {
            good.insert(key, value);
        }
    }
    // What is wrong only beside another key.
    let places = places(&good);
    if let Ok(config) = read(&whole, good) {
        for (key, text) in Settings::problems_of_file(&RunArgs::default(), config) {
            let at = places.iter().find(|(place, _)| place.is(key, &text)).map_or(0, |(_, at)| *at);
            found.push(Mistake { at, text });
        }
    }
    found.sort_by_key(|mistake| mistake.at);
    found
}

/// What is in order, but may not be meant: tables of ports that the file does not ask for.
fn notes(text: &str) -> Vec<Mistake> {
    let (table, _) = DeTable::parse_recoverable(text);
    let (whole, places) = (table.span(), places(table.get_ref()));
    let Ok(config) = read(&whole, table.into_inner()) else { return Vec::new() };
    let asked_for = |name: &str| {
        let spec = |text: &String| text.parse().is_ok_and(|spec: PortSpec| spec.matches(name));
        config.ports.is_empty() || config.ports.iter().any(spec)
    };
    let note = |(place, at): &(Place, usize)| {
        let Place::Port(name) = place else { return None };
        let similarity = |port: &&String| strsim::jaro_winkler(port, name);
        let nearest = config.ports.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        let text = format!(
            "[port.{name}] is for no interface in 'ports'; did you mean '{}'?",
            nearest.map_or("", String::as_str)
        );
        (!asked_for(name)).then_some(Mistake { at: *at, text })
    };
    places.iter().filter_map(note).collect()
}

/// The first mistake of a file that cannot be read, with its place.
pub(super) fn first_mistake(text: &str) -> Option<String> {
    let first = mistakes(text).into_iter().next();
    first.map(|mistake| format!("{}: {}", position(text, mistake.at), mistake.text))
}

/// A key, or the table of a port.
enum Place {
    Key(String),
    Port(String),
}

impl Place {
    /// Is it where this is wrong, of this key?
    fn is(&self, key: &str, text: &str) -> bool {
        match self {
            Self::Key(name) => name == key && key != "port",
            Self::Port(name) => text.starts_with(&format!("[port.{name}] ")),
        }
    }
}

fn places(table: &DeTable<'_>) -> Vec<(Place, usize)> {
    let mut places = Vec::new();
    for (key, value) in table {
        places.push((Place::Key(key.get_ref().to_string()), key.span().start));
        if let ("port", DeValue::Table(ports)) = (key.get_ref().as_ref(), value.get_ref()) {
            let place =
                |port: &Key<'_>| (Place::Port(port.get_ref().to_string()), port.span().start);
            places.extend(ports.keys().map(place));
        }
    }
    places
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
        let key = table.iter().find(|(_, value)| value.span().contains(&at));
        let key = match key {
            Some((key, _)) => key.get_ref().to_string(),
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
