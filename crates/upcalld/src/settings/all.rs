//! All that the daemon is to do: the process, and each of its datapaths.

use std::fmt::Display;
use std::sync::Arc;

use upcall::PortSpec;

use super::{Change, ProcessSettings, Settings};
use crate::cli::RunArgs;
use crate::config::{Config, ConfigFile};
use crate::exit::Exit;

/// Everything decided.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AllSettings {
    pub(crate) process: ProcessSettings,
    /// One at least, by name.
    pub(crate) datapaths: Vec<Arc<Settings>>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The datapath, where the file has a table for it.
    pub(crate) datapath: Option<String>,
    /// The key in the file.
    pub(crate) key: &'static str,
    pub(crate) text: String,
}

impl Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.datapath {
            Some(name) => write!(f, "[datapath.{name}] {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl AllSettings {
    /// Reads the file that `args` name, if any, and lets the flags override it.
    ///
    /// # Errors
    ///
    /// [`Exit::Config`] with the file's name where there is a file, [`Exit::Usage`] where there is none.
    pub(crate) fn gather(args: &RunArgs) -> Result<Self, Exit> {
        let Some(path) = &args.config else { return Self::merge(args, ConfigFile::default()) };
        Self::merge(args, ConfigFile::read(path)?)
            .map_err(|err| Exit::Config(format!("{} (configuration file {})", err, path.display())))
    }

    /// Everything that is wrong with the values of a file that are fine one by one. A datapath may be left
    /// to the command line.
    pub(crate) fn problems_of_file(args: &RunArgs, mut file: ConfigFile) -> Vec<Problem> {
        file.top.datapath.get_or_insert_with(|| "dp0".to_owned());
        match Self::put_together(args, file) {
            Ok((_, problems)) => problems,
            Err(err) => vec![Problem { datapath: None, key: "", text: err.to_string() }],
        }
    }

    pub(super) fn merge(args: &RunArgs, file: ConfigFile) -> Result<Self, Exit> {
        let (settings, problems) = Self::put_together(args, file)?;
        let first = problems.into_iter().next();
        first.map_or(Ok(settings), |problem| Err(Exit::Usage(problem.to_string())))
    }

    /// The settings, and what is wrong with them.
    fn put_together(args: &RunArgs, file: ConfigFile) -> Result<(Self, Vec<Problem>), Exit> {
        let of = |datapath: Option<&String>, (key, text)| Problem {
            datapath: datapath.cloned(),
            key,
            text,
        };
        let (process, wrong) = ProcessSettings::put_together(args, &file.top);
        let mut problems: Vec<Problem> = wrong.into_iter().map(|wrong| of(None, wrong)).collect();
        let mut datapaths = Vec::new();
        for (name, config) in chosen(args, file)? {
            let (settings, wrong) = Settings::put_together(args, config)?;
            problems.extend(wrong.into_iter().map(|wrong| of(name.as_ref(), wrong)));
            datapaths.push(Arc::new(settings));
        }
        problems.extend(shared_ports(&datapaths));
        Ok((Self { process, datapaths }, problems))
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.datapaths.iter().map(|settings| settings.datapath.as_str()).collect()
    }

    /// Every key that has another value in `next`, with the datapath if it is of one of several. Datapaths
    /// that are in one of the two alone are the value of `datapath`.
    pub(crate) fn changes(&self, next: &Self) -> Vec<(Option<String>, Change)> {
        let mut changes: Vec<_> =
            self.process.changes(&next.process).into_iter().map(|change| (None, change)).collect();
        if self.names() != next.names() {
            let [was, is] = [self, next].map(|all| all.names().join(","));
            changes.push((None, Change { name: "datapath", was, is, live: false }));
            return changes;
        }
        let several = self.datapaths.len() > 1;
        for (was, is) in self.datapaths.iter().zip(&next.datapaths) {
            let name = several.then(|| was.datapath.clone());
            changes.extend(was.changes(is).into_iter().map(|change| (name.clone(), change)));
        }
        changes
    }
}

/// What is said of the datapaths that are to be served, with their names where they have tables.
fn chosen(args: &RunArgs, file: ConfigFile) -> Result<Vec<(Option<String>, Config)>, Exit> {
    let ConfigFile { top, mut datapaths } = file;
    if datapaths.is_empty() {
        return Ok(vec![(None, top)]);
    }
    let names = datapaths.keys().cloned().collect::<Vec<_>>().join(", ");
    if let Some(name) = &args.datapath {
        let config = datapaths.remove(name).ok_or_else(|| {
            Exit::Usage(format!("--datapath names '{name}', which has no table; there are {names}"))
        })?;
        return Ok(vec![(Some(name.clone()), config)]);
    }
    if datapaths.len() > 1 && !(args.ports.is_empty() && args.cross_connect.is_empty()) {
        return Err(Exit::Usage(format!(
            "--port and --cross-connect are of one datapath: name it with --datapath, of {names}"
        )));
    }
    Ok(datapaths.into_iter().map(|(name, config)| (Some(name), config)).collect())
}

/// Interfaces that several datapaths ask for, as far as their names tell.
fn shared_ports(datapaths: &[Arc<Settings>]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (at, settings) in datapaths.iter().enumerate() {
        for other in &datapaths[..at] {
            let asks = |other: &&String| settings.ports.iter().any(|port| overlap(port, other));
            let Some(port) = other.ports.iter().find(asks) else { continue };
            let text = format!(
                "'{port}' of datapath '{}' is asked for here as well: an interface is a port of one datapath",
                other.datapath
            );
            let datapath = Some(settings.datapath.clone());
            problems.push(Problem { datapath, key: "ports", text });
        }
    }
    problems
}

/// Does one of these name what the other one names or matches? Of two different patterns nothing is known.
fn overlap(a: &str, b: &str) -> bool {
    let named = |pattern: &str, name: &str| {
        let is_name = matches!(name.parse(), Ok(PortSpec::Name(_)));
        is_name && pattern.parse().is_ok_and(|spec: PortSpec| spec.matches(name))
    };
    a == b || named(a, b) || named(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(datapath: Option<&str>, ports: &[&str]) -> Config {
        let ports = ports.iter().map(|port| (*port).to_owned()).collect();
        Config { datapath: datapath.map(str::to_owned), ports, ..Config::default() }
    }

    fn file(tables: &[(&str, &[&str])]) -> ConfigFile {
        let table =
            |(name, ports): &(&str, &[&str])| ((*name).to_owned(), config(Some(name), ports));
        ConfigFile { top: Config::default(), datapaths: tables.iter().map(table).collect() }
    }

    fn names(args: &RunArgs, file: ConfigFile) -> Result<Vec<String>, String> {
        let all = AllSettings::merge(args, file).map_err(|err| err.to_string())?;
        Ok(all.names().into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn all_tables_are_served_or_the_one_that_is_named() {
        let both = || file(&[("dp0", &["a"]), ("dp1", &["b"])]);
        assert_eq!(names(&RunArgs::default(), both()).unwrap(), ["dp0", "dp1"]);
        let one = RunArgs { datapath: Some("dp1".to_owned()), ..RunArgs::default() };
        assert_eq!(names(&one, both()).unwrap(), ["dp1"]);
        let none = RunArgs { datapath: Some("dp7".to_owned()), ..RunArgs::default() };
        assert!(names(&none, both()).unwrap_err().contains("there are dp0, dp1"));
        let port = RunArgs { ports: vec!["c".to_owned()], ..RunArgs::default() };
        assert!(names(&port, both()).unwrap_err().contains("name it with --datapath"));
    }

    #[test]
    fn an_interface_is_asked_for_once() {
        let cases: [(&[&str], &[&str], bool); 5] = [
            (&["a", "b"], &["c", "b"], true),
            (&["veth*"], &["veth7"], true),
            (&["veth7"], &["veth*"], true),
            (&["veth*"], &["veth*"], true),
            (&["veth*"], &["tap*", "b"], false),
        ];
        for (one, other, refused) in cases {
            let told = names(&RunArgs::default(), file(&[("dp0", one), ("dp1", other)]));
            assert_eq!(told.is_err(), refused, "{one:?} {other:?}");
            if let Err(err) = told {
                assert!(
                    err.contains("[datapath.dp1]") && err.contains("of datapath 'dp0'"),
                    "{err}"
                );
            }
        }
    }

    #[test]
    fn changes_are_told_by_datapath() {
        let all = |file| AllSettings::merge(&RunArgs::default(), file).unwrap();
        let was = all(file(&[("dp0", &["a"]), ("dp1", &["b"])]));
        let is = all(file(&[("dp0", &["a"]), ("dp1", &["b", "c"])]));
        let changes = was.changes(&is);
        assert_eq!(changes[0].0.as_deref(), Some("dp1"));
        assert_eq!(changes[0].1.to_string(), "ports: b -> b,c");
        let one_more = all(file(&[("dp0", &["a"]), ("dp1", &["b"]), ("dp2", &["c"])]));
        let changes = was.changes(&one_more);
        assert_eq!(changes[0].1.to_string(), "datapath: dp0,dp1 -> dp0,dp1,dp2");
        assert!(!changes[0].1.live && changes.len() == 1);
    }
}
