//! For programs: one object with the same keys everywhere; `null` is unknown or none.

use serde_json::{Value, json};
use upcall::features::Target;

use super::View;
use crate::target;

/// All datapaths, as one line.
pub(super) fn render(views: &[View]) -> String {
    let value = json!({ "datapaths": views.iter().map(datapath).collect::<Vec<_>>() });
    format!("{value}\n")
}

fn datapath(view: &View) -> Value {
    let delivery = &view.delivery;
    let read = |t: &Target| {
        let mut value = target::json(t);
        value["worker"] = view.worker(t).into();
        value
    };
    let table = delivery.table.as_ref();
    let table = table.map(|table| table.entries.iter().map(read).collect::<Vec<_>>());
    let ports = delivery.ports.iter().map(|port| {
        let targets: Vec<_> = port.targets.iter().map(read).collect();
        json!({"port_no": port.port_no, "name": port.name, "targets": targets})
    });
    let served_by = delivery.served_by();
    let served_by = served_by.iter().map(|o| json!({"pid": o.pid, "command": o.command}));
    json!({
        "name": view.name,
        "dispatch_mode": delivery.mode.to_string(),
        "reason": view.told.as_ref().ok().map(|told| &told.reason),
        "unknown_because": view.told.as_ref().err(),
        "features": view.features,
        "sockets": view.sockets(),
        "table": table,
        "table_in_force": view.table_is_in_force(),
        "ports": ports.collect::<Vec<_>>(),
        "served_by": served_by.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{told, view};
    use super::*;

    #[test]
    fn the_table_is_by_cpu_with_workers() {
        let value: Value = serde_json::from_str(&render(&[view(Ok(told()))])).unwrap();
        let dp = &value["datapaths"][0];
        assert_eq!(
            (&dp["table"][1]["worker"], &dp["reason"]),
            (&"upcall-1".into(), &"because".into())
        );
        assert_eq!(dp["sockets"], 2);
        let value: Value = serde_json::from_str(&render(&[view(Err("x".into()))])).unwrap();
        let dp = &value["datapaths"][0];
        assert!(dp["reason"].is_null() && dp["table"][0]["worker"].is_null(), "{dp}");
        assert_eq!(dp["unknown_because"], "x");
    }
}
