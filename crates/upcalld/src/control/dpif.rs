//! `dpif/show`, `dpctl/show`, `dpctl/dump-flows`, `dpif-netlink/dispatch-mode`, `upcall/show`: the
//! datapath as the kernel tells it, in the peer's forms.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use upcall::{Datapath, Vport, VportType};

use super::{Answer, Format, View, counters};
use crate::counting::float;

/// The peer's number of a bridge's own port (`OFPP_LOCAL`).
const LOCAL: u32 = 65_534;

fn failed(err: impl std::fmt::Display) -> String {
    err.to_string()
}

async fn datapath(view: View<'_>) -> Result<Datapath, String> {
    let found = view.dispatcher.datapath().await.map_err(failed)?;
    found.ok_or_else(|| format!("datapath '{}' is gone", view.settings.datapath))
}

/// Is this name of a datapath ours? The peer writes `system@` before it.
pub(super) fn is_ours(view: View<'_>, name: &str) -> bool {
    name.strip_prefix("system@").unwrap_or(name) == view.settings.datapath
}

pub(super) fn refuse(view: View<'_>, name: &str) -> String {
    format!("'{name}' is not served here; '{}' is", view.settings.datapath)
}

/// Counters, then ports with their numbers. Our port numbers are the kernel's.
pub(super) async fn show(view: View<'_>, format: Format) -> Result<Answer, String> {
    let dp = datapath(view).await?;
    let mut vports = view.dispatcher.vports().await.map_err(failed)?;
    vports.sort_by(|a, b| a.name.cmp(&b.name));
    let title = format!("system@{}", dp.name);
    if format == Format::Json {
        let port = |port: &Vport| {
            let value = json!({
                "ofport": of_port(port).to_string(),
                "port_no": port.port_no.to_string(),
                "type": kind(port.kind),
            });
            (port.name.clone(), value)
        };
        let ports = vports.iter().map(port).collect::<Map<_, _>>();
        let bridges = Map::from_iter([(dp.name.clone(), Value::from(ports))]);
        let stats =
            json!({ "hit": dp.stats.hit.to_string(), "missed": dp.stats.missed.to_string() });
        return Ok(Answer::Json(json!({ title: { "stats": stats, "bridges": bridges } })));
    }
    let mut text = format!("{title}: hit:{} missed:{}\n", dp.stats.hit, dp.stats.missed);
    let _ = writeln!(text, "  {}:", dp.name);
    for port in &vports {
        let (name, number) = (&port.name, port.port_no);
        let _ = writeln!(text, "    {name} {}/{number}: ({})", of_port(port), kind(port.kind));
    }
    Ok(Answer::Text(text))
}

fn of_port(port: &Vport) -> u32 {
    if port.port_no == 0 { LOCAL } else { port.port_no }
}

fn kind(kind: VportType) -> String {
    match kind {
        VportType::Netdev => "system".to_owned(),
        VportType::Internal => "internal".to_owned(),
        VportType::Gre => "gre".to_owned(),
        VportType::Vxlan => "vxlan".to_owned(),
        VportType::Geneve => "geneve".to_owned(),
        other => format!("type {}", other.number()),
    }
}

/// Counters, masks, caches, ports; with `-s` their statistics.
pub(super) async fn dpctl_show(view: View<'_>, arguments: &[String]) -> Result<Answer, String> {
    let (options, names): (Vec<_>, Vec<_>) =
        arguments.iter().map(String::as_str).partition(|word| word.starts_with('-'));
    if let Some(option) = options.iter().find(|option| !["-s", "--statistics"].contains(option)) {
        return Err(format!("unrecognized option {option}; there is -s"));
    }
    if let Some(name) = names.iter().find(|name| !is_ours(view, name)) {
        return Err(refuse(view, name));
    }
    let dp = datapath(view).await?;
    let mut text = counters_text(&dp);
    for port in view.dispatcher.vports().await.map_err(failed)? {
        let _ = write!(text, "  port {}: {}", port.port_no, port.name);
        let _ = match port.kind {
            VportType::Netdev => writeln!(text),
            other => writeln!(text, " ({})", kind(other)),
        };
        if !options.is_empty() {
            port_statistics(&mut text, &port);
        }
    }
    Ok(Answer::Text(text))
}

fn counters_text(dp: &Datapath) -> String {
    let stats = &dp.stats;
    let packets = float((stats.hit + stats.missed).max(1));
    let mut text = format!("system@{}:\n", dp.name);
    let _ = writeln!(
        text,
        "  lookups: hit:{} missed:{} lost:{}\n  flows: {}",
        stats.hit, stats.missed, stats.lost, stats.flows
    );
    let per_packet = float(dp.masks_looked_at) / packets;
    let _ = writeln!(
        text,
        "  masks: hit:{} total:{} hit/pkt:{per_packet:.2}",
        dp.masks_looked_at, dp.masks
    );
    // The peer says nothing of a cache that was never hit.
    if dp.masks_cache_hit > 0 {
        let rate = float(dp.masks_cache_hit) / packets * 100.0;
        let _ = writeln!(text, "  cache: hit:{} hit-rate:{rate:.2}%", dp.masks_cache_hit);
    }
    if let Some(size) = dp.masks_cache_size {
        let _ = writeln!(text, "  caches:\n    masks-cache: size:{size}");
    }
    text
}

/// As the peer prints it; what the datapath does not count is `?` there too.
fn port_statistics(text: &mut String, port: &Vport) {
    let stats = &port.stats;
    let _ = writeln!(
        text,
        "    RX packets:{} errors:{} dropped:{} overruns:? frame:?",
        stats.rx_packets, stats.rx_errors, stats.rx_dropped
    );
    let _ = writeln!(
        text,
        "    TX packets:{} errors:{} dropped:{} aborted:? carrier:?\n    collisions:?",
        stats.tx_packets, stats.tx_errors, stats.tx_dropped
    );
    let _ = writeln!(
        text,
        "    RX bytes:{}{}  TX bytes:{}{}",
        stats.rx_bytes,
        human(stats.rx_bytes),
        stats.tx_bytes,
        human(stats.tx_bytes)
    );
    let _ = match port.upcall_stats {
        Some(upcalls) => {
            writeln!(text, "    UPCALL packets:{} errors:{}", upcalls.success, upcalls.fail)
        }
        None => writeln!(text, "    UPCALL packets:? errors:?"),
    };
}

/// ` (1.5 MiB)`; nothing below a kibibyte.
fn human(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(shift, _)| bytes >> shift != 0);
    unit.map_or_else(String::new, |(shift, unit)| {
        format!(" ({:.1} {unit})", float(bytes) / float(1 << shift))
    })
}

/// The mode of every kernel datapath of the network namespace.
pub(super) async fn dispatch_mode() -> Result<Answer, String> {
    let all = upcall::features::deliveries(None).await.map_err(|err| err.to_string())?;
    let line = |name: &str, mode| format!("{name}: {mode} dispatch mode\n");
    Ok(Answer::Text(all.iter().map(|(dp, delivery)| line(&dp.name, delivery.mode)).collect()))
}

/// The flow table and who looks after it: one sweeper, with the number 0.
pub(super) async fn upcall_show(view: View<'_>, format: Format) -> Result<Answer, String> {
    let stats = counters::stats(view).await?;
    let (name, limit) = (&view.settings.datapath, stats.flow_limit);
    let (current, sweeps) = (stats.flows_current, stats.sweeps);
    let took_ms = sweeps.last_took.as_millis() as u64;
    if format == Format::Json {
        return Ok(Answer::Json(json!({ format!("system@{name}"): {
            "flows": {
                "current": current,
                "avg": sweeps.flows_average,
                "max": sweeps.flows_peak,
                "limit": limit,
            },
            "dump_duration_ms": took_ms,
            "ufid_enabled": true,
        }})));
    }
    Ok(Answer::Text(format!(
        "system@{name}:\n  flows         : (current {current}) (avg {}) (max {}) (limit {limit})\n  \
         dump duration : {took_ms}ms\n  ufid enabled : true\n\n  0: (keys {current})\n",
        sweeps.flows_average, sweeps.flows_peak,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(human(1023), "");
        assert_eq!((human(1536), human(5 << 30)), (" (1.5 KiB)".into(), " (5.0 GiB)".into()));
    }

    #[test]
    fn a_datapath_without_packets_divides_by_nothing() {
        let dp =
            Datapath { name: "dp0".into(), masks_cache_size: Some(256), ..Datapath::default() };
        let text = counters_text(&dp);
        assert!(text.contains("  masks: hit:0 total:0 hit/pkt:0.00\n"), "{text}");
        assert!(text.ends_with("  caches:\n    masks-cache: size:256\n"), "{text}");
        assert!(!text.contains("hit-rate"), "{text}");
    }
}
