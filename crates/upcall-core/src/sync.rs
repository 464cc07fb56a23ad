//! Atomics and locks, of the standard library or of the model checker (`--cfg loom`).

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};

/// Between an access of one variable and that of another that two threads make in opposite order, both
/// sequentially consistent: the checker knows that of fences alone, and takes the accesses for less.
#[cfg(loom)]
pub(crate) fn model_fence() {
    loom::sync::atomic::fence(Ordering::SeqCst);
}
#[cfg(not(loom))]
#[inline]
pub(crate) fn model_fence() {}
