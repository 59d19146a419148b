//! A listening socket that can be closed without turning anybody away.
//!
//! Several processes may listen on one port (`SO_REUSEPORT`): so a new version starts beside the old one, which then ends.
//! Linux gives each connection to one of them, and resets those that wait at a listener that closes. So before it closes,
//! a filter on the socket drops the first packet of new connections (SYN): their clients send it again a second later, by then
//! to whoever still listens. Handshakes under way end, whoever stands at the door is let in, and only then is it closed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Connections the kernel may hold ready for us: a burst must not be refused.
const BACKLOG: i32 = 4096;
/// A peer that has gone without a word is found out by probes, where nothing is on its way that it should acknowledge.
const PROBE_AFTER: Duration = Duration::from_secs(15);
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long a handshake under way may take: the longest way around the earth and back, and less than the second after which
/// a client repeats a SYN, so that nobody's is dropped twice.
const HANDSHAKE: Duration = Duration::from_millis(250);

/// `SYN` without `ACK` in byte 13 of the TCP header is dropped, all else passes: classic BPF, for `SO_ATTACH_FILTER`.
const DROP_NEW: [(u16, u8, u8, u32); 5] = [
    (0x30, 0, 0, 13),   // load the flags
    (0x54, 0, 0, 0x12), // of them SYN and ACK
    (0x15, 0, 1, 0x02), // SYN alone?
    (0x06, 0, 0, 0),    // drop
    (0x06, 0, 0, u32::MAX),
];

/// A socket that is bound, and listens once it is opened.
#[derive(Debug)]
pub struct Door {
    listener: std::net::TcpListener,
    is_inherited: bool,
}

impl Door {
    /// Takes the port; connections come once it is [opened](Self::open).
    ///
    /// # Errors
    /// What the system says.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Self::of(socket.into(), false)
    }

    /// A socket that somebody else opened, and keeps open when this process ends.
    ///
    /// # Errors
    /// What the system says.
    pub fn inherited(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::of(listener, true)
    }

    fn of(listener: std::net::TcpListener, is_inherited: bool) -> io::Result<Self> {
        let socket = SockRef::from(&listener);
        // Connections inherit these from the socket that accepts them. Small answers and events leave at once.
        socket.set_tcp_nodelay(true)?;
        let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(3);
        socket.set_tcp_keepalive(&probes)?;
        Ok(Self { listener, is_inherited })
    }

    /// Connections are taken from now on; those that nobody accepts yet wait.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(&self) -> io::Result<()> {
        if self.is_inherited { Ok(()) } else { SockRef::from(&self.listener).listen(BACKLOG) }
    }

    /// Where it is.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// For use on this thread's runtime.
    ///
    /// # Errors
    /// Where the runtime cannot watch it.
    pub fn attended(self) -> io::Result<Attended> {
        Ok(Attended { listener: tokio::net::TcpListener::from_std(self.listener)?, is_inherited: self.is_inherited })
    }
}

/// A door at which somebody stands.
#[derive(Debug)]
pub struct Attended {
    listener: tokio::net::TcpListener,
    is_inherited: bool,
}

impl Attended {
    /// Where it is.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection.
    ///
    /// # Errors
    /// What the system says: out of file descriptors, mostly.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Closes it. Whoever stands before it is let in: handed to `take`.
    pub async fn close(self, mut take: impl FnMut(TcpStream)) {
        if self.is_inherited {
            // It stays open elsewhere, with whoever waits at it; a filter would stay on it too.
            return;
        }
        let filter = DROP_NEW.map(|(code, jt, jf, k)| SockFilter::new(code, jt, jf, k));
        if let Err(error) = SockRef::from(&self.listener).attach_filter(&filter) {
            tracing::warn!("connections made at this moment may be reset: {error}");
        }
        let let_in = async {
            loop {
                match self.accept().await {
                    Ok(stream) => take(stream),
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        // Never ends by itself: who came in time is in when the time is over.
        let _ = timeout(HANDSHAKE, let_in).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_door_that_closes_lets_in_who_stands_there_and_leaves_the_rest_to_the_next() {
        let first = Door::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.address().unwrap();
        first.open().unwrap();
        let second = Door::bind(address).unwrap();
        let waiting = TcpStream::connect(address).await.unwrap();
        second.open().unwrap();
        let second = second.attended().unwrap();
        let taken = tokio::spawn(async move {
            let mut taken = Vec::new();
            first.attended().unwrap().close(|stream| taken.push(stream.peer_addr().unwrap())).await;
            taken
        });
        // Half of them come to the door that closes.
        let connections: Vec<_> = (0..16).map(|_| tokio::spawn(TcpStream::connect(address))).collect();
        let mut came = Vec::new();
        for connection in connections {
            came.push(connection.await.unwrap().expect("nobody is refused"));
        }
        let taken = taken.await.unwrap();
        assert!(taken.contains(&waiting.local_addr().unwrap()), "it was there before");
        for _ in 0..=came.len() - taken.len() {
            second.accept().await.expect("all the others");
        }
    }
}
