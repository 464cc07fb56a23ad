//! What a successor does with the flows that it finds.

use anyhow::{Result, ensure};
use netns_tests::{DATAPATH, Fabric, SOON, TestResult, flows_of, modes};
use upcall_testkit::{Hosts, Upcalld, wait_until};

use super::{frame, ids};

/// With no second sweep while the test runs.
fn start(hosts: &Hosts, mode: &str, vlans: [u16; 4]) -> Result<Upcalld> {
    let file = tempfile::NamedTempFile::new()?;
    let table = |(port, vlan)| format!("[port.p{port}]\naccess = {vlan}\n");
    let tables: String = vlans.iter().enumerate().map(table).collect();
    let once = "keep = true\nsweep_interval = '1h'\nmac_age = '10h'\nflow_idle = '10h'\n";
    std::fs::write(file.path(), format!("{once}{tables}"))?;
    let path = file.path().display().to_string();
    let builder = Upcalld::builder(DATAPATH).ports(hosts.ports()).dispatch(mode);
    // Read by the time that it is ready.
    Ok(builder.option("--config", &path).start(&hosts.switch)?)
}

/// Two pairs of stations that talk: 1 and 2 behind the first two ports, 3 and 4 behind the others.
fn talk(fabric: &mut Fabric, pairs: &[(usize, u8)]) -> TestResult {
    for &(host, station) in pairs {
        for (from, frame) in
            [(host, frame(station, station + 1)), (host + 1, frame(station + 1, station))]
        {
            fabric.send(from, &frame)?;
            fabric.wait(from ^ 1, &frame)?;
        }
    }
    Ok(())
}

#[test]
fn the_first_sweep_of_a_successor_leaves_what_is_right_and_nothing_else() -> TestResult {
    for mode in modes() {
        let hosts = Hosts::new(4)?;
        let first = start(&hosts, mode, [10, 10, 30, 30])?;
        let mut fabric = Fabric::new(&hosts)?;
        let pairs = [(0, 1), (2, 3)];
        let all = |fabric: &mut Fabric| {
            talk(fabric, &pairs).is_ok()
                && flows_of(&hosts.switch).is_ok_and(|flows| flows.len() == 4)
        };
        wait_until("flows both ways", SOON, || all(&mut fabric))?;
        let before = ids(&hosts.switch)?;
        ensure!(first.stop()?.status.success());
        let second = start(&hosts, mode, [10, 20, 30, 30])?;
        let left = || flows_of(&hosts.switch).unwrap_or_default();
        wait_until("the flows between VLANs to be gone", SOON, || {
            left()
                .iter()
                .all(|flow| !flow.key.contains("in_port(1)") && !flow.key.contains("in_port(2)"))
        })?;
        let after = ids(&hosts.switch)?;
        ensure!(after.len() == 2 && after.iter().all(|id| before.contains(id)), "{:?}", left());
        // What is right goes on without a question.
        let packets = || left().iter().map(|flow| flow.packets).sum::<u64>();
        let taken = packets();
        talk(&mut fabric, &pairs[1..])?;
        ensure!(packets() == taken + 2, "{mode}: a flow was interrupted: {:?}", left());
        let exit = second.stop()?;
        ensure!(exit.status.success(), "{mode}: {}", exit.log);
    }
    Ok(())
}
