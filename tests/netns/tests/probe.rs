//! What the probe says of each kernel, both ways: available from a release on, unavailable below; that
//! it changes nothing; and what kernels do with features and tables, on which the probe stands.
#![allow(missing_docs, reason = "a test binary")]

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, ensure};
use netns_tests::{TestResult, bench, has_per_cpu, since};
use ovs_datapath::{Control, ControlError, Events, Object};
use ovs_features::{Answer, Cause, DispatchMode, End, Feature, Group, Place, Probe, Support};
use ovs_wire::datapath::{self, Datapath, UserFeatures, attr, cmd};
use ovs_wire::nl::{NLM_F_ACK, NLM_F_ECHO, OvsHeader};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use upcall_testkit::NetNs;
use upcall_testkit::daemon::UPCALLD_BIN;

/// Features with the release that brought them. The kernels of the matrix were built with connection
/// tracking and psample.
const SINCE: [(Feature, u32, u32); 15] = [
    (Feature::Negotiation, 5, 4),
    (Feature::PerCpu, 5, 15),
    (Feature::TableReported, 6, 1),
    (Feature::Unaligned, 3, 14),
    (Feature::VportPids, 3, 17),
    (Feature::Hash, 5, 5),
    (Feature::UpcallPid, 6, 17),
    (Feature::UpcallStats, 6, 2),
    (Feature::MasksCache, 5, 9),
    (Feature::DpIfindex, 6, 1),
    (Feature::Drop, 6, 6),
    (Feature::Psample, 6, 11),
    (Feature::CheckPktLen, 5, 2),
    (Feature::Ct, 4, 3),
    (Feature::Meters, 4, 15),
];

fn support(answers: &[Answer], feature: Feature) -> Support {
    let answer = answers.iter().find(|answer| answer.feature == feature);
    answer.expect("every feature is answered").finding.support
}

#[test]
fn features_are_there_from_their_release_on_and_not_before() -> TestResult {
    let (answers, place) = NetNs::new("probe")?.block_on(async || {
        let mut probe = Probe::new();
        (probe.answers().await, probe.place())
    })?;
    ensure!(place == Some(Place::OwnNamespace));
    for (feature, major, minor) in SINCE {
        let there = since(major, minor);
        let expected = if there { Support::Available } else { Support::Unavailable };
        let answer = answers.iter().find(|answer| answer.feature == feature).context("unasked")?;
        ensure!(answer.finding.support == expected, "{answer:?}");
    }
    let groups = [Group::Module, Group::Families];
    for answer in answers.iter().filter(|answer| groups.contains(&answer.feature.group())) {
        ensure!(answer.finding.support == Support::Available, "{answer:?}");
    }
    // A matter of how the kernel was built, but never an open question for root.
    for feature in [Feature::TcRecircSharing, Feature::DecTtl, Feature::ForcedBuffer] {
        ensure!(support(&answers, feature).is_conclusive(), "{feature:?}");
    }
    Ok(())
}

/// Devices, datapaths with ports, and flows of the namespace of the calling thread.
async fn inventory(control: &Control) -> anyhow::Result<String> {
    let devices = fs::read_to_string("/proc/thread-self/net/dev")?;
    let names: Vec<_> = devices.lines().filter_map(|l| Some(l.split_once(':')?.0.trim())).collect();
    let mut text = format!("{names:?}");
    for dp in control.datapaths().await? {
        let ports = control.vports(dp.ifindex).await?;
        let flows = control.flows(dp.ifindex, |flow| format!("{flow:?}")).await?;
        write!(text, "\n{dp:?}\n{ports:?}\n{flows:?}")?;
    }
    Ok(text)
}

/// The names of the datapaths in the events up to the creation of `marker`, which is created here: no
/// waiting for what shall not come.
async fn seen(control: &Control, events: &mut Events, marker: &str) -> anyhow::Result<Vec<String>> {
    control.create_datapath(marker, UserFeatures::UNALIGNED).await?;
    let mut names = Vec::new();
    loop {
        let event = events.recv().await.context("the events ended")?;
        match event.object {
            Object::Datapath(dp) if dp.name == marker => return Ok(names),
            Object::Datapath(dp) => names.push(dp.name),
            Object::Vport(_) => {}
            Object::Lost => names.push("lost".to_owned()),
        }
    }
}

fn mode() -> DispatchMode {
    if has_per_cpu() { DispatchMode::PerCpu } else { DispatchMode::PerVport }
}

#[test]
fn a_probe_changes_nothing_and_says_nothing() -> TestResult {
    bench(2, mode(), async |bench| {
        let before = inventory(&bench.control).await?;
        let mut events = Events::subscribe(&bench.control)?;
        let report = Probe::new().report(Some("dp0")).await;
        ensure!(report.is_answered() && report.place == Some(Place::OwnNamespace));
        ensure!(inventory(&bench.control).await? == before);
        let names = seen(&bench.control, &mut events, "marker").await?;
        ensure!(names.is_empty(), "others were told of {names:?}");
        Ok(())
    })
}

/// Leaves the calling thread, and those it will start, only these of its capabilities.
fn keep_only(kept: CapabilitySet) -> anyhow::Result<()> {
    let mut sets = capabilities(None)?;
    sets.effective &= kept;
    sets.permitted &= kept;
    Ok(set_capabilities(None, sets)?)
}

#[test]
fn without_permission_for_a_namespace_it_cleans_up_beside_the_others() -> TestResult {
    bench(1, mode(), async |bench| {
        let before = inventory(&bench.control).await?;
        let mut events = Events::subscribe(&bench.control)?;
        let ns = bench.hosts.switch.clone();
        let (answers, place) = ns.block_on(async || {
            keep_only(CapabilitySet::NET_ADMIN)?;
            let mut probe = Probe::new();
            anyhow::Ok((probe.answers().await, probe.place()))
        })??;
        ensure!(place == Some(Place::Beside));
        for (feature, major, minor) in SINCE {
            let available = support(&answers, feature) == Support::Available;
            ensure!(available == since(major, minor), "{feature:?}");
        }
        ensure!(inventory(&bench.control).await? == before);
        let names = seen(&bench.control, &mut events, "marker").await?;
        ensure!(names.iter().all(|name| name.starts_with("probe")), "touched: {names:?}");
        ensure!(!names.is_empty(), "the scratch datapath was seen");
        Ok(())
    })
}

#[test]
fn without_privileges_the_rest_is_answered_and_nothing_wrong_is_remembered() -> TestResult {
    let ns = NetNs::new("probe")?;
    let (mut probe, answers) = ns.block_on(async || {
        keep_only(CapabilitySet::empty())?;
        let mut probe = Probe::new();
        let answers = probe.answers().await;
        anyhow::Ok((probe, answers))
    })??;
    let needs = Support::Undetermined(Cause::Needs("CAP_NET_ADMIN"));
    for feature in [Feature::Negotiation, Feature::Unaligned, Feature::Ct, Feature::ForcedBuffer] {
        ensure!(support(&answers, feature) == needs, "{feature:?}");
    }
    let hash = if since(5, 5) { Support::Available } else { Support::Unavailable };
    ensure!(support(&answers, Feature::Hash) == hash);
    // An attribute that is not known rules per-CPU dispatch out for anyone.
    let per_cpu = if has_per_cpu() { needs } else { Support::Unavailable };
    ensure!(support(&answers, Feature::PerCpu) == per_cpu);
    // The same value, asked again with privileges.
    let answers = ns.block_on(async || probe.answers().await)?;
    ensure!(support(&answers, Feature::Negotiation) == Support::Available);
    ensure!((support(&answers, Feature::PerCpu) == Support::Available) == has_per_cpu());
    Ok(())
}

/// A SET of these attributes, echoed: what it made of the datapath, with the reply's command.
async fn set(
    control: &Control,
    dp: &Datapath,
    features: Option<UserFeatures>,
    table: Option<&[u8]>,
) -> Result<(u8, Datapath), ControlError> {
    let mut payload = Vec::new();
    let header = OvsHeader { cmd: cmd::SET, version: datapath::VERSION, dp_ifindex: dp.ifindex };
    let written = header.write(&mut payload, |b| {
        features.map(|features| b.u32(attr::USER_FEATURES, features.bits()));
        table.map(|table| b.bytes(attr::PER_CPU_PIDS, table));
    });
    written.expect("it is short");
    let family = &control.families().datapath;
    let replies = control.request("set it", family, NLM_F_ACK | NLM_F_ECHO, payload).await?;
    Ok(Datapath::parse(&replies[0]).expect("a datapath"))
}

async fn features(control: &Control) -> anyhow::Result<UserFeatures> {
    Ok(control.datapath("dp").await?.context("no datapath")?.features)
}

fn on_a_datapath(
    test: impl AsyncFnOnce(&Control, &Datapath) -> anyhow::Result<()> + Send,
) -> TestResult {
    NetNs::new("facts")?.block_on(async || {
        let control = Control::open().await?;
        let dp = control.create_datapath("dp", UserFeatures::UNALIGNED).await?;
        test(&control, &dp).await
    })?
}

const PER_CPU: UserFeatures = UserFeatures::DISPATCH_UPCALL_PER_CPU;

#[test]
fn a_set_without_features_resets_them_and_answers_as_a_set() -> TestResult {
    on_a_datapath(async |control, dp| {
        let (command, after) = set(control, dp, None, None).await?;
        // Before 5.4 the command would be NEW.
        ensure!(command == cmd::SET && after.features.is_empty(), "{command} {after:?}");
        Ok(())
    })
}

#[test]
fn an_impossible_feature_is_refused_and_nothing_changes() -> TestResult {
    on_a_datapath(async |control, dp| {
        let err = set(control, dp, Some(UserFeatures::IMPOSSIBLE), None).await.err();
        ensure!(err.context("taken")?.is(rustix::io::Errno::OPNOTSUPP));
        ensure!(features(control).await? == UserFeatures::UNALIGNED);
        let per_cpu = set(control, dp, Some(PER_CPU), Some(&[1, 0, 0, 0])).await;
        ensure!(per_cpu.is_ok() == has_per_cpu(), "{per_cpu:?}");
        Ok(())
    })
}

#[test]
fn a_refused_table_leaves_its_features_behind_unless_they_are_set_back() -> TestResult {
    on_a_datapath(async |control, dp| {
        for table in [[].as_slice(), &[1, 2, 3, 4, 5]] {
            control.set_datapath(dp, UserFeatures::UNALIGNED, None).await?;
            let err = set(control, dp, Some(PER_CPU), Some(table)).await.err().context("taken")?;
            let errno = if has_per_cpu() { 22 } else { 95 };
            ensure!(err.errno() == Some(errno), "{err}");
            let left = if has_per_cpu() { PER_CPU } else { UserFeatures::UNALIGNED };
            ensure!(features(control).await? == left);
        }
        // What the library does about it.
        control.set_datapath(dp, UserFeatures::UNALIGNED, None).await?;
        let outcome = ovs_features::enable_per_cpu(control, dp, &[]).await;
        ensure!(outcome.is_err() == has_per_cpu(), "{outcome:?}");
        ensure!(features(control).await? == UserFeatures::UNALIGNED);
        Ok(())
    })
}

#[test]
fn a_table_without_the_bit_is_ignored() -> TestResult {
    on_a_datapath(async |control, dp| {
        let (_, after) =
            set(control, dp, Some(UserFeatures::UNALIGNED), Some(&[9, 0, 0, 0])).await?;
        ensure!(after.features == UserFeatures::UNALIGNED && after.per_cpu_pids.is_none());
        Ok(())
    })
}

#[test]
fn the_report_of_a_datapath_names_who_serves_it_and_who_is_gone() -> TestResult {
    bench(2, mode(), async |bench| {
        let inspect = async || -> anyhow::Result<_> {
            let report = Probe::new().report(Some("dp0")).await.datapath.context("no report")?;
            let found = report.found.map_err(anyhow::Error::msg)?.context("no datapath")?;
            Ok((found.1, report.remarks))
        };
        let (delivery, remarks) = inspect().await?;
        ensure!(delivery.mode == bench.mode);
        // Kernels from 5.15 to 6.0 have a table and do not tell it.
        let told = !has_per_cpu() || since(6, 1);
        let pids: Vec<_> = delivery.served_by().iter().map(|owner| owner.pid).collect();
        ensure!(pids == if told { vec![std::process::id()] } else { vec![] }, "{delivery:?}");
        drop(bench.sockets.remove(0));
        let (delivery, after) = inspect().await?;
        let targets = delivery.in_force().unwrap_or_default();
        ensure!(targets.iter().filter(|t| t.end == End::Dead).count() == usize::from(told));
        let gone = |remarks: &[String]| remarks.iter().filter(|r| r.contains("is gone")).count();
        ensure!(gone(&remarks) == 0 && gone(&after) == usize::from(told), "{after:?}");
        Ok(())
    })
}

/// `upcalld probe` in an empty namespace.
fn upcalld(arguments: &[&str]) -> anyhow::Result<Output> {
    let program = std::env::var_os(UPCALLD_BIN).context("UPCALLD_BIN names the binary")?;
    let mut command = Command::new(program);
    command.arg("probe").args(arguments).stdin(Stdio::null());
    Ok(NetNs::new("probe")?.run(|| command.output())??)
}

#[test]
fn the_program_says_why_which_mode_is_selected() -> TestResult {
    let output = upcalld(&["--datapath", "no-such-dp"])?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let (_, why) = text.split_once("which dispatch mode, and why").context("no reason")?;
    let kernel = ovs_features::kernel_release();
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    let start = if has_per_cpu() {
        format!("Per-CPU dispatch is selected: kernel {kernel} has it")
    } else {
        format!("Per-vport dispatch is selected because kernel {kernel} has no per-CPU dispatch")
    };
    ensure!(why.starts_with(&start), "{why}");
    Ok(())
}

#[test]
fn the_program_answers_scripts() -> TestResult {
    let output = upcalld(&["--json"])?;
    ensure!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let answer = &report["features"]["per_cpu_dispatch"];
    let expected = if has_per_cpu() { "available" } else { "unavailable" };
    ensure!(answer["support"] == expected, "{answer}");
    ensure!(report["cpus"]["table_len"] == ovs_features::cpu::table_len()?);
    ensure!(report["probed_on"] == "own-namespace", "{report}");
    Ok(())
}
