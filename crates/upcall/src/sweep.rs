//! The sweep of the flow table: what idles, is too old or has become wrong is deleted.
//!
//! The kernel's table is the only record of what is installed. A sweep reads it, a piece at a time. Most
//! sweeps read ids, times and counters alone, which is also enough to find the flows of a station that moved; the
//! handler is asked about each flow when something may have made any of them wrong, and now and then in any case.
//! Flows of an earlier run are in the table too, and so taken over.

mod affected;
mod deletions;
mod pass;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netlink_io::Socket;

pub(crate) use self::affected::Affected;
use self::affected::Moved;
use self::deletions::Deletions;
use self::pass::{Bounds, Found, Pass, Purpose};
use crate::flow_dump::{self, monotonic_ms};
use crate::shared::Shared;
use crate::{Error, Handler, Look, SweepStats};

/// Shortest time between two sweeps: a storm of moving addresses must not turn into sweeps alone.
const SWEEP_GAP: Duration = Duration::from_millis(20);

/// How long a flow may rest while there are more than are allowed.
const CROWDED_IDLE: Duration = Duration::from_millis(100);

/// Pause after a sweep as a multiple of its length, so that sweeps take a fifth of a CPU at most, and those that
/// are asked for a half.
const SWEEP_SHARE: u32 = 4;
const ASKED_SHARE: u32 = 1;

/// Of so many sweeps, one asks about every flow, whatever the handler says.
const WHOLE_EVERY: u32 = 10;

/// Reads the flow table at intervals and when asked to.
pub(crate) struct Sweeper {
    shared: Arc<Shared>,
    /// First sight of flows whose age their id does not tell; made anew in each sweep.
    first_seen_ms: HashMap<u64, u64>,
    hasher: foldhash::quality::RandomState,
    asked: Asked,
    moved: Moved,
    /// Were there flows whose ids tell no stations at the last sweep?
    strangers: bool,
    /// How long the last sweep took, and the last one that read ids, times and counters alone.
    took: Duration,
    took_ids: Duration,
    stats: Arc<Mutex<SweepStats>>,
}

/// When the handler was last asked about every flow.
#[derive(Debug, Default)]
struct Asked {
    /// The epoch of decisions then ([`Shared::whole_epoch`]); `None` if it never was.
    epoch: Option<u64>,
    /// Was it asked twice in that epoch? What a worker decided before may be installed behind the first
    /// look.
    twice: bool,
    /// Sweeps since then.
    sweeps: u32,
}

impl Asked {
    fn is_due(&self, epoch: u64) -> bool {
        self.epoch != Some(epoch) || !self.twice || self.sweeps + 1 >= WHOLE_EVERY
    }

    fn swept(&mut self, epoch: u64, whole: bool) {
        if whole {
            *self = Self { epoch: Some(epoch), twice: self.epoch == Some(epoch), sweeps: 0 };
        } else {
            self.sweeps += 1;
        }
    }
}

impl Sweeper {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let hasher = foldhash::quality::RandomState::default();
        Self {
            shared,
            first_seen_ms: HashMap::new(),
            hasher,
            asked: Asked::default(),
            moved: Moved::default(),
            strangers: true,
            took: Duration::ZERO,
            took_ids: Duration::ZERO,
            stats: Arc::default(),
        }
    }

    /// What its sweeps find.
    pub(crate) fn stats(&self) -> Arc<Mutex<SweepStats>> {
        self.stats.clone()
    }

    /// Sweeps for ever, at once to begin with. `sockets` are for the dump and for deletions: replies to
    /// one must not push out those to the other.
    pub(crate) async fn run(mut self, mut sockets: [Arc<Socket>; 2]) {
        loop {
            if let Err(err) = self.sweep(&sockets).await {
                tracing::warn!(%err, "a sweep of the flow table failed");
                // The rest of an unfinished dump would be taken for the next one.
                sockets = open_sockets().unwrap_or(sockets);
            }
            self.rest().await;
        }
    }

    /// Waits for the next sweep.
    async fn rest(&self) {
        let ended = tokio::time::Instant::now();
        // One that looks for stations alone need not wait for what one of another kind took.
        tokio::time::sleep(SWEEP_GAP.max(self.took_ids * ASKED_SHARE)).await;
        let interval = self.shared.life.load().sweep_interval;
        let timer = tokio::time::sleep(interval.max(self.pause(SWEEP_SHARE)));
        tokio::select! {
            () = timer => {}
            () = self.shared.sweep_now.notified() => {}
        }
        if self.asked.is_due(self.shared.whole_epoch()) {
            tokio::time::sleep_until(ended + self.pause(ASKED_SHARE)).await;
        }
    }

    /// For how long there is no sweep after one.
    fn pause(&self, share: u32) -> Duration {
        SWEEP_GAP.max(self.took * share)
    }

    async fn sweep(&mut self, sockets: &[Arc<Socket>; 2]) -> io::Result<()> {
        let (started, epoch) = (Instant::now(), self.shared.whole_epoch());
        self.moved.follow(&self.shared.affected);
        let look = self.shared.guarded(Handler::begin_sweep).unwrap_or_default();
        let lowered = self.shared.flow_room.is_lowered();
        let moved = self.moved.any();
        // How long it takes to ask about all can be seen at another time.
        let measure = lowered && !moved;
        let unknown = moved && self.strangers;
        let whole = look == Look::All || measure || unknown || self.asked.is_due(epoch);
        if self.asked.epoch.is_none() {
            self.read(sockets, Purpose::Show).await?;
        }
        let purpose = if whole { Purpose::Judge } else { Purpose::Time };
        let found = self.read(sockets, purpose).await?;
        self.took = started.elapsed();
        if !whole {
            self.took_ids = self.took;
        }
        self.asked.swept(epoch, whole);
        self.settle(found, whole);
        Ok(())
    }

    fn settle(&mut self, found: Found, whole: bool) {
        let (flows, deleted, took) = (found.flows, found.deleted(), self.took);
        self.shared.flow_room.swept(flows, flows - deleted, whole.then_some(took));
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).add(&SweepStats {
            sweeps: 1,
            sweeps_whole: whole.into(),
            flows_idle: found.idle,
            flows_old: found.old,
            flows_wrong: found.wrong,
            flows_average: flows,
            flows_peak: flows,
            last_took: took,
        });
        self.first_seen_ms = found.first_seen_ms;
        self.strangers = found.strangers;
        if deleted > 0 {
            tracing::debug!(flows, deleted, whole, ?took, "swept the flow table");
        }
    }

    /// How long flows may live. Past the limit they must not rest for long; and what would be too old at
    /// the next sweep goes with this one.
    fn bounds(&self) -> Bounds {
        let life = self.shared.life.load();
        let crowded = self.shared.flow_room.excess() > 0;
        let pause = self.pause(SWEEP_SHARE) + self.took;
        let next = life.sweep_interval.saturating_add(pause);
        Bounds {
            idle_max: if crowded { life.idle.min(CROWDED_IDLE) } else { life.idle },
            age_max: life.hard.map(|hard| hard.saturating_sub(next)),
        }
    }

    async fn read(&self, sockets: &[Arc<Socket>; 2], purpose: Purpose) -> io::Result<Found> {
        let [dump, delete] = sockets;
        let (shared, ports) = (&*self.shared, self.shared.ports.load_full());
        let family = shared.flow_family;
        let mut pass = Pass {
            shared,
            ports: &ports,
            purpose,
            moved: &self.moved,
            bounds: self.bounds(),
            now_ms: monotonic_ms(),
            hasher: &self.hasher,
            first_seen_ms: &self.first_seen_ms,
            deletions: Deletions::new(delete, family, &shared.flow_counts),
            found: Found::default(),
        };
        let what = (shared.dp_ifindex, purpose.omit());
        flow_dump::read(dump, family, what, |flow| pass.flow(flow)).await?;
        pass.deletions.flush()?;
        Ok(pass.found)
    }
}

/// Sockets for a sweeper, opened in the namespace of the calling thread.
pub(crate) fn open_sockets() -> Result<[Arc<Socket>; 2], Error> {
    let open = || {
        Socket::open().map(Arc::new).map_err(Error::system("open a netlink socket for the sweep"))
    };
    Ok([open()?, open()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The epochs of sweeps to whether each asks about every flow.
    fn asked(epochs: &[u64]) -> Vec<bool> {
        let mut asked = Asked::default();
        let sweep = |epoch: &u64| {
            let whole = asked.is_due(*epoch);
            asked.swept(*epoch, whole);
            whole
        };
        epochs.iter().map(sweep).collect()
    }

    #[test]
    fn flows_are_asked_about_twice_after_a_change_and_seldom_without() {
        assert_eq!(asked(&[1, 1, 1, 1, 2, 2, 2]), [true, true, false, false, true, true, false]);
        assert_eq!(asked(&[1, 2, 3, 3, 3]), [true, true, true, true, false]);
        let at_rest = asked(&[7; 32]);
        let whole: Vec<_> = (0..32).filter(|sweep| at_rest[*sweep]).collect();
        assert_eq!(whole, [0, 1, 11, 21, 31]);
    }
}
