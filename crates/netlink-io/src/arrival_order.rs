//! Which of several sockets had something to receive first.

use std::io;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::Socket;

/// Tells in which order sockets began to have something to receive.
///
/// The kernel puts a socket at the end of a list when a message comes and it is not on the list yet, and
/// `epoll_wait(2)` gives that list from its head (`ep_poll_callback`, `ep_send_events`,
/// `fs/eventpoll.c`). That is all there is to tell which of two messages in two sockets was sent first where
/// nobody records that ([`Socket::record_arrivals`]). It holds from one look to the next, if what was found is
/// taken out in between.
#[derive(Debug)]
pub struct ArrivalOrder {
    epoll: OwnedFd,
    sockets: usize,
}

impl ArrivalOrder {
    /// An order of these sockets, told by their position. What they hold already comes in that order.
    ///
    /// # Errors
    ///
    /// What the kernel says: no descriptor left, or `fs.epoll.max_user_watches` reached.
    pub fn new<'a>(sockets: impl Iterator<Item = &'a Socket>) -> io::Result<Self> {
        let mut order = Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, sockets: 0 };
        for socket in sockets {
            // Edge-triggered: what was told once is told again only behind what came since.
            let (at, flags) =
                (EventData::new_u64(order.sockets as u64), EventFlags::IN | EventFlags::ET);
            epoll::add(&order.epoll, socket, at, flags)?;
            order.sockets += 1;
        }
        Ok(order)
    }

    /// Positions of the sockets that got something since the last look and still have it, the first one
    /// first; without waiting.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn look(&self) -> io::Result<Vec<usize>> {
        let mut events: Vec<Event> = Vec::with_capacity(self.sockets.max(1));
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
        Ok(events.iter().map(|event| event.data.u64() as usize).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NLMSG_NOOP` with `NLM_F_ACK`: the kernel acknowledges it.
    const NOOP: [u8; 16] = [16, 0, 0, 0, 0x10, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn sockets_come_in_the_order_in_which_they_got_something() {
        let sockets: Vec<_> = (0..4).map(|_| Socket::open().unwrap()).collect();
        let order = ArrivalOrder::new(sockets.iter()).unwrap();
        let mut buf = [0; 256];
        for turn in [[2, 0, 3], [3, 2, 0], [1, 3, 2]] {
            for at in turn {
                sockets[at].send(&NOOP).unwrap();
                sockets[turn[0]].send(&NOOP).unwrap();
            }
            assert_eq!(order.look().unwrap(), turn);
            assert_eq!(order.look().unwrap(), [0; 0], "told once");
            for socket in &sockets {
                while socket.recv(&mut buf).unwrap().is_some() {}
            }
        }
        sockets[1].send(&NOOP).unwrap();
        assert!(sockets[1].recv(&mut buf).unwrap().is_some());
        assert_eq!(order.look().unwrap(), [0; 0], "what was taken out is not told");
    }
}
