//! Counters in memory that outlives the process, for whoever holds its descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};

use crate::sys::{self, Mapping};

/// What keeps the memory from being taken away under those who map it.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// A fixed number of words in an anonymous file in memory (`memfd_create(2)`), mapped by everybody who
/// uses it. Pages that were never written take no memory.
///
/// It tells a process that comes later how far one that was killed had got: a store to it costs no
/// system call.
#[derive(Debug)]
pub struct SharedWords {
    file: OwnedFd,
    mapping: Mapping,
}

impl SharedWords {
    /// Makes `count` words, all 0. `name` is for people: `/proc/PID/fd` shows it.
    ///
    /// # Errors
    ///
    /// What the kernel says: no descriptor or no memory left.
    pub fn create(name: &str, count: usize) -> io::Result<Self> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, (count * size_of::<u64>()) as u64)?;
        fcntl_add_seals(&file, SEALS)?;
        let mapping = Mapping::new(file.as_fd(), count)?;
        Ok(Self { file, mapping })
    }

    /// Takes words that the process inherited as descriptor `fd`.
    ///
    /// The descriptor belongs to the result from then on: nothing else in the process may use it.
    ///
    /// # Errors
    ///
    /// When `fd` is not open, or not what [`SharedWords::create`] makes with that `count`; it is then
    /// left alone.
    pub fn inherit(fd: RawFd, count: usize) -> io::Result<Self> {
        let other = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let file = sys::own_checked(fd, |fd| {
            let seals = fcntl_get_seals(fd).map_err(|_| other("it is no memory of counters"))?;
            if !seals.contains(SEALS) {
                return Err(other("its size is not sealed"));
            }
            if fstat(fd)?.st_size.cast_unsigned() != (count * size_of::<u64>()) as u64 {
                return Err(other("it is of another size"));
            }
            Ok(())
        })?;
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC)?;
        let mapping = Mapping::new(file.as_fd(), count)?;
        Ok(Self { file, mapping })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        self.mapping.words()
    }

    /// A number that no other such memory on this host has while this one is there.
    ///
    /// # Errors
    ///
    /// What the kernel says of the descriptor.
    pub fn id(&self) -> io::Result<u64> {
        Ok(fstat(&self.file)?.st_ino)
    }
}

impl AsFd for SharedWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    fn pass_on(words: &SharedWords) -> RawFd {
        words.as_fd().try_clone_to_owned().unwrap().into_raw_fd()
    }

    #[test]
    fn what_one_stores_the_next_reads() {
        let first = SharedWords::create("test", 600).unwrap();
        first.words()[599].store(7, Relaxed);
        let second = SharedWords::inherit(pass_on(&first), 600).unwrap();
        assert_eq!(first.id().unwrap(), second.id().unwrap());
        drop(first);
        assert_eq!(second.words()[599].load(Relaxed), 7);
        assert_eq!(second.words().len(), 600);
        assert_ne!(second.id().unwrap(), SharedWords::create("test", 1).unwrap().id().unwrap());
    }

    #[test]
    fn what_is_something_else_is_refused_by_name() {
        let refused = |fd, count| SharedWords::inherit(fd, count).unwrap_err().to_string();
        let words = SharedWords::create("test", 8).unwrap();
        assert_eq!(refused(pass_on(&words), 9), "it is of another size");
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(refused(null.into_raw_fd(), 8), "it is no memory of counters");
        let open = memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        assert_eq!(refused(open.into_raw_fd(), 8), "its size is not sealed");
    }

    #[test]
    fn nobody_can_take_the_memory_away() {
        let words = SharedWords::create("test", 8).unwrap();
        assert!(ftruncate(&words.file, 0).is_err());
    }
}
