//! What becomes of a packet that is given back.

use anyhow::ensure;
use netns_tests::{Bench, TestResult, bench, since};
use ovs_datapath::ControlError;
use ovs_wire::packet::Execute;
use ovs_wire::{Action, ActionBuf, VlanTci};
use rustix::io::Errno;
use upcall_testkit::VlanTag;

use crate::{IP1, IP2, at, frame, mode, modes};

fn udp() -> anyhow::Result<Vec<u8>> {
    Ok(frame().udp(at(IP1, 1000), at(IP2, 53), &[7; 20])?)
}

fn output(port: u32) -> ActionBuf {
    let mut actions = ActionBuf::new();
    actions.output(port);
    actions
}

#[test]
fn the_answer_to_an_upcall_reaches_the_other_port_unchanged() -> TestResult {
    for mode in modes() {
        bench(3, *mode, async |bench| {
            let bytes = udp()?;
            let got = bench.miss(0, &bytes)?;
            let upcall = got.upcall();
            let actions = output(2);
            // HASH, MRU and UPCALL_PID go back (contract O4): every kernel takes or ignores them.
            let pid = bench.sockets[got.socket].port_id();
            let mut execute = Execute::reply(&upcall, actions.as_bytes(), pid);
            ensure!(execute.hash == upcall.hash && execute.upcall_pid == Some(pid));
            execute.mru = Some(1400);
            bench.control.execute(&execute).await?;
            ensure!(bench.arrival(1)? == bytes);
            // And nowhere else: the frame behind it is the first that host 2 sees.
            bench.execute(0, &bytes[..60], output(3).as_bytes()).await?;
            ensure!(bench.arrival(2)? == bytes[..60]);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_tag_is_pushed_and_popped() -> TestResult {
    bench(2, mode(), async |bench| {
        let (plain, tag) = (udp()?, VlanTag::new(100).priority(3));
        let tagged = frame().vlan(tag).udp(at(IP1, 1000), at(IP2, 53), &[7; 20])?;
        let mut push = ActionBuf::new();
        push.push_vlan(VlanTci::new(100, 3)).output(2);
        bench.execute(0, &plain, push.as_bytes()).await?;
        ensure!(bench.arrival(1)? == tagged);
        let mut pop = ActionBuf::new();
        pop.pop_vlan().output(2);
        bench.execute(0, &tagged, pop.as_bytes()).await?;
        ensure!(bench.arrival(1)? == plain);
        bench.execute(0, &tagged, output(2).as_bytes()).await?;
        ensure!(bench.arrival(1)? == tagged, "untouched");
        Ok(())
    })
}

#[test]
fn no_actions_drop() -> TestResult {
    bench(2, mode(), async |bench| {
        bench.execute(0, &udp()?, &[]).await?;
        let behind = &udp()?[..60];
        bench.execute(0, behind, output(2).as_bytes()).await?;
        ensure!(bench.arrival(1)? == behind, "the first frame to arrive is the second one sent");
        ensure!(bench.fence(0)?.is_empty(), "nothing came up");
        Ok(())
    })
}

#[test]
fn a_bad_action_is_refused_with_its_request_named() -> TestResult {
    bench(1, mode(), async |bench| {
        let truncated_too_short = {
            let mut actions = ActionBuf::new();
            actions.push(&Action::Trunc(13))?;
            actions
        };
        let no_socket = {
            let mut actions = ActionBuf::new();
            let none =
                Action::Userspace { pid: 0, userdata: None, egress_tun_port: None, actions: false };
            actions.push(&none)?;
            actions
        };
        for actions in [&truncated_too_short, &no_socket, &output(u32::MAX)] {
            refused(bench, actions, Errno::INVAL).await?;
        }
        // The drop action came with 6.6.
        let mut explicit = ActionBuf::new();
        explicit.push(&Action::Drop(0))?;
        if since(6, 6) {
            bench.execute(0, &udp()?, explicit.as_bytes()).await?;
        } else {
            refused(bench, &explicit, Errno::INVAL).await?;
        }
        Ok(())
    })
}

async fn refused(bench: &Bench, actions: &ActionBuf, errno: Errno) -> TestResult {
    let answer = bench.execute(0, &udp()?, actions.as_bytes()).await;
    let Err(err @ ControlError::Refused { .. }) = answer else {
        anyhow::bail!("taken: {answer:?} {actions:?}");
    };
    ensure!(err.is(errno), "{err}");
    let text = err.to_string();
    ensure!(text.starts_with("the kernel refused to execute actions on a packet: "), "{text}");
    Ok(())
}

#[test]
fn a_packet_for_a_datapath_that_is_not_there_is_refused() -> TestResult {
    bench(1, mode(), async |bench| {
        bench.dp.ifindex += 1000;
        refused(bench, &output(1), Errno::NODEV).await
    })
}

/// From 6.17 an EXECUTE names the socket of the upcalls that it causes; before, the attribute is
/// ignored.
#[test]
fn upcalls_of_an_executed_packet_go_to_the_socket_it_names() -> TestResult {
    for mode in modes() {
        bench(2, *mode, async |bench| {
            let (bytes, mut actions) = (udp()?, ActionBuf::new());
            // Recirculated, it misses: the port is p0's, the CPU is this one's.
            actions.push(&Action::Recirc(1))?;
            let got = bench.miss(0, &bytes)?;
            ensure!(got.socket == 0);
            let pid = bench.sockets[1].port_id();
            let execute = Execute::reply(&got.upcall(), actions.as_bytes(), pid);
            bench.control.execute(&execute).await?;
            let again = bench.upcall("the upcall of the recirculated packet")?;
            let wanted = usize::from(since(6, 17));
            ensure!(again.socket == wanted, "{mode}: socket {}", again.socket);
            let key = ovs_wire::FlowKey::new(again.upcall().key).summary()?;
            ensure!((key.in_port, key.recirc_id) == (Some(1), 1), "{key:?}");
            ensure!(again.upcall().packet == bytes);
            ensure!(again.upcall().hash == got.upcall().hash, "the hash stays with the packet");
            Ok(())
        })?;
    }
    Ok(())
}
