//! The bare hyper proxy: the least that a reverse proxy on hyper 1 does. It knows no health, no names, no limits and
//! no second attempt; what it takes more than nothing is the price of hyper itself.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, TE, TRAILER, UPGRADE};
use hyper::http::uri::{Authority, Parts, Scheme};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use crate::wire;

/// More than any cell keeps open to one backend.
const KEPT_CONNECTIONS: usize = 1024;
const KEPT_FOR: Duration = Duration::from_secs(60);

/// Be a reverse proxy.
#[derive(clap::Args)]
pub struct Args {
    /// Addresses, taken in turns
    #[arg(required = true)]
    backends: Vec<Authority>,
}

struct Proxy {
    client: Client<HttpConnector, Incoming>,
    backends: Vec<Authority>,
    turn: Cell<usize>,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(KEPT_CONNECTIONS)
        .pool_idle_timeout(KEPT_FOR)
        .pool_timer(TokioTimer::new())
        .build(connector);
    let proxy = Rc::new(Proxy { client, backends: args.backends, turn: Cell::new(0) });
    let listener = wire::listen()?;
    println!("ready {}", listener.local_addr()?);
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // A socket that is gone already says so when it is used.
        let _ = stream.set_nodelay(true);
        let proxy = proxy.clone();
        let passed = service_fn(move |request| {
            let proxy = proxy.clone();
            async move { Ok::<_, Infallible>(proxy.pass(request).await) }
        });
        tokio::task::spawn_local(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), passed),
        );
    }
}

impl Proxy {
    async fn pass(&self, mut request: Request<Incoming>) -> Response<BoxBody<Bytes, hyper::Error>> {
        let turn = self.turn.replace(self.turn.get().wrapping_add(1));
        let mut parts = Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.backends[turn % self.backends.len()].clone());
        parts.path_and_query = request.uri().path_and_query().cloned();
        let Ok(uri) = Uri::from_parts(parts) else { return failed(StatusCode::BAD_REQUEST) };
        *request.uri_mut() = uri;
        without_hop_fields(request.headers_mut());
        match self.client.request(request).await {
            Ok(mut answer) => {
                without_hop_fields(answer.headers_mut());
                answer.map(BodyExt::boxed)
            }
            Err(_) => failed(StatusCode::BAD_GATEWAY),
        }
    }
}

fn without_hop_fields(fields: &mut HeaderMap) {
    const OF_ONE_HOP: [HeaderName; 4] = [CONNECTION, TE, TRAILER, UPGRADE];
    for name in OF_ONE_HOP {
        fields.remove(name);
    }
}

fn failed(status: StatusCode) -> Response<BoxBody<Bytes, hyper::Error>> {
    let mut answer = Response::new(Full::new(Bytes::new()).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer
}
