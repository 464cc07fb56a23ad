//! What a userspace action sends up.

use anyhow::ensure;
use netns_tests::{Bench, TestResult, bench};
use ovs_features::DispatchMode;
use ovs_wire::action::USERSPACE_PID_PER_CPU;
use ovs_wire::flow::FlowPut;
use ovs_wire::packet::UpcallKind;
use ovs_wire::{Action, ActionBuf, AttrBuilder, FlowKey, MatchFields};

use crate::{IP1, IP2, at, frame, mode, modes};

const USERDATA: &[u8] = b"a cookie of odd length.";

fn udp(port: u16) -> anyhow::Result<Vec<u8>> {
    Ok(frame().udp(at(IP1, port), at(IP2, 53), &[7; 58])?)
}

fn userspace(pid: u32, actions: bool) -> Action<'static> {
    Action::Userspace { pid, userdata: Some(USERDATA), egress_tun_port: None, actions }
}

/// Installs a flow for everything like the frame that host 0 sends.
async fn install(bench: &mut Bench, bytes: &[u8], actions: &ActionBuf) -> TestResult {
    let got = bench.miss(0, bytes)?;
    let (mut mask, key) = (Vec::new(), got.upcall().key);
    FlowKey::new(key).write_mask(MatchFields::IN_PORT, &mut AttrBuilder::new(&mut mask))?;
    let put = FlowPut {
        dp_ifindex: bench.dp.ifindex,
        key,
        mask: Some(&mask),
        actions: actions.as_bytes(),
        probe: false,
        ufid: None,
    };
    Ok(bench.control.put_flow(&put).await?)
}

#[test]
fn userdata_comes_back_and_the_mode_chooses_the_socket() -> TestResult {
    for mode in modes() {
        bench(2, *mode, async |bench| {
            // The action names the second socket. Per CPU, that is of no account.
            let pid = bench.sockets[1].port_id();
            let mut actions = ActionBuf::new();
            actions.output(2).push(&userspace(pid, true))?;
            install(bench, &udp(1)?, &actions).await?;
            let bytes = udp(2)?;
            bench.links[0].send(&bytes)?;
            let got = bench.upcall("the action's upcall")?;
            let wanted = usize::from(*mode == DispatchMode::PerVport);
            ensure!(got.socket == wanted, "{mode}: socket {}", got.socket);
            let upcall = got.upcall();
            ensure!(upcall.kind == UpcallKind::Action && upcall.packet == bytes);
            ensure!(upcall.userdata == Some(USERDATA), "{:?}", upcall.userdata);
            ensure!(upcall.actions == Some(actions.as_bytes()), "the flow's actions, as asked");
            ensure!(FlowKey::new(upcall.key).summary()?.tp_src == 2, "the packet's own key");
            ensure!(bench.arrival(1)? == bytes, "and it goes where the flow says");
            ensure!(bench.stats().await?.lost == 0);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_placeholder_for_per_cpu_dispatch_is_delivered() -> TestResult {
    if mode() == DispatchMode::PerVport {
        // There it is the address of a socket that does not exist: a counted loss.
        return bench(1, DispatchMode::PerVport, async |bench| {
            let mut actions = ActionBuf::new();
            actions.push(&userspace(USERSPACE_PID_PER_CPU, false))?;
            install(bench, &udp(1)?, &actions).await?;
            bench.links[0].send(&udp(2)?)?;
            bench.wait_stats("the loss", |stats| stats.lost == 1).await.map(drop)
        });
    }
    bench(1, DispatchMode::PerCpu, async |bench| {
        let mut actions = ActionBuf::new();
        actions.push(&userspace(USERSPACE_PID_PER_CPU, false))?;
        install(bench, &udp(1)?, &actions).await?;
        bench.links[0].send(&udp(2)?)?;
        let got = bench.upcall("the action's upcall")?;
        ensure!(got.socket == 0 && got.upcall().userdata == Some(USERDATA));
        ensure!(got.upcall().actions.is_none(), "not asked for");
        Ok(())
    })
}

#[test]
fn a_truncated_packet_says_how_long_it_was() -> TestResult {
    for mode in modes() {
        bench(2, *mode, async |bench| {
            let mut actions = ActionBuf::new();
            actions.push(&Action::Trunc(60))?;
            actions.push(&userspace(bench.sockets[0].port_id(), false))?.output(2);
            install(bench, &udp(1)?, &actions).await?;
            let bytes = udp(2)?;
            bench.links[0].send(&bytes)?;
            let got = bench.upcall("the action's upcall")?;
            let upcall = got.upcall();
            ensure!(upcall.packet == &bytes[..60], "{} bytes", upcall.packet.len());
            ensure!(upcall.len == Some(bytes.len() as u32) && upcall.is_truncated(), "{upcall:?}");
            ensure!(bench.arrival(1)? == bytes, "the cut is for one action alone");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_cut_longer_than_the_packet_is_none() -> TestResult {
    bench(1, mode(), async |bench| {
        let mut actions = ActionBuf::new();
        actions.push(&Action::Trunc(1000))?;
        actions.push(&userspace(bench.sockets[0].port_id(), false))?;
        install(bench, &udp(1)?, &actions).await?;
        bench.links[0].send(&udp(2)?)?;
        let got = bench.upcall("the action's upcall")?;
        ensure!(got.upcall().packet == udp(2)? && !got.upcall().is_truncated());
        Ok(())
    })
}
