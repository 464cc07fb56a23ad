//! `fdb/show` and `fdb/flush`: which station is behind which port.

use std::cmp::Reverse;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Answer, Format, View};
use crate::handler::{Flood, PortFigures, Station};

/// Stations shown; a table of that many takes some 5 MB as text.
const STATIONS_MAX: usize = 131_072;

fn check(view: View<'_>, bridges: &[String]) -> Result<(), String> {
    let unknown = bridges.iter().find(|bridge| **bridge != view.settings.datapath);
    unknown.map_or(Ok(()), |bridge| Err(format!("no such bridge {bridge}")))
}

fn no_table(view: View<'_>) -> String {
    format!("the handler {:?} learns no addresses", view.settings.handler)
}

/// Port, VLAN, address, and seconds since it was seen.
pub(super) fn show(view: View<'_>, bridges: &[String], format: Format) -> Result<Answer, String> {
    check(view, bridges)?;
    let mut stations = view.policy.fdb().ok_or_else(|| no_table(view))?.stations();
    // What was seen last comes last, as with the peer; what is there for ever, behind it.
    stations.sort_by_key(|station| {
        (station.age.is_none(), Reverse(station.age), station.vlan, station.mac.0)
    });
    let left_out = stations.len().saturating_sub(STATIONS_MAX);
    stations.drain(..left_out);
    Ok(match format {
        Format::Json => {
            let entries: Vec<Value> = stations.iter().map(entry).collect();
            Answer::Json(json!({ view.settings.datapath.clone(): entries }))
        }
        Format::Text => Answer::Text(text(&stations, left_out)),
    })
}

fn entry(station: &Station) -> Value {
    let Station { port, vlan, mac, age } = station;
    let mut entry = json!({ "port": port, "vlan": vlan, "mac": mac.to_string() });
    // As the peer does: an address that is static has that in place of its age.
    match age {
        Some(age) => entry["age"] = age.as_secs().into(),
        None => entry["static"] = true.into(),
    }
    entry
}

fn port_name(number: u32) -> String {
    if number == 0 { "LOCAL".to_owned() } else { number.to_string() }
}

fn text(stations: &[Station], left_out: usize) -> String {
    let mut text = " port  VLAN  MAC                Age\n".to_owned();
    for Station { port, vlan, mac, age } in stations {
        let (port, age) = (port_name(*port), age.map(|age| age.as_secs().to_string()));
        let age = age.as_deref().unwrap_or("static");
        let _ = writeln!(text, "{port:>5}  {vlan:>4}  {mac}  {age:>3}");
    }
    if left_out > 0 {
        let _ = writeln!(text, "({left_out} older ones left out: {STATIONS_MAX} at most)");
    }
    text
}

/// How full the table is, and what of whose was refused. The peer's command tells other figures of its
/// table; the title and the first line are its own.
pub(super) fn stats(view: View<'_>, bridges: &[String], format: Format) -> Result<Answer, String> {
    check(view, bridges)?;
    let fdb = view.policy.fdb().ok_or_else(|| no_table(view))?;
    let (known, max, ports) = (view.policy.macs(), fdb.macs_max(), fdb.ports());
    if format == Format::Json {
        let ports: Vec<Value> = ports.iter().map(port_entry).collect();
        return Ok(Answer::Json(json!({ "macs": known, "macs_max": max, "ports": ports })));
    }
    let mut text = format!(
        "Statistics for bridge \"{}\":\n  Current/maximum MAC entries in the table: {known}/{max}\n",
        view.settings.datapath
    );
    text += " port  name              MACs    max  refused  over rate: broadcast  multicast    unknown  \
             VLANs\n";
    for port in &ports {
        let PortFigures { number, name, vlans, macs, macs_max, macs_refused, flooded_over } = port;
        let max = macs_max.map_or_else(|| "-".to_owned(), |max| max.to_string());
        let [broadcast, multicast, unknown] = flooded_over;
        let _ = writeln!(
            text,
            "{:>5}  {name:<15} {macs:>6} {max:>6} {macs_refused:>8} {broadcast:>21} {multicast:>10} \
             {unknown:>10}  {vlans}",
            port_name(*number),
        );
    }
    Ok(Answer::Text(text))
}

fn port_entry(port: &PortFigures) -> Value {
    let over = Flood::ALL.iter().zip(port.flooded_over);
    let over = over.map(|(flood, over)| (flood.name().to_owned(), Value::from(over)));
    json!({
        "port": port.number,
        "name": port.name,
        "vlans": port.vlans.to_string(),
        "macs": port.macs,
        "macs_max": port.macs_max,
        "macs_refused": port.macs_refused,
        "flood_over": over.collect::<serde_json::Map<_, _>>(),
    })
}

/// Forgets all stations that were learned, and deletes the flows that were decided by them.
pub(super) async fn flush(view: View<'_>, bridges: &[String]) -> Result<Answer, String> {
    check(view, bridges)?;
    let fdb = view.policy.fdb().ok_or_else(|| no_table(view))?;
    // In this order: flows teach addresses.
    view.dispatcher.flush_flows().await;
    fdb.forget();
    Ok(Answer::Text("table successfully flushed".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use upcall::MacAddr;

    #[test]
    fn a_station_is_a_line_of_the_peers() {
        let mac = MacAddr([2, 0, 0, 0, 0, 0xab]);
        let age = Some(Duration::from_millis(7_900));
        let station = |port| Station { port, vlan: 5, mac, age };
        let lines = text(&[station(3), station(0)], 0);
        assert_eq!(
            lines,
            " port  VLAN  MAC                Age\n    3     5  02:00:00:00:00:ab    7\nLOCAL     5  \
             02:00:00:00:00:ab    7\n"
        );
        assert!(text(&[], 2).contains("2 older ones left out"));
        assert_eq!(entry(&station(3))["mac"], "02:00:00:00:00:ab");
        let fixed = Station { age: None, ..station(3) };
        assert!(text(&[fixed], 0).ends_with("    3     5  02:00:00:00:00:ab  static\n"));
        assert_eq!(entry(&fixed)["static"], true);
    }
}
