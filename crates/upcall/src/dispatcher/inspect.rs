//! What operators ask of a running dispatcher; nothing of it is on the way of an upcall.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use netlink_io::Socket;
use ovs_wire::datapath::Datapath;
use ovs_wire::flow::Flow;
use ovs_wire::vport::Vport;
use ovs_wire::{Actions, FlowKey, text};

use super::Dispatcher;
use crate::flow_dump::{self, monotonic_ms};
use crate::stop::flush;
use crate::{Error, Limits, Observer, WorkerStats};

/// The flow table as text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FlowText {
    /// A line for each flow, in the form of `ovs-dpctl dump-flows`.
    pub lines: String,
    /// Flows that found no room in it.
    pub left_out: u64,
}

impl Dispatcher {
    /// The datapath as the kernel describes it now; `None` if somebody deleted it.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub async fn datapath(&self) -> Result<Option<Datapath>, Error> {
        Ok(self.control.datapath(&self.dp.name).await?)
    }

    /// Its ports as the kernel describes them now, by number.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub async fn vports(&self) -> Result<Vec<Vport>, Error> {
        let mut vports = self.control.vports(self.dp.ifindex).await?;
        vports.sort_by_key(|port| port.port_no);
        Ok(vports)
    }

    /// Its workers, in the order of their numbers, with what each has done since it was started.
    pub async fn workers(&self) -> Vec<WorkerStats> {
        self.delivery.lock().await.worker_stats()
    }

    /// Shows `observer` every upcall that is answered from now on, in place of the one before; `None`
    /// shows nobody. While there is none, that costs a load from memory for each round of upcalls.
    pub fn observe(&self, observer: Option<Arc<dyn Observer>>) {
        self.shared.observers.set(observer);
    }

    /// The bounds it works within now.
    pub fn limits(&self) -> Limits {
        **self.shared.limits.load()
    }

    /// The flow table now, as text of at most `bytes_max`. It is read a piece at a time.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub async fn flow_text(&self, bytes_max: usize) -> Result<FlowText, Error> {
        let error = || Error::system("read the flow table");
        let socket = Arc::new(Socket::open().map_err(error())?);
        let (family, now_ms) = (self.shared.flow_family, monotonic_ms());
        let mut found = FlowText::default();
        let each = |flow: &Flow<'_>| {
            found.push(flow, now_ms, bytes_max);
            Ok(())
        };
        flow_dump::read(&socket, family, self.dp.ifindex, each).await.map_err(error())?;
        Ok(found)
    }

    /// Deletes all flows: every packet comes up anew. What was decided before is not installed after.
    pub async fn flush_flows(&self) {
        self.shared.revalidate();
        flush(&self.control, &self.dp).await;
    }
}

impl FlowText {
    fn push(&mut self, flow: &Flow<'_>, now_ms: u64, bytes_max: usize) {
        let len = self.lines.len();
        let _never_fails = write_flow(&mut self.lines, flow, now_ms);
        if self.lines.len() > bytes_max {
            self.lines.truncate(len);
            self.left_out += 1;
        }
    }
}

pub(super) fn flow_line(flow: &Flow<'_>, now_ms: u64) -> String {
    let mut line = String::new();
    let _never_fails = write_flow(&mut line, flow, now_ms);
    line.truncate(line.trim_end().len());
    line
}

fn write_flow(out: &mut String, flow: &Flow<'_>, now_ms: u64) -> fmt::Result {
    let (key, mask) = (FlowKey::new(flow.key), FlowKey::new(flow.mask));
    write!(out, "{}, ", text::format_key(key, Some(mask)))?;
    write!(out, "packets:{}, bytes:{}, used:", flow.stats.packets, flow.stats.bytes)?;
    match flow.used_ms {
        Some(used) => {
            let ago = Duration::from_millis(now_ms.saturating_sub(used));
            write!(out, "{:.3}s", ago.as_secs_f64())?;
        }
        None => out.push_str("never"),
    }
    if flow.tcp_flags != 0 {
        write!(out, ", flags:{}", tcp_flags(flow.tcp_flags))?;
    }
    writeln!(out, ", actions:{}", text::format_actions(Actions::new(flow.actions)))
}

/// One character for each flag that is set, in the peer's order (`packet_format_tcp_flags`).
fn tcp_flags(bits: u8) -> String {
    let names = [(1, 'S'), (0, 'F'), (3, 'P'), (2, 'R'), (5, 'U'), (4, '.'), (6, 'E'), (7, 'C')];
    names.iter().filter(|(bit, _)| bits >> bit & 1 != 0).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_wire::flow::FlowStats;

    #[test]
    fn a_flow_is_a_line_and_no_more_than_fits_is_kept() {
        let (mut key, mut mask, mut actions) = (Vec::new(), Vec::new(), Vec::new());
        text::parse_key("in_port(2),eth_type(0x0800)", &mut key, &mut mask).unwrap();
        text::parse_actions("3", &mut actions).unwrap();
        let flow = Flow {
            dp_ifindex: 1,
            key: &key,
            mask: &mask,
            actions: &actions,
            stats: FlowStats { packets: 7, bytes: 420 },
            tcp_flags: 0x12,
            used_ms: Some(1_000),
            ufid: None,
        };
        let mut found = FlowText::default();
        found.push(&flow, 1_250, 200);
        let line =
            "in_port(2),eth_type(0x0800), packets:7, bytes:420, used:0.250s, flags:S., actions:3\n";
        assert_eq!(found.lines, line);
        found.push(&Flow { used_ms: None, tcp_flags: 0, ..flow }, 0, 100);
        assert_eq!((found.lines.len(), found.left_out), (line.len(), 1));
    }
}
