//! The storm shield: which ports flood a socket, and what part of their upcalls is to be let in.
//!
//! A socket is shared by all ports whose packets its CPU handles. When one of them sends up more than
//! is read, the buffer fills and the kernel turns away whoever comes next. The shield names the port
//! and says what share of its upcalls to admit; a filter in the kernel does the rest, before an upcall
//! takes room. All other ports get the room that is left, and a short queue.
//!
//! * *Named* is a port with more than its fair share of what is read, when the backlog passes a part
//!   of the buffer. Fair is the share with one port more than there are: a newcomer finds room, and a
//!   port that takes no more than that is never named, whatever the others do.
//! * *Admitted* is the same number of upcalls a second of each named port, the *level*: port by port
//!   the share is the level over what arrives, which is what was read over the share it was admitted
//!   with. Together they get what can be read and a little more or less, so that a short queue stays:
//!   without one a reader that shares its CPU has nothing to do when its turn comes. What can be read is
//!   measured while rounds leave upcalls behind, and taken to be more while they read the socket empty.
//! * *Let go* is a port whose upcalls have stayed below the level for a while.
//!
//! Time, bytes and counts are passed in. An idle socket costs a comparison a round.
#![allow(clippy::cast_precision_loss, reason = "counts of ports and upcalls are far below 2^52")]

mod flooder;

use crate::tally::PortTally;
use flooder::{ADMIT_MIN, Flooder, share};

/// Ports that are shielded against at once; the program in the kernel has as many.
pub const SHIELDED_PORTS_MAX: usize = 8;

/// How often shares are set anew. A new program costs the kernel some ten microseconds.
const TICK_US: u64 = 20_000;
/// How long, and how many, upcalls are counted before the count starts anew, without a shield.
const WINDOW_US: u64 = 100_000;
const WINDOW_UPCALLS: u32 = 512;
/// Upcalls that must be counted before a port is named: a quiet port's may come in a clump.
const SAMPLE_MIN: u32 = 128;
/// How long a port stays below the level before it is let go.
const HOLD_US: u64 = 500_000;
/// What the kernel charges for the upcall of a small packet, roughly: 896 bytes, or 1280 before 6.2.
/// For a first guess at arrivals; what is counted afterwards sets it right.
const UPCALL_BYTES: f64 = 1024.0;
/// The queue that is aimed at, as a time to read it: a reader that shares its CPU is away for some of its
/// turns, of a few milliseconds each, and must find enough for its own.
const QUEUE_S: f64 = 0.0025;
/// In upcalls, whatever the time: more than a round of 64, which would read it empty.
const QUEUE_MIN: f64 = 96.0;
/// And as a part of the buffer at most.
const QUEUE_PART: f64 = 0.125;
/// Time in which the queue is brought to that length.
const SETTLE_S: f64 = 0.1;
/// Part of what can be read that is admitted beyond it to fill the queue, and held back to shorten it.
const FILL_MAX: f64 = 0.125;
const SHORTEN_MAX: f64 = 0.5;
/// What can be read is taken to be so much more, each time that all was read.
const RISE: f64 = 1.0 + 1.0 / 16.0;
/// A queue that is as good as gone, as a time to read it, and in upcalls. It has to be that short: of
/// what remains, it is not known well enough which share it was admitted with.
const GONE_S: f64 = 0.002;
const GONE_MIN: f64 = 16.0;
/// Part of the level that is admitted while a backlog goes away.
const CLEARING: f64 = 0.125;
/// The lowest level, in upcalls a second: it must be able to rise.
const LEVEL_MIN: f64 = 10.0;

/// What is queued in a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Bytes of kernel memory that queued messages take.
    pub queued_bytes: u32,
    /// Limit of `queued_bytes`.
    pub buffer_bytes: u32,
}

impl Backlog {
    /// Upcalls that are queued, roughly.
    fn upcalls(self) -> f64 {
        f64::from(self.queued_bytes) / UPCALL_BYTES
    }

    fn exceeds(self, part: f64) -> bool {
        f64::from(self.queued_bytes) > f64::from(self.buffer_bytes) * part
    }
}

/// The shield of one socket.
#[derive(Debug)]
pub struct StormShield {
    flooders: Vec<Flooder>,
    /// Upcalls a second that each flooder is admitted.
    level: f64,
    /// Upcalls a second that can be read, as far as is known.
    capacity: f64,
    window_start_us: u64,
    /// What was queued when the window started.
    window_start: u32,
    /// Upcalls of the window up to the last round, and those read in rounds that left some behind.
    window_read: u32,
    window_behind: u32,
    /// Is there a window?
    counting: bool,
    /// Upcalls of this window that had been queued before the shares were set.
    stale: f64,
    /// While what came before the last strike is still queued: the backlog at which to strike again.
    strike_again: Option<f64>,
    /// Upcalls that were refused, not yet told.
    refused: f64,
}

impl Default for StormShield {
    fn default() -> Self {
        Self {
            flooders: Vec::with_capacity(SHIELDED_PORTS_MAX),
            level: 0.0,
            capacity: 0.0,
            window_start_us: 0,
            window_start: 0,
            window_read: 0,
            window_behind: 0,
            counting: false,
            stale: 0.0,
            strike_again: None,
            refused: 0.0,
        }
    }
}

impl StormShield {
    /// A round of reading is over: `tally` has counted its upcalls, and `backlog` is what the round
    /// left behind, `None` if it read the socket empty. While a shield is up, this is to be called now
    /// and then although nothing is read. Are there new shares? Then [`StormShield::attached`] is to
    /// follow.
    pub fn round(&mut self, now_us: u64, tally: &mut PortTally, backlog: Option<Backlog>) -> bool {
        let read = tally.total().saturating_sub(self.window_read);
        self.window_read = tally.total();
        if self.strike_again.is_some() && !self.is_long(backlog) {
            self.open(now_us, tally);
            return true;
        }
        let Some(backlog) = backlog else {
            self.counting &= self.is_up();
            return self.is_up() && self.tick(now_us, tally, None);
        };
        self.window_behind += read;
        if !self.counting {
            self.restart(now_us, tally, backlog.queued_bytes);
            return false;
        }
        if self.must_strike(tally, backlog) {
            self.strike(now_us, tally, backlog);
            return true;
        }
        if self.is_up() {
            return self.tick(now_us, tally, Some(backlog));
        }
        let old = now_us.saturating_sub(self.window_start_us) >= WINDOW_US;
        if old && tally.total() >= WINDOW_UPCALLS {
            self.restart(now_us, tally, backlog.queued_bytes);
        }
        false
    }

    /// Is a port shielded against, or was a moment ago?
    pub fn is_up(&self) -> bool {
        !self.flooders.is_empty()
    }

    /// Would a round that read the socket empty change nothing?
    pub fn is_at_rest(&self) -> bool {
        !self.counting && !self.is_up()
    }

    /// The ports that are shielded against.
    pub fn ports(&self) -> impl Iterator<Item = u32> {
        self.flooders.iter().map(|flooder| flooder.port)
    }

    /// Ports of which not everything is admitted, and how many of 2^32 upcalls are.
    pub fn shares(&self) -> impl Iterator<Item = (u32, u32)> {
        let limited = self.flooders.iter().filter(|flooder| flooder.admit < 1.0);
        limited.map(|flooder| (flooder.port, of_2_to_32(flooder.admit)))
    }

    /// Upcalls that were refused since this was asked last; an estimate, as nobody counts them.
    pub fn take_refused(&mut self) -> u64 {
        let whole = self.refused.floor();
        self.refused -= whole;
        to_count(whole)
    }

    /// Starts to count anew.
    fn restart(&mut self, now_us: u64, tally: &mut PortTally, queued_bytes: u32) {
        self.stale = (self.stale - f64::from(tally.total())).max(0.0);
        tally.clear();
        self.counting = true;
        self.window_start_us = now_us;
        self.window_start = queued_bytes;
        self.window_read = 0;
        self.window_behind = 0;
    }

    /// Upcalls that are to be queued.
    fn aim(&self, backlog: Backlog) -> f64 {
        let most = f64::from(backlog.buffer_bytes) / UPCALL_BYTES * QUEUE_PART;
        (self.capacity * QUEUE_S).max(QUEUE_MIN).min(most)
    }

    /// Is what was queued at a strike still there?
    fn is_long(&self, backlog: Option<Backlog>) -> bool {
        backlog.is_some_and(|b| b.upcalls() > (self.capacity * GONE_S).max(GONE_MIN))
    }

    /// With others to protect, a quarter of the buffer is theirs to lose. A port alone has bursts that
    /// the buffer is for; the last quarter is kept for whoever comes.
    fn must_strike(&self, tally: &PortTally, backlog: Backlog) -> bool {
        if let Some(bytes) = self.strike_again {
            return f64::from(backlog.queued_bytes) > bytes;
        }
        if tally.total() < SAMPLE_MIN {
            return false;
        }
        let alone = tally.ports().nth(1).is_none();
        backlog.exceeds(if alone { 0.75 } else { 0.25 })
    }

    /// Names ports, or lowers the level if there is none to name.
    fn strike(&mut self, now_us: u64, tally: &mut PortTally, backlog: Backlog) {
        let seconds = seconds(now_us.saturating_sub(self.window_start_us));
        let read = f64::from(tally.total()).max(1.0);
        self.capacity = read / seconds;
        self.account(tally, seconds);
        if self.name(tally, seconds, backlog) {
            let (others, count) = self.besides(tally, seconds, |_| true);
            self.level = ((0.75 * self.capacity - others) / count).max(self.floor(tally));
        } else {
            self.level /= 4.0;
        }
        self.level = self.level.max(LEVEL_MIN);
        for flooder in &mut self.flooders {
            flooder.admit = share(self.level * CLEARING, flooder.arrivals);
            flooder.calm_since_us = None;
        }
        self.strike_again = Some(f64::INFINITY);
        self.restart(now_us, tally, backlog.queued_bytes);
    }

    /// The kernel has the new shares; what is queued now came before.
    pub fn attached(&mut self, backlog: Backlog) {
        let queued = backlog.upcalls();
        let older = self.stale.min(queued);
        for flooder in &mut self.flooders {
            let arrived = older / flooder.admit_before + (queued - older) / flooder.admit_last;
            flooder.admit_before = if queued > 0.0 { queued / arrived } else { flooder.admit };
            flooder.admit_last = flooder.admit;
        }
        self.stale = queued;
        self.window_start = backlog.queued_bytes;
        if self.strike_again.is_some() {
            let buffer = f64::from(backlog.buffer_bytes);
            let again = f64::from(backlog.queued_bytes) + buffer / 8.0;
            self.strike_again = Some(again.min(buffer * 0.9375));
        }
    }

    /// The backlog of the last strike is gone: shares are what the level says.
    fn open(&mut self, now_us: u64, tally: &mut PortTally) {
        self.account(tally, seconds(now_us.saturating_sub(self.window_start_us)));
        self.strike_again = None;
        for flooder in &mut self.flooders {
            flooder.admit = share(self.level, flooder.arrivals);
        }
        self.restart(now_us, tally, 0);
    }

    /// A quarter of a fair share.
    fn floor(&self, tally: &PortTally) -> f64 {
        self.capacity / 4.0 / (tally.ports().count() + 1) as f64
    }

    /// Adds the ports with more than their fair share that are not named yet; of these, the ones that
    /// are nearly as bad as the worst. Is there any?
    fn name(&mut self, tally: &PortTally, seconds: f64, backlog: Backlog) -> bool {
        let growth = f64::from(backlog.queued_bytes.saturating_sub(self.window_start));
        // What was read is a sample of what comes.
        let excess = 1.0 + growth / UPCALL_BYTES / f64::from(tally.total()).max(1.0);
        let fair = f64::from(tally.total()) / (tally.ports().count() + 1) as f64;
        let known = |port| self.flooders.iter().any(|flooder| flooder.port == port);
        let mut new: Vec<_> = tally
            .ports()
            .filter(|&(port, count)| f64::from(count) > fair && !known(port))
            .collect();
        new.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let worst = new.first().map_or(0, |&(_, count)| count);
        let room = SHIELDED_PORTS_MAX - self.flooders.len();
        for &(port, count) in new.iter().filter(|(_, count)| *count >= worst / 4 * 3).take(room) {
            let arrivals = f64::from(count) * excess / seconds;
            self.flooders.push(Flooder::new(port, arrivals));
        }
        worst > 0 && room > 0
    }

    /// Sets shares anew, if it is time. Did any change?
    fn tick(&mut self, now_us: u64, tally: &mut PortTally, backlog: Option<Backlog>) -> bool {
        let elapsed_us = now_us.saturating_sub(self.window_start_us);
        if elapsed_us < TICK_US {
            return false;
        }
        let queued_bytes = backlog.map_or(0, |backlog| backlog.queued_bytes);
        let seconds = seconds(elapsed_us);
        let old = self.account(tally, seconds);
        if self.strike_again.is_some() {
            return self.wait_for_the_backlog(now_us, tally, queued_bytes);
        }
        self.steer(tally, seconds, backlog);
        for flooder in &mut self.flooders {
            let arrived = flooder.arrived(tally.of(flooder.port), old);
            flooder.follow(arrived / seconds, self.level, now_us);
            let told = flooder.owed_s / 8.0;
            flooder.owed_s -= told;
            self.refused += told * flooder.arrivals;
        }
        self.flooders.retain(|flooder| {
            flooder.calm_since_us.is_none_or(|t| now_us.saturating_sub(t) < HOLD_US)
        });
        self.restart(now_us, tally, queued_bytes);
        // With nothing left to watch, the next window begins when something is left behind again.
        self.counting = self.is_up() || backlog.is_some();
        true
    }

    /// Sets the level to what can be read, less what others send, and a little more or less, as the queue
    /// is too short or too long.
    fn steer(&mut self, tally: &PortTally, seconds: f64, backlog: Option<Backlog>) {
        let read = f64::from(tally.total()) / seconds;
        if self.window_behind <= tally.total() / 2 {
            self.capacity *= RISE;
        } else {
            self.capacity += (read - self.capacity) / 4.0;
        }
        let (others, count) = self.besides(tally, seconds, |flooder| flooder.admit < 1.0);
        let excess = backlog.map_or(f64::NEG_INFINITY, |b| b.upcalls() - self.aim(b));
        let spare =
            (excess / SETTLE_S / self.capacity.max(LEVEL_MIN)).clamp(-FILL_MAX, SHORTEN_MAX);
        let level = (self.capacity * (1.0 - spare) - others) / count;
        self.level = level.max(self.capacity / 16.0 / count).max(LEVEL_MIN);
    }

    /// Upcalls a second of all ports but those that are limited, and how many these are, at least one.
    fn besides(
        &self,
        tally: &PortTally,
        seconds: f64,
        is_limited: impl Fn(&Flooder) -> bool,
    ) -> (f64, f64) {
        let limited = || self.flooders.iter().filter(|flooder| is_limited(flooder));
        let theirs: f64 = limited().map(|flooder| f64::from(tally.of(flooder.port))).sum();
        ((f64::from(tally.total()) - theirs) / seconds, limited().count().max(1) as f64)
    }

    /// What is read was queued before the shares were set: nothing is to be learned from it, but that
    /// the queue must get shorter.
    fn wait_for_the_backlog(&mut self, now_us: u64, tally: &mut PortTally, queued: u32) -> bool {
        let grows = queued >= self.window_start;
        if grows {
            self.level = (self.level / 4.0).max(LEVEL_MIN);
            for flooder in &mut self.flooders {
                flooder.admit = (flooder.admit / 4.0).max(ADMIT_MIN);
            }
        }
        self.restart(now_us, tally, queued);
        grows
    }

    /// Adds what was refused in a window: for each upcall that was admitted, those that on average were
    /// not. While a backlog goes away, too few are admitted to tell from; then the time is kept, until
    /// it is known what arrives. Gives the part of what was read that was queued before the shares
    /// were set.
    fn account(&mut self, tally: &PortTally, seconds: f64) -> f64 {
        let old = (self.stale / f64::from(tally.total()).max(1.0)).min(1.0);
        for flooder in &mut self.flooders {
            let read = tally.of(flooder.port);
            if self.strike_again.is_some() {
                flooder.owed_s += seconds * (1.0 - flooder.admit);
            } else {
                self.refused += flooder.arrived(read, old) - f64::from(read);
            }
        }
        old
    }
}

fn seconds(us: u64) -> f64 {
    f64::from(u32::try_from(us).unwrap_or(u32::MAX).max(1)) / 1e6
}

#[allow(clippy::cast_sign_loss, reason = "a share is from 0 to 1, and the cast saturates")]
fn of_2_to_32(share: f64) -> u32 {
    (share * 4_294_967_296.0) as u32
}

#[allow(clippy::cast_sign_loss, reason = "a count is not negative, and the cast saturates")]
fn to_count(whole: f64) -> u64 {
    whole as u64
}

#[cfg(test)]
mod tests;
