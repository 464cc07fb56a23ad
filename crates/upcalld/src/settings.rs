//! What the daemon is to do: the flags, over the file, over the defaults.

use std::time::Duration;

use upcall::{Limits, Shape};

use crate::cli::{HandlerKind, InstallKind, LogFormat, OnDeleted, RunArgs};
use crate::config::Config;
use crate::exit::Exit;

/// Shortest interval accepted: below it the daemon would do nothing else.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Longest interval accepted: beyond it clocks overflow, and nobody means it.
const INTERVAL_MAX: Duration = Duration::from_hours(24 * 365);
/// Most workers accepted, as on the command line.
const WORKERS_MAX: usize = 1024;

/// Everything decided.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) datapath: String,
    pub(crate) ports: Vec<String>,
    pub(crate) shape: Shape,
    pub(crate) handler: HandlerKind,
    pub(crate) cross_connect: Vec<(String, String)>,
    pub(crate) install: InstallKind,
    pub(crate) keep: bool,
    pub(crate) takeover: bool,
    pub(crate) hand_over: bool,
    pub(crate) adopt: Vec<i32>,
    pub(crate) on_deleted: OnDeleted,
    pub(crate) mac_age: Duration,
    pub(crate) mac_max: usize,
    pub(crate) flow_idle: Duration,
    pub(crate) sweep_interval: Duration,
    pub(crate) stats: Option<Duration>,
    pub(crate) log_format: LogFormat,
    pub(crate) limits: Limits,
}

impl Settings {
    /// Reads the file that `args` name, if any, and lets the flags override it.
    ///
    /// # Errors
    ///
    /// [`Exit::Config`] with the file's name where there is a file, [`Exit::Usage`] where there is none.
    pub(crate) fn gather(args: &RunArgs) -> Result<Self, Exit> {
        let Some(path) = &args.config else { return Self::merge(args, Config::default()) };
        Self::merge(args, Config::read(path)?)
            .map_err(|err| Exit::Config(format!("{} (configuration file {})", err, path.display())))
    }

    fn merge(args: &RunArgs, config: Config) -> Result<Self, Exit> {
        let dispatch =
            config.dispatch.map(|text| text.parse().map_err(Exit::Config)).transpose()?;
        let defaults = Limits::default();
        let limits =
            Limits { flows_max: config.flow_max.unwrap_or(defaults.flows_max), ..defaults };
        let shape = Shape {
            dispatch: args.dispatch.or(dispatch).unwrap_or_default(),
            workers: args.workers.or(config.workers).map(usize::from),
            recv_buffer_bytes: config
                .recv_buffer_bytes
                .unwrap_or(Shape::default().recv_buffer_bytes),
        };
        let pairs = or_file(&args.cross_connect, config.cross_connect);
        let settings = Self {
            datapath: args.datapath.clone().or(config.datapath).ok_or_else(no_datapath)?,
            ports: or_file(&args.ports, config.ports),
            shape,
            handler: args.handler.or(config.handler).unwrap_or_default(),
            cross_connect: pairs.iter().map(|p| read_pair(p)).collect::<Result<_, _>>()?,
            install: args.install.or(config.install).unwrap_or_default(),
            keep: args.keep || config.keep,
            takeover: args.takeover || config.takeover,
            hand_over: args.hand_over || config.hand_over,
            adopt: args.adopt.clone(),
            on_deleted: args.on_deleted.or(config.on_deleted).unwrap_or_default(),
            mac_age: args.mac_age.or(config.mac_age).unwrap_or(Duration::from_mins(5)),
            mac_max: config.mac_max.unwrap_or(8192),
            flow_idle: args.flow_idle.or(config.flow_idle).unwrap_or(Duration::from_secs(10)),
            sweep_interval: args
                .sweep_interval
                .or(config.sweep_interval)
                .unwrap_or(Duration::from_secs(1)),
            stats: args.stats.or(config.stats),
            log_format: args.log_format.or(config.log_format).unwrap_or_default(),
            limits,
        };
        settings.check()
    }

    /// What can be wrong with values that are fine one by one.
    fn check(self) -> Result<Self, Exit> {
        let intervals = [
            ("mac_age", Some(self.mac_age)),
            ("flow_idle", Some(self.flow_idle)),
            ("sweep_interval", Some(self.sweep_interval)),
            ("stats", self.stats),
        ];
        for (name, interval) in intervals {
            if interval.is_some_and(|i| i < INTERVAL_MIN) {
                let min = humantime::format_duration(INTERVAL_MIN);
                return Err(Exit::Usage(format!("{name} is too short: at least {min}")));
            }
            if interval.is_some_and(|i| i > INTERVAL_MAX) {
                return Err(Exit::Usage(format!("{name} is too long: at most 365 days")));
            }
        }
        if self.shape.workers.is_some_and(|n| n == 0 || n > WORKERS_MAX) {
            return Err(Exit::Usage(format!("workers must be from 1 to {WORKERS_MAX}")));
        }
        if self.mac_age < 2 * self.sweep_interval {
            return Err(Exit::Usage(
                "mac_age must be at least twice sweep_interval: addresses are refreshed by sweeps"
                    .to_owned(),
            ));
        }
        match (self.handler, self.cross_connect.is_empty()) {
            (HandlerKind::CrossConnect, true) => Err(Exit::Usage(
                "the cross-connect handler needs pairs of ports: --cross-connect A=B".to_owned(),
            )),
            (HandlerKind::CrossConnect, false) | (_, true) => self.check_pairs(),
            (_, false) => {
                Err(Exit::Usage("--cross-connect needs --handler cross-connect".to_owned()))
            }
        }
    }

    fn check_pairs(self) -> Result<Self, Exit> {
        let mut seen = Vec::new();
        for name in self.cross_connect.iter().flat_map(|(a, b)| [a, b]) {
            if seen.contains(&name) {
                return Err(Exit::Usage(format!("port '{name}' is cross-connected twice")));
            }
            if !self.ports.is_empty() && !self.ports.contains(name) {
                return Err(Exit::Usage(format!(
                    "cross-connect names '{name}', which is no --port"
                )));
            }
            seen.push(name);
        }
        Ok(self)
    }
}

fn no_datapath() -> Exit {
    Exit::Usage("no datapath: name one with --datapath NAME or in the configuration".to_owned())
}

fn or_file(flags: &[String], file: Vec<String>) -> Vec<String> {
    if flags.is_empty() { file } else { flags.to_vec() }
}

fn read_pair(text: &str) -> Result<(String, String), Exit> {
    match text.split_once('=') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() => Ok((a.to_owned(), b.to_owned())),
        _ => Err(Exit::Usage(format!("'{text}' is no pair of ports: write A=B"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use upcall::Dispatch;

    fn args() -> RunArgs {
        RunArgs { datapath: Some("dp0".to_owned()), ..RunArgs::default() }
    }

    #[test]
    fn flags_override_the_file() {
        let config = Config {
            ports: vec!["a".to_owned()],
            workers: Some(3),
            dispatch: Some("per-vport".to_owned()),
            ..Config::default()
        };
        let flags = RunArgs { ports: vec!["b".to_owned()], ..args() };
        let settings = Settings::merge(&flags, config).unwrap();
        assert_eq!(settings.ports, ["b"]);
        assert_eq!(settings.shape.workers, Some(3));
        assert_eq!(settings.shape.dispatch, Dispatch::PerVport);
    }

    #[test]
    fn refuses_what_cannot_work_and_says_the_remedy() {
        let cases = [
            (RunArgs::default(), "--datapath"),
            (RunArgs { stats: Some(Duration::ZERO), ..args() }, "at least 10ms"),
            (RunArgs { mac_age: Some(Duration::from_secs(1)), ..args() }, "twice sweep_interval"),
            (RunArgs { sweep_interval: Some(Duration::MAX), ..args() }, "at most 365 days"),
            (RunArgs { workers: Some(0), ..args() }, "from 1 to 1024"),
            (RunArgs { handler: Some(HandlerKind::CrossConnect), ..args() }, "A=B"),
            (RunArgs { cross_connect: vec!["a=b".to_owned()], ..args() }, "--handler"),
            (RunArgs { cross_connect: vec!["ab".to_owned()], ..args() }, "'ab' is no pair"),
            (
                RunArgs {
                    handler: Some(HandlerKind::CrossConnect),
                    cross_connect: vec!["a=b".to_owned(), "b=c".to_owned()],
                    ..args()
                },
                "'b' is cross-connected twice",
            ),
        ];
        for (args, remedy) in cases {
            let err = Settings::merge(&args, Config::default()).unwrap_err();
            assert!(err.to_string().contains(remedy), "{err}");
        }
    }
}
