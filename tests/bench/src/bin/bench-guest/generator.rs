//! Threads that send and receive ahead of everybody else on their CPU.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::net::RecvFlags;
use upcall_testkit::RawSocket;
use upcall_testkit::traffic::monotonic_ns;

use crate::bed::{Bed, set_flow};

/// Runs `work` on a thread of its own that nothing of the ordinary schedule interrupts, so that a burst
/// is complete before anybody answers it.
pub(crate) fn undisturbed<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    scheduled(["--fifo", "1"], work)
}

/// Runs `work` on a thread of its own that interrupts nobody when it wakes: on one CPU it goes on when
/// the daemon has done all it does for a packet, not when the packet has left.
pub(crate) fn giving_way<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    scheduled(["--batch", "0"], work)
}

fn scheduled<T: Send>(
    [policy, priority]: [&str; 2],
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // No library here sets a scheduling policy without `unsafe`.
            let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
            let arguments = [policy, "--pid", priority, &thread];
            let done = Command::new("chrt").args(arguments).output().context("cannot run chrt")?;
            ensure!(done.status.success(), "chrt {arguments:?}: {done:?}");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Bursts of frames, each frame of another flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bursts {
    /// Number of the first flow.
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// Frames of each.
    pub(crate) frames: u32,
    /// Pause after each.
    pub(crate) pause: Duration,
}

impl Bursts {
    pub(crate) fn total(self) -> u64 {
        u64::from(self.count) * u64::from(self.frames)
    }

    /// Sends them from host 0.
    pub(crate) fn send(self, bed: &Bed) -> Result<()> {
        let mut frame = crate::bed::frame(0)?;
        undisturbed(|| {
            for burst in 0..self.count {
                for index in 0..self.frames {
                    set_flow(&mut frame, self.first + burst * self.frames + index);
                    bed.links[0].send(&frame)?;
                }
                std::thread::sleep(self.pause);
            }
            Ok(())
        })
    }
}

/// The two ends of a round trip between host 0 and host 1.
pub(crate) struct Ends {
    sockets: [RawSocket; 2],
    frames: [Vec<u8>; 2],
}

impl Ends {
    pub(crate) fn open(bed: &Bed) -> Result<Self> {
        let open = |host: usize| -> Result<RawSocket> {
            let socket = RawSocket::open(&bed.hosts[host].ns, upcall_testkit::topology::HOST_LINK)?;
            let limit = Some(Duration::from_secs(5));
            rustix::net::sockopt::set_socket_timeout(
                &socket,
                rustix::net::sockopt::Timeout::Recv,
                limit,
            )?;
            Ok(socket)
        };
        Ok(Self {
            sockets: [open(0)?, open(1)?],
            frames: [crate::bed::frame(0)?, crate::bed::frame(1)?],
        })
    }

    /// Sends a frame of flow `number` to and fro; gives the nanoseconds it took.
    pub(crate) fn round_trip(&mut self, number: u32) -> Result<u64> {
        self.frames.iter_mut().for_each(|frame| set_flow(frame, number));
        let begun = monotonic_ns();
        for from in [0, 1] {
            self.sockets[from].send(&self.frames[from])?;
            self.wait(from)?;
        }
        Ok(monotonic_ns() - begun)
    }

    /// Reads the other end until the frame sent from `from` arrives.
    fn wait(&self, from: usize) -> Result<()> {
        let mut buf = [0; 256];
        loop {
            let (len, _) = rustix::net::recv(&self.sockets[from ^ 1], &mut buf, RecvFlags::empty())
                .context("a frame of a round trip does not arrive")?;
            if buf[..len] == self.frames[from] {
                return Ok(());
            }
        }
    }
}
