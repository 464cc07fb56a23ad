//! Where the time of upcalls goes, as the daemon tells it.

use anyhow::{Context as _, ensure};
use netns_tests::traffic::{Traffic, ensure_all};
use netns_tests::{Lab, TestResult, modes, tell};
use upcall_testkit::{Hosts, Quantiles};

#[test]
fn each_stage_of_a_new_flow_is_told() -> TestResult {
    for mode in modes() {
        let lab = Lab::start(Hosts::new(2)?, |builder| builder.dispatch(mode).install("exact"))?;
        let traffic = Traffic::pinned(&lab.hosts)?;
        ensure_all(&traffic.finish()?)?;
        let stats = lab.finish_after_races()?;
        let stage = |name: &str| {
            let told =
                stats.latency_ns.get(name).with_context(|| format!("no {name}: {stats:?}"))?;
            tell(&format!("{mode}, {name}: {told:?}"));
            let Quantiles { count, p50, p90, p99, p999 } = *told;
            ensure!(count > 0 && p50.is_some(), "{name} was not measured: {stats:?}");
            ensure!(p50 <= p90 && p90 <= p99 && p99 <= p999, "{name}: {told:?}");
            Ok(p50)
        };
        stage("queued_socket")?;
        ensure!(stage("decide")? > Some(0), "the switch takes no time: {stats:?}");
        let (execute, install) = (stage("execute")?, stage("install")?);
        ensure!(install > execute, "a flow goes in behind its packets: {stats:?}");
        ensure!(stats.latency_ns["queued_lane"].count == stats.lane_queued, "{stats:?}");
    }
    Ok(())
}
