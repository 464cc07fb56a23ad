//! Our systemd unit, run by a real systemd: what it may do, and what becomes of datapath, sockets and packets when
//! it is reloaded, restarted, killed and stopped.
//!
//! In guests alone, which have systemd for it (`[package.metadata.guest]`).
#![allow(missing_docs, reason = "a test binary")]

mod hardening;
mod life;
mod machine;
mod recovery;
mod unit;

/// `true`, and reported, where a systemd of its own would disturb the host.
fn outside_guests(test: &str) -> bool {
    let outside = std::env::var_os("UPCALL_TEST_GUEST").is_none();
    if outside {
        netns_tests::skip_ok(test, "it boots a systemd and makes users: in guests alone");
    }
    outside
}
