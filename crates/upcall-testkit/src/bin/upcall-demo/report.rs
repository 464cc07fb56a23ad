//! What came of it, for a person and for a program.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use upcall_testkit::{Stats, Totals};

use crate::Args;
use crate::load::{BURST_PACKETS, FIRST_BURST_FLOW};
use crate::scenario::{DATAPATH, Outcome};

/// The JSON object of `--json`; times in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) ok: bool,
    hosts: u8,
    seconds: f64,
    kernel: String,
    dispatch_mode: String,
    reason: String,
    sockets: u64,
    workers: u64,
    ports: u64,
    upcalls_received: u64,
    executed: u64,
    flows_installed: u64,
    flows_current: u64,
    macs: u64,
    kernel_hit: u64,
    kernel_missed: u64,
    kernel_lost: u64,
    shed: u64,
    malformed: u64,
    foreign: u64,
    install_stragglers: u64,
    pings_sent: u64,
    pings_answered: u64,
    pings_unanswered_after_first: u64,
    ping_first_us_avg: Option<u64>,
    ping_later_us_avg: Option<u64>,
    packets_sent: u64,
    packets_received: u64,
    packets_lost: u64,
    duplicates: u64,
    reordered: u64,
    receiver_drops: u64,
    receiver_errors: u64,
    bursts: u64,
    burst_packets: u32,
    setup_us_median: Option<u64>,
    setup_us_max: Option<u64>,
    upcalld_exit: String,
}

impl Report {
    pub(crate) fn new(args: &Args, outcome: &Outcome) -> Self {
        let totals =
            outcome.tallies.iter().fold(Totals::default(), |sum, tally| sum + tally.totals());
        let setup_us = setup_us(outcome);
        let (first_us, later_us) = ping_us(outcome);
        let pings = |count: fn(&upcall_testkit::PingReport) -> u64| {
            outcome.pings.iter().map(count).sum::<u64>()
        };
        let unanswered = pings(|ping| ping.unanswered_after_first() as u64);
        let Stats { kernel, dispatch_mode, reason, .. } = outcome.stats.clone();
        let stats = &outcome.stats;
        Self {
            ok: unanswered == 0 && outcome.exit.status.success(),
            hosts: args.hosts,
            seconds: (outcome.traffic.as_secs_f64() * 10.0).round() / 10.0,
            kernel: if kernel.is_empty() { running_kernel() } else { kernel },
            dispatch_mode,
            reason,
            sockets: stats.sockets,
            workers: stats.workers,
            ports: stats.ports,
            upcalls_received: stats.upcalls_received,
            executed: stats.executed,
            flows_installed: stats.flows_installed,
            flows_current: stats.flows_current,
            macs: stats.macs,
            kernel_hit: stats.kernel_hit,
            kernel_missed: stats.kernel_missed,
            kernel_lost: stats.kernel_lost,
            shed: stats.shed,
            malformed: stats.malformed,
            foreign: stats.foreign,
            install_stragglers: stats.install_stragglers,
            pings_sent: pings(|ping| ping.sent.into()),
            pings_answered: pings(|ping| ping.answered.into()),
            pings_unanswered_after_first: unanswered,
            ping_first_us_avg: mean(&first_us),
            ping_later_us_avg: mean(&later_us),
            packets_sent: outcome.sent,
            packets_received: totals.received - totals.duplicates,
            packets_lost: totals.lost,
            duplicates: totals.duplicates,
            reordered: totals.reordered,
            receiver_drops: outcome.refused.buffer_full,
            receiver_errors: outcome.refused.errors - outcome.refused.buffer_full,
            bursts: setup_us.len() as u64,
            burst_packets: BURST_PACKETS,
            setup_us_median: setup_us.get(setup_us.len() / 2).copied(),
            setup_us_max: setup_us.last().copied(),
            upcalld_exit: outcome.exit.status.to_string(),
        }
    }

    fn verdict(&self) -> String {
        let mut faults = Vec::new();
        if self.pings_unanswered_after_first > 0 {
            faults.push(format!(
                "{} pings after the first of their pair found no answer",
                count(self.pings_unanswered_after_first)
            ));
        }
        if self.upcalld_exit != "exit status: 0" {
            faults.push(format!("upcalld ended with {}", self.upcalld_exit));
        }
        match (faults.is_empty(), self.packets_lost) {
            (true, 0) => "every host reaches every other, and no packet was lost".to_owned(),
            (true, _) => format!("every host reaches every other; {}", self.loss_explained()),
            (false, _) => format!("FAILED: {}", faults.join("; ")),
        }
    }

    /// Whose loss it was, as far as the counters tell.
    fn loss_explained(&self) -> String {
        let lost = count(self.packets_lost);
        let by = [
            (self.kernel_lost, "upcalls did not fit into upcalld's sockets"),
            (self.shed, "were refused by upcalld for want of room"),
            (self.receiver_drops, "reached a host that was too slow to read them"),
            (self.receiver_errors, "reached a host with a wrong checksum or length"),
        ];
        let known: Vec<String> = by
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{} {what}", count(*number)))
            .collect();
        if known.is_empty() {
            return format!("{lost} packets were lost and no counter tells where");
        }
        format!("of {lost} lost packets {}", known.join(", "))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hosts, seconds, kernel, dispatch_mode: mode, reason, .. } = self;
        let [sockets, workers] = [self.sockets, self.workers].map(count);
        writeln!(f, "\nupcalld switched {hosts} hosts on Linux {kernel} for {seconds} s\n")?;
        row(
            f,
            "built",
            &format!(
                "datapath {DATAPATH} in a network namespace, {hosts} ports on veth pairs, a host behind each",
            ),
        )?;
        row(f, "dispatch", &format!("{mode}, {sockets} sockets, {workers} workers"))?;
        row(f, "because", reason)?;
        row(f, "pings", &self.pings_line())?;
        row(f, "new flows", &self.bursts_line())?;
        row(
            f,
            "packets",
            &format!(
                "{} of {} packets lost, {} duplicated, {} reordered",
                count(self.packets_lost),
                count(self.packets_sent),
                count(self.duplicates),
                count(self.reordered)
            ),
        )?;
        row(
            f,
            "upcalls",
            &format!(
                "{} received, {} executed, {} lost by the kernel, {} shed, {} malformed",
                count(self.upcalls_received),
                count(self.executed),
                count(self.kernel_lost),
                count(self.shed),
                count(self.malformed)
            ),
        )?;
        row(
            f,
            "flows",
            &format!(
                "{} installed, {} there at the end; the kernel switched {} packets by itself and asked about {}",
                count(self.flows_installed),
                count(self.flows_current),
                count(self.kernel_hit),
                count(self.kernel_missed)
            ),
        )?;
        row(f, "result", &self.verdict())
    }
}

impl Report {
    fn pings_line(&self) -> String {
        let answered =
            format!("{} of {} answered", count(self.pings_answered), count(self.pings_sent));
        match (self.ping_first_us_avg, self.ping_later_us_avg) {
            (Some(first), Some(later)) => format!(
                "{answered}; the first of a pair took {} (ARP and flow set-up both ways), the later ones {}",
                time(first),
                time(later)
            ),
            _ => answered,
        }
    }

    fn bursts_line(&self) -> String {
        let sent = format!(
            "{} bursts of {} packets, each from an address new to the switch",
            count(self.bursts),
            self.burst_packets
        );
        match (self.setup_us_median, self.setup_us_max) {
            (Some(median), Some(max)) => format!(
                "{sent}; the first packet was through after {} (median; slowest {})",
                time(median),
                time(max)
            ),
            _ => sent,
        }
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    writeln!(f, "  {name:<10} {text}")
}

/// First-packet latencies of all burst flows that arrived, sorted, in microseconds.
fn setup_us(outcome: &Outcome) -> Vec<u64> {
    let flows = outcome.tallies.iter().flat_map(upcall_testkit::Tally::flows);
    let mut all: Vec<u64> = flows
        .filter(|(number, flow)| *number >= FIRST_BURST_FLOW && flow.received > 0)
        .map(|(_, flow)| flow.first_latency_ns / 1000)
        .collect();
    all.sort_unstable();
    all
}

/// Round trips of the first ping of each pair, and of all later ones, in microseconds.
fn ping_us(outcome: &Outcome) -> (Vec<u64>, Vec<u64>) {
    let us = |rtt: &Duration| rtt.as_micros() as u64;
    let first = outcome.pings.iter().filter_map(|ping| ping.rtts.first()).flatten();
    let later = outcome.pings.iter().flat_map(|ping| ping.rtts.iter().skip(1)).flatten();
    (first.map(us).collect(), later.map(us).collect())
}

fn mean(all: &[u64]) -> Option<u64> {
    all.iter().sum::<u64>().checked_div(all.len() as u64)
}

/// A number with commas between the thousands.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds as milliseconds, with the precision that says something.
fn time(us: u64) -> String {
    if us < 1_000 {
        format!("0.{:02} ms", us / 10)
    } else {
        format!("{}.{} ms", us / 1_000, us % 1_000 / 100)
    }
}

fn running_kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        let texts = [0, 999, 1000, 1_234_567].map(count);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn times_read_well() {
        assert_eq!([time(87), time(1290)], ["0.08 ms", "1.2 ms"]);
    }
}
