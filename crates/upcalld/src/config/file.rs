//! The file as a whole: one datapath, or several with a table each.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::{Config, check, position, read_text};
use crate::exit::Exit;

/// The key that names a datapath, and the table of tables of several.
pub(super) const DATAPATH: &str = "datapath";

/// Keys of the whole process: a datapath's table has none of them.
pub(super) const OF_PROCESS: [&str; 10] = [
    DATAPATH,
    "hand_over",
    "stats",
    "control",
    "control_group",
    "pidfile",
    "crash_report",
    "metrics",
    "log",
    "log_format",
];

/// Keys that name interfaces, of which each is a port of one datapath: with several, they are in its table.
pub(super) const OF_INTERFACES: [&str; 3] = ["ports", "cross_connect", "port"];

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ConfigFile {
    /// What is said above all tables: of the process, and of the datapath where there is only one.
    pub(crate) top: Config,
    /// What is said of each datapath that has a table, over what is said above all tables; by name.
    pub(crate) datapaths: BTreeMap<String, Config>,
}

/// Something that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// Byte offset in the file.
    pub(super) at: usize,
    pub(super) text: String,
}

impl ConfigFile {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// [`Exit::Config`], in one line, with the file, the line and what is wrong there.
    pub(crate) fn read(path: &Path) -> Result<Self, Exit> {
        let shown = path.display();
        let text = read_text(path)?;
        parse(&text).map_err(|Mistake { at, text: message }| {
            // Told as check-config does: with the key and what was meant.
            let first = check::first_mistake(&text)
                .unwrap_or_else(|| format!("{}: {message}", position(&text, at)));
            Exit::Config(format!("{shown}{first} (upcalld check-config tells all mistakes)"))
        })
    }
}

/// The first mistake, if there is one.
pub(super) fn parse(text: &str) -> Result<ConfigFile, Mistake> {
    let table = DeTable::parse(text).map_err(|err| of_toml(&err))?;
    let whole = table.span();
    let Split { top, tables, mistakes } = Split::of(table.into_inner());
    if let Some(mistake) = mistakes.into_iter().next() {
        return Err(mistake);
    }
    let read = |table: DeTable<'_>| {
        Config::deserialize(Deserializer::from(Spanned::new(whole.clone(), table)))
            .map_err(|err| of_toml(&err))
    };
    let datapaths = tables.into_iter().map(|(name, table)| {
        let config = read(over(&top, table.own))?;
        Ok((name.clone(), Config { datapath: Some(name), ..config }))
    });
    Ok(ConfigFile { datapaths: datapaths.collect::<Result<_, _>>()?, top: read(top)? })
}

pub(super) type Key<'a> = Spanned<toml::de::DeString<'a>>;
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// The table of one datapath.
pub(super) struct OwnTable<'a> {
    /// Where its name is.
    pub(super) at: usize,
    pub(super) own: DeTable<'a>,
}

/// The keys above all tables, the tables of datapaths, and what is in a wrong place, which is in neither.
#[derive(Default)]
pub(super) struct Split<'a> {
    pub(super) top: DeTable<'a>,
    pub(super) tables: BTreeMap<String, OwnTable<'a>>,
    pub(super) mistakes: Vec<Mistake>,
}

impl<'a> Split<'a> {
    pub(super) fn of(table: DeTable<'a>) -> Self {
        let mut split = Self::default();
        let mut several = false;
        for (key, value) in table {
            match value.get_ref() {
                DeValue::Table(tables) if key.get_ref() == DATAPATH => {
                    several = true;
                    split.take(key.span().start, tables);
                }
                _ => {
                    split.top.insert(key, value);
                }
            }
        }
        if several {
            let text = |key: &str| {
                format!(
                    "'{key}' names interfaces, which are one datapath's: write it into its table"
                )
            };
            let top = std::mem::take(&mut split.top);
            split.top = split.without(top, &OF_INTERFACES, text);
        }
        split
    }

    fn take(&mut self, at: usize, tables: &DeTable<'a>) {
        if tables.is_empty() {
            let text = "[datapath] has no table of a datapath: write [datapath.NAME]".to_owned();
            self.mistakes.push(Mistake { at, text });
        }
        for (name, value) in tables {
            let (shown, at) = (name.get_ref().to_string(), name.span().start);
            let DeValue::Table(own) = value.get_ref() else {
                let text = format!(
                    "a datapath is a table: write [datapath.NAME] above its keys, or datapath = 'NAME' for \
                     one; '{shown}' is neither"
                );
                self.mistakes.push(Mistake { at, text });
                continue;
            };
            let text =
                |key: &str| format!("'{key}' is of the whole process: write it above all tables");
            let own = self.without(own.clone(), &OF_PROCESS, text);
            self.tables.insert(shown, OwnTable { at, own });
        }
    }

    /// The table without these keys, of which each is a mistake.
    fn without(
        &mut self,
        table: DeTable<'a>,
        keys: &[&str],
        text: impl Fn(&str) -> String,
    ) -> DeTable<'a> {
        let mut rest = DeTable::new();
        for (key, value) in table {
            let name: &str = key.get_ref();
            if keys.contains(&name) {
                self.mistakes.push(Mistake { at: key.span().start, text: text(name) });
            } else {
                rest.insert(key, value);
            }
        }
        rest
    }
}

/// What is said of a datapath, over what is said above all tables.
pub(super) fn over<'a>(top: &DeTable<'a>, own: DeTable<'a>) -> DeTable<'a> {
    let is_own = |key: &Key<'a>| own.iter().any(|(other, _)| other.get_ref() == key.get_ref());
    let mut all = DeTable::new();
    for (key, value) in top.iter().filter(|(key, _)| !is_own(key)) {
        all.insert(key.clone(), value.clone());
    }
    all.extend(own);
    all
}

fn of_toml(err: &toml::de::Error) -> Mistake {
    let at = err.span().map_or(0, |span| span.start);
    Mistake { at, text: err.message().replace('\n', " ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::HandlerKind;

    #[test]
    fn a_table_is_over_what_is_above_all_tables() {
        let text = "\
workers = 3
handler = 'hub'
[datapath.dp1]
ports = ['b']
[datapath.dp0]
ports = ['a']
handler = 'learning-switch'
[datapath.dp0.port.a]
access = 10
";
        let file = parse(text).unwrap();
        let names: Vec<_> = file.datapaths.keys().collect();
        assert_eq!(names, ["dp0", "dp1"]);
        let (dp0, dp1) = (&file.datapaths["dp0"], &file.datapaths["dp1"]);
        assert_eq!((dp0.handler, dp0.workers), (Some(HandlerKind::LearningSwitch), Some(3)));
        assert_eq!((dp1.handler, dp1.datapath.as_deref()), (Some(HandlerKind::Hub), Some("dp1")));
        assert_eq!(dp0.port["a"].access, Some(10));
        assert!(dp1.port.is_empty() && dp1.ports == ["b"] && file.top.datapath.is_none());
        let one = parse("datapath = 'dp0'\nports = ['a']\n").unwrap();
        assert!(one.datapaths.is_empty() && one.top.datapath.as_deref() == Some("dp0"));
    }

    #[test]
    fn keys_in_a_wrong_place_are_told_with_the_right_one() {
        for (text, at, what) in [
            ("[datapath.dp0]\nmetrics = '1'\n", 15, "above all tables"),
            ("ports = ['a']\n[datapath.dp0]\n", 0, "into its table"),
            ("[datapath]\nname = 'dp0'\n", 11, "[datapath.NAME]"),
            ("[datapath]\n", 1, "[datapath.NAME]"),
            ("[datapath.dp0]\nworkers = 'x'\n", 25, "invalid type"),
        ] {
            let mistake = parse(text).unwrap_err();
            assert!(mistake.at == at && mistake.text.contains(what), "{text}: {mistake:?}");
        }
    }
}
