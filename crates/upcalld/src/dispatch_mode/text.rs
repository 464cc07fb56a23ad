//! For people.

use upcall::features::Target;

use super::View;
use crate::columns::{heading, row};
use crate::target::{self, served_by};

/// All datapaths.
pub(super) fn render(views: &[View]) -> String {
    if views.is_empty() {
        return "no datapath in this network namespace\n".to_owned();
    }
    let mut out = String::new();
    for view in views {
        datapath(&mut out, view);
    }
    out.trim_start().to_owned()
}

fn datapath(out: &mut String, view: &View) {
    heading(out, &format!("datapath {}", view.name));
    row(out, "dispatch", &view.delivery.mode.to_string());
    match &view.told {
        Ok(told) => row(out, "because", &told.reason),
        Err(why) => row(out, "because", &format!("not known: {why}")),
    }
    row(out, "features", &format!("{:#x}", view.features));
    row(out, "served by", &served_by(&view.delivery));
    row(out, "sockets", &view.sockets().to_string());
    table(out, view);
    if !view.table_is_in_force() {
        for port in &view.delivery.ports {
            let targets: Vec<_> = port.targets.iter().map(|t| line(view, t)).collect();
            row(out, &format!("port {} {}", port.port_no, port.name), &targets.join(", "));
        }
    }
}

fn table(out: &mut String, view: &View) {
    let when = if view.table_is_in_force() { "in force" } else { "kept for later" };
    let Some(table) = &view.delivery.table else {
        return row(out, "per-CPU table", "none reported");
    };
    row(out, "per-CPU table", &format!("{} entries, {when}", table.entries.len()));
    for (cpu, target) in table.entries.iter().enumerate() {
        row(out, &format!("  CPU {cpu}"), &line(view, target));
    }
}

fn line(view: &View, target: &Target) -> String {
    let worker = view.worker(target).map_or_else(String::new, |name| format!(" -> {name}"));
    format!("{}{worker}", target::text(target))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{told, view};
    use super::*;

    #[test]
    fn each_cpu_leads_to_a_worker_and_the_reason_is_there() {
        let text = render(&[view(Ok(told()))]);
        let cpu1 = text.lines().find(|line| line.trim_start().starts_with("CPU 1")).unwrap();
        assert!(cpu1.contains("port id 8 ->") && cpu1.ends_with("-> upcall-1"), "{cpu1}");
        assert!(text.contains("because") && text.starts_with("datapath dp0"), "{text}");
    }

    #[test]
    fn what_is_not_known_is_said() {
        let text = render(&[view(Err("who serves it does not tell".into()))]);
        assert!(text.contains("not known: who serves it does not tell"), "{text}");
        assert!(!text.contains("upcall-"), "{text}");
        assert!(render(&[]).contains("no datapath"));
    }
}
