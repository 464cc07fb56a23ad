//! A port that floods: what of it arrives, and what share of that is admitted.

/// The smallest share.
pub(super) const ADMIT_MIN: f64 = 1.0 / 65_536.0;

/// A port that floods.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Flooder {
    pub(super) port: u32,
    /// Share that is admitted, up to 1.
    pub(super) admit: f64,
    /// Share before this one, and the mean share of what is still queued from before.
    pub(super) admit_last: f64,
    pub(super) admit_before: f64,
    /// Upcalls it would send up, a second.
    pub(super) arrivals: f64,
    /// Time over which everything was refused and not yet told: see `StormShield::account`.
    pub(super) owed_s: f64,
    /// Since when nothing of it had to be refused.
    pub(super) calm_since_us: Option<u64>,
}

impl Flooder {
    pub(super) fn new(port: u32, arrivals: f64) -> Self {
        let (admit, admit_last, admit_before) = (1.0, 1.0, 1.0);
        Self { port, admit, admit_last, admit_before, arrivals, owed_s: 0.0, calm_since_us: None }
    }

    /// Upcalls of which `read` were admitted, this part of them by the share before.
    pub(super) fn arrived(&self, read: u32, old: f64) -> f64 {
        f64::from(read) * (old / self.admit_before + (1.0 - old) / self.admit)
    }

    /// Follows what arrives, by a quarter of the way each time, and sets the share for `level`.
    pub(super) fn follow(&mut self, arrived_per_s: f64, level: f64, now_us: u64) {
        self.arrivals += (arrived_per_s - self.arrivals) / 4.0;
        let wanted = share(level, self.arrivals);
        self.admit = wanted.clamp(self.admit / 4.0, (self.admit * 2.0).min(1.0));
        self.calm_since_us = (self.admit >= 1.0).then(|| self.calm_since_us.unwrap_or(now_us));
    }
}

/// The share of `arrivals` that makes `level`.
pub(super) fn share(level: f64, arrivals: f64) -> f64 {
    (level / arrivals.max(f64::MIN_POSITIVE)).clamp(ADMIT_MIN, 1.0)
}
