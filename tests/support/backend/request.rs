//! A request as a backend received it.

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

#[derive(Clone)]
pub struct Request {
    pub method: String,
    pub target: String,
    /// The head as it came, byte for byte.
    pub head: Bytes,
    pub body: Bytes,
    /// Whether the body arrived to its end.
    pub complete: bool,
    /// Which of the backend's connections it came on.
    pub connection: usize,
    /// When the peer was seen to leave before it was answered.
    pub gone_at: Option<Instant>,
}

impl Request {
    /// Values of all fields of this name, in order.
    pub fn headers(&self, name: &str) -> Vec<Bytes> {
        let fields = self.head.split(|byte| *byte == b'\n').skip(1);
        let value = |field: &[u8]| {
            let colon = field.iter().position(|byte| *byte == b':')?;
            let (key, value) = field.split_at(colon);
            key.eq_ignore_ascii_case(name.as_bytes()).then(|| self.head.slice_ref(value[1..].trim_ascii()))
        };
        fields.filter_map(value).collect()
    }

    /// The only field of this name, as text; empty where there is none.
    pub fn header(&self, name: &str) -> String {
        let values = self.headers(name);
        assert!(values.len() < 2, "{name} came {} times: {self:?}", values.len());
        values.first().map_or(String::new(), |value| String::from_utf8_lossy(value).into_owned())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|why| panic!("not JSON ({why}): {self:?}"))
    }
}

impl std::fmt::Debug for Request {
    /// Bodies may have megabytes: their beginning is enough to know them by.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let beginning = &self.body[..self.body.len().min(300)];
        let (head, body) = (String::from_utf8_lossy(&self.head), String::from_utf8_lossy(beginning));
        write!(f, "{head}[{} bytes, complete: {}] {body}", self.body.len(), self.complete)
    }
}
