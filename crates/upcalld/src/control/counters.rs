//! `coverage/show`, `memory/show`, `lane/show`, `loss/show`: what was counted.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use upcall::Stats;

use super::{Answer, Format, SAMPLE_INTERVAL, View};
use crate::counting::{self, Reading};
use crate::report::Quantiles;

/// The counters now.
pub(super) async fn stats(view: View<'_>) -> Result<Stats, String> {
    view.dispatcher.stats().await.map_err(|err| err.to_string())
}

async fn readings(view: View<'_>) -> Result<Vec<Reading>, String> {
    let stats = stats(view).await?;
    Ok(counting::all(&stats, view.policy, view.counts))
}

/// Every event with its rates; in the peer's form.
pub(super) async fn coverage(view: View<'_>, format: Format) -> Result<Answer, String> {
    let mut readings = readings(view).await?;
    readings.sort_by_key(|reading| reading.name);
    let history = view.history.borrow();
    if format == Format::Json {
        let of = |reading: &Reading| {
            let rates = history.rates(reading.name);
            let value = json!({
                "total": reading.value,
                "per_second": {
                    "interval": rates.interval, "minute": rates.minute, "hour": rates.hour,
                },
                "help": reading.help,
            });
            (reading.name.to_owned(), value)
        };
        return Ok(Answer::Json(readings.iter().map(of).collect::<Map<_, _>>().into()));
    }
    let mut text = format!(
        "Event coverage, avg rate over last: {} seconds, last minute, last hour,  hash={:08x}:\n",
        SAMPLE_INTERVAL.as_secs(),
        names_hash(&readings),
    );
    let (hit, never): (Vec<_>, Vec<_>) = readings.iter().partition(|reading| reading.value > 0);
    for Reading { name, value, .. } in hit {
        let rates = history.rates(name);
        let _ = writeln!(
            text,
            "{name:<24} {:5.1}/sec {:9.3}/sec {:13.4}/sec   total: {value}",
            rates.interval, rates.minute, rates.hour,
        );
    }
    let _ = writeln!(text, "{} events never hit", never.len());
    Ok(Answer::Text(text))
}

/// Changes with the set of counters: FNV-1a of their names.
fn names_hash(readings: &[Reading]) -> u32 {
    let bytes = readings.iter().flat_map(|reading| reading.name.bytes().chain([0]));
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What there is how many of, sorted by name; in the peer's form.
pub(super) async fn memory(view: View<'_>, format: Format) -> Result<Answer, String> {
    let stats = stats(view).await?;
    let info = view.dispatcher.info().await;
    let mut things = vec![
        ("flows", stats.flows_current),
        ("handlers", info.workers as u64),
        ("lanes-in-use", stats.lanes.lanes),
        ("macs", view.policy.macs()),
        ("ports", stats.ports as u64),
        ("socket-buffer-kB", (info.recv_buffers_bytes >> 10) as u64),
        ("sockets", stats.sockets as u64),
        ("upcalls-waiting", stats.lanes.upcalls),
        ("upcalls-waiting-kB", stats.lanes.bytes >> 10),
    ];
    things.extend(counting::resident_kb().map(|kb| ("resident-kB", kb)));
    things.sort_unstable();
    if format == Format::Json {
        let of = |(name, value): &(&str, u64)| ((*name).to_owned(), Value::from(*value));
        return Ok(Answer::Json(things.iter().map(of).collect::<Map<_, _>>().into()));
    }
    let words: Vec<_> = things.iter().map(|(name, value)| format!("{name}:{value}")).collect();
    Ok(Answer::Text(words.join(" ") + "\n"))
}

/// Counts with a line each, or one JSON object.
fn table(title: &str, rows: &[(&str, u64)], format: Format) -> Answer {
    if format == Format::Json {
        let of = |(name, value): &(&str, u64)| (name.replace([' ', '-'], "_"), Value::from(*value));
        return Answer::Json(rows.iter().map(of).collect::<Map<_, _>>().into());
    }
    let mut text = format!("{title}:\n");
    for (name, value) in rows {
        let _ = writeln!(text, "  {name:<28} {value:>12}");
    }
    Answer::Text(text)
}

/// What waits, and what became of fences.
pub(super) async fn lanes(view: View<'_>, format: Format) -> Result<Answer, String> {
    let Stats { ledger, lanes, .. } = stats(view).await?;
    let limits = view.dispatcher.limits();
    let rows = [
        ("upcalls waiting", lanes.upcalls),
        ("upcalls waiting peak", lanes.upcalls_peak),
        ("bytes waiting", lanes.bytes),
        ("lanes waiting", lanes.lanes),
        ("lanes", limits.lanes as u64),
        ("hops", ledger.hops),
        ("gathered", ledger.gathered),
        ("queued", ledger.queued),
        ("fence timeouts", lanes.fence_timeouts),
        ("fences without room", ledger.fences_without_room),
        ("shed no room", ledger.shed_no_room),
    ];
    Ok(table(&format!("lanes of {}", view.settings.datapath), &rows, format))
}

/// How long the stages of an upcall's way take, since the start.
pub(super) async fn latency(view: View<'_>, format: Format) -> Result<Answer, String> {
    let latency = stats(view).await?.latency;
    let stages = latency.stages().map(|(stage, all)| (stage, Quantiles::from(all)));
    if format == Format::Json {
        let value = |q: &Quantiles| serde_json::to_value(q).unwrap_or_default();
        return Ok(Answer::Json(
            stages.map(|(s, q)| (s.to_owned(), value(&q))).collect::<Map<_, _>>().into(),
        ));
    }
    let mut text = format!("latencies of {}, in ns, of a sample:\n", view.settings.datapath);
    text += "  stage              measured        p50        p90        p99      p99.9\n";
    for (stage, Quantiles { count, p50, p90, p99, p999 }) in stages {
        let cells = [p50, p90, p99, p999].map(|ns| ns.map_or("-".to_owned(), |ns| ns.to_string()));
        let _ = write!(text, "  {stage:<14} {count:>12}");
        for cell in cells {
            let _ = write!(text, " {cell:>10}");
        }
        text.push('\n');
    }
    Ok(Answer::Text(text))
}

/// What was lost, by cause: by the kernel, by us, and what was no upcall.
pub(super) async fn losses(view: View<'_>, format: Format) -> Result<Answer, String> {
    let Stats { ledger, kernel, lost, .. } = stats(view).await?;
    let rows = [
        ("received", ledger.received),
        ("completed", ledger.completed),
        ("in flight", ledger.in_flight()),
        ("kernel lost", kernel.lost),
        ("kernel lost full socket", lost.full),
        ("kernel lost dead socket", lost.dead),
        ("kernel lost no socket", lost.no_socket),
        ("kernel lost unclassified", lost.unclassified),
        // Not among the lost: the kernel counts them as delivered.
        ("shield refused estimate", ledger.shield_refused),
        ("shed", ledger.shed),
        ("shed handler panic", ledger.shed_handler_panic),
        ("shed unwritable", ledger.shed_unwritable),
        ("shed send failed", ledger.shed_send_failed),
        ("shed no room", ledger.shed_no_room),
        ("shed rate", ledger.shed_rate),
        ("shed quota", ledger.shed_quota),
        ("shed handler timeout", ledger.shed_handler_timeout),
        ("shed pending full", ledger.shed_pending_full),
        ("shed listener full", ledger.shed_listener_full),
        ("shed stopped", ledger.shed_stopped),
        ("malformed", ledger.malformed),
        ("foreign", ledger.foreign),
        ("execute errors", ledger.execute_errors),
        ("put errors", ledger.put_errors),
    ];
    Ok(table(&format!("losses of {}", view.settings.datapath), &rows, format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_text_or_an_object() {
        let rows = [("in flight", 3), ("shed", 0)];
        let Answer::Text(text) = table("losses of dp0", &rows, Format::Text) else { panic!() };
        assert!(
            text.starts_with("losses of dp0:\n  in flight  ") && text.ends_with(" 0\n"),
            "{text}"
        );
        let json = table("", &rows, Format::Json);
        assert_eq!(json, Answer::Json(json!({ "in_flight": 3, "shed": 0 })));
    }
}
