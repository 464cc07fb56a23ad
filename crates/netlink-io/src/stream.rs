//! Waiting for a socket on tokio.

use std::io;
use std::sync::Arc;

use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use crate::{Datagram, Socket, sys};

/// A socket registered with the runtime of the thread that made it.
#[derive(Debug)]
pub struct AsyncSocket(AsyncFd<Arc<Socket>>);

impl AsyncSocket {
    /// Registers `socket`. It stays shared, so that others can read its counters.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn new(socket: Arc<Socket>) -> io::Result<Self> {
        sys::register(socket).map(Self)
    }

    /// The socket.
    pub fn socket(&self) -> &Arc<Socket> {
        self.0.get_ref()
    }

    /// Waits until there may be something to receive.
    pub async fn readable(&self) -> io::Result<Ready<'_>> {
        self.0.readable().await.map(Ready)
    }
}

/// A socket that may have something to receive.
#[derive(Debug)]
pub struct Ready<'a>(AsyncFdReadyGuard<'a, Arc<Socket>>);

impl Ready<'_> {
    /// Makes the next [`AsyncSocket::readable`] wait for something that comes from now on. To be said
    /// before somebody takes what is there now.
    pub fn clear(&mut self) {
        self.0.clear_ready();
    }

    /// Takes the next datagram; `Ok(None)` if there is none. Only that makes the next
    /// [`AsyncSocket::readable`] wait: clearing readiness on any other outcome loses wake-ups or spins.
    pub fn try_recv(&mut self, buf: &mut [u8]) -> io::Result<Option<Datagram>> {
        let received = self.0.get_inner().recv(buf);
        if let Ok(None) = received {
            self.0.clear_ready();
        }
        received
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn wakes_for_a_reply_and_waits_when_drained() {
        let socket = Arc::new(Socket::open().unwrap());
        let reader = AsyncSocket::new(socket.clone()).unwrap();
        // NLMSG_NOOP with NLM_F_ACK: the kernel acknowledges it.
        socket.send(&[16, 0, 0, 0, 0x10, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        let mut buf = [0u8; 4096];
        let mut ready = reader.readable().await.unwrap();
        assert!(ready.try_recv(&mut buf).unwrap().is_some());
        assert_eq!(ready.try_recv(&mut buf).unwrap(), None);
        let again = tokio::time::timeout(Duration::from_millis(20), reader.readable()).await;
        assert!(again.is_err(), "nothing is queued, yet the socket is ready");
    }
}
