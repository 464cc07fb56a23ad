//! Socket options and calls that rustix does not have, registration with tokio, and shared memory. Every `unsafe` block of the workspace is in this file.
#![allow(
    unsafe_code,
    reason = "socket options with types no library declares; promises about descriptors and mappings"
)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Socket;

/// Number of words `SO_MEMINFO` reports (`SK_MEMINFO_VARS`, `include/uapi/linux/sock_diag.h`).
const MEMINFO_WORDS: usize = 9;

/// Switches a boolean option of level `SOL_NETLINK` on.
pub(crate) fn enable_netlink_option(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `fd` is open for the call; the pointer and the length describe `on`, which outlives it.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts an eBPF program in place of the socket's filter, in one step.
pub(crate) fn attach_bpf(fd: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program: libc::c_int = program.as_raw_fd();
    // SAFETY: both are open for the call; the pointer and the length describe `program`, which outlives it.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_BPF,
            (&raw const program).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a map of one value of so many bytes that can be mapped into memory (`BPF_MAP_CREATE`).
pub(crate) fn bpf_memory(bytes: usize) -> io::Result<OwnedFd> {
    const MAP_CREATE: libc::c_int = 0;
    /// `map_type`, `key_size`, `value_size`, `max_entries`, `map_flags` (`union bpf_attr`,
    /// `include/uapi/linux/bpf.h`): an array with `BPF_F_MMAPABLE`.
    const ARRAY: u32 = 2;
    const MMAPABLE: u32 = 1 << 10;
    let bytes = u32::try_from(bytes).map_err(io::Error::other)?;
    let attr = [ARRAY, size_of::<u32>() as u32, bytes, 1, MMAPABLE];
    // SAFETY: nothing in it points anywhere.
    unsafe { bpf(MAP_CREATE, &attr) }
}

/// Loads a socket filter (`BPF_PROG_LOAD`).
pub(crate) fn bpf_socket_filter(instructions: &[u64]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    const SOCKET_FILTER: u32 = 1;
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
    }
    let load = Load {
        prog_type: SOCKET_FILTER,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0 OR MIT".as_ptr() as u64,
    };
    // SAFETY: it points to `insn_cnt` instructions and a string, which outlive the call and are read alone.
    unsafe { bpf(PROG_LOAD, &load) }
}

/// `bpf(2)`, of a command that gives a descriptor.
///
/// # Safety
///
/// `attr` is the beginning of what the command takes; the kernel takes the rest as zeros. What it points
/// to is there as the command expects it.
unsafe fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the pointer and the length describe `attr`, which outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Reads `SO_MEMINFO`: words by `SK_MEMINFO_*`. A kernel that reports fewer leaves zeros.
pub(crate) fn meminfo(fd: BorrowedFd<'_>) -> io::Result<[u32; MEMINFO_WORDS]> {
    let mut words = [0u32; MEMINFO_WORDS];
    let mut len = size_of_val(&words) as libc::socklen_t;
    // SAFETY: `fd` is open for the call; the kernel writes at most `len` bytes to `words`, which is
    // that long and outlives the call, and any bytes are valid for `u32`.
    let rc = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            words.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if rc == 0 { Ok(words) } else { Err(io::Error::last_os_error()) }
}

/// Registers a socket with the runtime of this thread, for reading.
pub(crate) fn register(socket: Arc<Socket>) -> io::Result<AsyncFd<Arc<Socket>>> {
    // SAFETY: the descriptor must stay open and the same until it is deregistered. `Socket` owns it,
    // never replaces it, and closes it when the last `Arc` goes; the `AsyncFd` holds one.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(Into::into)
}

/// Takes ownership of a descriptor by number, if `check` finds it to be what is expected.
pub(crate) fn own_checked(
    fd: RawFd,
    check: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: not -1, and borrowed for `check` alone, which asks the kernel about it: a number that is
    // not open makes the kernel answer EBADF, nothing else.
    check(unsafe { BorrowedFd::borrow_raw(fd) })?;
    // SAFETY: it is open, as `check` saw, and the caller of `Socket::inherit` gave it up to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Words of a file in memory, shared with whoever maps the same file.
#[derive(Debug)]
pub(crate) struct Mapping {
    at: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: nothing but atomics is reached through it, and it is unmapped by its one owner alone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `count` words of `file`, which must be that long and never become shorter, as a map of
    /// BPF cannot and a file that is sealed: memory behind the end of a file is not there to be read.
    pub(crate) fn new(file: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let (bytes, access) = (count * size_of::<AtomicU64>(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address that the kernel chooses; it replaces none.
        let at = unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, file, 0) }?;
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { at, count })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `count` words are mapped at `at`, aligned to a page, until `self` is dropped; any
        // bytes are valid for `AtomicU64`, and other processes' writes are what it is atomic for.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.count) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this length by `new`, and nothing borrows from it any more.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}
