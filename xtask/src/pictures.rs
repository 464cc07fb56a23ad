//! `cargo xtask pictures`: the pictures of the documentation, taken of the demo on a real kernel.

use crate::cmd::say;
use crate::demo;
use crate::kernels::Origin;
use crate::vm::{self, MachineArgs};
use anyhow::{Context, Result, ensure};
use guest_init::protocol::Frame;
use std::path::Path;
use std::time::Duration;

/// Where the first screen of `upcalld top` goes.
const TOP: &str = "docs/top.svg";

/// `cargo xtask pictures`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A kernel line to boot
    #[arg(long, value_name = "VERSION", default_value = "6.12")]
    kernel: String,
    #[command(flatten)]
    origin: Origin,
    #[command(flatten)]
    machine: MachineArgs,
}

pub(crate) fn run(args: &Args) -> Result<i32> {
    let kernels = vm::chosen(&args.kernel, &args.origin)?;
    let kernel = kernels.first().context("no kernel named")?;
    let shape = args.machine.shape(kernel, Duration::from_mins(10))?;
    let words = ["--upcalld", demo::GUEST_DAEMON, "--hosts", "4", "--seconds", "10", "--picture"];
    let mut printed = Vec::new();
    let mut keep = |frame: &Frame| {
        if let Frame::Stdout(bytes) = frame {
            printed.extend_from_slice(bytes);
        }
    };
    let status = demo::show(kernel, shape, words.map(str::to_owned).into(), &mut keep)?;
    let printed = String::from_utf8_lossy(&printed).replace('\r', "");
    ensure!(status == 0, "the demo failed:\n{printed}");
    let picture = svg(&printed).with_context(|| format!("no picture in\n{printed}"))?;
    std::fs::write(Path::new(TOP), picture).with_context(|| format!("cannot write {TOP}"))?;
    say!("{TOP} written");
    Ok(0)
}

/// The picture in what was printed.
fn svg(printed: &str) -> Option<&str> {
    let from = printed.find("<svg")?;
    let end = "</svg>\n";
    let len = printed[from..].find(end)? + end.len();
    Some(&printed[from..from + len])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_found_among_other_lines() {
        assert_eq!(svg("a\n<svg x>\n</svg>\nb"), Some("<svg x>\n</svg>\n"));
        assert_eq!(svg("<svg x>"), None);
    }
}
