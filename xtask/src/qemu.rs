//! One QEMU: started, listened to, ended. It refuses to know what the frames mean.

mod pin;

use crate::cmd;
use anyhow::{Context, Result, bail};
use guest_init::protocol::{Decoder, Frame};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    /// All CPUs in one emulation thread: the way that has not failed in any boot.
    TcgSingle,
    /// A thread for each CPU: real races, and now and then an emulator crash in patched text.
    TcgMulti,
    /// As [`Accel::TcgMulti`], each thread kept on a CPU of the host: what is measured is not the host's
    /// scheduler.
    TcgPinned,
    /// A clock that is the number of instructions executed: an instruction takes 1 ns and idle time none,
    /// so that times in the guest repeat. Several CPUs take turns, and each instruction takes time for all. `rep movs` and `cmpxchg16b` are turned
    /// off, which the emulator does not count as hardware would run them.
    Instructions,
    /// Hardware.
    Kvm,
}

impl Accel {
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::TcgSingle => &["-accel", "tcg,thread=single", "-cpu", "max"],
            Self::TcgMulti | Self::TcgPinned => &["-accel", "tcg,thread=multi", "-cpu", "max"],
            Self::Instructions => &[
                "-accel",
                "tcg,thread=single",
                "-icount",
                "shift=0,sleep=off",
                "-cpu",
                "max,erms=off,fsrm=off,cx16=off",
            ],
            Self::Kvm => &["-accel", "kvm", "-cpu", "host"],
        }
    }
}

/// A machine to start.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) image: &'a Path,
    pub(crate) initrd: PathBuf,
    /// Where the kernel's console goes.
    pub(crate) console: PathBuf,
    pub(crate) smp: u32,
    pub(crate) memory_mb: u32,
    pub(crate) accel: Accel,
    pub(crate) limit: Duration,
    /// More of the kernel's command line.
    pub(crate) append: &'a str,
}

/// How a machine ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The guest said so.
    Done,
    /// We ended it.
    TimeLimit,
    /// By itself, or with words we cannot read: what is known.
    Broken(String),
}

/// `oops=panic panic=-1` with `-no-reboot`: a broken kernel ends the machine at once instead of going
/// on half dead. The console shows warnings and worse; an oops raises the level by itself. Namespaces
/// come without the fallback devices of tunnel modules. On a host with too much to do the kernel may take the
/// timer for one that does not tick, and panic: it is not to look.
const KERNEL_ARGS: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic nowatchdog no_timer_check \
    random.trust_cpu=on rdinit=/init sysctl.net.core.fb_tunnels_only_for_init_net=2";

impl Machine<'_> {
    fn command(&self) -> Command {
        // The kernel ends QEMU with us, however we end.
        let mut command = if let Some(setpriv) = cmd::find("setpriv") {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--", PROGRAM]);
            command
        } else {
            Command::new(PROGRAM)
        };
        command.args(["-M", "q35", "-nodefaults", "-no-user-config", "-display", "none"]);
        // Names of threads tell which of them is which CPU.
        command.args(["-name", "guest,debug-threads=on"]);
        command.args(["-no-reboot", "-smp", &self.smp.to_string()]);
        command.args(["-m", &self.memory_mb.to_string()]).args(self.accel.args());
        command.arg("-kernel").arg(self.image).arg("-initrd").arg(&self.initrd);
        command.args(["-append", &format!("{KERNEL_ARGS} {}", self.append)]);
        command.arg("-chardev").arg(chardev("console", &self.console));
        command.args(["-serial", "chardev:console"]);
        command.arg("-chardev").arg(chardev("frames", Path::new("/dev/stdout")));
        command.args(["-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=frames,name=upcalld"]);
        command
    }

    /// Runs the machine to its end and hands each frame on as it comes.
    pub(crate) fn run(&self, on_frame: &mut dyn FnMut(Frame)) -> Result<End> {
        let errors = self.console.with_extension("qemu");
        let mut command = self.command();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?)
            .spawn()
            .with_context(|| format!("cannot start {PROGRAM}"))?;
        let mut running = Running(child);
        if self.accel == Accel::TcgPinned {
            pin::cpus(running.0.id(), self.smp)?;
        }
        let pipe = running.0.stdout.take().context("QEMU has no stdout")?;
        let (bytes, reader) = read_in_thread(pipe);
        let end = listen(&bytes, Instant::now() + self.limit, on_frame);
        drop(bytes);
        let status = running.stop(end == End::Done || end == End::TimeLimit)?;
        let _ = reader.join();
        let said = std::fs::read_to_string(&errors).unwrap_or_default();
        if end != End::Done && !status.success() && status.code().is_some() {
            bail!("{PROGRAM} failed ({status}): {}", said.trim());
        }
        Ok(end)
    }
}

/// A comma ends a value; doubled it is one.
fn chardev(id: &str, path: &Path) -> String {
    format!("file,id={id},path={}", path.display().to_string().replace(',', ",,"))
}

fn read_in_thread(
    mut pipe: impl Read + Send + 'static,
) -> (Receiver<Vec<u8>>, std::thread::JoinHandle<()>) {
    let (sender, receiver) = sync_channel(64);
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    (receiver, reader)
}

fn listen(bytes: &Receiver<Vec<u8>>, deadline: Instant, on_frame: &mut dyn FnMut(Frame)) -> End {
    let mut decoder = Decoder::default();
    loop {
        match bytes.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(chunk) => decoder.push(&chunk),
            Err(RecvTimeoutError::Timeout) => return End::TimeLimit,
            Err(RecvTimeoutError::Disconnected) => {
                return End::Broken("the guest ended without a last word".to_owned());
            }
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(Frame::Done)) => return End::Done,
                Ok(Some(frame)) => on_frame(frame),
                Ok(None) => break,
                Err(e) => return End::Broken(format!("unreadable words of the guest: {e}")),
            }
        }
    }
}

/// A QEMU that does not outlive its owner.
struct Running(Child);

impl Running {
    fn stop(&mut self, kill: bool) -> Result<std::process::ExitStatus> {
        if kill {
            // Its work is done or given up: nothing is on a disk that would have to be written.
            self.0.kill()?;
        }
        Ok(self.0.wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(chunks: &[&[u8]], limit: Duration) -> (End, Vec<Frame>) {
        let (sender, receiver) = sync_channel(64);
        for chunk in chunks {
            sender.send(chunk.to_vec()).unwrap();
        }
        let keep_open = limit.is_zero().then(|| sender.clone());
        drop(sender);
        let mut frames = Vec::new();
        let end = listen(&receiver, Instant::now() + limit, &mut |frame| frames.push(frame));
        drop(keep_open);
        (end, frames)
    }

    #[test]
    fn frames_are_handed_on_until_the_last() {
        let words =
            [Frame::Start(0).encode(), Frame::Exit(3).encode(), Frame::Done.encode()].concat();
        let (end, frames) = heard(&[&words[..5], &words[5..]], Duration::from_secs(9));
        assert_eq!((end, frames), (End::Done, vec![Frame::Start(0), Frame::Exit(3)]));
    }

    #[test]
    fn silence_garbage_and_an_early_end_differ() {
        assert_eq!(heard(&[], Duration::ZERO).0, End::TimeLimit);
        assert!(matches!(heard(&[], Duration::from_secs(9)).0, End::Broken(_)));
        assert!(matches!(heard(&[b"garbage"], Duration::from_secs(9)).0, End::Broken(_)));
    }

    #[test]
    fn a_comma_in_a_path_stays_one() {
        assert_eq!(chardev("c", Path::new("/a,b")), "file,id=c,path=/a,,b");
    }
}
