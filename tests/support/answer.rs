//! What a scripted backend does with one request: a list of steps, built in the order they happen.

use bytes::Bytes;
use serde_json::Value;

use super::Gate;

/// What a backend answers, and how it behaves while it does.
#[derive(Clone)]
pub struct Answer {
    pub steps: Vec<Step>,
    framing: Framing,
}

#[derive(Clone)]
pub enum Step {
    Send(Bytes),
    /// The same bytes so many times.
    Repeat(Bytes, usize),
    /// Waits at the gate.
    Hold(Gate),
    /// Never goes on: until the peer leaves.
    Stall,
    /// Waits until the peer has left, and reads nothing.
    UntilGone,
    /// Closes the connection in order (FIN).
    Close,
    /// Breaks the connection off (RST).
    Reset,
}

#[derive(Clone, Copy, PartialEq)]
enum Framing {
    Chunked,
    /// The bytes say themselves how long they are.
    Whole,
}

impl Answer {
    /// Nothing yet: for a backend that closes, resets or stalls before it answered.
    pub fn nothing() -> Self {
        Self { steps: Vec::new(), framing: Framing::Whole }
    }

    /// These bytes on the wire, head and all.
    pub fn wire(bytes: impl Into<Bytes>) -> Self {
        Self::nothing().step(Step::Send(bytes.into()))
    }

    /// A whole answer with a `Content-Length`.
    pub fn whole(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let length = body.len().to_string();
        let mut bytes = head(status, &[headers, &[("content-length", &length)]].concat());
        bytes.extend_from_slice(body);
        Self::wire(bytes)
    }

    pub fn json(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self::whole(status, &[JSON], body)
    }

    /// An error in the shape of vLLM.
    pub fn error(status: u16) -> Self {
        Self::json(status, vllm_error(status))
    }

    /// "I am full", with the seconds to wait.
    pub fn push_back(status: u16, seconds: u32) -> Self {
        Self::whole(status, &[JSON, ("retry-after", &seconds.to_string())], vllm_error(status))
    }

    /// The head of a chunked answer; its body follows step by step.
    pub fn chunked(status: u16, headers: &[(&str, &str)]) -> Self {
        let head = head(status, &[headers, &[("transfer-encoding", "chunked")]].concat());
        Self { steps: vec![Step::Send(head.into())], framing: Framing::Chunked }
    }

    /// The head of a stream of server-sent events.
    pub fn stream() -> Self {
        Self::chunked(200, &[("content-type", "text/event-stream; charset=utf-8")])
    }

    /// One chunk of a chunked body; none where it is empty, for that would end the body.
    pub fn chunk(self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        if bytes.is_empty() { self } else { self.step(Step::Send(in_a_chunk(bytes))) }
    }

    /// The same bytes on the wire so many times.
    pub fn wire_again(self, bytes: impl Into<Bytes>, times: usize) -> Self {
        self.step(Step::Repeat(bytes.into(), times))
    }

    /// The same chunk so many times.
    pub fn repeated(self, bytes: impl AsRef<[u8]>, times: usize) -> Self {
        self.step(Step::Repeat(in_a_chunk(bytes.as_ref()), times))
    }

    /// Each of them one chunk.
    pub fn chunks<'a>(self, pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        pieces.into_iter().fold(self, Self::chunk)
    }

    /// One event of a stream, in a chunk of its own.
    pub fn event(self, event: &Value) -> Self {
        self.chunk(format!("data: {event}\n\n"))
    }

    /// The event that ends a stream of OpenAI's kind.
    pub fn done(self) -> Self {
        self.chunk("data: [DONE]\n\n")
    }

    /// Waits at the gate before the next step.
    pub fn hold(self, gate: &Gate) -> Self {
        self.step(Step::Hold(gate.clone()))
    }

    /// Waits at the gate before the first step.
    pub fn behind(mut self, gate: &Gate) -> Self {
        self.steps.insert(0, Step::Hold(gate.clone()));
        self
    }

    pub fn stall(self) -> Self {
        self.step(Step::Stall)
    }

    /// The same for one that is answered before its body was read.
    pub fn until_gone(self) -> Self {
        self.step(Step::UntilGone)
    }

    pub fn close(self) -> Self {
        self.step(Step::Close)
    }

    pub fn reset(self) -> Self {
        self.step(Step::Reset)
    }

    /// All its steps, with the end of a chunked body where it is not cut off before.
    pub fn into_steps(mut self) -> Vec<Step> {
        let is_cut = matches!(self.steps.last(), Some(Step::Close | Step::Reset | Step::Stall | Step::UntilGone));
        if self.framing == Framing::Chunked && !is_cut {
            self.steps.push(Step::Send(Bytes::from_static(b"0\r\n\r\n")));
        }
        self.steps
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

fn in_a_chunk(bytes: &[u8]) -> Bytes {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat().into()
}

const JSON: (&str, &str) = ("content-type", "application/json");

fn head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("");
    let fields: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} {reason}\r\nserver: uvicorn\r\n{fields}\r\n").into_bytes()
}

fn vllm_error(status: u16) -> String {
    format!(r#"{{"error":{{"message":"the engine says {status}","type":"EngineError","param":null,"code":{status}}}}}"#)
}
