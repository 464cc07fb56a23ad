//! What changes while there is traffic: shape and ports.

use anyhow::Context as _;
use netns_tests::{DATAPATH, TestResult, has_per_cpu};
use ovs_datapath::Control;
use ovs_wire::vport::VportType;
use upcall::{Dispatch, Dispatcher, Shape};

/// A port of the datapath's own making, that needs no device.
const PORT: &str = "soak0";

/// Another shape in each round.
pub(crate) async fn shape(dispatcher: &Dispatcher, round: usize) -> TestResult {
    let auto = Dispatch::Auto;
    let other = if has_per_cpu() { Dispatch::PerVport } else { auto };
    let shapes = [(auto, None), (auto, Some(2)), (other, Some(2)), (auto, Some(4)), (other, None)];
    let (dispatch, workers) = shapes[round % shapes.len()];
    Ok(dispatcher.reshape(Shape { dispatch, workers, ..Shape::default() }).await?)
}

/// Adds a port as another tool does, or takes it out if it is there.
pub(crate) async fn ports() -> TestResult {
    let control = Control::open().await?;
    let dp = control.datapath(DATAPATH).await?.context("no datapath")?;
    let all = control.vports(dp.ifindex).await?;
    if let Some(port) = all.iter().find(|port| port.name == PORT) {
        return Ok(control.delete_vport(dp.ifindex, port.port_no).await?);
    }
    control.add_vport(&dp, VportType::Internal, PORT, None, 0).await?;
    Ok(())
}
