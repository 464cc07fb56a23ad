//! Datapaths and their features.

use anyhow::{Context as _, ensure};
use netns_tests::{TestResult, has_per_cpu, since};
use ovs_datapath::{Control, Events, Object};
use ovs_wire::datapath::{Datapath, UserFeatures, cmd};
use rustix::io::Errno;
use upcall_testkit::NetNs;

use crate::{alone, next_event};

const PER_CPU: UserFeatures = UserFeatures::DISPATCH_UPCALL_PER_CPU;

async fn again(control: &Control, dp: &Datapath) -> anyhow::Result<Datapath> {
    control.datapath(&dp.name).await?.context("the datapath is gone")
}

#[test]
fn one_is_created_found_listed_and_deleted() -> TestResult {
    alone(async |control| {
        ensure!(control.datapath("dp0").await?.is_none() && control.datapaths().await?.is_empty());
        let dp = control.create_datapath("dp0", UserFeatures::UNALIGNED).await?;
        ensure!(dp.name == "dp0" && dp.ifindex > 0 && dp.features == UserFeatures::UNALIGNED);
        ensure!(dp.stats == ovs_wire::datapath::DatapathStats::default(), "{dp:?}");
        ensure!(dp.masks_cache_size == Some(256), "since 5.9: {dp:?}");
        ensure!(again(control, &dp).await?.ifindex == dp.ifindex);
        let other = control.create_datapath("dp1", UserFeatures::empty()).await?;
        let mut names: Vec<_> =
            control.datapaths().await?.into_iter().map(|dp| (dp.name, dp.ifindex)).collect();
        names.sort();
        let expected = [("dp0".to_owned(), dp.ifindex), ("dp1".to_owned(), other.ifindex)];
        ensure!(names == expected, "{names:?}");
        control.delete_datapath(&dp).await?;
        ensure!(control.datapath("dp0").await?.is_none());
        let err = control.delete_datapath(&dp).await.unwrap_err();
        ensure!(err.is(Errno::NODEV), "{err}");
        Ok(())
    })
}

#[test]
fn a_taken_name_is_refused_and_the_features_stay() -> TestResult {
    alone(async |control| {
        let dp = control.create_datapath("dp0", UserFeatures::UNALIGNED).await?;
        let err = control.create_datapath("dp0", UserFeatures::empty()).await.unwrap_err();
        ensure!(err.is(Errno::EXIST), "{err}");
        let text = err.to_string();
        ensure!(text.starts_with("the kernel refused to create datapath 'dp0': "), "{text}");
        // A request of version 1 would have reset them.
        ensure!(again(control, &dp).await?.features == UserFeatures::UNALIGNED);
        let err = control.create_datapath("lo", UserFeatures::empty()).await.unwrap_err();
        ensure!(err.is(Errno::EXIST), "the name of another device: {err}");
        Ok(())
    })
}

#[test]
fn features_are_replaced_and_unknown_ones_refused() -> TestResult {
    alone(async |control| {
        let both = UserFeatures::UNALIGNED | UserFeatures::VPORT_PIDS;
        let dp = control.create_datapath("dp0", UserFeatures::UNALIGNED).await?;
        control.set_datapath(&dp, both, None).await?;
        ensure!(again(control, &dp).await?.features == both);
        let impossible = both | UserFeatures::IMPOSSIBLE;
        let err = control.set_datapath(&dp, impossible, None).await.unwrap_err();
        ensure!(err.is(Errno::OPNOTSUPP), "{err}");
        ensure!(again(control, &dp).await?.features == both, "a refusal changes nothing");
        control.set_datapath(&dp, UserFeatures::empty(), None).await?;
        ensure!(again(control, &dp).await?.features.is_empty());
        Ok(())
    })
}

#[test]
fn the_per_cpu_table_is_taken_from_5_15_and_told_from_6_1() -> TestResult {
    alone(async |control| {
        let dp = control.create_datapath("dp0", UserFeatures::UNALIGNED).await?;
        let features = UserFeatures::UNALIGNED | PER_CPU;
        let cpus = ovs_features::cpu::table_len()?;
        let table: Vec<u32> = (0..cpus as u32).map(|cpu| 1000 + cpu).collect();
        let answer = control.set_datapath(&dp, features, Some(&table)).await;
        if !has_per_cpu() {
            ensure!(answer.is_err_and(|err| err.is(Errno::OPNOTSUPP)));
            ensure!(again(control, &dp).await?.features == UserFeatures::UNALIGNED);
            return Ok(());
        }
        answer?;
        let found = again(control, &dp).await?;
        ensure!(found.features == features);
        ensure!(found.per_cpu_pids == since(6, 1).then_some(table.clone()), "{found:?}");
        // The table outlives the bit: that keeps a datapath safe that another tool flips.
        control.set_datapath(&dp, UserFeatures::UNALIGNED, None).await?;
        control.set_datapath(&dp, features, None).await?;
        let found = again(control, &dp).await?.per_cpu_pids;
        ensure!(found == since(6, 1).then_some(table), "{found:?}");
        let err = control.set_datapath(&dp, features, Some(&[])).await.unwrap_err();
        ensure!(err.is(Errno::INVAL), "an empty table: {err}");
        Ok(())
    })
}

#[test]
fn events_say_what_changed_and_who_did_it() -> TestResult {
    let ns = NetNs::new("events")?;
    ns.block_on(async || {
        let control = Control::open().await?;
        let mut events = Events::subscribe(&control)?;
        let dp = control.create_datapath("dp0", UserFeatures::UNALIGNED).await?;
        control.set_datapath(&dp, UserFeatures::UNALIGNED, None).await?;
        control.delete_datapath(&dp).await?;
        let mut requesters = Vec::new();
        for wanted in [cmd::NEW, cmd::SET, cmd::DEL] {
            let is_dp = |event: &ovs_datapath::Event| matches!(event.object, Object::Datapath(_));
            let event = next_event(&mut events, is_dp).await?;
            ensure!(event.cmd == wanted, "{event:?}, not command {wanted}");
            let Object::Datapath(changed) = event.object else { unreachable!("filtered") };
            ensure!(changed.ifindex == dp.ifindex && changed.name == "dp0", "{changed:?}");
            requesters.push(event.by_port_id);
        }
        // One socket did it all, it is alive, and it is this process's.
        ensure!(requesters.iter().all(|id| *id == requesters[0]), "{requesters:?}");
        let live = ovs_datapath::live_port_ids()?;
        let inode = live.get(&requesters[0]).context("its requester lives")?;
        let owner = ovs_datapath::socket_owner(*inode).context("its owner is found")?;
        ensure!(owner.pid == std::process::id(), "{owner:?}");
        Ok(())
    })?
}
