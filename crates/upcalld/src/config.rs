//! The configuration file.

pub(crate) mod check;
mod file;
mod port;
mod vlan_range;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use upcall::{Dispatch, Placement, Rate};

use crate::cli::{HandlerKind, InstallKind, LogFormat, OnDeleted, OnOff, PortGone};
use crate::control::Place;
use crate::exit::Exit;
use crate::metrics::Address;
use crate::settings::parse_hex;
pub(crate) use file::ConfigFile;
pub(crate) use port::PortConfig;

/// Keys of the file, as `config/upcalld.toml` explains them, for one datapath. All are optional.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) datapath: Option<String>,
    #[serde(default)]
    pub(crate) ports: Vec<String>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) dispatch: Option<Dispatch>,
    pub(crate) workers: Option<u16>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) placement: Option<Placement>,
    pub(crate) storm_shield: Option<OnOff>,
    pub(crate) arrival_times: Option<OnOff>,
    pub(crate) funnel: Option<OnOff>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) port_rate: Option<Rate>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) miss_rate: Option<Rate>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) action_rate: Option<Rate>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) sample_rate: Option<Rate>,
    pub(crate) port_queue_max: Option<usize>,
    #[serde(default, deserialize_with = "from_hex")]
    pub(crate) sample_userdata: Option<Arc<[u8]>>,
    pub(crate) handler: Option<HandlerKind>,
    #[serde(default)]
    pub(crate) cross_connect: Vec<String>,
    pub(crate) install: Option<InstallKind>,
    pub(crate) answer_from_plan: Option<OnOff>,
    #[serde(default)]
    pub(crate) keep: bool,
    #[serde(default)]
    pub(crate) takeover: bool,
    #[serde(default)]
    pub(crate) hand_over: bool,
    pub(crate) on_deleted: Option<OnDeleted>,
    pub(crate) on_port_gone: Option<PortGone>,
    #[serde(default, with = "humantime_serde")]
    pub(crate) mac_age: Option<Duration>,
    pub(crate) mac_max: Option<usize>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) broadcast_rate: Option<Rate>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) multicast_rate: Option<Rate>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) unknown_rate: Option<Rate>,
    /// By the configured name of the port.
    #[serde(default)]
    pub(crate) port: BTreeMap<String, PortConfig>,
    #[serde(default, with = "humantime_serde")]
    pub(crate) flow_idle: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub(crate) flow_hard: Option<Duration>,
    pub(crate) flow_max: Option<u64>,
    #[serde(default, with = "humantime_serde")]
    pub(crate) sweep_interval: Option<Duration>,
    pub(crate) recv_buffer_bytes: Option<usize>,
    pub(crate) recv_buffer_total_bytes: Option<usize>,
    #[serde(default, with = "humantime_serde")]
    pub(crate) stats: Option<Duration>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) control: Option<Place>,
    pub(crate) control_group: Option<String>,
    pub(crate) pidfile: Option<PathBuf>,
    pub(crate) crash_report: Option<PathBuf>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) metrics: Option<Address>,
    pub(crate) log: Option<String>,
    pub(crate) log_format: Option<LogFormat>,
}

fn read_text(path: &Path) -> Result<String, Exit> {
    std::fs::read_to_string(path).map_err(|err| {
        Exit::Config(format!("cannot read the configuration file {}: {err}", path.display()))
    })
}

/// A value that is written as on the command line.
fn from_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// Bytes, two digits each.
fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<[u8]>>, D::Error> {
    parse_hex(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
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
        ConfigFile::read(file.path()).map(|file| file.top).map_err(|err| err.to_string())
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
            ("datapath = 'dp0'\nprot = ['a']\n", ":2:1:", "did you mean 'ports'?"),
            ("mac_age = '5 parsecs'\n", ":1:11:", "expected a duration"),
            ("datapath = \n", ":1:", "string"),
            ("workers = -1\n", ":1:11:", "invalid value"),
            ("placement = 'nearby'\n", ":1:13:", "'nearby'"),
            ("miss_rate = '5/s'\n", ":1:13:", "5000:500"),
            ("sample_userdata = 'abc'\n", ":1:19:", "0100"),
        ] {
            let err = read(text).unwrap_err();
            assert!(err.contains(at) && err.contains(what) && !err.contains('\n'), "{err}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let err = ConfigFile::read(Path::new("/no/such/file")).unwrap_err();
        assert!(err.to_string().contains("/no/such/file"));
    }

    #[test]
    fn the_file_we_ship_is_valid_and_complete() {
        let text = include_str!("../../../config/upcalld.toml");
        toml::from_str::<Config>(text).unwrap();
        // What is set in further is an example of something else.
        let is_key = |l: &&str| !l.starts_with(' ') && l.contains(" = ") || l.starts_with('[');
        let keys = |line: &str| {
            let line = line.strip_prefix("# ").filter(is_key);
            line.map(str::to_owned)
        };
        let every_key = text.lines().filter_map(keys).collect::<Vec<_>>().join("\n");
        let mut config: Config = toml::from_str(&every_key).unwrap();
        // Each key of a port is shown for one of the ports.
        let [access, trunk] = ["veth0", "veth1"].map(|name| config.port.remove(name).unwrap());
        assert!(config.port.is_empty() && access.trunk.is_none() && trunk.access.is_none());
        let port = PortConfig { access: access.access, ..trunk };
        let debug = format!("{config:?} {port:?}");
        assert!(!debug.contains("None"), "a key is not shown in the file: {debug}");
    }
}
