//! Ports of a datapath.

use anyhow::{Context as _, ensure};
use netns_tests::{TestResult, bench, since, station};
use ovs_datapath::{Control, Events, Links, Object};
use ovs_features::DispatchMode;
use ovs_wire::datapath::{Datapath, UserFeatures};
use ovs_wire::vport::{UpcallStats, VportType, cmd};
use rustix::io::Errno;
use upcall_testkit::{Frame, Links as TestLinks, Veth, raw::ETHERTYPE_EXPERIMENTAL};

use crate::{alone, next_event};

/// A datapath, with the pairs `a0`/`a1` and `b0`/`b1` beside it.
async fn setting(control: &Control) -> anyhow::Result<(Datapath, TestLinks)> {
    let links = TestLinks::open()?;
    links.add_veth(&Veth::new("a0", "a1")).await?;
    links.add_veth(&Veth::new("b0", "b1")).await?;
    Ok((control.create_datapath("dp0", UserFeatures::UNALIGNED).await?, links))
}

/// The errno with which a device is refused.
async fn refusal(
    control: &Control,
    dp: &Datapath,
    (kind, name, number): (VportType, &str, Option<u32>),
) -> anyhow::Result<Errno> {
    match control.add_vport(dp, kind, name, number, 0).await {
        Ok(port) => anyhow::bail!("taken: {port:?}"),
        Err(err) => {
            let text = err.to_string();
            let named = format!("the kernel refused to add port '{name}' to datapath 'dp0': ");
            ensure!(text.starts_with(&named), "{text}");
            Ok(Errno::from_raw_os_error(err.errno().context(text)?))
        }
    }
}

#[test]
fn devices_become_ports_numbered_from_1() -> TestResult {
    alone(async |control| {
        let (dp, links) = setting(control).await?;
        let ports = control.vports(dp.ifindex).await?;
        ensure!(ports.len() == 1 && (ports[0].port_no, &*ports[0].name) == (0, "dp0"), "{ports:?}");
        ensure!(ports[0].kind == VportType::Internal);
        let first = control.add_vport(&dp, VportType::Netdev, "a0", None, 77).await?;
        ensure!((first.port_no, first.kind) == (1, VportType::Netdev), "{first:?}");
        ensure!(first.upcall_pids == [77] && first.dp_ifindex == dp.ifindex, "{first:?}");
        ensure!(first.ifindex == Some(links.get("a0").await?.index), "{first:?}");
        let ninth = control.add_vport(&dp, VportType::Netdev, "b0", Some(9), 0).await?;
        ensure!(ninth.port_no == 9, "{ninth:?}");
        // An internal port makes its device, and takes the lowest free number.
        let inner = control.add_vport(&dp, VportType::Internal, "int0", None, 0).await?;
        ensure!((inner.port_no, inner.kind) == (2, VportType::Internal), "{inner:?}");
        ensure!(links.get("int0").await?.kind.as_deref() == Some("openvswitch"));
        let numbers: Vec<_> =
            control.vports(dp.ifindex).await?.iter().map(|port| port.port_no).collect();
        ensure!(numbers == [0, 1, 2, 9], "{numbers:?}");
        // What a device is a member of, the daemon reads from its link.
        let link = Links::open()?.by_name("a0").await?.context("a0")?;
        ensure!(link.controller == Some(dp.ifindex.cast_unsigned()), "{link:?}");
        Ok(())
    })
}

#[test]
fn what_cannot_be_a_port_is_refused() -> TestResult {
    alone(async |control| {
        let (dp, _links) = setting(control).await?;
        let other = control.create_datapath("dp1", UserFeatures::UNALIGNED).await?;
        control.add_vport(&dp, VportType::Netdev, "a0", None, 0).await?;
        control.add_vport(&other, VportType::Netdev, "b0", None, 0).await?;
        let netdev = VportType::Netdev;
        let cases = [
            ((netdev, "a0", None), &[Errno::EXIST, Errno::BUSY][..], "a port of this datapath"),
            ((netdev, "b0", None), &[Errno::EXIST, Errno::BUSY], "a port of another datapath"),
            ((netdev, "none0", None), &[Errno::NODEV], "no device"),
            ((netdev, "lo", None), &[Errno::INVAL], "a loopback device"),
            ((netdev, "dp1", None), &[Errno::INVAL], "a datapath's own device"),
            ((netdev, "a1", Some(1)), &[Errno::BUSY], "a number that is taken"),
            ((netdev, "a1", Some(65535)), &[Errno::FBIG], "a number too high"),
            ((VportType::Other(99), "a1", None), &[Errno::AFNOSUPPORT], "a type there is not"),
        ];
        for (request, allowed, what) in cases {
            let errno = refusal(control, &dp, request).await.context(what)?;
            ensure!(allowed.contains(&errno), "{what}: {errno:?}");
        }
        ensure!(control.vports(dp.ifindex).await?.len() == 2, "no refusal leaves a port");
        Ok(())
    })
}

#[test]
fn a_port_is_deleted_and_its_device_stays() -> TestResult {
    alone(async |control| {
        let (dp, links) = setting(control).await?;
        let mut events = Events::subscribe(control)?;
        let port = control.add_vport(&dp, VportType::Netdev, "a0", None, 0).await?;
        control.set_vport_upcall_pid(dp.ifindex, port.port_no, 99).await?;
        ensure!(control.vports(dp.ifindex).await?[1].upcall_pids == [99]);
        control.delete_vport(dp.ifindex, port.port_no).await?;
        ensure!(control.vports(dp.ifindex).await?.len() == 1);
        ensure!(links.get("a0").await?.controller.is_none());
        let err = control.delete_vport(dp.ifindex, port.port_no).await.unwrap_err();
        ensure!(err.is(Errno::NODEV), "{err}");
        let err = control.delete_vport(dp.ifindex, 0).await.unwrap_err();
        ensure!(err.is(Errno::INVAL), "the datapath's own port: {err}");
        for wanted in [cmd::NEW, cmd::SET, cmd::DEL] {
            let event = next_event(&mut events, |_| true).await?;
            ensure!(event.cmd == wanted && event.by_port_id != 0, "{event:?}, not {wanted}");
            let Object::Vport(changed) = event.object else { anyhow::bail!("{event:?}") };
            ensure!((changed.port_no, &*changed.name) == (1, "a0"), "{changed:?}");
        }
        Ok(())
    })
}

#[test]
fn a_device_that_vanishes_takes_its_port_along() -> TestResult {
    alone(async |control| {
        let (dp, links) = setting(control).await?;
        control.add_vport(&dp, VportType::Netdev, "a0", None, 0).await?;
        let mut events = Events::subscribe(control)?;
        links.delete("a1").await?;
        let event = next_event(&mut events, |event| event.cmd == cmd::DEL).await?;
        let Object::Vport(port) = event.object else { anyhow::bail!("{event:?}") };
        ensure!((port.port_no, &*port.name) == (1, "a0"), "{port:?}");
        ensure!(event.by_port_id == 0, "nobody asked for it");
        ensure!(control.vports(dp.ifindex).await?.len() == 1);
        Ok(())
    })
}

#[test]
fn counters_of_packets_and_from_6_2_of_upcalls() -> TestResult {
    bench(2, DispatchMode::PerVport, async |bench| {
        let bytes = Frame::new(station(1), station(2)).raw(ETHERTYPE_EXPERIMENTAL, &[0; 46]);
        for _ in 0..3 {
            bench.miss(0, &bytes)?;
        }
        let port = bench.control.vports(bench.dp.ifindex).await?.remove(1);
        ensure!((port.stats.rx_packets, port.stats.rx_bytes) == (3, 180), "{port:?}");
        let upcalls = UpcallStats { success: 3, fail: 0 };
        ensure!(port.upcall_stats == since(6, 2).then_some(upcalls), "{port:?}");
        let stats = bench.stats().await?;
        ensure!((stats.missed, stats.lost, stats.hit) == (3, 0, 0), "{stats:?}");
        Ok(())
    })
}
