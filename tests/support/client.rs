//! Clients as applications have them: pooled connections, HTTP/1.1 or HTTP/2, answers whole or as streams.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tokio::task::{JoinHandle, JoinSet};

use super::bodies::{CHAT, chat_body, stream_body};
use super::{Reply, soon};

/// Clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    pub fn http1(address: SocketAddr) -> Self {
        Self::new(address, reqwest::Client::builder().http1_only())
    }

    /// HTTP/2 in clear text, by prior knowledge: all its requests share one connection.
    pub fn h2c(address: SocketAddr) -> Self {
        Self::new(address, reqwest::Client::builder().http2_prior_knowledge())
    }

    /// By TLS; ALPN as this configuration offers it.
    pub fn https(address: SocketAddr, tls: rustls::ClientConfig) -> Self {
        let client = Self::new(address, reqwest::Client::builder().use_preconfigured_tls(tls));
        Self { base: format!("https://{address}"), ..client }
    }

    fn new(address: SocketAddr, builder: reqwest::ClientBuilder) -> Self {
        // Another may have been quicker to say so.
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = builder.no_proxy().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
        Self { http, base: format!("http://{address}") }
    }

    /// A client of the same listener, over HTTP/1.1, with connections of its own.
    pub fn anew(&self) -> Self {
        Self::http1(self.address())
    }

    /// Whom it talks to.
    pub fn address(&self) -> SocketAddr {
        self.base.trim_start_matches("http://").parse().expect("an address")
    }

    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// A POST of JSON text.
    pub fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.request("POST", path).header("content-type", "application/json").body(body)
    }

    pub async fn get(&self, path: &str) -> Reply {
        whole(self.request("GET", path)).await
    }

    pub async fn post_json(&self, path: &str, body: &Value) -> Reply {
        whole(self.post(path, body.to_string())).await
    }

    pub async fn chat(&self) -> Reply {
        self.post_json(CHAT, &chat_body()).await
    }

    /// A chat of this model.
    pub async fn chat_with(&self, model: &str) -> Reply {
        self.post_json(CHAT, &serde_json::json!({"model": model, "messages": []})).await
    }

    /// Begins a streamed chat; returns with its head.
    pub async fn stream(&self) -> Events {
        Events::of(self.post(CHAT, stream_body().to_string())).await
    }

    /// Sends a chat from a task of its own.
    pub fn begin_chat(&self) -> Pending {
        Pending::of(self.post(CHAT, chat_body().to_string()))
    }
}

/// Sends a request and reads its answer to the end.
pub async fn whole(request: RequestBuilder) -> Reply {
    soon("an answer", try_whole(request)).await.expect("an answer that ends well")
}

/// The same, where the answer may break off.
pub async fn try_whole(request: RequestBuilder) -> Result<Reply, reqwest::Error> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Reply { status, headers, body: response.bytes().await? })
}

/// A request under way.
pub struct Pending(JoinHandle<Reply>);

impl Pending {
    pub fn of(request: RequestBuilder) -> Self {
        Self(tokio::spawn(whole(request)))
    }

    pub async fn reply(self) -> Reply {
        self.0.await.expect("a request that ends")
    }

    pub fn is_answered(&self) -> bool {
        self.0.is_finished()
    }

    /// Gives it up: closes its connection (HTTP/1.1) or resets its stream (HTTP/2).
    pub async fn leave(self) {
        self.0.abort();
        assert!(self.0.await.is_err(), "answered before it was given up");
    }
}

/// The body of an answer as it comes.
pub struct Events {
    pub response: reqwest::Response,
    ahead: BytesMut,
}

impl From<reqwest::Response> for Events {
    fn from(response: reqwest::Response) -> Self {
        Self { response, ahead: BytesMut::new() }
    }
}

impl Events {
    pub async fn of(request: RequestBuilder) -> Self {
        let response = soon("the head of a stream", request.send()).await.expect("a stream");
        assert_eq!(response.status(), 200, "{response:?}");
        Self::from(response)
    }

    /// The next event with the blank line that ends it.
    pub async fn next(&mut self) -> String {
        self.next_by("\n\n").await
    }

    /// The next piece that ends so.
    pub async fn next_by(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.ahead.windows(end.len()).position(|window| window == end.as_bytes()) {
                return text(self.ahead.split_to(at + end.len()).freeze());
            }
            let chunk = self.chunk().await.expect("a stream that is whole");
            self.ahead.extend_from_slice(&chunk.unwrap_or_else(|| panic!("the stream ended within {:?}", self.ahead)));
        }
    }

    /// All that is left of a stream that ends well.
    pub async fn rest(self) -> String {
        let (text, broken) = self.rest_or_break().await;
        assert!(!broken, "the stream broke off after {text:?}");
        text
    }

    /// All that is left, and whether it broke off: a client must be able to tell.
    pub async fn rest_or_break(mut self) -> (String, bool) {
        loop {
            match self.chunk().await {
                Ok(Some(chunk)) => self.ahead.extend_from_slice(&chunk),
                Ok(None) => return (text(self.ahead.freeze()), false),
                Err(_) => return (text(self.ahead.freeze()), true),
            }
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, reqwest::Error> {
        soon("the next part of a stream", self.response.chunk()).await
    }
}

fn text(bytes: Bytes) -> String {
    String::from_utf8(bytes.into()).expect("a stream of text")
}

/// Runs `count` of these at once; their results in the order of their numbers.
pub async fn in_parallel<T: Send + 'static, F>(count: usize, request: impl Fn(usize) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let task = request(number);
        tasks.spawn(async move { (number, task.await) });
    }
    let mut results = tasks.join_all().await;
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}
