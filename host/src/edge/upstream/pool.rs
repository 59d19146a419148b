//! Idle connections of one worker, by backend: last used first, so that few stay warm.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::names::Names;
use crate::config::BackendUrl;
use crate::edge::snapshot::Member;
use crate::edge::wire::Wire;

/// Kept this long where the backend does not say (`Keep-Alive: timeout=…`).
const KEPT: Duration = Duration::from_secs(60);
/// A backend that closes after n seconds closes while a request is on its way at n: leave it this much room.
const CLOSING_MARGIN: Duration = Duration::from_secs(1);
/// Idle connections to one backend; more than any engine's slots on one worker.
const IDLE_LIMIT: usize = 1024;
/// One read. Large enough that a burst of events becomes one write, small enough for the L2 cache.
const READ_SIZE: usize = 64 * 1024;

/// The idle connections, and the buffer into which every read of this worker goes.
#[derive(Debug)]
pub struct Pool {
    idle: RefCell<HashMap<Peer, Vec<Idle>>>,
    scratch: RefCell<Box<[u8]>>,
    pub(super) names: Arc<Names>,
    /// Names that connections were taken for lately.
    hosts: RefCell<HashMap<String, Host>>,
}

/// A name, and where it points to as of the last sweep: read here, so that requests do not all ask what all workers share.
#[derive(Debug)]
struct Host {
    addresses: Option<Arc<[IpAddr]>>,
    is_used: bool,
}

/// Who a connection is to. One that was made by other settings of TLS is to somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    backend: u64,
    tls: Option<u64>,
}

impl Peer {
    pub(super) fn of(member: &Member) -> Self {
        Self { backend: member.backend.id, tls: member.config.tls.as_ref().map(|tls| tls.sum) }
    }
}

#[derive(Debug)]
struct Idle {
    stream: Wire,
    since: Instant,
    until: Instant,
}

impl Pool {
    pub fn new(names: Arc<Names>) -> Self {
        let scratch = RefCell::new(vec![0; READ_SIZE].into_boxed_slice());
        Self { idle: RefCell::default(), scratch, names, hosts: RefCell::default() }
    }

    /// The most recently used connection that is still open and silent, and how long it was idle.
    pub(super) fn take(&self, member: &Member) -> Option<(Wire, Duration)> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&Peer::of(member))?;
        let now = Instant::now();
        while let Some(Idle { mut stream, since, until }) = connections.pop() {
            if until > now && stream.is_silent() && !self.has_moved(&member.config.url, &stream) {
                return Some((stream, now - since));
            }
        }
        None
    }

    /// Keeps a connection whose last answer was read to its end.
    pub(super) fn put(&self, peer: Peer, stream: Wire, advertised: Option<Duration>) {
        let kept = advertised.map_or(KEPT, |timeout| timeout.saturating_sub(CLOSING_MARGIN)).min(KEPT);
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(peer).or_default();
        if !kept.is_zero() && connections.len() < IDLE_LIMIT {
            let since = Instant::now();
            connections.push(Idle { stream, since, until: since + kept });
        }
    }

    /// Whether a name points elsewhere by now than to the other end of a connection that was made for it.
    fn has_moved(&self, url: &BackendUrl, stream: &Wire) -> bool {
        if url.host.parse::<IpAddr>().is_ok() {
            return false;
        }
        let mut hosts = self.hosts.borrow_mut();
        if !hosts.contains_key(&url.host) {
            // No sweep has asked for it: no connection was taken for it lately, and those kept since then may be to where it was.
            let addresses = self.names.last_known(&url.host);
            hosts.insert(url.host.clone(), Host { addresses, is_used: true });
        }
        let Some(host) = hosts.get_mut(&url.host) else { return false };
        host.is_used = true;
        let is_listed = |all: &Arc<[IpAddr]>| stream.tcp().peer_addr().is_ok_and(|peer| all.contains(&peer.ip()));
        host.addresses.as_ref().is_some_and(|all| !is_listed(all))
    }

    /// Closes what has been idle too long, and what the other side has closed meanwhile; learns where names point to.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.hosts.borrow_mut().retain(|name, host| {
            host.addresses = self.names.last_known(name);
            std::mem::take(&mut host.is_used)
        });
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain_mut(|idle| idle.until > now && idle.stream.is_silent());
            !connections.is_empty()
        });
    }

    /// Closes every idle connection, for something on this machine has run out; false where there was none.
    pub(super) fn give_up(&self) -> bool {
        let given_up = std::mem::take(&mut *self.idle.borrow_mut());
        !given_up.is_empty()
    }

    /// Waits for something to read and hands it to `take`; `None` at the end of the stream.
    pub(super) async fn read<T>(
        &self,
        stream: &mut Wire,
        mut take: impl FnMut(&[u8]) -> T,
    ) -> std::io::Result<Option<T>> {
        poll_fn(|cx| self.poll_read(stream, cx, &mut take)).await
    }

    /// The same as a poll. By `poll_read` and not `try_read`, which after a read that filled no buffer would have to ask
    /// the kernel once more to learn that there is nothing.
    pub(super) fn poll_read<T>(
        &self,
        stream: &mut Wire,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Poll<std::io::Result<Option<T>>> {
        let mut scratch = self.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
        let read = buffer.filled();
        Poll::Ready(Ok((!read.is_empty()).then(|| take(read))))
    }
}
