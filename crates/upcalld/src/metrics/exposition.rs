//! Readings as `OpenMetrics` text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::readings::{PortReading, Readings, Scrape};

/// All names begin with this.
const PREFIX: &str = "upcalld";

/// The text of a scrape. Without readings there is `upcalld_up 0`, so that an alert can tell a daemon
/// without a datapath from none.
pub(super) fn text(scrape: &Scrape) -> Result<String, String> {
    let labels = [("datapath".into(), scrape.datapath.clone().into())];
    let mut registry = Registry::with_prefix_and_labels(PREFIX, labels.into_iter());
    registry.register_collector(Box::new(Encoded::of(scrape)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).map_err(|e| e.to_string())?;
    Ok(text)
}

/// A registry keeps what it encodes.
#[derive(Debug)]
struct Encoded {
    up: i64,
    about: Vec<(&'static str, String)>,
    counters: Vec<(&'static str, &'static str, u64)>,
    gauges: Vec<(&'static str, &'static str, f64)>,
    ports: Vec<PortReading>,
}

impl Encoded {
    fn of(scrape: &Scrape) -> Self {
        let Ok(Readings { about, counters, gauges, ports }) = &scrape.readings else {
            let (counters, gauges) = (Vec::new(), Vec::new());
            return Self { up: 0, about: Vec::new(), counters, gauges, ports: Vec::new() };
        };
        Self {
            up: 1,
            about: about.clone(),
            counters: counters.iter().map(|r| (r.name, r.help, r.value)).collect(),
            gauges: gauges.iter().map(|g| (g.name, g.help, g.value)).collect(),
            ports: ports.clone(),
        }
    }

    /// A family with a series for each port.
    fn by_port(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        value: impl Fn(&PortReading) -> u64,
    ) -> fmt::Result {
        if self.ports.is_empty() {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for port in &self.ports {
            let labels = [("port", port.port.as_str())];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_counter::<NoLabelSet, _, u64>(&value(port), None)?;
        }
        Ok(())
    }
}

impl Collector for Encoded {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let up = "Is the datapath served, and does the kernel tell of it?";
        let metric = encoder.encode_descriptor("up", up, None, MetricType::Gauge)?;
        ConstGauge::new(self.up).encode(metric)?;
        if !self.about.is_empty() {
            let help = "What runs, and where.";
            let mut metric = encoder.encode_descriptor("build", help, None, MetricType::Info)?;
            metric.encode_info(&self.about)?;
        }
        for (name, help, value) in &self.counters {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(*value).encode(metric)?;
        }
        for (name, help, value) in &self.gauges {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(*value).encode(metric)?;
        }
        let delivered = ("port_upcalls", "Upcalls of a port that a socket took.");
        self.by_port(&mut encoder, delivered, |port| port.delivered)?;
        let failed = ("port_upcalls_failed", "Upcalls of a port that its socket did not take.");
        self.by_port(&mut encoder, failed, |port| port.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::readings::Gauge;
    use super::*;
    use crate::counting::Reading;

    #[test]
    fn a_scrape_is_text_that_ends() {
        let port = PortReading { port: "p\"0\\".into(), delivered: 7, failed: 1 };
        let readings = Readings {
            about: vec![("version", "1".into())],
            counters: vec![Reading { name: "received", help: "Messages.", value: 3 }],
            gauges: vec![Gauge { name: "flows", help: "Flows.", value: 2.0 }],
            ports: vec![port],
        };
        let text = text(&Scrape { datapath: "dp0".into(), readings: Ok(readings) }).unwrap();
        for line in [
            "# HELP upcalld_received Messages.",
            "# TYPE upcalld_received counter",
            "upcalld_received_total{datapath=\"dp0\"} 3",
            "upcalld_flows{datapath=\"dp0\"} 2.0",
            "upcalld_up{datapath=\"dp0\"} 1",
            "upcalld_build_info{datapath=\"dp0\",version=\"1\"} 1",
            "upcalld_port_upcalls_total{datapath=\"dp0\",port=\"p\\\"0\\\\\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "no '{line}' in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn without_a_datapath_it_is_not_up() {
        let scrape = Scrape { datapath: "dp0".into(), readings: Err("gone".into()) };
        let text = text(&scrape).unwrap();
        assert!(text.contains("upcalld_up{datapath=\"dp0\"} 0\n"), "{text}");
        assert!(!text.contains("received"), "{text}");
    }
}
