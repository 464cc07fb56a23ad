//! Packets between the kernel and user space: what comes up, what goes back, and what an action
//! sends up.
#![allow(missing_docs, reason = "a test binary")]

mod execute;
mod gso;
mod miss;
mod userspace;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use netns_tests::{has_per_cpu, station};
use ovs_features::DispatchMode;
use upcall_testkit::Frame;

/// The modes that this kernel has.
fn modes() -> &'static [DispatchMode] {
    const BOTH: [DispatchMode; 2] = [DispatchMode::PerVport, DispatchMode::PerCpu];
    if has_per_cpu() { &BOTH } else { &BOTH[..1] }
}

/// The newest mode that this kernel has.
fn mode() -> DispatchMode {
    if has_per_cpu() { DispatchMode::PerCpu } else { DispatchMode::PerVport }
}

const IP1: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const IP2: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const IP6_1: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
const IP6_2: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2);

fn frame() -> Frame {
    Frame::new(station(1), station(2))
}

fn at(ip: impl Into<std::net::IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}
