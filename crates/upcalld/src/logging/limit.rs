//! No message fills the log: of each place in the code so many lines a minute are written, and then how
//! many alike were held back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines of one message in a [`WINDOW`].
const LINES_MAX: u32 = 20;
/// What is held back is told about at the end of each.
const WINDOW: Duration = Duration::from_mins(1);

/// Counts messages by where in the code they come from. Debug and trace are for those who asked for
/// everything: they are not limited.
#[derive(Clone, Default)]
pub(crate) struct Limit(Arc<Mutex<HashMap<Identifier, Window>>>);

struct Window {
    since: Instant,
    lines: u32,
    held_back: u64,
    /// What the message is told by.
    place: String,
}

/// Messages that were held back.
#[derive(Debug, PartialEq, Eq)]
struct HeldBack {
    place: String,
    count: u64,
}

impl Limit {
    /// Logs what was held back in windows that are over; to be called every few seconds.
    pub(crate) fn tell(&self) {
        for HeldBack { place, count } in self.ended(Instant::now()) {
            let seconds = WINDOW.as_secs();
            tracing::warn!(place, "{count} alike held back in the last {seconds} s");
        }
    }

    fn ended(&self, now: Instant) -> Vec<HeldBack> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ended = Vec::new();
        windows.retain(|_, window| {
            let goes_on = now.duration_since(window.since) < WINDOW;
            if !goes_on && window.held_back > 0 {
                ended.push(HeldBack { place: window.place.clone(), count: window.held_back });
            }
            goes_on
        });
        ended
    }

    fn admit(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(metadata.callsite()).or_insert_with(|| Window {
            since: now,
            lines: 0,
            held_back: 0,
            place: place(metadata),
        });
        window.lines = window.lines.saturating_add(1);
        let admitted = window.lines <= LINES_MAX;
        window.held_back += u64::from(!admitted);
        admitted
    }
}

fn place(metadata: &tracing::Metadata<'_>) -> String {
    match (metadata.file(), metadata.line()) {
        (Some(file), Some(line)) => format!("{} {file}:{line}", metadata.target()),
        _ => metadata.target().to_owned(),
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _ctx: Context<'_, S>) -> bool {
        *event.metadata().level() > Level::INFO || self.admit(event, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_comes_too_often_is_counted_and_told() {
        let (limit, lines) = (Limit::default(), Lines::default());
        let out = lines.clone();
        let logs = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_writer(move || out.clone())
            .finish();
        let (now, later) = (Instant::now(), Instant::now() + WINDOW);
        tracing::subscriber::with_default(logs.with(limit.clone()), || {
            for number in 0..100 {
                tracing::warn!(number, "again");
                tracing::debug!("all of it");
            }
            tracing::info!("another");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        assert_eq!((count("again"), count("all of it"), count("another")), (20, 100, 1), "{text}");
        assert!(limit.ended(now).is_empty());
        let ended = limit.ended(later + WINDOW);
        assert!(ended.len() == 1 && ended[0].count == 80, "{ended:?}");
        assert!(ended[0].place.contains("limit.rs:"), "{ended:?}");
        assert!(limit.ended(later + WINDOW).is_empty() && limit.0.lock().unwrap().is_empty());
    }
}
