//! `port/quota`: what each port may have, what one port may have by hand, and what was shed of which.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use upcall::{Limits, Port, PortQuota, PortRates, PortSheds, Ports, Rate};

use super::{Answer, Format, View, counters};

/// What there is to be said of a port, for `list-commands` and errors.
pub(super) const USAGE: &str =
    "[port [all|miss|action|sample|waiting] {rate[:burst] | number | none}]";

/// Do they begin with a port, whatever else has its name?
pub(super) fn begin_with_port(arguments: &[String]) -> bool {
    let is_class = |word: &String| word == "waiting" || CLASSES.contains(&word.as_str());
    match arguments {
        [_, _] => true,
        [_, class, _] => is_class(class),
        _ => false,
    }
}

/// Shows quotas, or sets one of a port.
pub(super) async fn quota(
    view: View<'_>,
    arguments: &[String],
    format: Format,
) -> Result<Answer, String> {
    if arguments.is_empty() {
        return show(view, format).await;
    }
    let ports = view.dispatcher.ports();
    let (port, change) = Change::read(arguments, &ports)?;
    let mut quota = view.dispatcher.port_quota(port.number);
    change.apply(&mut quota);
    view.dispatcher.set_port_quota(port.number, quota).map_err(|err| err.to_string())?;
    let text = format!("{}: {} (a reload puts back what is configured)\n", port.name, text(&quota));
    Ok(match format {
        Format::Text => Answer::Text(text),
        Format::Json => Answer::Json(json!({ port.name.clone(): value(&quota) })),
    })
}

/// What is to be other than it is.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Rate(&'static str, Option<Rate>),
    Waiting(Option<usize>),
}

const CLASSES: [&str; 4] = ["all", "miss", "action", "sample"];

impl Change {
    fn read<'p>(arguments: &[String], ports: &'p Ports) -> Result<(&'p Port, Self), String> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (port, class, value) = match words[..] {
            [port, value] => (port, "all", value),
            [port, class, value] => (port, class, value),
            _ => return Err(format!("write port/quota {USAGE}")),
        };
        let number = port.parse().ok();
        let found = ports.by_configured_name(port).or_else(|| ports.by_number(number?));
        let port = found.ok_or_else(|| {
            let names: Vec<_> = ports.iter().map(|port| port.name.as_str()).collect();
            format!("there is no port '{port}'; there are {}", names.join(", "))
        })?;
        let value = (value != "none").then_some(value);
        if class == "waiting" {
            let places = value.map(|text| {
                let wrong = |_| format!("'{text}' is no number of upcalls: write one, or none");
                text.parse().map_err(wrong)
            });
            return Ok((port, Self::Waiting(places.transpose()?)));
        }
        let class = CLASSES.into_iter().find(|known| *known == class).ok_or_else(|| {
            format!("there is no class '{class}'; there are {} and waiting", CLASSES.join(", "))
        })?;
        Ok((port, Self::Rate(class, value.map(str::parse).transpose()?)))
    }

    fn apply(self, quota: &mut PortQuota) {
        let rates = &mut quota.rates;
        match self {
            Self::Waiting(places) => quota.upcalls_max = places.unwrap_or(usize::MAX),
            Self::Rate("miss", rate) => rates.miss = rate,
            Self::Rate("action", rate) => rates.action = rate,
            Self::Rate("sample", rate) => rates.sample = rate,
            Self::Rate(_, rate) => rates.all = rate,
        }
    }
}

/// Each class with its rate, as text.
fn rates(rates: PortRates) -> [(&'static str, Option<String>); 4] {
    let PortRates { all, miss, action, sample } = rates;
    let rates = [all, miss, action, sample].map(|rate| rate.map(|rate| rate.to_string()));
    let mut rates = rates.into_iter();
    CLASSES.map(|class| (class, rates.next().flatten()))
}

fn places(quota: &PortQuota) -> Option<usize> {
    (quota.upcalls_max != usize::MAX).then_some(quota.upcalls_max)
}

/// In a line: `all 5000:500, miss no limit, …`.
fn text(quota: &PortQuota) -> String {
    let waiting = ("waiting", places(quota).map(|places| places.to_string()));
    let each = rates(quota.rates).into_iter().chain([waiting]);
    let words = each.map(|(class, limit)| format!("{class} {}", limit.unwrap_or_else(unbounded)));
    words.collect::<Vec<_>>().join(", ")
}

fn unbounded() -> String {
    "no limit".to_owned()
}

fn value(quota: &PortQuota) -> Value {
    let rates = rates(quota.rates).into_iter();
    let rates = rates.map(|(class, rate)| (class.to_owned(), Value::from(rate)));
    json!({ "rates": rates.collect::<Map<_, _>>(), "queue_max": places(quota) })
}

/// What each port may have, who has other quotas by hand, and what was shed of whom.
async fn show(view: View<'_>, format: Format) -> Result<Answer, String> {
    let (sheds, limits) = (counters::stats(view).await?.sheds, view.dispatcher.limits());
    let by_hand = view.dispatcher.port_quotas();
    let ports = view.dispatcher.ports();
    let name = |number| ports.by_number(number).map_or("-", |port| port.name.as_str());
    let Limits { port_rates, queue, .. } = limits;
    let all = PortQuota { rates: port_rates, upcalls_max: queue.port_upcalls_max };
    if format == Format::Json {
        let shed = |shed: &PortSheds| {
            let PortSheds { port, no_room, quota, rate } = *shed;
            json!({ "port": port, "name": name(port), "rate": rate, "quota": quota, "no_room": no_room })
        };
        let own = |(port, quota): &(u32, PortQuota)| {
            let mut entry = value(quota);
            entry["port"] = (*port).into();
            entry["name"] = name(*port).into();
            entry
        };
        let mut answer = value(&all);
        answer["by_hand"] = by_hand.iter().map(own).collect();
        answer["shed"] = sheds.iter().map(shed).collect();
        return Ok(Answer::Json(answer));
    }
    let mut out = format!("each port of {}, in upcalls a second:burst:\n", view.settings.datapath);
    for (class, rate) in rates(all.rates) {
        let _ = writeln!(out, "  {class:<8} {}", rate.unwrap_or_else(unbounded));
    }
    let waiting = places(&all).map_or_else(unbounded, |places| places.to_string());
    let _ = writeln!(out, "  waiting  {waiting}");
    for (port, quota) in &by_hand {
        let _ = writeln!(out, "{} by hand: {}", name(*port), text(quota));
    }
    out += " port  name            over rate  over waiting  no room\n";
    for PortSheds { port, no_room, quota, rate } in &sheds {
        // Packets without a port have a number that no port has.
        let number = if *port == u32::MAX { "none".to_owned() } else { port.to_string() };
        let _ =
            writeln!(out, "{number:>5}  {:<15} {rate:>9} {quota:>13} {no_room:>8}", name(*port));
    }
    Ok(Answer::Text(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<(u32, Change), String> {
        let ports = Ports::new(vec![Port { number: 3, name: "veth0".to_owned() }]);
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        Change::read(&words, &ports).map(|(port, change)| (port.number, change))
    }

    #[test]
    fn a_quota_is_set_by_class() {
        let mut quota = PortQuota { rates: PortRates::default(), upcalls_max: usize::MAX };
        for words in ["veth0 5000", "3 sample 7:3", "veth0 waiting 64"] {
            let (port, change) = read(words).unwrap();
            assert_eq!(port, 3);
            change.apply(&mut quota);
        }
        let shown = "all 5000:500, miss no limit, action no limit, sample 7:3, waiting 64";
        assert_eq!(text(&quota), shown);
        assert_eq!(value(&quota)["rates"]["sample"], "7:3");
        for words in ["veth0 none", "3 sample none", "veth0 waiting none"] {
            read(words).unwrap().1.apply(&mut quota);
        }
        assert_eq!(quota, PortQuota { rates: PortRates::default(), upcalls_max: usize::MAX });
    }

    #[test]
    fn what_is_wrong_is_told_with_a_remedy() {
        for (words, remedy) in [
            ("veth0", "write port/quota [port"),
            ("veth0 miss 1 2", "write port/quota [port"),
            ("veth1 5", "there are veth0"),
            ("4 5", "there is no port '4'"),
            ("veth0 misses 5", "there are all, miss, action, sample and waiting"),
            ("veth0 5/s", "5000:500"),
            ("veth0 waiting few", "write one, or none"),
        ] {
            let err = read(words).unwrap_err();
            assert!(err.contains(remedy), "{words}: {err}");
        }
    }
}
