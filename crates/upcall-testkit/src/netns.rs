//! Network namespaces that live as long as a value.
//!
//! A network namespace belongs to a thread, and `unshare` moves the calling thread for good. So a
//! namespace is made on an OS thread that then ends, what remains is a file descriptor of
//! `/proc/thread-self/ns/net`, and work inside is done by further threads that enter through it.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};

use crate::error::{Error, Result};
use crate::links::Links;

/// Bytes of a UDP socket's receive buffer.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// A network namespace, empty but for `lo`, which is up.
///
/// It ends, with all its links, when the last clone of the value, the last socket opened inside and
/// the last process started inside are gone. `/sys/class/net` is no view of it (sysfs belongs to the
/// namespace it was mounted in); `/proc/thread-self/net` and `/proc/sys/net` are.
#[derive(Clone)]
pub struct NetNs {
    name: Arc<str>,
    fd: Arc<File>,
}

impl fmt::Debug for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetNs({})", self.name)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A thread inside a namespace; see [`NetNs::spawn`].
#[derive(Debug)]
pub struct NsThread<T>(thread::JoinHandle<Result<T>>);

impl<T> NsThread<T> {
    /// Waits for the end of the thread and returns what its closure returned.
    ///
    /// # Errors
    /// [`Error::System`] when the thread could not enter the namespace.
    ///
    /// # Panics
    /// With the closure's own panic, if it panicked.
    pub fn join(self) -> Result<T> {
        self.0.join().unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Whether the closure has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl NetNs {
    /// Makes a namespace and brings its `lo` up. `name` (shown in messages and thread names only) need
    /// not be unique; nothing is written to `/run/netns`. Needs `CAP_SYS_ADMIN`.
    pub fn new(name: &str) -> Result<Self> {
        let file = thread::scope(|scope| {
            scope
                .spawn(|| -> io::Result<File> {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                    File::open("/proc/thread-self/ns/net")
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        });
        let file = file.map_err(Error::system(format!("make the network namespace {name}")))?;
        let ns = Self { name: name.into(), fd: Arc::new(file) };
        ns.links(async |links| links.up("lo").await)?;
        Ok(ns)
    }

    /// The namespace the calling thread is in now.
    pub fn current() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net")
            .map_err(Error::system("open the thread's own network namespace"))?;
        Ok(Self { name: "current".into(), fd: Arc::new(file) })
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A number that is the same for two values exactly if they are the same namespace.
    pub fn id(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        let meta = self.fd.metadata().map_err(Error::system("stat a namespace"))?;
        Ok(meta.ino())
    }

    fn enter(&self) -> Result<()> {
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(Error::system(format!("enter the namespace {}", self.name)))
    }

    /// Runs a closure inside, on a thread of its own, and waits for it. The closure may borrow.
    ///
    /// # Errors
    /// [`Error::System`] when a thread cannot be made or cannot enter (no `CAP_SYS_ADMIN`).
    ///
    /// # Panics
    /// With the closure's own panic, if it panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            thread::Builder::new()
                .name(self.thread_name())
                .spawn_scoped(scope, || self.enter().map(|()| work()))
                .map_err(Error::system("start a thread"))?
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs an async closure inside, on a thread with a current-thread tokio runtime of its own (made
    /// after entering, which is the only safe order), and waits for it. May be called from within
    /// another runtime; it blocks that thread.
    ///
    /// # Errors
    /// As [`NetNs::run`], and when the runtime cannot be built.
    pub fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(Error::system("start a runtime"))?;
            Ok(runtime.block_on(work()))
        })?
    }

    /// Starts a closure inside, on a thread of its own, and does not wait.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<NsThread<T>> {
        let ns = self.clone();
        thread::Builder::new()
            .name(self.thread_name())
            .spawn(move || ns.enter().map(|()| work()))
            .map(NsThread)
            .map_err(Error::system("start a thread"))
    }

    /// Changes links and addresses inside; see [`Links`].
    ///
    /// ```no_run
    /// # let ns = upcall_testkit::NetNs::new("a")?;
    /// ns.links(async |links| {
    ///     links.add_veth(&upcall_testkit::Veth::new("a0", "a1")).await?;
    ///     links.up("a0").await
    /// })?;
    /// # Ok::<(), upcall_testkit::Error>(())
    /// ```
    pub fn links<T: Send>(&self, work: impl AsyncFnOnce(&Links) -> Result<T> + Send) -> Result<T> {
        self.block_on(async || work(&Links::open()?).await)?
    }

    /// Writes a value under `/proc/sys/net` as this namespace sees it: `("ipv4/ip_forward", "1")`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        let result = self.run(|| fs::write(&path, value))?;
        result.map_err(Error::system(format!("write {value} to {path}")))
    }

    /// Has all that arrives on `link` processed on `cpu`, in the order in which it was sent to it.
    ///
    /// What a CPU sends into a veth pair waits in a queue of that CPU, and two CPUs are not served in
    /// order: who looks for packets that overtook each other *before* they were sent, on several CPUs,
    /// wants this. It is receive packet steering (`Documentation/networking/scaling.rst`), set in a
    /// sysfs that is mounted for the purpose.
    ///
    /// # Errors
    /// What the kernel refuses: there is no such link, or no `CONFIG_RPS`.
    pub fn receive_on(&self, link: &str, cpu: usize) -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::system("make a directory"))?;
        let file = dir.path().join(format!("class/net/{link}/queues/rx-0/rps_cpus"));
        let what = || format!("have {link} of {} served by CPU {cpu}", self.name);
        // Groups of 32 CPUs, the highest first.
        let mask = format!("{:x}{}", 1u32 << (cpu % 32), ",00000000".repeat(cpu / 32));
        let steer = || {
            mount("sysfs", dir.path(), "sysfs", MountFlags::empty(), None)?;
            let written = fs::write(&file, mask);
            unmount(dir.path(), UnmountFlags::DETACH)?;
            written
        };
        self.run(steer)?.map_err(|cause| Error::System { what: what(), cause })
    }

    /// Turns IPv6 off on every present and future link of this namespace, so that no router
    /// solicitation, duplicate address detection or multicast report disturbs a test that counts
    /// packets. A kernel without IPv6 counts as done.
    pub fn disable_ipv6(&self) -> Result<()> {
        for scope in ["all", "default"] {
            match self.set_sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1") {
                Err(Error::System { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// A UDP socket inside, bound to `address`, with 4 MiB of receive buffer (as much of it as the
    /// system's limit allows without `CAP_NET_ADMIN` in the first user namespace), so that a late reader
    /// is not mistaken for a lossy switch.
    pub fn udp_socket(&self, address: std::net::SocketAddr) -> Result<UdpSocket> {
        let socket = self
            .run(|| UdpSocket::bind(address))?
            .map_err(Error::system(format!("bind UDP {address} in {}", self.name)))?;
        set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)
            .or_else(|_| set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES))
            .map_err(Error::system("set a socket's receive buffer"))?;
        Ok(socket)
    }

    fn thread_name(&self) -> String {
        // The kernel shows 15 bytes.
        format!("ns-{}", self.name).chars().take(15).collect()
    }
}

/// Reports that a test cannot run here, as a line `SKIP test: reason` on standard error. It is
/// written past the capture of libtest, so that the harness sees it: it counts such lines, and fails
/// on them where every test is required.
pub fn skip(test: &str, reason: &str) {
    // Without a standard error there is nobody to tell.
    let _nobody = writeln!(io::stderr(), "SKIP {test}: {reason}");
}

/// For tests that need root: `true`, and [`skip`] called, when this process is not root.
pub fn skip_unless_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "needs root (network namespaces)");
    }
    !root
}
