//! The listener and its connections: HTTP/1.1 the way the engine's own server speaks it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::exchange::exchange;
use super::wire::{Switch, Wire};
use super::{Args, Simulation, control, hold};

/// A simulated engine that listens but does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    keep_alive: Duration,
    simulation: Arc<Simulation>,
}

/// Connections beyond these wait in the kernel's queue.
const CONNECTION_LIMIT: usize = 2048;
/// When accepting fails (no file descriptors left, as a rule), wait for some connection to end.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(10);
/// How long a connection that is to be refused may take to show that it wants `/__simulate` instead. Whoever sends
/// anything else is refused at its first byte, so only silence lasts so long.
const PATIENCE_BEFORE_REFUSAL: Duration = Duration::from_millis(500);

impl Server {
    /// Takes the address. What connects from now on is answered once [`Server::serve`] runs.
    pub async fn bind(args: &Args) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(args.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {}", args.listen))?;
        let address = listener.local_addr().context("cannot tell the address listened on")?;
        let keep_alive = args.keep_alive.unwrap_or_else(|| args.engine.keep_alive());
        Ok(Self { listener, address, keep_alive, simulation: Arc::new(Simulation::new(args)) })
    }

    /// Where it listens, with the port it really got.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` resolves, or the future is dropped; every connection ends with it.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTION_LIMIT => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(connection(self.simulation.clone(), stream, self.keep_alive));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept");
                        sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                    }
                },
            }
        }
    }
}

async fn connection(simulation: Arc<Simulation>, stream: TcpStream, keep_alive: Duration) {
    let _counted = simulation.stats.connection();
    // Tokens are small and each is to be seen when it is sent.
    let _ = stream.set_nodelay(true);
    if is_refused(&simulation, &stream).await {
        return;
    }
    let switch = Arc::new(Switch::default());
    let wire = TokioIo::new(Wire::new(stream, switch.clone()));
    let answer = service_fn(|request| exchange(simulation.clone(), switch.clone(), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // Runs between two requests as well, which makes it the keep-alive.
        .header_read_timeout(keep_alive)
        .title_case_headers(simulation.engine.capitalises_headers())
        .auto_date_header(simulation.engine.sends_date());
    if let Err(error) = http.serve_connection(wire, answer).await {
        tracing::debug!(%error, "connection ended");
    }
}

/// Whether the fault `refuse` meets this connection; it must not meet those that would clear it.
async fn is_refused(simulation: &Simulation, stream: &TcpStream) -> bool {
    if !hold(&simulation.faults).would_refuse() {
        return false;
    }
    let mut start = [0; 32];
    if let Ok(Ok(read)) = timeout(PATIENCE_BEFORE_REFUSAL, stream.peek(&mut start)).await {
        let start = String::from_utf8_lossy(start.get(..read).unwrap_or_default());
        if start.split_once(' ').is_some_and(|(_, target)| control::is_control(target)) {
            return false;
        }
    }
    let refused = hold(&simulation.faults).take_refusal();
    if refused {
        simulation.stats.count_fault();
    }
    refused
}
