//! The settings as keys with values, to be compared: what a reload changes, and what it cannot.

use std::fmt::Display;
use std::time::Duration;

use clap::ValueEnum;

use super::Settings;

/// A key of the configuration file with its value, as it is written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) value: String,
    /// Can a running daemon change it?
    pub(crate) live: bool,
}

/// A key whose value was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) name: &'static str,
    pub(crate) was: String,
    pub(crate) is: String,
    pub(crate) live: bool,
}

impl Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, was, is, .. } = self;
        write!(f, "{name}: {was} -> {is}")
    }
}

impl Settings {
    /// Every key that has another value in `next`.
    pub(crate) fn changes(&self, next: &Self) -> Vec<Change> {
        changes(self.keys(), next.keys())
    }

    /// All keys, in one order. `takeover` is about the start alone.
    pub(super) fn keys(&self) -> Vec<Key> {
        let mut keys = self.live_keys();
        keys.extend(self.fixed_keys());
        keys
    }

    fn live_keys(&self) -> Vec<Key> {
        let (shape, limits) = (&self.shape, &self.limits);
        let rates = &limits.port_rates;
        let queue_max = limits.queue.port_upcalls_max;
        let values = [
            ("ports", self.ports.join(",")),
            ("dispatch", shape.dispatch.to_string()),
            ("workers", option(shape.workers)),
            ("placement", shape.placement.to_string()),
            ("recv_buffer_bytes", shape.recv_buffer_bytes.to_string()),
            ("recv_buffer_total_bytes", option(shape.recv_buffer_total_bytes)),
            ("arrival_times", on_off(shape.arrival_times)),
            ("storm_shield", on_off(limits.storm_shield)),
            ("funnel", on_off(limits.funnel)),
            ("port_rate", option(rates.all)),
            ("miss_rate", option(rates.miss)),
            ("action_rate", option(rates.action)),
            ("sample_rate", option(rates.sample)),
            ("port_queue_max", option((queue_max != usize::MAX).then_some(queue_max))),
            ("flow_max", limits.flows_max.to_string()),
            ("flow_idle", time(self.flow_idle)),
            ("flow_hard", option(self.flow_hard.map(time))),
            ("sweep_interval", time(self.sweep_interval)),
            ("mac_age", time(self.switch.mac_age)),
            ("mac_max", self.switch.macs_max.to_string()),
            ("on_deleted", name(&self.on_deleted)),
        ];
        values.map(|(name, value)| Key { name, value, live: true }).into()
    }

    /// Every setting is named here, so that none is forgotten.
    fn fixed_keys(&self) -> Vec<Key> {
        let Self {
            datapath,
            handler,
            cross_connect,
            install,
            answer_from_plan,
            keep,
            on_port_gone,
            sample_userdata,
            takeover: _,
            ports: _,
            shape: _,
            limits: _,
            flow_idle: _,
            flow_hard: _,
            sweep_interval: _,
            switch,
            on_deleted: _,
        } = self;
        let floods = switch.others.floods.0;
        let pairs: Vec<String> = cross_connect.iter().map(|(a, b)| format!("{a}={b}")).collect();
        let values = [
            ("datapath", datapath.clone()),
            ("handler", name(handler)),
            ("cross_connect", pairs.join(",")),
            ("install", name(install)),
            ("answer_from_plan", on_off(*answer_from_plan)),
            ("keep", keep.to_string()),
            ("on_port_gone", name(on_port_gone)),
            ("broadcast_rate", option(floods[0])),
            ("multicast_rate", option(floods[1])),
            ("unknown_rate", option(floods[2])),
            // Not as it is written, but different where it differs.
            ("port", format!("{:?}", switch.ports)),
            (
                "sample_userdata",
                option(sample_userdata.as_ref().map(|bytes| format!("{bytes:02x?}"))),
            ),
        ];
        values.map(|(name, value)| Key { name, value, live: false }).into()
    }
}

/// Every key that has another value in `next`, which has the same keys.
pub(super) fn changes(keys: Vec<Key>, next: Vec<Key>) -> Vec<Change> {
    let changed = keys.into_iter().zip(next).filter(|(was, is)| was.value != is.value);
    changed
        .map(|(was, is)| Change { name: is.name, was: was.value, is: is.value, live: is.live })
        .collect()
}

pub(super) fn option(value: Option<impl Display>) -> String {
    value.map_or_else(|| "unset".to_owned(), |value| value.to_string())
}

pub(super) fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn on_off(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

pub(super) fn name(value: &impl ValueEnum) -> String {
    option(value.to_possible_value().map(|value| value.get_name().to_owned()))
}

#[cfg(test)]
mod tests {
    use crate::cli::RunArgs;
    use crate::config::{Config, ConfigFile};
    use crate::settings::AllSettings;

    fn settings(text: &str) -> AllSettings {
        let top: Config = toml::from_str(text).unwrap();
        let args = RunArgs { datapath: Some("dp0".to_owned()), ..RunArgs::default() };
        AllSettings::merge(&args, ConfigFile { top, ..ConfigFile::default() }).unwrap()
    }

    #[test]
    fn changes_name_the_key_and_both_values() {
        let (was, is) = (settings(""), settings("flow_max = 7\nhandler = 'hub'\nstats = '1s'\n"));
        let changes = was.changes(&is);
        let texts: Vec<_> = changes.iter().map(|(_, change)| change.to_string()).collect();
        let wanted =
            ["stats: unset -> 1s", "flow_max: 200000 -> 7", "handler: learning-switch -> hub"];
        assert_eq!(texts, wanted);
        let live: Vec<_> = changes.iter().map(|(_, change)| change.live).collect();
        assert_eq!(live, [false, true, false]);
        assert!(was.changes(&was).is_empty());
    }

    /// Keys of the file that explains them, with what is said of each.
    fn explained() -> Vec<(&'static str, String)> {
        let text = include_str!("../../../../config/upcalld.toml");
        let (mut keys, mut said) = (Vec::new(), String::new());
        for line in text.lines().take_while(|line| !line.starts_with("# [")) {
            let pair = line.strip_prefix("# ").and_then(|line| line.split_once(" = "));
            match pair.filter(|(key, _)| !key.contains(' ')) {
                Some((key, _)) => keys.push((key, said.clone())),
                None if line.is_empty() => said.clear(),
                None => said += line,
            }
        }
        keys
    }

    #[test]
    fn every_key_is_compared_and_explained_as_live_if_it_is() {
        let all = settings("");
        let mut keys = all.process.keys();
        keys.extend(all.datapaths[0].keys());
        for (name, said) in explained().into_iter().filter(|(name, _)| *name != "takeover") {
            let key = keys.iter().find(|key| key.name == name);
            let key = key.unwrap_or_else(|| panic!("{name} is not compared"));
            assert_eq!(key.live, said.contains("Live."), "{name}: {said}");
        }
    }
}
