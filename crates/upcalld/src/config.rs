//! The configuration file.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::cli::{HandlerKind, InstallKind, LogFormat, OnDeleted};
use crate::exit::Exit;

/// Keys of the file, as `config/upcalld.toml` explains them. All are optional.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) datapath: Option<String>,
    #[serde(default)]
    pub(crate) ports: Vec<String>,
    pub(crate) dispatch: Option<String>,
    pub(crate) workers: Option<u16>,
    pub(crate) handler: Option<HandlerKind>,
    #[serde(default)]
    pub(crate) cross_connect: Vec<String>,
    pub(crate) install: Option<InstallKind>,
    #[serde(default)]
    pub(crate) keep: bool,
    #[serde(default)]
    pub(crate) takeover: bool,
    #[serde(default)]
    pub(crate) hand_over: bool,
    pub(crate) on_deleted: Option<OnDeleted>,
    #[serde(default, with = "humantime_serde")]
    pub(crate) mac_age: Option<Duration>,
    pub(crate) mac_max: Option<usize>,
    #[serde(default, with = "humantime_serde")]
    pub(crate) flow_idle: Option<Duration>,
    pub(crate) flow_max: Option<u64>,
    #[serde(default, with = "humantime_serde")]
    pub(crate) sweep_interval: Option<Duration>,
    pub(crate) recv_buffer_bytes: Option<usize>,
    #[serde(default, with = "humantime_serde")]
    pub(crate) stats: Option<Duration>,
    pub(crate) log_format: Option<LogFormat>,
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// [`Exit::Config`], in one line, with the file, the line and what is wrong there.
    pub(crate) fn read(path: &Path) -> Result<Self, Exit> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|err| {
            Exit::Config(format!("cannot read the configuration file {shown}: {err}"))
        })?;
        toml::from_str(&text).map_err(|err| {
            let at = err.span().map_or_else(String::new, |span| position(&text, span.start));
            let message = err.message().replace('\n', " ");
            Exit::Config(format!("{shown}{at}: {message} (config/upcalld.toml explains every key)"))
        })
    }
}

/// `:LINE:COLUMN` of a byte offset.
fn position(text: &str, offset: usize) -> String {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.split(|b| *b == b'\n').count();
    let column = before.rsplit(|b| *b == b'\n').next().map_or(0, <[u8]>::len) + 1;
    format!(":{line}:{column}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(text: &str) -> Result<Config, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Config::read(file.path()).map_err(|err| err.to_string())
    }

    #[test]
    fn reads_durations_and_names() {
        let config = read("datapath = 'dp0'\nmac_age = '250ms'\nhandler = 'hub'\n").unwrap();
        assert_eq!(config.mac_age, Some(Duration::from_millis(250)));
        assert_eq!(config.handler, Some(HandlerKind::Hub));
    }

    #[test]
    fn says_where_a_mistake_is_in_one_line() {
        for (text, at, what) in [
            ("datapath = 'dp0'\nport = ['a']\n", ":2:1:", "unknown field `port`"),
            ("mac_age = '5 parsecs'\n", ":1:11:", "expected a duration"),
            ("datapath = \n", ":1:", "string"),
            ("workers = -1\n", ":1:11:", "invalid value"),
        ] {
            let err = read(text).unwrap_err();
            assert!(err.contains(at) && err.contains(what) && !err.contains('\n'), "{err}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let err = Config::read(Path::new("/no/such/file")).unwrap_err();
        assert!(err.to_string().contains("/no/such/file"));
    }

    #[test]
    fn the_file_we_ship_is_valid_and_complete() {
        let text = include_str!("../../../config/upcalld.toml");
        toml::from_str::<Config>(text).unwrap();
        let keys =
            |line: &str| line.strip_prefix("# ").filter(|l| l.contains(" = ")).map(str::to_owned);
        let every_key = text.lines().filter_map(keys).collect::<Vec<_>>().join("\n");
        let config: Config = toml::from_str(&every_key).unwrap();
        let debug = format!("{config:?}");
        assert!(!debug.contains("None"), "a key is not shown in the file: {debug}");
    }
}
