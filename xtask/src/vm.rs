//! `cargo xtask vm`: one command on real kernels.

use crate::cmd::say;
use crate::guest::{self, Guest, Shape};
use crate::kernels::{self, Kernel, Origin};
use crate::{accel, build, debian, setup};
use anyhow::{Context, Result};
use guest_init::protocol::{Frame, Job};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// How a machine is made; shared by the commands that boot one.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct MachineArgs {
    /// Number of CPUs
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) smp: u32,
    /// Memory in MiB
    #[arg(long, value_name = "MB", default_value_t = 1024)]
    pub(crate) memory: u32,
    /// What executes the guest
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) accel: accel::Choice,
    /// One emulation thread for each CPU: real races; one retry on the known "int3" emulator crash
    #[arg(long)]
    pub(crate) stress: bool,
    /// Words to add to the kernel's command line, such as "isolcpus=3"
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) append: String,
}

impl MachineArgs {
    pub(crate) fn shape(&self, kernel: &Kernel, limit: Duration) -> Result<Shape> {
        let accel = accel::choose(self.accel, self.stress, kernel)?;
        let append = self.append.clone();
        Ok(Shape { smp: self.smp, memory_mb: self.memory, accel, limit, append })
    }
}

/// `cargo xtask vm`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kernel lines: 5.10, 6.1, 6.12, 7, several with commas, or `all`
    #[arg(long, value_name = "LIST", default_value = "6.12")]
    kernel: String,
    #[command(flatten)]
    origin: Origin,
    #[command(flatten)]
    machine: MachineArgs,
    /// Put Debian programs into the guest
    #[arg(long, value_enum, value_name = "WHICH", num_args = 0..=1, default_missing_value = "tools")]
    debian: Option<debian::Choice>,
    /// Stop the machine after this time
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// A file to put into the guest, at the same path or at GUEST; may be repeated
    #[arg(long, value_name = "HOST[=GUEST]", value_parser = parse_file)]
    file: Vec<(PathBuf, String)>,
    /// What to run, with its arguments; upcalld is in /bin
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

fn parse_file(text: &str) -> Result<(PathBuf, String), String> {
    let (host, guest) = text.split_once('=').unwrap_or((text, text));
    if !guest.starts_with('/') {
        return Err(format!("the path in the guest is absolute: HOST=/PATH, not {guest:?}"));
    }
    Ok((PathBuf::from(host), guest.to_owned()))
}

/// The kernels a command line names.
pub(crate) fn chosen(list: &str, origin: &Origin) -> Result<Vec<Kernel>> {
    if let Some(dir) = &origin.kernel_dir {
        return Ok(vec![kernels::own(dir)?]);
    }
    let lines = kernels::parse_lines(list).map_err(anyhow::Error::msg)?;
    lines.into_iter().map(|line| kernels::get(line, origin)).collect()
}

/// Gives the exit status of the last command that failed, or 0.
pub(crate) fn run(args: &Args) -> Result<i32> {
    setup::for_guests()?;
    let kernels = chosen(&args.kernel, &args.origin)?;
    let mut files = args.file.clone();
    match build::guest_binaries(&["upcalld"]) {
        Ok(built) => files.extend(built.into_iter().map(|b| (b.file, format!("/bin/{}", b.name)))),
        // The command may be one that finds out why.
        Err(e) => say!("upcalld does not build and is not in the guest: {e:#}"),
    }
    let debian = args.debian.map(|choice| choice.archive(&args.origin)).transpose()?;
    let mut status = 0;
    for kernel in &kernels {
        let env = guest::environment(args.debian);
        let job = Job { argv: args.command.clone(), env, limit_s: 0 };
        let shape = args.machine.shape(kernel, args.timeout)?;
        say!("booting {} ({:?}, {} CPUs)", kernel.release, shape.accel, shape.smp);
        let guest =
            Guest { kernel, shape, files: files.clone(), debian: debian.clone(), jobs: vec![job] };
        let report = guest.run(&mut pass_through)?;
        let exit = *report.statuses.first().context("the command did not end")?;
        say!(
            "kernel {}: exit status {exit}, booted in {:.1} s, {:.1} s in all",
            kernel.release,
            report.booted_in.as_secs_f64(),
            report.took.as_secs_f64()
        );
        status = if exit == 0 { status } else { exit };
    }
    Ok(status)
}

/// The guest's output is ours.
pub(crate) fn pass_through(frame: &Frame) {
    // A reader that went away does not stop the run.
    let _ = match frame {
        Frame::Stdout(bytes) => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        Frame::Stderr(bytes) => std::io::stderr().lock().write_all(bytes),
        _ => Ok(()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_to_an_absolute_path() {
        assert_eq!(parse_file("a=/b").unwrap(), ("a".into(), "/b".to_owned()));
        assert_eq!(parse_file("/a").unwrap(), ("/a".into(), "/a".to_owned()));
        assert!(parse_file("a").is_err());
        assert!(parse_file("a=b").is_err());
    }
}
