//! What the daemon is to do: the flags, over the file, over the defaults.

mod all;
mod keys;
mod process;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use upcall::{Limits, PortRates, PortSpec, QueueLimits, Shape};

use crate::cli::{HandlerKind, InstallKind, OnDeleted, OnOff, PortGone, RunArgs};
use crate::config::Config;
use crate::exit::Exit;
use crate::handler::{FloodRates, PortRules, SwitchConfig};
pub(crate) use all::AllSettings;
pub(crate) use keys::Change;
pub(crate) use process::{Adopted, ProcessSettings};

/// Shortest interval accepted: below it the daemon would do nothing else.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Longest interval accepted: beyond it clocks overflow, and nobody means it.
const INTERVAL_MAX: Duration = Duration::from_hours(24 * 365);
/// Most workers accepted, as on the command line.
const WORKERS_MAX: usize = 1024;

/// Least memory accepted for all receive buffers: a single large packet needs as much.
const RECV_BUFFER_TOTAL_MIN: usize = 128 << 10;

/// What is wrong: the key in the file, and what.
type Problems = Vec<(&'static str, String)>;

/// Everything decided about one datapath.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) datapath: String,
    pub(crate) ports: Vec<String>,
    pub(crate) shape: Shape,
    pub(crate) handler: HandlerKind,
    pub(crate) cross_connect: Vec<(String, String)>,
    pub(crate) install: InstallKind,
    pub(crate) answer_from_plan: bool,
    pub(crate) keep: bool,
    pub(crate) takeover: bool,
    pub(crate) on_deleted: OnDeleted,
    pub(crate) on_port_gone: PortGone,
    pub(crate) switch: SwitchConfig,
    pub(crate) flow_idle: Duration,
    pub(crate) flow_hard: Option<Duration>,
    pub(crate) sweep_interval: Duration,
    pub(crate) limits: Limits,
    pub(crate) sample_userdata: Option<Arc<[u8]>>,
}

impl Settings {
    /// The settings, and what is wrong with them.
    fn put_together(args: &RunArgs, config: Config) -> Result<(Self, Problems), Exit> {
        let (switch, mut problems) = switch(args, &config);
        let defaults = Limits::default();
        let port_rates = PortRates {
            all: args.port_rate.or(config.port_rate),
            miss: args.miss_rate.or(config.miss_rate),
            action: args.action_rate.or(config.action_rate),
            sample: args.sample_rate.or(config.sample_rate),
        };
        let queue_max = args.port_queue_max.or(config.port_queue_max);
        let queue = QueueLimits {
            port_upcalls_max: queue_max.unwrap_or(defaults.queue.port_upcalls_max),
            ..defaults.queue
        };
        let shield = args.storm_shield.or(config.storm_shield);
        let funnel = args.funnel.or(config.funnel);
        let limits = Limits {
            flows_max: config.flow_max.unwrap_or(defaults.flows_max),
            storm_shield: shield.map_or(defaults.storm_shield, |shield| shield == OnOff::On),
            funnel: funnel.map_or(defaults.funnel, |funnel| funnel == OnOff::On),
            port_rates,
            queue,
            ..defaults
        };
        let times = args.arrival_times.or(config.arrival_times);
        let shape = Shape {
            dispatch: args.dispatch.or(config.dispatch).unwrap_or_default(),
            workers: args.workers.or(config.workers).map(usize::from),
            placement: args.placement.clone().or(config.placement).unwrap_or_default(),
            recv_buffer_bytes: config
                .recv_buffer_bytes
                .unwrap_or(Shape::default().recv_buffer_bytes),
            recv_buffer_total_bytes: args.recv_buffer_total.or(config.recv_buffer_total_bytes),
            arrival_times: times.map_or(Shape::default().arrival_times, |times| times == OnOff::On),
        };
        let pairs = or_file(&args.cross_connect, config.cross_connect);
        let (cross_connect, wrong_pairs) = read_pairs(&pairs);
        problems.extend(wrong_pairs);
        let settings = Self {
            datapath: args.datapath.clone().or(config.datapath).ok_or_else(no_datapath)?,
            ports: or_file(&args.ports, config.ports),
            shape,
            handler: args.handler.or(config.handler).unwrap_or_default(),
            cross_connect,
            install: args.install.or(config.install).unwrap_or_default(),
            answer_from_plan: args.answer_from_plan.or(config.answer_from_plan) != Some(OnOff::Off),
            keep: args.keep || config.keep,
            takeover: args.takeover || config.takeover,
            on_port_gone: args.on_port_gone.or(config.on_port_gone).unwrap_or_default(),
            on_deleted: args.on_deleted.or(config.on_deleted).unwrap_or_default(),
            switch,
            flow_idle: args.flow_idle.or(config.flow_idle).unwrap_or(Duration::from_secs(10)),
            flow_hard: args.flow_hard.or(config.flow_hard),
            sweep_interval: args
                .sweep_interval
                .or(config.sweep_interval)
                .unwrap_or(Duration::from_secs(1)),
            limits,
            sample_userdata: args.sample_userdata.clone().or(config.sample_userdata),
        };
        settings.check(&mut problems, !pairs.is_empty());
        Ok((settings, problems))
    }

    /// What can be wrong with values that are fine one by one.
    fn check(&self, problems: &mut Problems, has_pairs: bool) {
        let bad = |text: &String| Some(("ports", text.parse::<PortSpec>().err()?.to_string()));
        problems.extend(self.ports.iter().filter_map(bad));
        let bad = upcall::check_name("datapath", &self.datapath).err();
        problems.extend(bad.map(|err| ("datapath", err.to_string())));
        self.check_intervals(problems);
        if self.shape.workers.is_some_and(|n| n == 0 || n > WORKERS_MAX) {
            problems.push(("workers", format!("workers must be from 1 to {WORKERS_MAX}")));
        }
        if self.shape.recv_buffer_total_bytes.is_some_and(|bytes| bytes < RECV_BUFFER_TOTAL_MIN) {
            let text =
                format!("recv_buffer_total is too small: at least {RECV_BUFFER_TOTAL_MIN} bytes");
            problems.push(("recv_buffer_total_bytes", text));
        }
        if self.handler != HandlerKind::LearningSwitch && !self.switch.ports.is_empty() {
            let text =
                "[port.NAME] needs the learning-switch handler: no other knows VLANs or addresses";
            problems.push(("port", text.to_owned()));
        }
        match (self.handler, has_pairs) {
            (HandlerKind::CrossConnect, false) => problems.push((
                "handler",
                "the cross-connect handler needs pairs of ports: --cross-connect A=B".to_owned(),
            )),
            (HandlerKind::CrossConnect, true) | (_, false) => self.check_pairs(problems),
            (_, true) => problems.push((
                "cross_connect",
                "--cross-connect needs --handler cross-connect".to_owned(),
            )),
        }
    }

    fn check_intervals(&self, problems: &mut Problems) {
        let before = problems.len();
        for (name, interval) in [
            ("mac_age", Some(self.switch.mac_age)),
            ("flow_idle", Some(self.flow_idle)),
            ("flow_hard", self.flow_hard),
            ("sweep_interval", Some(self.sweep_interval)),
        ] {
            let problem = interval.and_then(|interval| check_interval(name, interval));
            problems.extend(problem.map(|text| (name, text)));
        }
        if problems.len() > before {
            return;
        }
        if self.switch.mac_age < 2 * self.sweep_interval {
            let text =
                "mac_age must be at least twice sweep_interval: addresses are refreshed by sweeps";
            problems.push(("mac_age", text.to_owned()));
        }
        if self.flow_hard.is_some_and(|hard| hard < 2 * self.sweep_interval) {
            let text =
                "flow_hard must be at least twice sweep_interval: flows are removed by sweeps";
            problems.push(("flow_hard", text.to_owned()));
        }
    }

    /// Is this interface to be a port?
    fn asks_for(&self, interface: &str) -> bool {
        let matches =
            |text: &String| text.parse().is_ok_and(|spec: PortSpec| spec.matches(interface));
        self.ports.iter().any(matches)
    }

    fn check_pairs(&self, problems: &mut Problems) {
        let mut seen = Vec::new();
        for name in self.cross_connect.iter().flat_map(|(a, b)| [a, b]) {
            if seen.contains(&name) {
                problems.push(("cross_connect", format!("port '{name}' is cross-connected twice")));
            }
            if !self.ports.is_empty() && !self.asks_for(name) {
                let text = format!("cross-connect names '{name}', which is no --port");
                problems.push(("cross_connect", text));
            }
            seen.push(name);
        }
    }
}

/// What is wrong with an interval, if anything is.
fn check_interval(name: &str, interval: Duration) -> Option<String> {
    if interval < INTERVAL_MIN {
        let min = humantime::format_duration(INTERVAL_MIN);
        return Some(format!("{name} is too short: at least {min}"));
    }
    (interval > INTERVAL_MAX).then(|| format!("{name} is too long: at most 365 days"))
}

/// Reads `1048576`, `1024K`, `1M` or `1G`.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = digits.parse::<usize>().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| format!("'{text}' is no size: write bytes, or 512K, 64M, 1G"))
}

/// Reads bytes in hexadecimal: `0100`.
pub(crate) fn parse_hex(text: &str) -> Result<Arc<[u8]>, String> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| Some(c.to_digit(16)? as u8)).collect();
    let pairs = digits.filter(|digits| digits.len().is_multiple_of(2));
    let bytes = pairs.map(|digits| digits.chunks(2).map(|two| two[0] << 4 | two[1]).collect());
    bytes.ok_or_else(|| {
        format!("'{text}' is no hexadecimal: write two digits for each byte, as 0100")
    })
}

/// What the learning switch is to do, and what is wrong with it.
fn switch(args: &RunArgs, config: &Config) -> (SwitchConfig, Problems) {
    let floods = FloodRates([
        args.broadcast_rate.or(config.broadcast_rate),
        args.multicast_rate.or(config.multicast_rate),
        args.unknown_rate.or(config.unknown_rate),
    ]);
    let others = PortRules { floods, ..PortRules::default() };
    let (mut ports, mut problems) = (Vec::new(), Problems::new());
    let mut pinned = BTreeMap::new();
    for (name, port) in &config.port {
        let (rules, wrong) = port.rules(&others);
        problems.extend(wrong.into_iter().map(|why| ("port", format!("[port.{name}] {why}"))));
        for (vlan, mac) in &rules.static_macs {
            if let Some(other) = pinned.insert((*vlan, mac.0), name) {
                let text = format!("[port.{name}] static_macs: {mac} is at port {other} already");
                problems.push(("port", text));
            }
        }
        let named = upcall::check_name("port", name).err();
        problems.extend(named.map(|err| ("port", format!("[port.{name}] {err}"))));
        ports.push((name.clone(), rules));
    }
    let switch = SwitchConfig {
        mac_age: args.mac_age.or(config.mac_age).unwrap_or(Duration::from_mins(5)),
        macs_max: config.mac_max.unwrap_or(8192),
        ports,
        others,
    };
    (switch, problems)
}

fn no_datapath() -> Exit {
    Exit::Usage("no datapath: name one with --datapath NAME or in the configuration".to_owned())
}

fn or_file(flags: &[String], file: Vec<String>) -> Vec<String> {
    if flags.is_empty() { file } else { flags.to_vec() }
}

/// The pairs, and which texts are none.
fn read_pairs(texts: &[String]) -> (Vec<(String, String)>, Problems) {
    let (mut pairs, mut problems) = (Vec::new(), Vec::new());
    for text in texts {
        match text.split_once('=') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() => {
                pairs.push((a.to_owned(), b.to_owned()));
            }
            _ => {
                let text = format!("'{text}' is no pair of ports: write A=B");
                problems.push(("cross_connect", text));
            }
        }
    }
    (pairs, problems)
}

#[cfg(test)]
impl Settings {
    /// Those of a datapath of which nothing is said but a name.
    pub(crate) fn for_tests() -> Self {
        let config = Config { datapath: Some("dp0".to_owned()), ..Config::default() };
        Self::put_together(&RunArgs::default(), config).unwrap().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFile;
    use upcall::{Dispatch, Placement};

    fn merge(args: &RunArgs, top: Config) -> Result<Settings, Exit> {
        let file = ConfigFile { top, ..ConfigFile::default() };
        let mut all = AllSettings::merge(args, file)?;
        Ok(Arc::unwrap_or_clone(all.datapaths.swap_remove(0)))
    }

    fn args() -> RunArgs {
        RunArgs { datapath: Some("dp0".to_owned()), ..RunArgs::default() }
    }

    #[test]
    fn flags_override_the_file() {
        let config = Config {
            ports: vec!["a".to_owned()],
            workers: Some(3),
            storm_shield: Some(OnOff::Off),
            funnel: Some(OnOff::Off),
            arrival_times: Some(OnOff::Off),
            answer_from_plan: Some(OnOff::Off),
            dispatch: Some(Dispatch::PerVport),
            placement: Some(Placement::List(vec![2, 3])),
            miss_rate: Some("10".parse().unwrap()),
            sample_rate: Some("20".parse().unwrap()),
            port_queue_max: Some(9),
            sample_userdata: Some(parse_hex("01Ab").unwrap()),
            ..Config::default()
        };
        let sample_rate = Some("7:3".parse().unwrap());
        let flags = RunArgs { ports: vec!["b".to_owned()], sample_rate, ..args() };
        let settings = merge(&flags, config).unwrap();
        assert_eq!(settings.ports, ["b"]);
        assert_eq!(settings.shape.workers, Some(3));
        assert_eq!(settings.shape.dispatch, Dispatch::PerVport);
        assert!(!settings.answer_from_plan);
        let rates = settings.limits.port_rates;
        assert_eq!(rates.miss.map(|rate| rate.to_string()), Some("10:64".to_owned()));
        assert_eq!(rates.sample.map(|rate| rate.to_string()), Some("7:3".to_owned()));
        assert_eq!(
            (rates.all, rates.action, settings.limits.queue.port_upcalls_max),
            (None, None, 9)
        );
        assert_eq!(settings.sample_userdata.as_deref(), Some(&[1, 0xab][..]));
        assert!(!settings.limits.storm_shield && Limits::default().storm_shield);
        assert!(!settings.limits.funnel && Limits::default().funnel);
        assert!(!settings.shape.arrival_times && Shape::default().arrival_times);
        assert_eq!(settings.shape.placement, Placement::List(vec![2, 3]));
    }

    #[test]
    fn sizes_are_bytes_or_powers_of_1024() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!((parse_size("512K"), parse_size("1g")), (Ok(512 << 10), Ok(1 << 30)));
        for text in ["", "M", "-1", "1.5M", "64MB", "99999999999G", "1µ"] {
            assert!(parse_size(text).unwrap_err().contains("is no size"), "{text}");
        }
    }

    #[test]
    fn refuses_what_cannot_work_and_says_the_remedy() {
        let cases = [
            (RunArgs::default(), "--datapath"),
            (RunArgs { stats: Some(Duration::ZERO), ..args() }, "at least 10ms"),
            (RunArgs { mac_age: Some(Duration::from_secs(1)), ..args() }, "twice sweep_interval"),
            (RunArgs { flow_hard: Some(Duration::from_secs(1)), ..args() }, "flow_hard must be at"),
            (RunArgs { flow_hard: Some(Duration::from_millis(1)), ..args() }, "at least 10ms"),
            (RunArgs { sweep_interval: Some(Duration::MAX), ..args() }, "at most 365 days"),
            (RunArgs { workers: Some(0), ..args() }, "from 1 to 1024"),
            (RunArgs { recv_buffer_total: Some(4096), ..args() }, "at least 131072"),
            (RunArgs { handler: Some(HandlerKind::CrossConnect), ..args() }, "A=B"),
            (RunArgs { cross_connect: vec!["a=b".to_owned()], ..args() }, "--handler"),
            (RunArgs { ports: vec!["a b".to_owned()], ..args() }, "contains ' '"),
            (RunArgs { ports: vec!["veth[".to_owned()], ..args() }, "pattern of ports"),
            (RunArgs { log: Some("upcall=loud".to_owned()), ..args() }, "upcall=debug"),
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
            let err = merge(&args, Config::default()).unwrap_err();
            assert!(err.to_string().contains(remedy), "{err}");
        }
    }
}
