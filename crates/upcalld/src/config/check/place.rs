//! Where keys and tables of ports are, and which of these tables may not be meant.

use std::iter;

use toml::de::{DeTable, DeValue};
use upcall::PortSpec;

use super::super::file::{Key, Mistake, Split};
use super::part::read;
use crate::config::Config;

/// Where the keys of a table are, and the tables of its ports.
pub(super) struct Places {
    keys: Vec<(String, usize)>,
    ports: Vec<(String, usize)>,
}

pub(super) fn places(table: &DeTable<'_>) -> Places {
    let place = |key: &Key<'_>| (key.get_ref().to_string(), key.span().start);
    let tables = |(key, value): (&Key<'_>, &toml::Spanned<DeValue<'_>>)| match value.get_ref() {
        DeValue::Table(ports) if key.get_ref() == "port" => ports.keys().map(place).collect(),
        _ => Vec::new(),
    };
    Places {
        keys: table.keys().map(place).collect(),
        ports: table.iter().flat_map(tables).collect(),
    }
}

impl Places {
    /// Where this is wrong, of this key: at the port that it begins with, or at the key.
    pub(super) fn of(&self, key: &str, text: &str) -> Option<usize> {
        let is_of = |name: &str| text.starts_with(&format!("[port.{name}] "));
        let port = self.ports.iter().find(|(name, _)| key == "port" && is_of(name));
        let place = port.or_else(|| self.keys.iter().find(|(name, _)| name == key));
        place.map(|(_, at)| *at)
    }
}

/// What is in order, but may not be meant: tables of ports that the file does not ask for.
pub(super) fn notes(text: &str) -> Vec<Mistake> {
    let (table, _) = DeTable::parse_recoverable(text);
    let whole = table.span();
    let Split { top, tables, .. } = Split::of(table.into_inner());
    let mut notes = Vec::new();
    // Ports and their tables are in the same table, whichever that is.
    for table in iter::once(top).chain(tables.into_values().map(|table| table.own)) {
        let places = places(&table);
        if let Ok(config) = read(&whole, table) {
            notes.extend(places.ports.iter().filter_map(|port| not_asked_for(&config, port)));
        }
    }
    notes.sort_by_key(|note| note.at);
    notes
}

fn not_asked_for(config: &Config, (name, at): &(String, usize)) -> Option<Mistake> {
    let spec = |text: &String| text.parse().is_ok_and(|spec: PortSpec| spec.matches(name));
    if config.ports.is_empty() || config.ports.iter().any(spec) {
        return None;
    }
    let similarity = |port: &&String| strsim::jaro_winkler(port, name);
    let nearest = config.ports.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let text = format!(
        "[port.{name}] is for no interface in 'ports'; did you mean '{}'?",
        nearest.map_or("", String::as_str)
    );
    Some(Mistake { at: *at, text })
}
