//! All of it at one moment.

use std::path::Path;

use ovs_wire::datapath::Datapath;

use super::{Answer, Feature, Place, Probe, why};
use crate::DispatchMode;
use crate::finding::Support;
use crate::host::Host;
use crate::table::{Delivery, End, deliveries};
use crate::topology::Topology;

/// What this host can do, and what a datapath on it does.
#[derive(Debug, Clone)]
pub struct Report {
    /// Release of the running kernel.
    pub kernel: String,
    /// Every feature, in the order of [`Feature::all`].
    pub answers: Vec<Answer>,
    /// Where features were tried; `None`: nowhere.
    pub place: Option<Place>,
    /// This process.
    pub host: Host,
    /// The CPUs, or why they could not be read.
    pub topology: Result<Topology, String>,
    /// The datapath that was looked at.
    pub datapath: Option<DatapathReport>,
    /// Why which dispatch mode is selected, in sentences.
    pub why: Vec<String>,
}

/// A datapath as it is now.
#[derive(Debug, Clone)]
pub struct DatapathReport {
    /// Its name.
    pub name: String,
    /// What the kernel says of it; `None`: there is none; else why it could not be asked.
    pub found: Result<Option<(Datapath, Delivery)>, String>,
    /// What is wrong with it, in sentences.
    pub remarks: Vec<String>,
}

impl Report {
    /// The answer about a feature.
    pub fn answer(&self, feature: Feature) -> Option<&Answer> {
        self.answers.iter().find(|answer| answer.feature == feature)
    }

    /// Could the kernel be asked anything at all? Without a netlink socket it cannot.
    pub fn is_answered(&self) -> bool {
        self.answers.iter().any(|answer| answer.finding.support.is_conclusive())
            || self.answer(Feature::Module).is_some_and(|m| m.finding.facts.errno.is_some())
    }
}

impl Probe {
    /// Asks for everything, and with `datapath` for how that one delivers its upcalls now. Works in
    /// the network namespace of the calling thread, inside a tokio runtime.
    pub async fn report(&mut self, datapath: Option<&str>) -> Report {
        let answers = self.answers().await;
        let topology = Topology::read(Path::new("/")).map_err(|err| err.to_string());
        let datapath = match datapath {
            Some(name) => Some(look_at(name, topology.as_ref().ok(), &answers).await),
            None => None,
        };
        let kernel = crate::kernel_release();
        let why = why::explain(&kernel, &answers, datapath.as_ref());
        let (host, place) = (Host::read(), self.place());
        Report { kernel, answers, place, host, topology, datapath, why }
    }
}

async fn look_at(name: &str, topology: Option<&Topology>, answers: &[Answer]) -> DatapathReport {
    let reported = answers.iter().find(|answer| answer.feature == Feature::TableReported);
    let reported = reported.is_none_or(|a| a.finding.support != Support::Unavailable);
    let found = deliveries(Some(name)).await.map_err(|err| err.to_string());
    let found = found.map(|mut found| found.pop());
    let remarks = match &found {
        Ok(Some((_, delivery))) => remarks(delivery, topology, reported),
        _ => Vec::new(),
    };
    DatapathReport { name: name.to_owned(), found, remarks }
}

/// What is wrong with how a datapath delivers.
fn remarks(delivery: &Delivery, topology: Option<&Topology>, reported: bool) -> Vec<String> {
    match (delivery.mode, &delivery.table) {
        (DispatchMode::PerVport, _) => port_remarks(delivery),
        (DispatchMode::PerCpu, None) if reported => {
            vec!["no per-CPU table is set: every upcall is lost".to_owned()]
        }
        (DispatchMode::PerCpu, None) => {
            vec!["this kernel does not report the per-CPU table (before Linux 6.1)".to_owned()]
        }
        (DispatchMode::PerCpu, Some(table)) => {
            let mut remarks = Vec::new();
            let need = topology.map_or(0, Topology::table_len);
            if table.entries.len() < need {
                let have = table.entries.len();
                remarks.push(format!(
                    "the table has {have} entries for CPU ids up to {}: CPUs beyond it share \
                     entries by modulo",
                    need - 1
                ));
            }
            let ends = table.entries.iter().enumerate().map(|(cpu, target)| (cpu, &target.end));
            remarks.extend(ends.filter_map(|(cpu, end)| lost(&format!("CPU {cpu}"), end)));
            remarks
        }
    }
}

fn port_remarks(delivery: &Delivery) -> Vec<String> {
    let ports = delivery.ports.iter().flat_map(|port| {
        let name = format!("port {} ({})", port.port_no, port.name);
        port.targets.iter().map(move |target| (name.clone(), &target.end))
    });
    ports.filter_map(|(name, end)| lost(&name, end)).collect()
}

fn lost(who: &str, end: &End) -> Option<String> {
    match end {
        End::Nowhere => Some(format!("{who} has no socket: its upcalls are lost")),
        End::Dead => Some(format!("{who} has a socket that is gone: its upcalls are lost")),
        End::Alive(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Table, Target};

    fn delivery(mode: DispatchMode, table: Option<&[End]>) -> Delivery {
        let entries = |ends: &[End]| Table {
            entries: ends.iter().map(|end| Target { port_id: 1, end: end.clone() }).collect(),
        };
        Delivery { mode, table: table.map(entries), ports: Vec::new() }
    }

    fn told(delivery: &Delivery, cpus: usize, reported: bool) -> String {
        let possible = (0..cpus).collect();
        let topology = Topology { possible, ..Topology::default() };
        remarks(delivery, Some(&topology), reported).join("; ")
    }

    #[test]
    fn a_missing_table_is_told_from_one_that_is_not_reported() {
        let none = delivery(DispatchMode::PerCpu, None);
        assert!(told(&none, 2, true).contains("every upcall is lost"));
        assert!(told(&none, 2, false).contains("does not report"));
        assert_eq!(told(&delivery(DispatchMode::PerVport, None), 2, true), "");
    }

    #[test]
    fn holes_dead_sockets_and_short_tables_are_named() {
        let ends = [End::Alive(None), End::Nowhere, End::Dead];
        let text = told(&delivery(DispatchMode::PerCpu, Some(&ends)), 4, true);
        for part in [
            "3 entries for CPU ids up to 3",
            "CPU 1 has no socket",
            "CPU 2 has a socket that is gone",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let whole = delivery(DispatchMode::PerCpu, Some(&[End::Alive(None)]));
        assert_eq!(told(&whole, 1, true), "");
    }
}
