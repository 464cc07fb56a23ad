//! An entry of `trunk`: a VLAN, or a range of them.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::handler::VLAN_IDS;

/// VLANs that follow each other: `30` or `"10-20"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VlanRange(pub(crate) RangeInclusive<u16>);

impl FromStr for VlanRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let id = |part: &str| part.trim().parse::<u16>().ok();
        let (first, last) = id(first).zip(id(last)).ok_or_else(|| {
            format!("'{text}' is no range of VLANs: write the first and the last, as \"10-20\"")
        })?;
        if first > last {
            return Err(format!("'{text}' is no range of VLANs: write \"{last}-{first}\""));
        }
        match [first, last].into_iter().find(|id| !VLAN_IDS.contains(id)) {
            Some(id) => Err(no_vlan(id)),
            None => Ok(Self(first..=last)),
        }
    }
}

fn no_vlan(id: impl fmt::Display) -> String {
    format!("VLAN {id}: a VLAN is from {} to {}", VLAN_IDS.start(), VLAN_IDS.end())
}

impl<'de> Deserialize<'de> for VlanRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Entry)
    }
}

struct Entry;

impl Visitor<'_> for Entry {
    type Value = VlanRange;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a VLAN, as 30, or a range of them, as \"10-20\"")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<VlanRange, E> {
        let id = u16::try_from(number).ok().filter(|id| VLAN_IDS.contains(id));
        id.map(|id| VlanRange(id..=id)).ok_or_else(|| E::custom(no_vlan(number)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<VlanRange, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Trunk {
        trunk: Vec<VlanRange>,
    }

    fn read(list: &str) -> Result<Vec<RangeInclusive<u16>>, String> {
        let trunk = toml::from_str::<Trunk>(&format!("trunk = [{list}]"));
        let ranges = |trunk: Trunk| trunk.trunk.into_iter().map(|range| range.0).collect();
        trunk.map(ranges).map_err(|err| err.message().to_owned())
    }

    #[test]
    fn numbers_and_ranges_may_be_mixed() {
        assert_eq!(
            read("'10-20', 30, '1 - 4094', '7'"),
            Ok(vec![10..=20, 30..=30, 1..=4094, 7..=7])
        );
        assert_eq!(read(""), Ok(vec![]));
    }

    #[test]
    fn what_is_no_range_is_told_with_a_remedy() {
        for (list, what) in [
            ("'20-10'", "write \"10-20\""),
            ("'10-'", "'10-' is no range of VLANs"),
            ("'10..20'", "as \"10-20\""),
            ("'10-20-30'", "as \"10-20\""),
            ("'ten'", "as \"10-20\""),
            ("'10-5000'", "VLAN 5000: a VLAN is from 1 to 4094"),
            ("0", "VLAN 0: a VLAN is from 1 to 4094"),
            ("-1", "VLAN -1: a VLAN is"),
            ("true", "expected a VLAN, as 30, or a range of them, as \"10-20\""),
            ("[10, 20]", "expected a VLAN, as 30"),
        ] {
            let err = read(list).unwrap_err();
            assert!(err.contains(what), "{list}: {err}");
        }
    }
}
