//! `upcalld check-config`: every mistake of a configuration file at once, each with its place and what
//! was meant.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::{Config, position};
use crate::cli::RunArgs;
use crate::exit::Exit;
use crate::settings::Settings;

/// Appended to `upcalld check-config --help`.
pub(crate) const HELP: &str = "\
Nothing is started or changed, and no interface is looked for. Flags of 'run' that the file is to be
used with do not count; a datapath may be left to them.

Exit status: 0 when all is in order; 3 when there are mistakes, which are printed one a line.";

/// The file we ship, in which every key is explained.
const EXPLAINED: &str = include_str!("../../../../config/upcalld.toml");

/// Past this part of a name it is another name, not a mistake in it.
const SIMILAR_MIN: f64 = 0.7;

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
        out = format!("{shown}: in order\n");
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
    let mut found: Vec<Mistake> = errors.iter().map(|err| of_toml(err, 0)).collect();
    let whole = table.span();
    // Keys are read one by one, so that a mistake hides no other.
    let mut good = DeTable::new();
    for (key, value) in table.into_inner() {
        let (name, at) = (key.get_ref().to_string(), key.span().start);
        let before = found.len();
        let each = parts(&value).into_iter().map(|part| (part.span().start, one(&key, part)));
        for (value_at, part) in each {
            if let Err(err) = read(whole.clone(), part) {
                found.push(if keys().any(|known| known == name) {
                    of_toml(&err, value_at)
                } else {
                    Mistake { at, text: unknown(&name) }
                });
            }
        }
        if found.len() == before {
            good.insert(key, value);
        }
    }
    // What is wrong only beside another key.
    let place =
        |key: &str| good.iter().find(|(k, _)| *k.get_ref() == key).map(|(k, _)| k.span().start);
    let places: Vec<_> = keys().filter_map(|key| Some((key, place(key)?))).collect();
    if let Ok(config) = read(whole, good) {
        for (key, text) in Settings::problems_of_file(&RunArgs::default(), config) {
            let at = places.iter().find(|(known, _)| *known == key).map_or(0, |(_, at)| *at);
            found.push(Mistake { at, text });
        }
    }
    found.sort_by_key(|mistake| mistake.at);
    found
}

type Key<'a> = Spanned<toml::de::DeString<'a>>;
type Value<'a> = Spanned<DeValue<'a>>;

fn one<'a>(key: &Key<'a>, value: Value<'a>) -> DeTable<'a> {
    let mut table = DeTable::new();
    table.insert(key.clone(), value);
    table
}

/// A value, or of a table of tables one for each key of these.
fn parts<'a>(value: &Value<'a>) -> Vec<Value<'a>> {
    let span = value.span();
    let DeValue::Table(tables) = value.get_ref() else { return vec![value.clone()] };
    let within = |(name, table): (&Key<'a>, &Value<'a>)| -> Vec<Value<'a>> {
        let DeValue::Table(keys) = table.get_ref() else { return vec![value.clone()] };
        let wrap = |key: &Key<'a>, inner: DeTable<'a>| {
            Spanned::new(
                span.clone(),
                DeValue::Table(one(key, Spanned::new(table.span(), DeValue::Table(inner)))),
            )
        };
        keys.iter().map(|(key, inner)| wrap(name, one(key, inner.clone()))).collect()
    };
    tables.iter().flat_map(within).collect()
}

fn read(span: Range<usize>, table: DeTable<'_>) -> Result<Config, toml::de::Error> {
    Config::deserialize(Deserializer::from(Spanned::new(span, table)))
}

fn of_toml(err: &toml::de::Error, otherwise: usize) -> Mistake {
    let at = err.span().map_or(otherwise, |span| span.start);
    Mistake { at, text: err.message().replace('\n', " ") }
}

/// Every key there is.
fn keys() -> impl Iterator<Item = &'static str> {
    let key = |line: &'static str| Some(line.strip_prefix("# ")?.split_once(" = ")?.0);
    let top = EXPLAINED.lines().take_while(|line| !line.starts_with("# ["));
    top.filter_map(key).filter(|key| !key.contains(' ')).chain(["port"])
}

fn unknown(name: &str) -> String {
    let similar = keys().map(|key| (strsim::jaro_winkler(key, name), key));
    let nearest = similar.max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest.filter(|(similarity, _)| *similarity > SIMILAR_MIN) {
        Some((_, key)) => format!("there is no key '{name}'; did you mean '{key}'?"),
        None => format!("there is no key '{name}'; config/upcalld.toml explains every key"),
    }
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
            (":6:16:", "wanted string"),
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
        for (at, what) in
            [(":3:1:", "unknown field `acess`"), (":4:11:", "invalid type"), (":6:18:", "5000:500")]
        {
            let told = found.iter().any(|line| line.starts_with(at) && line.contains(what));
            assert!(told, "no {at} {what} in {found:#?}");
        }
        let right_one_by_one =
            "[port.a]\naccess = 5000\nnative = 7\n[port.b]\nstatic_macs = ['x']\n";
        let found = self::found(right_one_by_one);
        assert!(found.iter().any(|line| line.contains("[port.a] VLAN 5000")), "{found:#?}");
        assert!(found.iter().any(|line| line.contains("[port.b] static_macs")), "{found:#?}");
    }

    #[test]
    fn syntax_is_told_too_and_hides_little() {
        let found = found("datapath = \nworkers = 0\n");
        assert!(found.len() >= 2 && found[0].starts_with(":1:"), "{found:?}");
        assert!(found.iter().any(|line| line.contains("from 1 to 1024")), "{found:?}");
    }

    #[test]
    fn the_file_we_ship_and_one_without_a_datapath_are_in_order() {
        assert!(found(EXPLAINED).is_empty());
        assert!(found("workers = 2\n").is_empty());
        assert!(keys().count() > 20);
    }
}
