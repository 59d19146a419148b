//! For corpora of raw requests: a backend that keeps every byte it is sent. It answers polls as plain OpenAI does, and every chat alike.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{CHAT, MODEL, NATIVE};

#[derive(Default)]
struct Seen {
    requests: Vec<Vec<u8>>,
    odd: String,
}

pub struct Recorder {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Recorder {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let recorder = Self { address: listener.local_addr().expect("an address"), seen: Arc::default() };
        let seen = Arc::clone(&recorder.seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&seen)));
            }
        });
        recorder
    }

    /// A configuration with this backend alone.
    pub fn config(&self) -> String {
        let address = self.address;
        format!(
            "[[backends]]\nurl = \"http://{address}\"\nengine = \"openai\"\nslots = 64\nmodels = {{ \"{MODEL}\" = \"{NATIVE}\" }}\n"
        )
    }

    /// Every request that is no poll, head and body as they came.
    pub fn requests(&self) -> Vec<Vec<u8>> {
        self.seen.lock().expect("no poison").requests.clone()
    }

    /// Bytes that were no part of a request.
    pub fn odd_bytes(&self) -> String {
        self.seen.lock().expect("no poison").odd.clone()
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Seen>>) {
    let mut ahead = Vec::new();
    loop {
        let Some(length) = whole(&ahead) else {
            if !matches!(stream.read_buf(&mut ahead).await, Ok(1..)) {
                let mut seen = seen.lock().expect("no poison");
                return seen.odd.push_str(&ahead.escape_ascii().to_string());
            }
            continue;
        };
        let request: Vec<u8> = ahead.drain(..length).collect();
        let body = if request.starts_with(b"GET ") {
            format!("{{\"object\":\"list\",\"data\":[{{\"id\":\"{NATIVE}\"}}]}}")
        } else {
            seen.lock().expect("no poison").requests.push(request);
            "{}".to_owned()
        };
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        if stream.write_all((head + &body).as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The length of the first request, once all of it is there; by `Content-Length` alone, so that any other framing shows
/// as bytes that belong to no request.
fn whole(ahead: &[u8]) -> Option<usize> {
    let head = ahead.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&ahead[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let whole = head + length.unwrap_or(0);
    (ahead.len() >= whole).then_some(whole)
}

/// What is wrong with a request as a backend sees it, whatever the client made of it: it must be a whole chat.
pub fn problem(request: &[u8]) -> Option<String> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = parsed.parse(request) else { return Some("not a request".into()) };
    if (parsed.method, parsed.path, parsed.version) != (Some("POST"), Some(CHAT), Some(1)) {
        return Some("not the request that was meant".into());
    }
    let values = |name: &str| {
        let fields = parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        fields.map(|field| String::from_utf8_lossy(field.value).into_owned()).collect::<Vec<_>>()
    };
    if values("content-length") != [(request.len() - head).to_string()] || values("host").len() != 1 {
        return Some("not framed and addressed in one way".into());
    }
    if values("x-forwarded-for") != ["127.0.0.1"] || values("via").len() != 1 || values("x-request-id").len() != 1 {
        return Some("not told by whom it comes".into());
    }
    let hop = ["transfer-encoding", "connection", "keep-alive", "proxy-connection", "proxy-authorization"];
    let more = ["te", "trailer", "upgrade", "http2-settings", "expect", "forwarded", "x-real-ip", "x-trailer"];
    let passed = hop.iter().chain(&more).find(|name| !values(name).is_empty());
    let alike = parsed.headers.iter().find(|field| field.name.contains('_')).map(|field| field.name.to_owned());
    passed.map(ToString::to_string).or(alike).map(|name| format!("{name} passed"))
}
