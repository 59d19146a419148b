//! Connections from clients: accepted, spread over the workers, served.
//!
//! One thread accepts and gives each connection to the worker that has the fewest, so that a handful of
//! connections uses every core: `SO_REUSEPORT` spreads by hash, which leaves workers idle when connections
//! are few. A worker is one thread with one current-thread runtime; a request lives and dies on it.

use std::io;
use std::net::TcpStream as StdStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::admission::Admission;
use super::client::ClientStream;
use super::descriptors;
use super::door::Door;
use super::forwarded::Peer;
use super::proxy::{self, Client};
use super::snapshot::Shared;
use super::streams::Streams;
use super::tls;
use super::worker::Worker;

/// A client that sends no request for so long is let go.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Largest head of a request: more than any client sends, and bounded.
const HEAD_LIMIT: usize = 32 * 1024;
/// What a connection may hold in memory each way, for a client that does not read, or a body that is read on.
const BUFFER_LIMIT: usize = 64 * 1024;
/// HTTP/2: how long a silent client is taken to be there, and how soon it must answer a ping.
const PING_EVERY: Duration = Duration::from_secs(20);
/// HTTP/2: requests of one connection at once (the advice of Envoy's edge guide).
const STREAMS: u32 = 100;
/// HTTP/2: upload windows of a stream and a connection, for images of many megabytes.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// How often idle connections to backends are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Draining: how long a connection on which nothing is under way may take to say something. A client that does not look
/// before it writes on a kept connection loses what it writes on a closed one; most write again within a second.
const LINGER: Duration = Duration::from_secs(1);
/// How long an answer that is cut may take to say so.
const LAST_WORD: Duration = Duration::from_millis(250);

/// How far the end of the process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// Clients are told to go elsewhere; new connections are still taken.
    Leaving,
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

impl Server {
    /// Starts the workers and begins to accept.
    ///
    /// # Errors
    /// Where a thread or a runtime cannot be had.
    pub fn start(door: Door, shared: &Arc<Shared>, phase: &watch::Receiver<Phase>) -> io::Result<Self> {
        let mut threads = Vec::new();
        let mut workers = Vec::new();
        for index in 0..shared.connections.len() {
            let (give, take) = mpsc::unbounded_channel();
            let (shared, phase) = (Arc::clone(shared), phase.clone());
            threads.push(spawn(&format!("worker-{index}"), move || work(index, shared, take, phase))?);
            workers.push(give);
        }
        let (shared, phase) = (Arc::clone(shared), phase.clone());
        threads.push(spawn("accept", move || accept(door, workers, shared, phase))?);
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
    door: Door,
    workers: Vec<mpsc::UnboundedSender<StdStream>>,
    shared: Arc<Shared>,
    mut phase: watch::Receiver<Phase>,
) {
    let door = match door.attended() {
        Ok(door) => door,
        Err(error) => return tracing::error!("cannot listen: {error}"),
    };
    let mut admission = Admission::new(descriptors::client_limit());
    loop {
        let accepted = tokio::select! {
            accepted = door.accept() => accepted.and_then(TcpStream::into_std),
            _ = phase.wait_for(|phase| *phase >= Phase::Draining) => break,
        };
        match accepted {
            Ok(stream) if admission.is_open(&shared) => give(stream, &workers, &shared),
            Ok(stream) => admission.refuse(&stream),
            Err(error) => admission.without_descriptors(&door, &error).await,
        }
    }
    door.close(|stream| {
        if let Ok(stream) = stream.into_std() {
            give(stream, &workers, &shared);
        }
    })
    .await;
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
    let _ = timeout(LAST_WORD, closed).await;
}

/// Serves one connection, in whichever version it speaks.
async fn connection(worker: &Rc<Worker>, stream: StdStream, phase: watch::Receiver<Phase>) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let Ok(peer) = stream.peer_addr() else { return };
    let mut draining = phase.clone();
    let late = async {
        let _ = draining.wait_for(|phase| *phase >= Phase::Draining).await;
        tokio::time::sleep(LINGER).await;
    };
    let spoken = tokio::select! {
        spoken = timeout(IDLE_TIMEOUT, first_words(worker, stream)) => spoken,
        // It has said nothing yet: there is nothing to finish.
        () = late => return,
    };
    let Ok(Ok((stream, is_http2))) = spoken else { return };
    let watched = (!is_http2).then(|| stream.clone());
    let scheme = if stream.is_tls() { "https" } else { "http" };
    let client = Rc::new(Client { peer: Peer::new(peer.ip(), scheme), watched });
    // Boxed, so that a connection is as large as what it speaks, and not as the largest that it could speak.
    if is_http2 {
        Box::pin(serve_http2(worker, client, stream, phase)).await
    } else {
        Box::pin(serve_http1(worker, client, stream, phase)).await
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
    // Boxed, for hyper keeps room for this future as long as the connection lasts, and it is needed only until the answer
    // begins.
    let service = service_fn(|request: Request<Incoming>| {
        Box::pin(proxy::serve(Rc::clone(worker), Rc::clone(&client), request.into_parts()))
    });
    let stall = stall_limit(worker, &stream);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_header_size(HEAD_LIMIT)
        .max_buf_size(BUFFER_LIMIT)
        .half_close(false)
        .serve_connection(TokioIo::new(stream.clone()), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = stream.drive(stall, connection.as_mut()) => Some(served),
        () = lingered(&stream, &mut phase) => None,
    };
    if let Some(served) = served {
        let _ = served.inspect_err(|error| tracing::debug!(client = %client.peer.address, "connection ended: {error}"));
        return Box::pin(stream.linger()).await;
    }
    connection.as_mut().graceful_shutdown();
    let mut connection = std::pin::pin!(stream.drive(stall, connection));
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
    }
    // Polled once more, an answer under way ends with its last word.
    worker.cut.set(true);
    let _ = timeout(LAST_WORD, connection).await;
}

/// Draining: returns once nothing has been under way for long enough, or the time is up. Whoever asks meanwhile is answered,
/// and told that the connection closes.
async fn lingered(stream: &ClientStream, phase: &mut watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase >= Phase::Draining).await;
    tokio::select! {
        () = stream.quiet_for(LINGER) => {}
        _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
    }
}

async fn serve_http2(worker: &Rc<Worker>, client: Rc<Client>, stream: ClientStream, mut phase: watch::Receiver<Phase>) {
    let streams = Streams::new(stall_limit(worker, &stream));
    let worker = Rc::clone(worker);
    let service = service_fn(move |request: Request<Incoming>| {
        Box::pin(proxy::serve(Rc::clone(&worker), Rc::clone(&client), request.into_parts()))
    });
    let connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD_LIMIT as u32)
        .max_send_buf_size(BUFFER_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let is_late = *phase.borrow() > Phase::Serving;
    let leaves = async {
        if is_late {
            // It came for a request, and is not sent away before it has made it.
            let _ = timeout(LINGER, streams.first()).await;
        } else {
            let _ = phase.wait_for(|phase| *phase > Phase::Serving).await;
        }
    };
    let served = tokio::select! {
        served = connection.as_mut() => Some(served),
        () = streams.idle(IDLE_TIMEOUT) => None,
        () = leaves => None,
    };
    if served.is_none() {
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = connection => {}
            _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
        }
    }
}

/// How long this client may take nothing of an answer. The kernel is told the same: it knows whether a client that is
/// silent is there at all (RFC 5482).
fn stall_limit(worker: &Worker, stream: &ClientStream) -> Duration {
    let limit = worker.shared.snapshot.load().config.timeouts.client;
    stream.acknowledge_within(limit);
    limit
}
