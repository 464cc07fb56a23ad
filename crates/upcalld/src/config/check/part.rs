//! One key of a file with its value: what is wrong with it, and what was meant.

use std::ops::Range;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::super::file::{Key, Mistake, Value};
use crate::config::Config;

/// The file we ship, in which every key is explained.
pub(super) const EXPLAINED: &str = include_str!("../../../../../config/upcalld.toml");

/// Less similar than that it is another name, not a mistake in it.
const SIMILAR_MIN: f64 = 0.7;
/// As similar as that are names that are mistaken for each other although there are both.
const SAME_MIN: f64 = 0.9;

/// A key with its value, as small as it can be read by itself.
pub(super) struct Part<'a> {
    /// The datapath, if it is in the table of one.
    datapath: Option<&'a str>,
    /// The port, if it is in the table of one.
    port: Option<Key<'a>>,
    key: Key<'a>,
    value: Value<'a>,
}

/// The key with its value, or of tables of ports one for each key of these.
pub(super) fn parts<'a>(
    datapath: Option<&'a str>,
    key: &Key<'a>,
    value: &Value<'a>,
) -> Vec<Part<'a>> {
    let part = |port: Option<&Key<'a>>, key: &Key<'a>, value: &Value<'a>| Part {
        datapath,
        port: port.cloned(),
        key: key.clone(),
        value: value.clone(),
    };
    let DeValue::Table(ports) = value.get_ref() else { return vec![part(None, key, value)] };
    if key.get_ref() != "port" {
        return vec![part(None, key, value)];
    }
    let of_port = |(port, table): (&Key<'a>, &Value<'a>)| match table.get_ref() {
        DeValue::Table(keys) => {
            keys.iter().map(|(key, value)| part(Some(port), key, value)).collect()
        }
        _ => vec![part(None, key, &in_table(port, table.clone()))],
    };
    ports.iter().flat_map(of_port).collect()
}

fn in_table<'a>(key: &Key<'a>, value: Value<'a>) -> Value<'a> {
    let span = value.span();
    Spanned::new(span, DeValue::Table(one(key, value)))
}

fn one<'a>(key: &Key<'a>, value: Value<'a>) -> DeTable<'a> {
    let mut table = DeTable::new();
    table.insert(key.clone(), value);
    table
}

pub(super) fn read(span: &Range<usize>, table: DeTable<'_>) -> Result<Config, toml::de::Error> {
    Config::deserialize(Deserializer::from(Spanned::new(span.clone(), table)))
}

impl<'a> Part<'a> {
    /// What is wrong with it by itself.
    pub(super) fn mistake(&self, whole: &Range<usize>) -> Option<Mistake> {
        let err = read(whole, self.table(&self.key)).err()?;
        let name = self.name();
        if !self.keys().any(|(known, _)| known == name) {
            return Some(Mistake { at: self.key.span().start, text: self.unknown(whole) });
        }
        let at = err.span().map_or(self.value.span().start, |span| span.start);
        let message = plain(&err);
        let remedy = match self.meant(whole, SAME_MIN) {
            Some(key) => format!("did you mean '{key}'?"),
            None => format!("an example: {}", self.example().unwrap_or_default()),
        };
        Some(Mistake { at, text: format!("{name}: {message}; {remedy}") })
    }

    /// A table beside it, as it is written.
    fn table_name(&self, name: &str) -> String {
        let datapath = self.datapath.map(|datapath| format!("datapath.{datapath}."));
        format!("[{}{name}]", datapath.unwrap_or_default())
    }

    fn name(&self) -> &str {
        self.key.get_ref()
    }

    /// A file with it alone, by the name of `key`.
    fn table(&self, key: &Key<'a>) -> DeTable<'a> {
        let alone = one(key, self.value.clone());
        let Some(port) = &self.port else { return alone };
        let tables = in_table(port, Spanned::new(self.value.span(), DeValue::Table(alone)));
        one(&Spanned::new(port.span(), "port".into()), tables)
    }

    /// The keys that there are where it is, each with a line that shows it.
    fn keys(&self) -> Box<dyn Iterator<Item = (&'static str, &'static str)>> {
        if self.port.is_some() { Box::new(port_keys()) } else { Box::new(keys()) }
    }

    fn example(&self) -> Option<&'static str> {
        self.keys().find(|(key, _)| *key == self.name()).map(|(_, line)| line)
    }

    /// Keys of names that are so similar, the most similar first.
    fn similar(&self, least: f64) -> Vec<&'static str> {
        let similarity = |key| strsim::jaro_winkler(key, self.name());
        let other = self.keys().map(|(key, _)| key).filter(|key| *key != self.name());
        let mut similar: Vec<_> = other.map(|key| (similarity(key), key)).collect();
        similar.retain(|(similarity, _)| *similarity > least);
        similar.sort_by(|a, b| b.0.total_cmp(&a.0));
        similar.into_iter().map(|(_, key)| key).collect()
    }

    /// The key of a similar name that a value like this is right for.
    fn meant(&self, whole: &Range<usize>, least: f64) -> Option<&'static str> {
        let fits = |key: &&'static str| {
            let key = Spanned::new(self.key.span(), (*key).into());
            read(whole, self.table(&key)).is_ok()
        };
        self.similar(least).into_iter().find(fits)
    }

    /// What may be meant by a key that there is not.
    fn unknown(&self, whole: &Range<usize>) -> String {
        let name = self.name();
        if self.port.is_some() && keys().any(|(key, _)| key == name) {
            let port = self.table_name("port.NAME");
            return format!("'{name}' is no key of a port; it belongs above the first {port}");
        }
        if self.port.is_none() && port_keys().any(|(key, _)| key == name) {
            let port = self.table_name("port.NAME");
            return format!("'{name}' is a key of a port; it belongs below a line {port}");
        }
        let similar = || self.similar(SIMILAR_MIN).first().copied();
        let meant = self.meant(whole, SIMILAR_MIN).or_else(similar);
        match (meant, self.value.get_ref()) {
            (Some(key), _) => format!("there is no key '{name}'; did you mean '{key}'?"),
            (None, DeValue::Table(_)) => {
                let table = self.table_name(name);
                format!(
                    "there is no table {table}; but for [port.NAME] and [datapath.NAME] all keys stand above, \
                     in no table"
                )
            }
            _ => format!("there is no key '{name}'; config/upcalld.toml explains every key"),
        }
    }
}

/// The message in one line, without words that only programs use.
pub(super) fn plain(err: &toml::de::Error) -> String {
    let words = [
        ("\n", " "),
        ("wanted string or table", "expected a text"),
        ("expected a string", "expected a text"),
        ("expected a map", "expected a table"),
        ("expected struct PortConfig", "expected a table"),
        ("expected a sequence", "expected a list"),
        ("invalid type: sequence", "invalid type: list"),
        ("invalid type: map", "invalid type: table"),
        ("expected usize", "expected a number"),
        ("expected u16", "expected a number"),
        ("expected u32", "expected a number"),
        ("expected u64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("unknown variant", "no such value"),
    ];
    let message = err.message().to_owned();
    words.into_iter().fold(message, |text, (word, plain)| text.replace(word, plain))
}

/// Lines of the file we ship that show a key.
fn shown(
    lines: impl Iterator<Item = &'static str>,
) -> impl Iterator<Item = (&'static str, &'static str)> {
    let key = |line: &'static str| {
        let line = line.strip_prefix("# ")?;
        Some((line.split_once(" = ")?.0, line))
    };
    lines.filter_map(key).filter(|(key, _)| !key.contains(' '))
}

fn is_in_no_table(line: &&str) -> bool {
    !line.starts_with("# [")
}

/// Every key there is in no table.
pub(super) fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    let port = ("port", "[port.veth0]");
    shown(EXPLAINED.lines().take_while(is_in_no_table)).chain([port])
}

/// Every key of a port.
fn port_keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    shown(EXPLAINED.lines().skip_while(is_in_no_table))
}
