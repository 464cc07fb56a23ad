//! The report for programs: one object with the same keys everywhere; `null` is unknown or none.

use serde_json::{Map, Value, json};
use upcall::features::{Answer, CAPABILITIES, DatapathReport, Host, Place, Report, Topology};

use crate::target;

/// Everything, as one line.
pub(super) fn render(report: &Report) -> String {
    let features = report.answers.iter().map(|a| (a.feature.key().to_owned(), feature(a)));
    let value = json!({
        "kernel": report.kernel,
        "probed_on": report.place.map(|place| match place {
            Place::OwnNamespace => "own-namespace",
            Place::Beside => "beside",
        }),
        "features": features.collect::<Map<_, _>>(),
        "process": host(&report.host),
        "cpus": report.topology.as_ref().ok().map(cpus),
        "datapath": report.datapath.as_ref().map(datapath),
        "why": report.why,
    });
    format!("{value}\n")
}

fn feature(answer: &Answer) -> Value {
    let finding = &answer.finding;
    let facts = &finding.facts;
    json!({
        "title": answer.feature.title(),
        "support": finding.support.word(),
        "cause": finding.support.cause().map(|cause| cause.to_string()),
        "evidence": finding.evidence,
        "consequence": answer.consequence(),
        "request": facts.request,
        "errno": facts.errno,
        "ext_ack": facts.ext_ack,
        "attr_max": facts.attr_max,
        "version": facts.version,
    })
}

fn host(host: &Host) -> Value {
    let capabilities = host.capabilities.map(|caps| {
        CAPABILITIES
            .iter()
            .map(|(name, ..)| ((*name).to_owned(), Value::Bool(caps.has(name))))
            .collect::<Map<_, _>>()
    });
    let buffer = host.recv_buffer.map(|buffer| {
        json!({
            "default_bytes": buffer.default_bytes,
            "plain_bytes_max": buffer.plain_bytes,
            "forced_bytes_max": buffer.forced_bytes,
        })
    });
    json!({
        "capabilities": capabilities,
        "net_ns": host.net_ns,
        "user_ns": host.user_ns,
        "user_ns_is_initial": host.in_initial_user_ns(),
        "recv_buffer": buffer,
    })
}

fn cpus(topology: &Topology) -> Value {
    let each = topology.cpus.iter();
    let each = each.map(|c| json!({"id": c.id, "siblings": c.siblings, "node": c.node}));
    json!({
        "possible": topology.possible,
        "present": topology.present,
        "online": topology.online,
        "isolated": topology.isolated,
        "nohz_full": topology.nohz_full,
        "cpuset": topology.cpuset,
        "affinity": topology.affinity,
        "housekeeping": topology.housekeeping(),
        "table_len": topology.table_len(),
        "each": each.collect::<Vec<_>>(),
    })
}

fn datapath(report: &DatapathReport) -> Value {
    let (error, found) = match &report.found {
        Err(err) => (Some(err), None),
        Ok(found) => (None, found.as_ref()),
    };
    let Some((dp, delivery)) = found else {
        return json!({"name": report.name, "present": false, "error": error});
    };
    let table = delivery.table.as_ref();
    let table = table.map(|t| t.entries.iter().map(target::json).collect::<Vec<_>>());
    let ports = delivery.ports.iter().map(|port| {
        let targets: Vec<_> = port.targets.iter().map(target::json).collect();
        json!({"port_no": port.port_no, "name": port.name, "targets": targets})
    });
    let served_by = delivery.served_by();
    let served_by = served_by.iter().map(|o| json!({"pid": o.pid, "command": o.command}));
    json!({
        "name": report.name,
        "present": true,
        "error": null,
        "ifindex": dp.ifindex,
        "features": dp.features.bits(),
        "dispatch_mode": delivery.mode.to_string(),
        "table": table,
        "ports": ports.collect::<Vec<_>>(),
        "served_by": served_by.collect::<Vec<_>>(),
        "remarks": report.remarks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use upcall::features::Feature;

    #[tokio::test]
    async fn one_object_with_every_feature_by_its_key() {
        let report = upcall::features::Probe::new().report(Some("no-such-dp")).await;
        let value: Value = serde_json::from_str(&render(&report)).unwrap();
        for feature in Feature::all() {
            let answer = &value["features"][feature.key()];
            assert!(answer["support"].is_string() && answer["evidence"].is_string(), "{answer}");
            let open = answer["support"] == "undetermined";
            assert_eq!(
                answer["cause"].is_string(),
                open,
                "a cause exactly if it is open: {answer}"
            );
        }
        assert_eq!(value["datapath"]["present"], false);
        assert!(value["why"].as_array().is_some_and(|why| !why.is_empty()));
    }
}
