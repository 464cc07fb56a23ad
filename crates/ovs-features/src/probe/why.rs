//! The question that users ask: why this dispatch mode?

use super::{Answer, DatapathReport, Feature};
use crate::DispatchMode;
use crate::finding::{Cause, Support};

/// Why a dispatcher that may choose would choose which mode, in sentences; then why the datapath that
/// was looked at is in another one.
pub(super) fn explain(
    kernel: &str,
    answers: &[Answer],
    datapath: Option<&DatapathReport>,
) -> Vec<String> {
    let find = |feature| answers.iter().find(|answer| answer.feature == feature);
    let (Some(module), Some(per_cpu)) = (find(Feature::Module), find(Feature::PerCpu)) else {
        return Vec::new();
    };
    let mut lines = if module.finding.support == Support::Available {
        let honest = find(Feature::Negotiation).map(|answer| answer.finding.support);
        choice(kernel, per_cpu, honest == Some(Support::Unavailable))
    } else {
        vec![
            format!("Neither mode can be selected: {}.", module.finding.evidence),
            format!("What to do: {}.", module.consequence()),
        ]
    };
    lines.extend(datapath.and_then(|report| disagreement(report, per_cpu.finding.support)));
    lines
}

fn choice(kernel: &str, per_cpu: &Answer, agrees_to_anything: bool) -> Vec<String> {
    let evidence = &per_cpu.finding.evidence;
    match per_cpu.finding.support {
        Support::Available => vec![
            format!("Per-CPU dispatch is selected: kernel {kernel} has it ({evidence})."),
            "Per-vport dispatch is used only when it is asked for (--dispatch per-vport).".into(),
        ],
        Support::Unavailable => vec![
            format!(
                "Per-vport dispatch is selected because kernel {kernel} has no per-CPU dispatch: \
                 {evidence}."
            ),
            "What to do: nothing has to be done, it works. Per-CPU dispatch came with Linux 5.15 \
             and is in some older distribution kernels."
                .into(),
        ],
        Support::Undetermined(Cause::AgreesToAnything) => vec![format!(
            "Per-vport dispatch is selected because kernel {kernel} agrees to features that do not \
             exist (before Linux 5.4), so its agreement to per-CPU dispatch means nothing."
        )],
        Support::Undetermined(_) if agrees_to_anything => vec![format!(
            "Per-vport dispatch is selected because kernel {kernel} does not check features."
        )],
        Support::Undetermined(Cause::Needs(capability)) => vec![
            format!(
                "It cannot be told which mode is selected: {evidence}. No attribute of the families \
                 rules per-CPU dispatch out."
            ),
            format!("What to do: run the probe as root or with {capability}."),
        ],
        Support::Undetermined(_) => vec![format!(
            "It cannot be told which mode is selected: {evidence}. A dispatcher would stop with \
             this error."
        )],
    }
}

/// A datapath that is in per-vport mode although the kernel has the other one.
fn disagreement(report: &DatapathReport, per_cpu: Support) -> Option<String> {
    let (dp, delivery) = report.found.as_ref().ok()?.as_ref()?;
    if delivery.mode != DispatchMode::PerVport || per_cpu == Support::Unavailable {
        return None;
    }
    Some(format!(
        "Datapath '{}' is in per-vport mode because its features ({:#x}) lack the per-CPU bit: \
         whoever serves it asked for that, or nobody has set a table on it yet.",
        dp.name,
        dp.features.bits()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Delivery;
    use ovs_wire::datapath::{Datapath, UserFeatures};

    fn answers(module: Support, per_cpu: Support) -> Vec<Answer> {
        let answer = |feature: Feature, support| Answer {
            feature,
            finding: feature.finding(support, "the evidence"),
        };
        vec![
            answer(Feature::Module, module),
            answer(Feature::Negotiation, Support::Available),
            answer(Feature::PerCpu, per_cpu),
        ]
    }

    fn why(module: Support, per_cpu: Support) -> String {
        explain("5.10.0", &answers(module, per_cpu), None).join("\n")
    }

    #[test]
    fn the_reason_for_per_vport_names_kernel_and_evidence() {
        let text = why(Support::Available, Support::Unavailable);
        assert!(text.starts_with("Per-vport dispatch is selected because kernel 5.10.0"), "{text}");
        assert!(text.contains("the evidence") && text.contains("5.15"), "{text}");
    }

    #[test]
    fn every_other_state_has_its_own_words() {
        let anything = Support::Undetermined(Cause::AgreesToAnything);
        assert!(why(Support::Available, anything).contains("Per-vport dispatch is selected"));
        assert!(why(Support::Available, Support::Available).contains("Per-CPU dispatch is"));
        let needs = Support::Undetermined(Cause::Needs("CAP_NET_ADMIN"));
        assert!(why(Support::Available, needs).contains("with CAP_NET_ADMIN"));
        let absent = why(Support::Unavailable, needs);
        assert!(absent.starts_with("Neither mode") && absent.contains("What to do"), "{absent}");
        assert!(why(Support::Available, Support::Undetermined(Cause::Refused)).contains("error"));
    }

    #[test]
    fn a_datapath_in_the_other_mode_is_explained() {
        let dp = Datapath {
            name: "dp0".into(),
            features: UserFeatures::VPORT_PIDS,
            ..Datapath::default()
        };
        let delivery = Delivery { mode: DispatchMode::PerVport, table: None, ports: vec![] };
        let report =
            DatapathReport { name: "dp0".into(), found: Ok(Some((dp, delivery))), remarks: vec![] };
        let told = |per_cpu| {
            let answers = answers(Support::Available, per_cpu);
            explain("6.1", &answers, Some(&report)).iter().any(|line| line.contains("'dp0'"))
        };
        assert!(told(Support::Available));
        assert!(!told(Support::Unavailable), "there the kernel is the reason");
    }
}
