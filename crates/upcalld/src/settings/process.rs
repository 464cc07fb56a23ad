//! What is decided about the process, whatever datapaths it serves.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::keys::{self, Change, Key, name, option, time};
use super::{Problems, check_interval};
use crate::cli::{LogFormat, RunArgs};
use crate::config::Config;
use crate::control::Place;
use crate::logging;
use crate::metrics::Address;

/// Everything decided about the process.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ProcessSettings {
    pub(crate) hand_over: bool,
    pub(crate) adopt: Vec<Adopted>,
    pub(crate) stats: Option<Duration>,
    pub(crate) control: Place,
    pub(crate) control_group: Option<String>,
    pub(crate) pidfile: Option<PathBuf>,
    pub(crate) crash_report: Option<PathBuf>,
    pub(crate) metrics: Address,
    /// What is logged, if it was said.
    pub(crate) log: Option<String>,
    pub(crate) log_format: LogFormat,
}

/// An inherited descriptor, and the datapath that it belongs to, which need not be said of the only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Adopted {
    pub(crate) datapath: Option<String>,
    pub(crate) fd: i32,
}

/// `FD` or `DATAPATH=FD`.
impl FromStr for Adopted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (datapath, fd) = match text.rsplit_once('=') {
            Some((datapath, fd)) => (Some(datapath.to_owned()), fd),
            None => (None, text),
        };
        let number = fd.parse().ok().filter(|fd| *fd >= 0);
        let fd = number.ok_or_else(|| format!("'{text}' is no descriptor: write FD or NAME=FD"))?;
        Ok(Self { datapath, fd })
    }
}

impl ProcessSettings {
    /// The settings, and what is wrong with them.
    pub(super) fn put_together(args: &RunArgs, config: &Config) -> (Self, Problems) {
        let settings = Self {
            hand_over: args.hand_over || config.hand_over,
            adopt: args.adopt.clone(),
            stats: args.stats.or(config.stats),
            control: args.control.clone().or(config.control.clone()).unwrap_or(Place::Usual),
            control_group: args.control_group.clone().or(config.control_group.clone()),
            pidfile: args.pidfile.clone().or(config.pidfile.clone()),
            crash_report: args.crash_report.clone().or(config.crash_report.clone()),
            metrics: args.metrics.clone().or(config.metrics.clone()).unwrap_or(Address::Nowhere),
            log: args.log.clone().or(config.log.clone()),
            log_format: args.log_format.or(config.log_format).unwrap_or_default(),
        };
        let log = settings.log.as_deref().and_then(|log| logging::check(log).err());
        let stats = settings.stats.and_then(|stats| check_interval("stats", stats));
        let log = log.map(|text| ("log", text));
        (settings, log.into_iter().chain(stats.map(|text| ("stats", text))).collect())
    }

    /// Every key that has another value in `next`.
    pub(super) fn changes(&self, next: &Self) -> Vec<Change> {
        keys::changes(self.keys(), next.keys())
    }

    /// All keys, in one order: every setting is named here, so that none is forgotten. `adopt` is about the
    /// start alone.
    pub(super) fn keys(&self) -> Vec<Key> {
        let Self {
            hand_over,
            adopt: _,
            stats,
            control,
            control_group,
            pidfile,
            crash_report,
            metrics,
            log,
            log_format,
        } = self;
        let fixed = [
            ("hand_over", hand_over.to_string()),
            ("stats", option(stats.map(time))),
            ("control", place(control)),
            ("control_group", option(control_group.as_ref())),
            ("pidfile", option(pidfile.as_ref().map(|path| path.display()))),
            ("crash_report", option(crash_report.as_ref().map(|path| path.display()))),
            ("metrics", address(metrics)),
            ("log_format", name(log_format)),
        ];
        let log = Key { name: "log", value: option(log.as_ref()), live: true };
        let fixed = fixed.map(|(name, value)| Key { name, value, live: false });
        fixed.into_iter().chain([log]).collect()
    }
}

fn place(place: &Place) -> String {
    match place {
        Place::Usual => "unset".to_owned(),
        Place::At(path) => path.display().to_string(),
        Place::None => "none".to_owned(),
    }
}

fn address(address: &Address) -> String {
    match address {
        Address::Nowhere => "none".to_owned(),
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_may_say_whose_it_is() {
        let adopted =
            |datapath: Option<&str>, fd| Ok(Adopted { datapath: datapath.map(str::to_owned), fd });
        assert_eq!("7".parse(), adopted(None, 7));
        assert_eq!("dp0=7".parse(), adopted(Some("dp0"), 7));
        assert_eq!("a=b=7".parse(), adopted(Some("a=b"), 7));
        for text in ["", "dp0", "dp0=", "-1"] {
            assert!(text.parse::<Adopted>().unwrap_err().contains("NAME=FD"), "{text}");
        }
    }
}
