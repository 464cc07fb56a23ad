//! Readings as `OpenMetrics` text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::readings::{PortReading, Readings, Scrape};

/// All names begin with this.
const PREFIX: &str = "upcalld";

/// The text of a scrape. Of a datapath without readings there is `upcalld_up 0`, so that an alert can tell a
/// daemon without a datapath from none.
pub(super) fn text(scrapes: Vec<Scrape>) -> Result<String, String> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Encoded(scrapes)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).map_err(|e| e.to_string())?;
    Ok(text)
}

/// Each family once, with a series for each datapath. A registry keeps what it encodes.
#[derive(Debug)]
struct Encoded(Vec<Scrape>);

impl Encoded {
    /// The datapaths that there are readings of.
    fn read(&self) -> impl Iterator<Item = (&str, &Readings)> {
        self.0.iter().filter_map(|scrape| {
            let readings = scrape.readings.as_ref().ok()?;
            Some((scrape.datapath.as_str(), readings))
        })
    }

    /// Names, in the order in which datapaths tell them: they do not all count the same.
    fn names<T>(
        &self,
        list: impl Fn(&Readings) -> &Vec<T>,
        name: impl Fn(&T) -> (&'static str, &'static str),
    ) -> Vec<(&'static str, &'static str)> {
        let mut names = Vec::new();
        for (_, readings) in self.read() {
            for named in list(readings).iter().map(&name) {
                if !names.contains(&named) {
                    names.push(named);
                }
            }
        }
        names
    }

    /// What is of the process is there once, without a datapath, where there are several.
    fn of_process(&self, name: &str) -> bool {
        self.0.len() > 1 && (name.starts_with("control_") || name == "resident_memory_bytes")
    }

    fn counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help) in self.names(|r| &r.counters, |r| (r.name, r.help)) {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (datapath, readings) in self.read() {
                let Some(of) = readings.counters.iter().find(|of| of.name == name) else {
                    continue;
                };
                if self.of_process(name) {
                    family.encode_counter::<NoLabelSet, _, u64>(&of.value, None)?;
                    break;
                }
                let labels = [("datapath", datapath)];
                let mut metric = family.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, _, u64>(&of.value, None)?;
            }
        }
        Ok(())
    }

    fn gauges(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help) in self.names(|r| &r.gauges, |g| (g.name, g.help)) {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (datapath, readings) in self.read() {
                let Some(of) = readings.gauges.iter().find(|of| of.name == name) else { continue };
                if self.of_process(name) {
                    family.encode_gauge(&of.value)?;
                    break;
                }
                family.encode_family(&[("datapath", datapath)])?.encode_gauge(&of.value)?;
            }
        }
        Ok(())
    }

    /// A family with a series for each port.
    fn by_port(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        value: impl Fn(&PortReading) -> u64,
    ) -> fmt::Result {
        if self.read().all(|(_, readings)| readings.ports.is_empty()) {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (datapath, readings) in self.read() {
            for port in &readings.ports {
                let labels = [("datapath", datapath), ("port", port.port.as_str())];
                let mut metric = family.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, _, u64>(&value(port), None)?;
            }
        }
        Ok(())
    }
}

impl Collector for Encoded {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let up = "Is the datapath served, and does the kernel tell of it?";
        let mut family = encoder.encode_descriptor("up", up, None, MetricType::Gauge)?;
        for Scrape { datapath, readings } in &self.0 {
            let labels = [("datapath", datapath.as_str())];
            family.encode_family(&labels)?.encode_gauge(&i64::from(readings.is_ok()))?;
        }
        if self.read().next().is_some() {
            let help = "What runs, and where.";
            let mut family = encoder.encode_descriptor("build", help, None, MetricType::Info)?;
            for (datapath, readings) in self.read() {
                let labels = [("datapath", datapath)];
                family.encode_family(&labels)?.encode_info(&readings.about)?;
            }
        }
        self.counters(&mut encoder)?;
        self.gauges(&mut encoder)?;
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

    fn readings(received: u64) -> Readings {
        let port = PortReading { port: "p\"0\\".into(), delivered: 7, failed: 1 };
        Readings {
            about: vec![("version", "1".into())],
            counters: vec![
                Reading { name: "received", help: "Messages.", value: received },
                Reading { name: "control_commands", help: "Commands.", value: 4 },
            ],
            gauges: vec![Gauge { name: "flows", help: "Flows.", value: 2.0 }],
            ports: vec![port],
        }
    }

    fn scrape(datapath: &str, readings: Result<Readings, String>) -> Scrape {
        Scrape { datapath: datapath.into(), readings }
    }

    #[test]
    fn a_scrape_is_text_that_ends() {
        let text = text(vec![scrape("dp0", Ok(readings(3)))]).unwrap();
        for line in [
            "# HELP upcalld_received Messages.",
            "# TYPE upcalld_received counter",
            "upcalld_received_total{datapath=\"dp0\"} 3",
            "upcalld_control_commands_total{datapath=\"dp0\"} 4",
            "upcalld_flows{datapath=\"dp0\"} 2.0",
            "upcalld_up{datapath=\"dp0\"} 1",
            "upcalld_build_info{version=\"1\",datapath=\"dp0\"} 1",
            "upcalld_port_upcalls_total{datapath=\"dp0\",port=\"p\\\"0\\\\\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "no '{line}' in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn several_datapaths_have_a_series_each_and_the_process_one() {
        let mut other = readings(5);
        other.counters.push(Reading { name: "macs_refused", help: "MACs.", value: 1 });
        let gone = scrape("dp2", Err("gone".into()));
        let all = vec![scrape("dp0", Ok(readings(3))), scrape("dp1", Ok(other)), gone];
        let text = text(all).unwrap();
        for (line, times) in [
            ("# TYPE upcalld_received counter", 1),
            ("upcalld_received_total{datapath=\"dp0\"} 3", 1),
            ("upcalld_received_total{datapath=\"dp1\"} 5", 1),
            ("upcalld_macs_refused_total{datapath=\"dp1\"} 1", 1),
            ("upcalld_control_commands_total 4", 1),
            ("upcalld_up{datapath=\"dp1\"} 1", 1),
            ("upcalld_up{datapath=\"dp2\"} 0", 1),
        ] {
            assert_eq!(
                text.lines().filter(|found| *found == line).count(),
                times,
                "{line}\n{text}"
            );
        }
        assert!(!text.contains("upcalld_received_total{datapath=\"dp2\"}"), "{text}");
    }

    #[test]
    fn without_a_datapath_it_is_not_up() {
        let text = text(vec![scrape("dp0", Err("gone".into()))]).unwrap();
        assert!(text.contains("upcalld_up{datapath=\"dp0\"} 0\n"), "{text}");
        assert!(!text.contains("received"), "{text}");
    }
}
