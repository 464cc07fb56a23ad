//! The demo: an upcalld between hosts, traffic, and what came of it.
fn main() {}
