//! Waiting for something to become true, instead of sleeping and hoping.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The longest pause between two looks at the condition.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// Looks at `condition` until it is true: at once, then after pauses of 0.5 ms growing to 20 ms, and a
/// last time at the end of `timeout`.
///
/// # Errors
/// [`Error::Timeout`] that names `what`: "waited 2s for the flow to be installed, in vain".
pub fn wait_until(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    wait_for(what, timeout, || condition().then_some(()))
}

/// As [`wait_until`], for a condition that yields a value.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_micros(500);
    loop {
        // Read the clock before the probe, so that the last probe is never earlier than the deadline.
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(value) = probe() {
            return Ok(value);
        }
        if left.is_zero() {
            return Err(Error::Timeout { what: what.to_owned(), waited: timeout });
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_ends_the_wait() {
        let mut looks = 0;
        let result = wait_until("the third look", Duration::from_secs(5), || {
            looks += 1;
            looks == 3
        });
        assert!(result.is_ok());
        assert_eq!(looks, 3);
    }

    #[test]
    fn a_condition_that_stays_false_is_named() {
        let error = wait_until("a miracle", Duration::from_millis(2), || false).unwrap_err();
        assert_eq!(error.to_string(), "waited 2ms for a miracle, in vain");
    }
}
