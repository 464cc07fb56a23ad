//! An upcall that a trace has seen, and its forms.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use upcall::{Actions, FlowKey, Ports, Upcall, UpcallKind, text};

/// Copied on a worker's thread; told elsewhere.
pub(super) struct Seen {
    at: SystemTime,
    cpu: Option<usize>,
    kind: UpcallKind,
    port: Option<u32>,
    len: usize,
    key: Box<[u8]>,
    actions: Box<[u8]>,
    install: bool,
    from_plan: bool,
    packet: Box<[u8]>,
}

/// An upcall as clients read it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    /// Nanoseconds since 1970.
    pub(super) at_ns: u64,
    pub(super) line: String,
    /// Bytes of the whole packet.
    pub(super) len: usize,
    /// The bytes that were kept, in hexadecimal.
    pub(super) packet: String,
}

impl Seen {
    pub(super) fn new(
        upcall: &Upcall<'_>,
        answer: &upcall::Answer<'_>,
        cpu: Option<usize>,
        snap: usize,
    ) -> Self {
        let packet = upcall.packet();
        Self {
            at: SystemTime::now(),
            cpu,
            kind: upcall.kind(),
            port: upcall.in_port(),
            len: packet.len(),
            key: upcall.wire().key.into(),
            actions: answer.actions.as_bytes().into(),
            install: answer.install,
            from_plan: answer.from_plan,
            packet: packet[..packet.len().min(snap)].into(),
        }
    }

    /// Time (UTC), CPU, port, why it came up, length, key, and what was answered.
    pub(super) fn line(&self, ports: &Ports) -> String {
        let at = humantime::format_rfc3339_micros(self.at).to_string();
        let cpu = self.cpu.map_or_else(|| "-".to_owned(), |cpu| cpu.to_string());
        let named = self.port.and_then(|port| ports.by_number(port)).map(|port| port.name.clone());
        let number = || self.port.map_or_else(|| "-".to_owned(), |port| port.to_string());
        let kind = if self.kind == UpcallKind::Miss { "miss" } else { "action" };
        let how = match (self.install, self.from_plan) {
            (_, true) => " (as planned)",
            (true, _) => " (install)",
            _ => "",
        };
        format!(
            "{} cpu {cpu} {} {kind} {} bytes {} -> {}{how}",
            at.get(11..26).unwrap_or(&at),
            named.unwrap_or_else(number),
            self.len,
            text::format_key(FlowKey::new(&self.key), None),
            text::format_actions(Actions::new(&self.actions)),
        )
    }

    pub(super) fn json(&self, ports: &Ports) -> Value {
        let at = self.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let mut packet = String::with_capacity(2 * self.packet.len());
        for byte in &self.packet {
            let _ = write!(packet, "{byte:02x}");
        }
        let told =
            Told { at_ns: at.as_nanos() as u64, line: self.line(ports), len: self.len, packet };
        serde_json::to_value(told).unwrap_or_default()
    }
}
