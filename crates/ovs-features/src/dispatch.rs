//! Per-CPU or per-vport dispatch: what the kernel offers, and how to switch it on.

use std::fmt;
use std::str::FromStr;

use ovs_datapath::{Control, ControlError, Families};
use ovs_wire::datapath::{Datapath, UserFeatures, attr};
use rustix::io::Errno;

use crate::ask::{Ask, OnKernel};
use crate::finding::{Decision, Facts, Finding, Support};
use crate::kernel_release;

/// How the kernel chooses the socket of an upcall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DispatchMode {
    /// By the CPU that handles the packet (since 5.15).
    PerCpu,
    /// By the port that received it.
    PerVport,
}

impl fmt::Display for DispatchMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PerCpu => "per-cpu",
            Self::PerVport => "per-vport",
        })
    }
}

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// Per-CPU where the kernel has it.
    #[default]
    Auto,
    /// Per-CPU or an error.
    PerCpu,
    /// Per-vport.
    PerVport,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "per-cpu" => Ok(Self::PerCpu),
            "per-vport" => Ok(Self::PerVport),
            _ => Err(format!("'{text}' is no dispatch mode: use auto, per-cpu or per-vport")),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::PerCpu => "per-cpu",
            Self::PerVport => "per-vport",
        })
    }
}

const PER_CPU: &str = "per-CPU dispatch";
const NEGOTIATION: &str = "feature negotiation";

/// Finds out whether per-CPU dispatch can be asked for. Changes nothing on `dp`, except on kernels
/// before 5.4, where asking for an impossible feature succeeds and is undone.
///
/// # Errors
///
/// When the kernel refuses for a reason that has nothing to do with features, such as `EPERM`.
pub async fn survey(control: &Control, dp: &Datapath) -> Result<Vec<Finding>, ControlError> {
    let by_attributes = per_cpu_attribute(control.families());
    let conclusive = by_attributes.support == Support::Unavailable;
    let mut findings = vec![by_attributes];
    if !conclusive {
        findings.push(checks_features(&OnKernel { control, dp }, dp.features).await?);
    }
    Ok(findings)
}

/// The per-CPU table is attribute 8 of the datapath family: a kernel whose family ends before it
/// cannot have one.
fn per_cpu_attribute(families: &Families) -> Finding {
    let (max, need) = (families.datapath.attr_max, u32::from(attr::PER_CPU_PIDS));
    let kernel = kernel_release();
    if max >= need {
        let evidence = format!(
            "kernel {kernel} knows datapath attributes up to {max}, and the per-CPU table is {need}"
        );
        Finding::new(PER_CPU, Support::Available, evidence)
    } else {
        let evidence = format!(
            "kernel {kernel} knows datapath attributes up to {max}, but the per-CPU table is {need} \
             (Linux 5.15)"
        );
        Finding::new(PER_CPU, Support::Unavailable, evidence)
    }
}

/// Asks for a feature that does not exist: a kernel that agrees does not check features (before 5.4),
/// so its agreement to per-CPU dispatch would mean nothing.
async fn checks_features(ask: &impl Ask, before: UserFeatures) -> Result<Finding, ControlError> {
    let kernel = kernel_release();
    match ask.set(before | UserFeatures::IMPOSSIBLE, None).await {
        Err(err) if err.is(Errno::OPNOTSUPP) => Ok(Finding::new(
            NEGOTIATION,
            Support::Available,
            format!("kernel {kernel} refuses features it does not have"),
        )),
        Err(err) => Err(err),
        Ok(()) => {
            ask.set(before, None).await?;
            Ok(Finding::new(
                NEGOTIATION,
                Support::Unavailable,
                format!(
                    "kernel {kernel} agrees to a feature that does not exist, so its agreement to \
                     per-CPU dispatch would mean nothing (before Linux 5.4)"
                ),
            ))
        }
    }
}

/// Chooses the mode from what was found. Per-CPU is still to be switched on by [`enable_per_cpu`],
/// whose finding can overturn the choice.
pub fn choose(wanted: Wanted, findings: Vec<Finding>) -> Decision {
    let offered = findings.iter().all(|f| f.support == Support::Available);
    let mut decision = Decision { mode: DispatchMode::PerVport, findings };
    if wanted == Wanted::PerVport {
        let finding = Finding::new(PER_CPU, Support::Available, "per-vport dispatch was asked for");
        decision.findings.push(finding);
    } else if offered {
        decision.mode = DispatchMode::PerCpu;
    }
    decision
}

/// Switches per-CPU dispatch on: features and table in one SET, as the kernel demands. `table[cpu]` is
/// the port id for that CPU; never 0.
///
/// # Errors
///
/// Any refusal but `EOPNOTSUPP`, which is a finding. The features of `dp` are then as they were: a
/// kernel that refuses a table has applied the features of the same SET already.
pub async fn enable_per_cpu(
    control: &Control,
    dp: &Datapath,
    table: &[u32],
) -> Result<Finding, ControlError> {
    debug_assert!(table.iter().all(|port_id| *port_id != 0), "a 0 loses that CPU's upcalls");
    switch_on(&OnKernel { control, dp }, dp.features, table).await
}

async fn switch_on(
    ask: &impl Ask,
    before: UserFeatures,
    table: &[u32],
) -> Result<Finding, ControlError> {
    let features = UserFeatures::UNALIGNED | UserFeatures::DISPATCH_UPCALL_PER_CPU;
    let kernel = kernel_release();
    let cpus = table.len();
    match ask.set(features, Some(table)).await {
        Ok(()) => Ok(Finding::new(
            PER_CPU,
            Support::Available,
            format!("kernel {kernel} took the per-CPU feature with a table of {cpus} CPUs"),
        )),
        Err(err) if err.is(Errno::OPNOTSUPP) => {
            let evidence = format!("{err}; per-CPU dispatch came with Linux 5.15");
            let finding = Finding::new(PER_CPU, Support::Unavailable, evidence);
            Ok(finding.with(Facts::of(&err)))
        }
        Err(err) => {
            // `ovs_dp_change` stores the features before it looks at the table, and does not undo it.
            let _the_first_error_counts = ask.set(before, None).await;
            Err(err)
        }
    }
}

/// Switches to per-vport dispatch. Each port's socket is set on the port.
///
/// A `table` that is not empty is left behind in the kernel, which keeps it while the per-CPU feature
/// is off: whoever switches the feature on (any client of the peer's does) then loses no upcall.
pub async fn enable_per_vport(
    control: &Control,
    dp: &Datapath,
    table: &[u32],
) -> Result<(), ControlError> {
    if !table.is_empty() {
        enable_per_cpu(control, dp, table).await?;
    }
    let features = UserFeatures::UNALIGNED | UserFeatures::VPORT_PIDS;
    control.set_datapath(dp, features, None).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::models::Model;
    use ovs_wire::family::Family;

    fn families(attr_max: u32) -> Families {
        let datapath = Family { attr_max, ..Family::default() };
        let other = Family::default;
        Families { datapath, vport: other(), flow: other(), packet: other() }
    }

    #[test]
    fn the_attribute_maximum_tells_kernels_apart() {
        assert_eq!(per_cpu_attribute(&families(7)).support, Support::Unavailable);
        assert_eq!(per_cpu_attribute(&families(8)).support, Support::Available);
        assert_eq!(per_cpu_attribute(&families(9)).support, Support::Available);
    }

    #[test]
    fn auto_takes_per_cpu_only_when_every_step_allows_it() {
        let yes = || Finding::new("x", Support::Available, "yes");
        let no = || Finding::new("x", Support::Unavailable, "the reason");
        assert_eq!(choose(Wanted::Auto, vec![yes(), yes()]).mode, DispatchMode::PerCpu);
        let fallback = choose(Wanted::Auto, vec![yes(), no()]);
        assert_eq!(fallback.mode, DispatchMode::PerVport);
        assert_eq!(fallback.reason(), "the reason");
        let asked = choose(Wanted::PerVport, vec![yes()]);
        assert_eq!(asked.mode, DispatchMode::PerVport);
        assert_eq!(asked.reason(), "per-vport dispatch was asked for");
    }

    #[tokio::test]
    async fn a_refused_table_does_not_leave_its_features_behind() {
        let before = UserFeatures::UNALIGNED | UserFeatures::VPORT_PIDS;
        // Length 0, or not a multiple of 4: EINVAL after the features were stored.
        let empty = Model::new(Some(0b1111));
        let full = Model { refuses_tables: Some(Errno::NOMEM), ..Model::new(Some(0b1111)) };
        for (model, table) in [(empty, [].as_slice()), (full, &[7])] {
            model.state.borrow_mut().features = before;
            assert!(switch_on(&model, before, table).await.is_err());
            assert_eq!(model.features(), before.bits());
        }
    }

    #[tokio::test]
    async fn a_kernel_before_5_4_is_found_out_and_its_agreement_undone() {
        let model = Model::new(None);
        model.state.borrow_mut().features = UserFeatures::VPORT_PIDS;
        let finding = checks_features(&model, UserFeatures::VPORT_PIDS).await.unwrap();
        assert_eq!(finding.support, Support::Unavailable);
        assert_eq!(model.features(), UserFeatures::VPORT_PIDS.bits());
        assert_eq!(choose(Wanted::Auto, vec![finding]).mode, DispatchMode::PerVport);
        let model = Model::new(Some(0b1111));
        let finding = checks_features(&model, UserFeatures::empty()).await.unwrap();
        assert_eq!((finding.support, model.sets.borrow().len()), (Support::Available, 1));
        let model = Model { refuses_all: Some(Errno::PERM), ..Model::new(None) };
        assert!(checks_features(&model, UserFeatures::empty()).await.is_err());
    }

    #[tokio::test]
    async fn features_and_table_go_in_one_request() {
        let model = Model::new(Some(0b1111));
        let finding = switch_on(&model, UserFeatures::empty(), &[7, 8]).await.unwrap();
        assert_eq!(finding.support, Support::Available);
        assert_eq!(*model.sets.borrow(), [(0b1001, Some(2))]);
    }

    #[tokio::test]
    async fn a_kernel_without_per_cpu_is_a_finding_and_changes_nothing() {
        let model = Model::new(Some(0b0111));
        let finding = switch_on(&model, UserFeatures::UNALIGNED, &[7]).await.unwrap();
        assert_eq!((finding.support, finding.facts.errno), (Support::Unavailable, Some(95)));
        assert_eq!(model.sets.borrow().len(), 1);
    }

    #[test]
    fn modes_are_read_as_they_are_printed() {
        for wanted in [Wanted::Auto, Wanted::PerCpu, Wanted::PerVport] {
            assert_eq!(wanted.to_string().parse(), Ok(wanted));
        }
        assert!("percpu".parse::<Wanted>().unwrap_err().contains("per-cpu"));
    }
}
