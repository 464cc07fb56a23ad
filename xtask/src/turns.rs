//! Work shared by a few threads.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Some at a time, results in the order of the items.
pub(crate) fn in_turns<T: Sync, R: Send + Sync>(
    jobs: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done: Vec<OnceLock<R>> = items.iter().map(|_| OnceLock::new()).collect();
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return };
                    let _ = done[index].set(work(item));
                }
            });
        }
    });
    done.into_iter().filter_map(OnceLock::into_inner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_keep_the_order_and_leave_none_out() {
        let items: Vec<u32> = (0..50).collect();
        for jobs in [0, 1, 3, 99] {
            assert_eq!(in_turns(jobs, &items, |n| n * 2), (0..100).step_by(2).collect::<Vec<_>>());
        }
        assert!(in_turns(2, &[] as &[u32], |n| *n).is_empty());
    }
}
