//! Connections from clients: accepted, spread over the workers, served.
//!
//! One thread accepts and gives each connection to the worker that has the fewest, so that a handful of
//! connections uses every core: `SO_REUSEPORT` spreads by hash, which leaves workers idle when connections
//! are few. A worker is one thread with one current-thread runtime; a request lives and dies on it.

use std::io;
use std::net::{SocketAddr, TcpStream as StdStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use super::client::ClientStream;
use super::headers;
use super::proxy::{self, Client};
use super::snapshot::Shared;
use super::tls;
use super::worker::Worker;

/// Connections the kernel may hold ready for us: a burst must not be refused.
const BACKLOG: i32 = 4096;
/// A client that has not sent its head, or its next request, after this long is let go.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// HTTP/2: how long a silent client is taken to be there, and how soon it must answer a ping.
const PING_EVERY: Duration = Duration::from_secs(20);
/// HTTP/2: requests of one connection at once (the advice of Envoy's edge guide).
const STREAMS: u32 = 100;
/// HTTP/2: upload windows of a stream and a connection, for images of many megabytes.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// How often idle connections to backends are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Draining: how long a connection that has said nothing yet may take to say something.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// How long an answer that is cut may take to say so.
const LAST_WORD: Duration = Duration::from_millis(250);

/// How far the end of the process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// No new connections; what is under way finishes.
    Draining,
    /// What remains is cut.
    Ended,
}

/// The worker threads and the thread that accepts.
#[derive(Debug)]
pub struct Server {
    threads: Vec<JoinHandle<()>>,
}

/// Binds the traffic listener; a second process may bind it too while the first drains.
///
/// # Errors
/// What the system says.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Server {
    /// Starts the workers and begins to accept.
    ///
    /// # Errors
    /// Where a thread or a runtime cannot be had.
    pub fn start(
        listener: std::net::TcpListener,
        shared: &Arc<Shared>,
        phase: &watch::Receiver<Phase>,
    ) -> io::Result<Self> {
        let mut threads = Vec::new();
        let mut workers = Vec::new();
        for index in 0..shared.connections.len() {
            let (give, take) = mpsc::unbounded_channel();
            let (shared, phase) = (Arc::clone(shared), phase.clone());
            threads.push(spawn(&format!("worker-{index}"), move || work(index, shared, take, phase))?);
            workers.push(give);
        }
        let (shared, phase) = (Arc::clone(shared), phase.clone());
        threads.push(spawn("accept", move || accept(listener, workers, shared, phase))?);
        Ok(Self { threads })
    }

    /// Waits until every thread has ended.
    pub fn join(self) {
        for thread in self.threads {
            // A panic in a thread has been printed by then; there is nothing more to be done about it.
            let _ = thread.join();
        }
    }
}

/// A thread with its own current-thread runtime.
fn spawn<F: Future<Output = ()> + 'static>(
    name: &str,
    task: impl FnOnce() -> F + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(name.into()).spawn(move || LocalSet::new().block_on(&runtime, task()))
}

/// Accepts until draining begins.
async fn accept(
    listener: std::net::TcpListener,
    workers: Vec<mpsc::UnboundedSender<StdStream>>,
    shared: Arc<Shared>,
    mut phase: watch::Receiver<Phase>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("cannot listen: {error}"),
    };
    loop {
        let accepted = tokio::select! {
            // First, so that who was let in before the end is served: until nobody stands at the door.
            biased;
            accepted = listener.accept() => accepted.and_then(|(stream, _)| stream.into_std()),
            _ = phase.wait_for(|phase| *phase > Phase::Serving) => return,
        };
        match accepted {
            Ok(stream) => give(stream, &workers, &shared),
            Err(error) => {
                // Out of file descriptors, mostly: what is open goes on, and some will close.
                tracing::warn!("cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

fn give(stream: StdStream, workers: &[mpsc::UnboundedSender<StdStream>], shared: &Shared) {
    let least = shared.connections.iter().zip(workers).min_by_key(|(connections, _)| connections.load(Relaxed));
    if let Some((connections, worker)) = least {
        connections.fetch_add(1, Relaxed);
        // A worker ends only after this thread.
        let _ = worker.send(stream);
    }
}

/// One worker: serves the connections it is given until the process ends.
async fn work(
    index: usize,
    shared: Arc<Shared>,
    mut connections: mpsc::UnboundedReceiver<StdStream>,
    phase: watch::Receiver<Phase>,
) {
    let worker = Worker::new(index, shared);
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let open = Rc::new(());
    loop {
        tokio::select! {
            accepted = connections.recv() => {
                // No more will come: the thread that accepts has ended.
                let Some(stream) = accepted else { break };
                let (worker, phase, open) = (Rc::clone(&worker), phase.clone(), Rc::clone(&open));
                tokio::task::spawn_local(async move {
                    connection(&worker, stream, phase).await;
                    if let Some(connections) = worker.shared.connections.get(worker.index) {
                        connections.fetch_sub(1, Relaxed);
                    }
                    drop(open);
                });
            }
            _ = sweep.tick() => worker.pool.sweep(),
        }
    }
    finish(&open, phase).await;
}

/// Draining: waits until no connection is open, or the time is up; then what remains is cut.
async fn finish(open: &Rc<()>, mut phase: watch::Receiver<Phase>) {
    let mut look = tokio::time::interval(Duration::from_millis(20));
    let closed = async {
        while Rc::strong_count(open) > 1 {
            look.tick().await;
        }
    };
    let mut closed = std::pin::pin!(closed);
    tokio::select! {
        () = closed.as_mut() => return,
        _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
    }
    // Whoever reads too slowly for this is cut without a word.
    let _ = tokio::time::timeout(LAST_WORD, closed).await;
}

/// Serves one connection, in whichever version it speaks.
async fn connection(worker: &Rc<Worker>, stream: StdStream, phase: watch::Receiver<Phase>) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let Ok(peer) = stream.peer_addr() else { return };
    // Small answers and events leave at once.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut draining = phase.clone();
    let late = async {
        let _ = draining.wait_for(|phase| *phase > Phase::Serving).await;
        tokio::time::sleep(FIRST_WORD).await;
    };
    let spoken = tokio::select! {
        spoken = tokio::time::timeout(HEAD_TIMEOUT, first_words(worker, stream)) => spoken,
        // It has said nothing yet: there is nothing to finish.
        () = late => return,
    };
    let Ok(Ok((stream, is_http2))) = spoken else { return };
    let watched = (!is_http2).then(|| stream.clone());
    let proto = HeaderValue::from_static(if stream.is_tls() { "https" } else { "http" });
    let client = Rc::new(Client { address: peer.ip(), forwarded_for: headers::of_address(peer.ip()), proto, watched });
    if is_http2 {
        serve_http2(worker, client, stream, phase).await
    } else {
        serve_http1(worker, client, stream, phase).await
    }
}

/// The connection, by TLS where that is configured, and whether HTTP/2 is spoken on it.
async fn first_words(worker: &Worker, stream: TcpStream) -> io::Result<(ClientStream, bool)> {
    let current = worker.current();
    let mut stream = ClientStream::new(tls::open(stream, current.snapshot.config.tls.as_ref()).await?);
    drop(current);
    // By its first bytes, also where ALPN has settled it: who agreed on HTTP/2 begins with nothing else (RFC 9113 §3.4).
    let is_http2 = stream.speaks_http2().await?;
    Ok((stream, is_http2))
}

async fn serve_http1(worker: &Rc<Worker>, client: Rc<Client>, stream: ClientStream, mut phase: watch::Receiver<Phase>) {
    let service = service_fn(|request| proxy::serve(Rc::clone(worker), Rc::clone(&client), request));
    let is_late = *phase.borrow() > Phase::Serving;
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .half_close(false)
        .keep_alive(!is_late)
        .serve_connection(TokioIo::new(stream.clone()), service);
    let mut connection = std::pin::pin!(connection);
    if !is_late {
        let served = tokio::select! {
            served = stream.drive(connection.as_mut()) => Some(served),
            _ = phase.wait_for(|phase| *phase > Phase::Serving) => None,
        };
        if let Some(served) = served {
            let _ = served.inspect_err(|error| tracing::debug!(client = %client.address, "connection ended: {error}"));
            return;
        }
        // hyper closes a connection that has not said anything yet, which is why this is not for late ones.
        connection.as_mut().graceful_shutdown();
    }
    let mut connection = std::pin::pin!(stream.drive(connection));
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
    }
    // Polled once more, an answer under way ends with its last word.
    worker.cut.set(true);
    let _ = tokio::time::timeout(LAST_WORD, connection).await;
}

async fn serve_http2(worker: &Rc<Worker>, client: Rc<Client>, stream: ClientStream, mut phase: watch::Receiver<Phase>) {
    let worker = Rc::clone(worker);
    let service = service_fn(move |request| proxy::serve(Rc::clone(&worker), Rc::clone(&client), request));
    let connection = http2::Builder::new(OnThisThread)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => Some(served),
        _ = phase.wait_for(|phase| *phase > Phase::Serving) => None,
    };
    if served.is_none() {
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = connection => {}
            _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
        }
    }
}

/// Spawns what HTTP/2 needs spawned on the worker's own thread.
#[derive(Debug, Clone, Copy)]
struct OnThisThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisThread
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
