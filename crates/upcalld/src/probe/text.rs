//! The report for people: aligned, greppable, within 100 columns.

use std::fmt::Write;

use upcall::features::cpu::list_text;
use upcall::features::{
    Answer, CAPABILITIES, Cause, DatapathReport, DispatchMode, Feature, Host, Place, Report,
    Topology,
};

use crate::columns::{VALUE_AT, heading, row, wrapped};
use crate::target::{self, served_by};

/// Where the text behind a feature's answer starts.
const TEXT_AT: usize = 43;

/// Everything.
pub(super) fn render(report: &Report) -> String {
    let mut out = format!("kernel {}\n", report.kernel);
    features(&mut out, report);
    host(&mut out, &report.host);
    cpus(&mut out, &report.topology);
    if let Some(dp) = &report.datapath {
        datapath(&mut out, dp);
    }
    heading(&mut out, "which dispatch mode, and why");
    for line in &report.why {
        wrapped(&mut out, "  ", line, 2);
    }
    out
}

fn features(out: &mut String, report: &Report) {
    let mut group = None;
    for answer in &report.answers {
        if group != Some(answer.feature.group()) {
            group = Some(answer.feature.group());
            heading(out, answer.feature.group().title());
        }
        feature(out, answer);
    }
    let how = match report.place {
        None => return,
        Some(Place::OwnNamespace) => "in a network namespace of its own",
        Some(Place::Beside) => "beside the others, deleted again",
    };
    let _ = writeln!(out, "\n  (dispatch features and actions were tried on a datapath {how})");
}

fn feature(out: &mut String, answer: &Answer) {
    let Answer { feature, finding } = answer;
    let name_width = VALUE_AT - 2;
    let first = format!("  {:<name_width$}{:<14}", feature.title(), finding.support.word());
    let text = match finding.support.cause() {
        None => finding.evidence.clone(),
        // Said once, of the module; the others follow.
        Some(cause @ Cause::NoModule) if *feature != Feature::Module => cause.to_string(),
        Some(cause) => format!("{cause}: {}", finding.evidence),
    };
    wrapped(out, &first, &text, TEXT_AT);
    if finding.support.is_conclusive() || *feature == Feature::Module {
        let arrow = format!("{}-> ", " ".repeat(TEXT_AT));
        wrapped(out, &arrow, answer.consequence(), TEXT_AT + 3);
    }
}

fn host(out: &mut String, host: &Host) {
    heading(out, "this process");
    match host.capabilities {
        None => row(out, "capabilities", "unknown"),
        Some(caps) => {
            for (name, _, purpose) in CAPABILITIES {
                let word = if caps.has(name) { "yes" } else { "no" };
                row(out, name, &format!("{word:<4} ({purpose})"));
            }
        }
    }
    let inode = |inode: Option<u64>| inode.map_or("unknown".to_owned(), |n| n.to_string());
    row(out, "network namespace", &inode(host.net_ns));
    let initial = match host.in_initial_user_ns() {
        Some(true) => " (the initial one)",
        Some(false) => " (not the initial one)",
        None => "",
    };
    row(out, "user namespace", &format!("{}{initial}", inode(host.user_ns)));
    if let Some(buffer) = host.recv_buffer {
        let bytes = |bytes: usize| format!("{bytes} bytes");
        row(out, "receive buffer, default", &bytes(buffer.default_bytes));
        row(out, "receive buffer, plain", &format!("up to {}", bytes(buffer.plain_bytes)));
        let forced = buffer
            .forced_bytes
            .map_or("not permitted".to_owned(), |n| format!("up to {}", bytes(n)));
        row(out, "receive buffer, forced", &forced);
    }
}

fn cpus(out: &mut String, topology: &Result<Topology, String>) {
    heading(out, "CPUs");
    let topology = match topology {
        Ok(topology) => topology,
        Err(err) => return row(out, "possible", &format!("unknown: {err}")),
    };
    let sparse = if topology.is_sparse() { ", ids are sparse" } else { "" };
    let entries = topology.table_len();
    let possible = list_text(&topology.possible);
    row(out, "possible", &format!("{possible} (a per-CPU table has {entries} entries{sparse})"));
    for (name, ids) in [
        ("present", &topology.present),
        ("online", &topology.online),
        ("isolated", &topology.isolated),
        ("nohz_full", &topology.nohz_full),
        ("cpuset", &topology.cpuset),
        ("own affinity", &topology.affinity),
    ] {
        row(out, name, &ids_text(ids.as_deref()));
    }
    row(
        out,
        "housekeeping",
        &format!("{} (own, neither isolated nor nohz_full)", list_text(&topology.housekeeping())),
    );
    let cores: Vec<_> = topology.cores().into_iter().map(list_text).collect();
    row(out, "cores", &if cores.is_empty() { "unknown".into() } else { cores.join("; ") });
    let of_node = |node: &usize| {
        let on_it = topology.cpus.iter().filter(|cpu| cpu.node == Some(*node));
        format!("{node}: {}", list_text(&on_it.map(|cpu| cpu.id).collect::<Vec<_>>()))
    };
    let nodes: Vec<_> = topology.nodes().iter().map(of_node).collect();
    row(out, "NUMA nodes", &if nodes.is_empty() { "unknown".into() } else { nodes.join("; ") });
}

fn ids_text(ids: Option<&[usize]>) -> String {
    match ids {
        None => "unknown".to_owned(),
        Some([]) => "none".to_owned(),
        Some(ids) => list_text(ids),
    }
}

fn datapath(out: &mut String, report: &DatapathReport) {
    heading(out, &format!("datapath {}", report.name));
    let (dp, delivery) = match &report.found {
        Err(err) => return row(out, "state", &format!("unknown: {err}")),
        Ok(None) => {
            return row(out, "state", "there is none of that name in this network namespace");
        }
        Ok(Some(found)) => found,
    };
    let when = if delivery.mode == DispatchMode::PerCpu { "in force" } else { "kept for later" };
    row(out, "dispatch", &delivery.mode.to_string());
    row(out, "features", &format!("{:#x}", dp.features.bits()));
    row(out, "served by", &served_by(delivery));
    match &delivery.table {
        None => row(out, "per-CPU table", "none reported"),
        Some(table) => {
            row(out, "per-CPU table", &format!("{} entries, {when}", table.entries.len()));
            for (cpu, target) in table.entries.iter().enumerate() {
                row(out, &format!("  CPU {cpu}"), &target::text(target));
            }
        }
    }
    for port in &delivery.ports {
        let targets: Vec<_> = port.targets.iter().map(target::text).collect();
        row(out, &format!("port {} {}", port.port_no, port.name), &targets.join(", "));
    }
    for remark in &report.remarks {
        row(out, "remark", remark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::COLUMNS;

    #[test]
    fn every_title_fits_its_column() {
        for feature in Feature::all() {
            assert!(feature.title().len() < VALUE_AT - 2, "{}", feature.title());
        }
    }

    #[tokio::test]
    async fn a_report_of_this_host_fits_the_width_and_ends_with_the_reason() {
        let report = upcall::features::Probe::new().report(Some("no-such-dp")).await;
        let text = render(&report);
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
        let (_, reason) = text.split_once("which dispatch mode, and why\n").unwrap();
        assert!(!reason.trim().is_empty());
        assert!(text.contains("datapath no-such-dp"));
    }
}
