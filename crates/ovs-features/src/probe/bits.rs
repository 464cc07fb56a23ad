//! Features that a SET switches on, asked of a datapath of our own.

use ovs_datapath::ControlError;
use ovs_wire::datapath::UserFeatures;
use rustix::io::Errno;

use super::Feature;
use crate::ask::Ask;
use crate::finding::{Cause, Facts, Finding, Support};

/// A port id for the table that no process is likely to have. Nothing is sent there: the datapath
/// that is asked has no traffic.
const TABLE: [u32; 1] = [u32::MAX];

/// Bits that are asked for one at a time.
const BITS: [(Feature, UserFeatures); 3] = [
    (Feature::Unaligned, UserFeatures::UNALIGNED),
    (Feature::VportPids, UserFeatures::VPORT_PIDS),
    (Feature::TcRecircSharing, UserFeatures::TC_RECIRC_SHARING),
];

/// Asks for every bit. The features of the datapath are none afterwards.
pub(super) async fn probe(ask: &impl Ask) -> Vec<(Feature, Finding)> {
    let negotiation = negotiation(ask).await;
    let honest = negotiation.support == Support::Available;
    let mut found = vec![(Feature::Negotiation, negotiation)];
    for (feature, bit) in BITS {
        found.push((feature, bit_alone(ask, feature, bit, honest).await));
    }
    let (per_cpu, reported) = per_cpu(ask, honest).await;
    found.push((Feature::PerCpu, per_cpu));
    found.push((Feature::TableReported, reported));
    let _the_datapath_is_deleted_next = ask.set(UserFeatures::empty(), None).await;
    found
}

/// Asks for a feature that does not exist. Kernels before 5.4 agree to it, and would agree to anything
/// (`ovs_dp_change` checks bits since 95a7233c452a, `net/openvswitch/datapath.c`).
async fn negotiation(ask: &impl Ask) -> Finding {
    let feature = Feature::Negotiation;
    let facts = Facts::request(format!("set features {:#x}", UserFeatures::IMPOSSIBLE.bits()));
    match ask.set(UserFeatures::IMPOSSIBLE, None).await {
        Ok(()) => feature
            .finding(
                Support::Unavailable,
                "the kernel agrees to a feature that does not exist, as all do before Linux 5.4",
            )
            .with(facts),
        Err(err) if err.is(Errno::OPNOTSUPP) => feature
            .finding(Support::Available, "a feature that does not exist is refused (EOPNOTSUPP)")
            .with(Facts::of(&err)),
        Err(err) => Finding::open(feature.title(), &err),
    }
}

async fn bit_alone(ask: &impl Ask, feature: Feature, bit: UserFeatures, honest: bool) -> Finding {
    let request = format!("set features {:#x}", bit.bits());
    match ask.set(bit, None).await {
        Ok(()) => agreed(ask, feature, bit, honest).await.with(Facts::request(request)),
        Err(err) => disagreed(feature, &err),
    }
}

/// The kernel said yes: believed if it can say no and the bit is there when it is read back.
async fn agreed(ask: &impl Ask, feature: Feature, bit: UserFeatures, honest: bool) -> Finding {
    match ask.get().await {
        Err(err) => Finding::open(feature.title(), &err),
        Ok(_) if !honest => feature.finding(
            Support::Undetermined(Cause::AgreesToAnything),
            format!("the kernel agreed to {:#x}, as it does to anything", bit.bits()),
        ),
        Ok(dp) if dp.features.contains(bit) => feature.finding(
            Support::Available,
            format!("set {:#x}, read back {:#x}", bit.bits(), dp.features.bits()),
        ),
        Ok(dp) => feature.finding(
            Support::Undetermined(Cause::NoAnswer),
            format!("set {:#x}, but read back {:#x}", bit.bits(), dp.features.bits()),
        ),
    }
}

/// `EOPNOTSUPP` is how kernels refuse a feature they do not have; all else says nothing of it.
fn disagreed(feature: Feature, err: &ControlError) -> Finding {
    if err.is(Errno::OPNOTSUPP) {
        Finding::refused(feature.title(), Support::Unavailable, err)
    } else {
        Finding::open(feature.title(), err)
    }
}

/// The bit and a table in one SET, and whether the table is read back (since 6.1).
async fn per_cpu(ask: &impl Ask, honest: bool) -> (Finding, Finding) {
    let bits = UserFeatures::UNALIGNED | UserFeatures::DISPATCH_UPCALL_PER_CPU;
    let request =
        || Facts::request(format!("set features {:#x} with a table of 1 CPU", bits.bits()));
    let reported = Feature::TableReported;
    if let Err(err) = ask.set(bits, Some(&TABLE)).await {
        let per_cpu = disagreed(Feature::PerCpu, &err);
        let why = "there is no per-CPU table to report";
        return match per_cpu.support {
            Support::Unavailable => (per_cpu, reported.finding(Support::Unavailable, why)),
            _ => (per_cpu, Finding::open(reported.title(), &err)),
        };
    }
    let per_cpu = agreed(ask, Feature::PerCpu, bits, honest).await.with(request());
    let table = match (ask.get().await, honest) {
        (Err(err), _) => Finding::open(reported.title(), &err),
        (Ok(dp), _) if dp.per_cpu_pids.is_some() => {
            reported.finding(Support::Available, "set a table, read it back")
        }
        (Ok(_), true) => reported
            .finding(Support::Unavailable, "set a table, but GET has none (before Linux 6.1)"),
        (Ok(_), false) => reported.finding(
            Support::Undetermined(Cause::AgreesToAnything),
            "set a table, as one can set anything here, but GET has none",
        ),
    };
    (per_cpu, table.with(request()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::models::Model;

    async fn found(model: &Model) -> Vec<(Feature, Support)> {
        probe(model).await.into_iter().map(|(feature, f)| (feature, f.support)).collect()
    }

    fn support(found: &[(Feature, Support)], feature: Feature) -> Support {
        found.iter().find(|(f, _)| *f == feature).unwrap().1
    }

    #[tokio::test]
    async fn a_kernel_before_5_4_agrees_to_anything_and_is_not_believed() {
        let found = found(&Model::new(None)).await;
        assert_eq!(support(&found, Feature::Negotiation), Support::Unavailable);
        for feature in [Feature::PerCpu, Feature::Unaligned, Feature::TableReported] {
            let doubt = Support::Undetermined(Cause::AgreesToAnything);
            assert_eq!(support(&found, feature), doubt, "{feature:?}");
        }
    }

    #[tokio::test]
    async fn a_kernel_before_5_15_refuses_per_cpu_and_has_the_rest() {
        let found = found(&Model::new(Some(0b0111))).await;
        assert_eq!(support(&found, Feature::Negotiation), Support::Available);
        assert_eq!(support(&found, Feature::PerCpu), Support::Unavailable);
        assert_eq!(support(&found, Feature::TableReported), Support::Unavailable);
        assert_eq!(support(&found, Feature::VportPids), Support::Available);
    }

    #[tokio::test]
    async fn a_kernel_before_6_1_has_a_table_that_it_does_not_report() {
        let model = Model { reports_table: false, ..Model::new(Some(0b1111)) };
        let found = found(&model).await;
        assert_eq!(support(&found, Feature::PerCpu), Support::Available);
        assert_eq!(support(&found, Feature::TableReported), Support::Unavailable);
    }

    #[tokio::test]
    async fn a_kernel_without_tc_extensions_refuses_that_bit_alone() {
        let found = found(&Model::new(Some(0b1011))).await;
        assert_eq!(support(&found, Feature::TcRecircSharing), Support::Unavailable);
        assert_eq!(support(&found, Feature::PerCpu), Support::Available);
    }

    #[tokio::test]
    async fn without_the_privilege_nothing_is_known() {
        let model = Model { refuses_all: Some(Errno::PERM), ..Model::new(Some(0b1111)) };
        for (feature, support) in found(&model).await {
            let needs = Support::Undetermined(Cause::Needs("CAP_NET_ADMIN"));
            assert_eq!(support, needs, "{feature:?}");
        }
    }

    #[tokio::test]
    async fn bit_and_table_travel_in_one_set() {
        let model = Model::new(Some(0b1111));
        probe(&model).await;
        assert!(model.sets.borrow().contains(&(0b1001, Some(1))));
        assert_eq!(model.features(), 0, "and nothing stays switched on");
    }
}
