//! `[port.NAME]`: what is configured for one port.

use serde::Deserialize;
use upcall::{MacAddr, Rate};

use super::from_text;
use super::vlan_range::VlanRange;
use crate::handler::{FloodRates, PortRules, VLAN_IDS, Vlans};

/// Keys of the table.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortConfig {
    pub(crate) access: Option<u16>,
    pub(crate) trunk: Option<Vec<VlanRange>>,
    pub(crate) native: Option<u16>,
    pub(crate) mac_max: Option<u32>,
    #[serde(default)]
    pub(crate) static_macs: Vec<String>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) broadcast_rate: Option<Rate>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) multicast_rate: Option<Rate>,
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) unknown_rate: Option<Rate>,
}

impl PortConfig {
    /// What the switch is to do at the port, where nothing else is said as at all others; and what is
    /// wrong with it.
    pub(crate) fn rules(&self, others: &PortRules) -> (PortRules, Vec<String>) {
        let mut problems = Vec::new();
        let vlans = self.vlans(&mut problems);
        let mut static_macs = Vec::new();
        for text in &self.static_macs {
            match read_static(text, &vlans) {
                Ok(station) => static_macs.push(station),
                Err(why) => problems.push(why),
            }
        }
        let floods = [self.broadcast_rate, self.multicast_rate, self.unknown_rate];
        let floods = FloodRates(floods).or(others.floods);
        let macs_max = self.mac_max.or(others.macs_max);
        (PortRules { vlans, macs_max, static_macs, floods }, problems)
    }

    fn vlans(&self, problems: &mut Vec<String>) -> Vlans {
        for id in self.access.iter().chain(&self.native).filter(|id| !VLAN_IDS.contains(id)) {
            problems.push(format!("VLAN {id}: a VLAN is from 1 to 4094"));
        }
        match (self.access, &self.trunk, self.native) {
            (None, None, None) => Vlans::All,
            (Some(id), None, None) => Vlans::Access(id),
            (None, Some(ranges), native) => {
                let ids = ranges.iter().flat_map(|range| range.0.clone());
                Vlans::Trunk { tagged: ids.collect(), native }
            }
            (Some(_), ..) => {
                problems
                    .push("access excludes trunk and native: a port is one or the other".into());
                Vlans::None
            }
            (None, None, Some(id)) => {
                problems.push(format!(
                    "native needs a trunk: access = {id} carries this VLAN alone, trunk = [] and native \
                     do so with tags admitted"
                ));
                Vlans::None
            }
        }
    }
}

/// `MAC`, in the VLAN of packets without a tag, or `MAC@VLAN`.
fn read_static(text: &str, vlans: &Vlans) -> Result<(u16, MacAddr), String> {
    let (mac, id) = text.split_once('@').map_or((text, None), |(mac, id)| (mac, Some(id)));
    let wrong = |why: &str| format!("static_macs: '{text}' {why}");
    let mac: MacAddr = mac.parse().map_err(|_| {
        wrong("is no address: write 02:00:00:00:00:01, or with a VLAN 02:00:00:00:00:01@20")
    })?;
    if mac.is_multicast() || mac == MacAddr::default() {
        return Err(wrong("is the address of no single station"));
    }
    let vlan = match id {
        Some(id) => id.parse().map_err(|_| wrong("has no VLAN behind the '@'"))?,
        None => vlans.of_untagged().ok_or_else(|| {
            wrong("needs a VLAN, as the port takes in nothing without a tag: write MAC@VLAN")
        })?,
    };
    if vlans.carries(vlan) {
        Ok((vlan, mac))
    } else {
        Err(wrong("is in a VLAN that the port does not carry"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (PortRules, Vec<String>) {
        let floods = FloodRates([Some("7".parse().unwrap()), None, None]);
        let others = PortRules { macs_max: Some(9), floods, ..PortRules::default() };
        toml::from_str::<PortConfig>(text).unwrap().rules(&others)
    }

    #[test]
    fn a_port_is_what_its_table_says_and_else_as_others() {
        let (rules, problems) =
            read("access = 10\nstatic_macs = ['02:00:00:00:00:01']\nunknown_rate = '5:1'");
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(rules.vlans, Vlans::Access(10));
        assert_eq!(rules.static_macs, [(10, MacAddr([2, 0, 0, 0, 0, 1]))]);
        let rates = rules.floods.0.map(|rate| rate.map(|rate| rate.to_string()));
        assert_eq!(rates, [Some("7:64".to_owned()), None, Some("5:1".to_owned())]);
        assert_eq!(rules.macs_max, Some(9));
        let (rules, _) = read(
            "trunk = ['19-21']\nnative = 10\nmac_max = 0\nstatic_macs = ['2:0:0:0:0:1@20', '2:0:0:0:0:2']",
        );
        assert_eq!(
            (rules.static_macs[0].0, rules.static_macs[1].0, rules.macs_max),
            (20, 10, Some(0))
        );
        assert_eq!(read("").0.vlans, Vlans::All);
    }

    #[test]
    fn what_cannot_be_is_told_with_a_remedy() {
        for (text, why) in [
            ("access = 0", "from 1 to 4094"),
            ("trunk = []\nnative = 4095", "VLAN 4095"),
            ("access = 10\ntrunk = [20]", "one or the other"),
            ("native = 10", "needs a trunk"),
            ("static_macs = ['x']", "write 02:00:00:00:00:01"),
            ("static_macs = ['ff:ff:ff:ff:ff:ff']", "no single station"),
            ("access = 10\nstatic_macs = ['2:0:0:0:0:1@20']", "does not carry"),
            ("trunk = [10]\nstatic_macs = ['2:0:0:0:0:1']", "write MAC@VLAN"),
        ] {
            let (_, problems) = read(text);
            assert!(problems.len() == 1 && problems[0].contains(why), "{text}: {problems:?}");
        }
    }
}
