//! Which room may know which.

use super::Finding;
use cargo_metadata::{DependencyKind, Metadata};

/// Each product room with the rooms it may use. What is not here may not be.
const MAY_USE: &[(&str, &[&str])] = &[
    ("ovs-wire", &[]),
    ("netlink-io", &[]),
    ("ovs-datapath", &["ovs-wire", "netlink-io"]),
    ("ovs-features", &["ovs-wire", "netlink-io", "ovs-datapath"]),
    ("upcall-core", &["ovs-wire"]),
    ("upcall", &["ovs-wire", "netlink-io", "ovs-datapath", "ovs-features", "upcall-core"]),
    // What the daemon needs of the rooms below comes through `upcall`.
    ("upcalld", &["upcall"]),
    ("upcall-testkit", &["ovs-wire", "netlink-io", "ovs-datapath", "ovs-features", "upcall"]),
    ("xtask", &["guest-init"]),
    ("guest-init", &[]),
];
/// These test the product and may use all of it.
const TESTS: &[&str] = &["netns-tests", "bench"];
/// Never part of what is shipped.
const DEV_ONLY: &str = "upcall-testkit";
const HARNESS: &[&str] = &["xtask", "guest-init"];

/// A dependency between two packages of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) dev: bool,
}

pub(super) fn edges(metadata: &Metadata) -> Vec<Edge> {
    let members: Vec<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    let mut edges = Vec::new();
    for package in &metadata.packages {
        for dependency in &package.dependencies {
            if members.contains(&dependency.name.as_str()) {
                edges.push(Edge {
                    from: package.name.to_string(),
                    to: dependency.name.clone(),
                    dev: dependency.kind == DependencyKind::Development,
                });
            }
        }
    }
    edges
}

pub(super) fn check(edges: &[Edge]) -> Vec<Finding> {
    edges.iter().filter_map(check_edge).collect()
}

fn check_edge(edge: &Edge) -> Option<Finding> {
    let Edge { from, to, dev } = edge;
    if TESTS.contains(&from.as_str()) {
        return HARNESS
            .contains(&to.as_str())
            .then(|| format!("{from} -> {to}: tests run without the harness"));
    }
    if to == DEV_ONLY {
        return (!dev).then(|| format!("{from} -> {to}: a dev-dependency only"));
    }
    let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| name == from) else {
        return Some(format!(
            "{from} is in no map: say in xtask/src/tidy/arrows.rs what it may use"
        ));
    };
    let fine = allowed.contains(&to.as_str())
        || (*dev && !HARNESS.contains(&to.as_str()) && !HARNESS.contains(&from.as_str()));
    (!fine).then(|| {
        let list = if allowed.is_empty() { "none of ours".to_owned() } else { allowed.join(", ") };
        format!("{from} -> {to}: {from} may use {list}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(from: &str, to: &str, dev: bool) -> Option<Finding> {
        check(&[Edge { from: from.into(), to: to.into(), dev }]).pop()
    }

    #[test]
    fn the_map_is_allowed() {
        for (from, to) in [
            ("upcalld", "upcall"),
            ("upcall", "netlink-io"),
            ("upcall-core", "ovs-wire"),
            ("ovs-features", "ovs-datapath"),
            ("netns-tests", "upcall-testkit"),
            ("netns-tests", "ovs-wire"),
        ] {
            assert_eq!(finding(from, to, false), None);
        }
        assert_eq!(finding("upcall", "upcall-testkit", true), None);
    }

    #[test]
    fn every_other_arrow_is_found() {
        for (from, to) in [
            ("upcall-core", "netlink-io"),
            ("netlink-io", "upcall-core"),
            ("ovs-wire", "netlink-io"),
            ("upcalld", "ovs-datapath"),
            ("upcalld", "upcall-testkit"),
            ("xtask", "upcall"),
            ("netns-tests", "xtask"),
            ("new-room", "upcall"),
        ] {
            assert!(finding(from, to, false).is_some(), "{from} -> {to}");
        }
        assert!(finding("xtask", "ovs-wire", true).is_some());
    }
}
