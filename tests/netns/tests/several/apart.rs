//! Each datapath by itself: its ports, its handler, its addresses.

use anyhow::ensure;
use netns_tests::{SOON, TestResult, modes, station, tell};
use serde_json::json;
use upcall_testkit::raw::ETHERTYPE_EXPERIMENTAL;
use upcall_testkit::topology::HOST_LINK;
use upcall_testkit::{Frame, Hosts, RawSocket, wait_until};

use super::{Several, TWO};

/// Sends a broadcast from the first host of each pair, and gives what the second one gets until its own is there.
fn exchange(links: &mut [(RawSocket, RawSocket)], round: u8) -> anyhow::Result<Vec<usize>> {
    let frame = |pair: usize| {
        let mut payload = [round; 46];
        payload[0] = pair as u8;
        Frame::broadcast(station(9)).raw(ETHERTYPE_EXPERIMENTAL, &payload)
    };
    for (pair, (sender, _)) in links.iter().enumerate() {
        sender.send(&frame(pair))?;
    }
    let mut foreign = Vec::new();
    for (pair, (_, receiver)) in links.iter_mut().enumerate() {
        let (own, len) = (frame(pair), frame(pair).len());
        let mut others = 0;
        receiver.receive_matching("a broadcast of its datapath", SOON, |bytes| {
            let is_ours = bytes.len() == len && bytes[..14] == own[..14];
            others += usize::from(is_ours && bytes != own);
            bytes == own
        })?;
        foreign.push(others);
    }
    Ok(foreign)
}

/// The same station talks in each datapath, at another port of each.
#[test]
fn three_datapaths_of_one_process_have_nothing_to_do_with_each_other() -> TestResult {
    for mode in modes() {
        let text = format!(
            "stats = '20ms'\ndispatch = '{mode}'\ninstall = 'never'\n\
             [datapath.dp0]\nports = ['p0', 'p1']\n\
             [datapath.dp1]\nports = ['p2', 'p3']\nhandler = 'hub'\nworkers = 1\n\
             [datapath.dp2]\nports = ['p4', 'p5']\nhandler = 'cross-connect'\ncross_connect = ['p4=p5']\n"
        );
        let several = Several::start(Hosts::new(6)?, &text)?;
        for pair in [0, 2, 4] {
            several.pings(pair, pair + 1)?;
            several.pings(pair + 1, pair)?;
        }
        let link = |host: usize| RawSocket::open(&several.hosts[host].ns, HOST_LINK);
        let mut links = Vec::new();
        for pair in [0, 2, 4] {
            links.push((RawSocket::sender(&several.hosts[pair].ns, HOST_LINK)?, link(pair + 1)?));
        }
        // What one datapath let through to another would be there by a later round.
        for round in 1..=10 {
            let foreign = exchange(&mut links, round)?;
            ensure!(foreign == [0; 3], "{mode}: {foreign:?}");
        }
        let first = several.ask_json(&["fdb/show", "dp0"])?;
        let ports: Vec<_> =
            first["dp0"].as_array().into_iter().flatten().map(|entry| &entry["port"]).collect();
        ensure!(
            ports.len() == 3
                && ports.iter().all(|port| [1, 2].contains(&port.as_u64().unwrap_or(0))),
            "{first}"
        );
        for learns_nothing in ["dp1", "dp2"] {
            let why = several.refusal(&["fdb/show", learns_nothing])?;
            ensure!(why.contains("learns no addresses"), "{why}");
        }
        several.finish()?;
    }
    Ok(())
}

/// Says what the process takes, for people: once with one datapath, once with two.
fn figures(several: &Several, name: &str) -> TestResult {
    let memory = several.ask_json(&["memory/show", name])?;
    let count = |of: &str| {
        let entries = std::fs::read_dir(format!("/proc/{}/{of}", several.daemon.pid()));
        entries.map_or(0, Iterator::count)
    };
    tell(&format!(
        "figures: {} datapaths: {} kB resident, {} threads, {} descriptors",
        netns_tests::datapaths(&several.hosts.switch)?.len(),
        memory["resident-kB"],
        count("task"),
        count("fd"),
    ));
    Ok(())
}

#[test]
fn flows_and_addresses_are_those_of_their_datapath() -> TestResult {
    let several = Several::start(Hosts::new(4)?, TWO)?;
    several.pings(0, 1)?;
    several.pings(2, 3)?;
    for (name, hosts) in [("dp0", [0, 1]), ("dp1", [2, 3])] {
        let known = several.ask(&["fdb/show", name])?;
        for host in several.hosts.iter() {
            let mac = host.mac.map(|byte| format!("{byte:02x}")).join(":");
            ensure!(known.contains(&mac) == hosts.contains(&host.index), "{name}: {known}");
        }
    }
    figures(&several, "dp0")?;
    // A host that asks whether its neighbour is still there is learned anew.
    wait_until("dp0 to know no address", SOON, || {
        let flushed = several.ask(&["fdb/flush", "dp0"]).is_ok();
        flushed
            && several.ask_json(&["fdb/show", "dp0"]).is_ok_and(|all| all == json!({ "dp0": [] }))
    })?;
    let other = several.ask_json(&["fdb/show", "dp1"])?;
    ensure!(other["dp1"].as_array().is_some_and(|all| all.len() == 2), "{other}");
    several.finish()?;
    Ok(())
}

#[test]
fn one_datapath_of_the_file_is_served_alone_where_it_is_named() -> TestResult {
    let several = Several::start_with(Hosts::new(4)?, TWO, |b| b.option("--datapath", "dp1"))?;
    several.pings(2, 3)?;
    let shown = several.ask(&["dpif/show"])?;
    ensure!(shown.contains("system@dp1") && !shown.contains("dp0"), "{shown}");
    ensure!(several.ask(&["lane/show"])?.contains("lanes of dp1"));
    figures(&several, "dp1")?;
    several.finish()?;
    Ok(())
}
