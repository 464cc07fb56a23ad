//! What operators ask of a running dispatcher; nothing of it is on the way of an upcall.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use netlink_io::Socket;
use ovs_wire::datapath::Datapath;
use ovs_wire::flow::{Flow, Omit};
use ovs_wire::vport::Vport;
use ovs_wire::{Actions, FlowKey, KeySummary, text};

use super::Dispatcher;
use crate::flow_dump::{self, monotonic_ms};
use crate::stop::flush;
use crate::{Error, Limits, Observer, WorkerStats};

/// Says of a flow, by key and mask, whether it is wanted.
pub type FlowFilter<'a> = dyn Fn(&KeySummary, &KeySummary) -> bool + Sync + 'a;

/// Which flows are wanted as text, and in which form.
#[derive(Clone, Copy)]
pub struct FlowQuery<'a> {
    /// Bytes of text at most.
    pub bytes_max: usize,
    /// Every field with its mask, also those that are not matched, and the unique id of flows that have
    /// one; as `ovs-dpctl -m`.
    pub more: bool,
    /// Ports by name.
    pub names: bool,
    /// Which flows; `None` is all.
    pub filter: Option<&'a FlowFilter<'a>>,
}

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

    /// The flow table now, as text. It is read a piece at a time.
    ///
    /// Packets and bytes of a flow that was removed and installed again are those since it was first
    /// installed; so many flows that were removed are remembered
    /// ([`Stats::flow_counts_forgotten`](crate::Stats)). One that an earlier run installed counts as the
    /// kernel does.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub async fn flow_text(&self, query: &FlowQuery<'_>) -> Result<FlowText, Error> {
        let now_ms = monotonic_ms();
        let ports = self.shared.ports.load();
        let wanted = ports.iter().filter(|_| query.names);
        let names: Vec<_> = wanted.map(|port| (port.number, port.name.clone())).collect();
        let form = Form { now_ms, more: query.more, names: &names };
        let mut found = FlowText::default();
        let counts = &self.shared.flow_counts;
        self.each_flow(|flow| {
            if query.filter.is_none_or(|filter| passes(flow, filter)) {
                let flow = Flow { stats: counts.since_first(flow), ..*flow };
                found.push(&flow, &form, query.bytes_max);
            }
        })
        .await?;
        Ok(found)
    }

    /// Deletes all flows: every packet comes up anew. What was decided before is not installed after. What
    /// the flows had counted is remembered, but for packets of the moment.
    pub async fn flush_flows(&self) {
        self.shared.revalidate();
        if let Err(err) = self.each_flow(|flow| self.shared.flow_counts.ended(flow)).await {
            tracing::warn!(%err, "what the flows had counted is lost");
        }
        flush(&self.control, &self.dp).await;
    }

    async fn each_flow(&self, mut each: impl FnMut(&Flow<'_>)) -> Result<(), Error> {
        let error = || Error::system("read the flow table");
        let socket = Arc::new(Socket::open().map_err(error())?);
        let (family, what) = (self.shared.flow_family, (self.dp.ifindex, Omit::Nothing));
        let each = |flow: &Flow<'_>| {
            each(flow);
            Ok(())
        };
        flow_dump::read(&socket, family, what, each).await.map_err(error())
    }
}

impl FlowText {
    fn push(&mut self, flow: &Flow<'_>, form: &Form<'_>, bytes_max: usize) {
        let len = self.lines.len();
        let _never_fails = write_flow(&mut self.lines, flow, form);
        if self.lines.len() > bytes_max {
            self.lines.truncate(len);
            self.left_out += 1;
        }
    }
}

pub(super) fn flow_line(flow: &Flow<'_>, now_ms: u64) -> String {
    let mut line = String::new();
    let form = Form { now_ms, ..Form::default() };
    let _never_fails = write_flow(&mut line, flow, &form);
    line.truncate(line.trim_end().len());
    line
}

/// How a flow is written.
#[derive(Clone, Copy, Default)]
struct Form<'a> {
    now_ms: u64,
    /// Every field, and what else the peer's `-m` tells.
    more: bool,
    /// Of ports, by number.
    names: &'a [(u32, String)],
}

fn passes(flow: &Flow<'_>, filter: &FlowFilter<'_>) -> bool {
    let (key, mask) = (FlowKey::new(flow.key).summary(), FlowKey::new(flow.mask).summary());
    key.is_ok_and(|key| mask.is_ok_and(|mask| filter(&key, &mask)))
}

fn write_flow(out: &mut String, flow: &Flow<'_>, form: &Form<'_>) -> fmt::Result {
    let Form { now_ms, more, names } = *form;
    let (key, mask) = (FlowKey::new(flow.key), FlowKey::new(flow.mask));
    let key = text::format_key(key, Some(mask)).names(names);
    match flow.ufid.filter(|_| more) {
        Some(ufid) => write!(out, "{}, {}, ", Ufid(ufid), key.whole())?,
        None if more => write!(out, "{}, ", key.whole())?,
        None => write!(out, "{key}, ")?,
    }
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
    if more {
        out.push_str(", dp:ovs");
    }
    writeln!(out, ", actions:{}", text::format_actions(Actions::new(flow.actions)).names(names))
}

/// A unique id as the peer writes it, in numbers of 32 bits.
struct Ufid<'a>(&'a [u8]);

impl fmt::Display for Ufid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ufid:")?;
        let words = self.0.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word));
        for (at, byte) in words.flat_map(u32::to_be_bytes).enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
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
        let form = Form { now_ms: 1_250, ..Form::default() };
        found.push(&flow, &form, 200);
        let line =
            "in_port(2),eth_type(0x0800), packets:7, bytes:420, used:0.250s, flags:S., actions:3\n";
        assert_eq!(found.lines, line);
        found.push(&Flow { used_ms: None, tcp_flags: 0, ..flow }, &form, 100);
        assert_eq!((found.lines.len(), found.left_out), (line.len(), 1));
        let ufid: Vec<u8> = [0x0001_0203u32, 0x0405_0607, 0x0809_0a0b, 0x0c0d_0e0f]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        let names = [(2, "veth1".to_owned()), (3, "veth2".to_owned())];
        let more = Form { more: true, names: &names, ..form };
        let mut found = FlowText::default();
        found.push(&Flow { ufid: Some(&ufid), tcp_flags: 0, ..flow }, &more, 200);
        let line = "ufid:00010203-0405-0607-0809-0a0b0c0d0e0f, in_port(veth1),eth_type(0x0800), \
                    packets:7, bytes:420, used:0.250s, dp:ovs, actions:veth2\n";
        assert_eq!(found.lines, line);
        let by_type = |key: &KeySummary, _: &KeySummary| key.eth_type == 0x0806;
        assert!(!passes(&flow, &by_type) && passes(&flow, &|_, mask| mask.eth_type == 0xffff));
    }
}
