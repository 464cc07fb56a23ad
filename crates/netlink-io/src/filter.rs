//! Classic BPF programs that refuse messages before they take room in the receive buffer.

use std::io;

use rustix::io::Errno;
use socket2::{SockFilter, SockRef};

use crate::Socket;

/// An instruction of classic BPF (`struct sock_filter`, `include/uapi/linux/filter.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterInsn {
    /// Operation, addressing mode and size.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl Socket {
    /// Attaches a program in place of the one there is, in one step: no message comes between. A
    /// message for which it returns 0 is thrown away, and neither its sender nor
    /// [`MemInfo::drops`](crate::MemInfo::drops) says so. Needs no privilege.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a program that the kernel finds wrong, of none or more than 4096 instructions;
    /// `ENOMEM` when it takes more memory than `net.core.optmem_max`; `EPERM` when somebody locked the
    /// socket's filter (`SO_LOCK_FILTER`); `EBUSY` where arrivals are recorded ([`Socket::sample`] is for that). The
    /// program there was stays.
    pub fn attach_filter(&self, program: &[FilterInsn]) -> io::Result<()> {
        if self.records_arrivals() {
            return Err(Errno::BUSY.into());
        }
        // The length field has 16 bits.
        if program.len() > usize::from(u16::MAX) {
            return Err(Errno::INVAL.into());
        }
        let program: Vec<_> =
            program.iter().map(|i| SockFilter::new(i.code, i.jt, i.jf, i.k)).collect();
        SockRef::from(self).attach_filter(&program)
    }

    /// Takes the program away, if there is one; not the one that records arrivals.
    ///
    /// # Errors
    ///
    /// `EPERM` when somebody locked the socket's filter.
    pub fn detach_filter(&self) -> io::Result<()> {
        if self.records_arrivals() {
            return Ok(());
        }
        match SockRef::from(self).detach_filter() {
            Err(err) if err.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request about no family: refused by any kernel with an error message.
    const REQUEST: [u8; 20] = [20, 0, 0, 0, 0x10, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 3, 2, 0, 0];
    const RETURN: u16 = 0x06;

    fn answer(socket: &Socket) -> bool {
        socket.send(&REQUEST).unwrap();
        socket.recv(&mut [0; 256]).unwrap().is_some()
    }

    fn ret(k: u32) -> FilterInsn {
        FilterInsn { code: RETURN, jt: 0, jf: 0, k }
    }

    #[test]
    fn a_program_decides_what_is_queued_until_it_is_detached() {
        let socket = Socket::open().unwrap();
        assert!(answer(&socket));
        socket.attach_filter(&[ret(0)]).unwrap();
        assert!(!answer(&socket));
        assert_eq!(socket.mem_info().unwrap().drops, 0, "it is no drop to the kernel");
        socket.attach_filter(&[ret(u32::MAX)]).unwrap();
        assert!(answer(&socket));
        socket.attach_filter(&[ret(0)]).unwrap();
        socket.detach_filter().unwrap();
        assert!(answer(&socket));
        socket.detach_filter().unwrap();
    }

    #[test]
    fn a_wrong_program_is_refused_and_the_one_before_stays() {
        let socket = Socket::open().unwrap();
        socket.attach_filter(&[ret(0)]).unwrap();
        let nowhere = FilterInsn { code: 0x15, jt: 9, jf: 9, k: 0 };
        let endless = vec![ret(0); 5000];
        let overlong = vec![ret(0); 70_000];
        for program in [&[][..], &[nowhere], &endless, &overlong] {
            let err = socket.attach_filter(program).unwrap_err();
            assert_eq!(err.raw_os_error(), Some(libc::EINVAL));
        }
        assert!(!answer(&socket));
    }
}
