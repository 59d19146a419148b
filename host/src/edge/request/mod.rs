//! A request's body: read once, in the chunks it came in, and scanned as it comes.
//!
//! Invariants: a chunk is never copied; nothing is parsed as a whole; the bytes held are counted
//! against `limits.bodies_in_flight` until the last attempt is over.

mod facts;
mod images;
mod multipart;
mod parameters;
mod scan;
mod splice;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming};
use tokio::time::{Instant, timeout, timeout_at};

pub use facts::{BodyError, Facts};
pub use multipart::MultipartScan;
pub use scan::BodyScan;
pub use splice::splice;

use super::access::Permit;
use super::snapshot::{HeldBytes, Shared};
use crate::config::{Config, Images, Limits};
use crate::error::{ProxyError, Unroutable};

/// What a client must bring in each stretch of its upload: 1 KiB/s, which the worst of lines can do. A limit for the
/// whole would have to fit the largest body on that line, and let whoever sends nothing sit for as long.
const STRETCH: Duration = Duration::from_secs(10);
const STRETCH_BYTES: usize = 10 * 1024;
/// What a refused request may still have to send without losing its connection, and how long that may take.
const DISCARDED_BYTES: u64 = 64 * 1024;
const DISCARD_TIME: Duration = Duration::from_millis(100);

/// A body, whole, and what it says.
#[derive(Debug)]
pub struct RequestBody {
    chunks: Vec<Bytes>,
    pub length: usize,
    pub facts: Facts,
    is_json: bool,
    _held: HeldBytes,
}

impl RequestBody {
    /// The chunks with the model's name replaced; nothing else is copied. A name that is the client's own
    /// leaves the body as it is.
    pub fn with_model(&self, native: &Bytes, native_json: &Bytes) -> Vec<Bytes> {
        if *native == self.facts.model {
            return self.chunks.clone();
        }
        let name = if self.is_json { native_json } else { native };
        splice(&self.chunks, self.facts.model_range.clone(), name.clone()).0
    }
}

/// How the body is written, which decides how it is scanned.
enum Scan<'a> {
    Json(Box<BodyScan<'a>>),
    Multipart(Box<MultipartScan<'a>>),
}

impl<'a> Scan<'a> {
    fn new(headers: &HeaderMap, images: &'a Images) -> Result<Self, BodyError> {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_multipart = content_type.get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/"));
        // Whatever else it calls itself, it is read as JSON: `curl -d` says it is a form.
        Ok(if is_multipart {
            Self::Multipart(Box::new(MultipartScan::new(content_type, images)?))
        } else {
            Self::Json(Box::new(BodyScan::new(images)))
        })
    }

    fn feed(&mut self, chunk: &[u8]) -> Result<(), BodyError> {
        match self {
            Self::Json(scan) => scan.feed(chunk),
            Self::Multipart(scan) => scan.feed(chunk),
        }
    }

    fn finish(self) -> Result<Facts, BodyError> {
        match self {
            Self::Json(scan) => scan.finish(),
            Self::Multipart(scan) => scan.finish(),
        }
    }
}

/// How many bytes a body is announced to have, before anything is held or charged for them; 0 where it is not said.
///
/// # Errors
/// More than any body may have: nothing of it is read.
pub fn announced(incoming: &Incoming, limits: &Limits) -> Result<u64, ProxyError> {
    let bytes = incoming.size_hint().lower();
    let limit_bytes = limits.body_bytes;
    if bytes > limit_bytes { Err(ProxyError::RequestTooLarge { limit_bytes }) } else { Ok(bytes) }
}

/// Reads a body up to its limit.
///
/// # Errors
/// What makes it unroutable, too large or incomplete.
pub async fn read(
    headers: &HeaderMap,
    incoming: &mut Incoming,
    config: &Config,
    shared: &Arc<Shared>,
    permit: Option<&Permit>,
) -> Result<RequestBody, ProxyError> {
    let announced = announced(incoming, &config.limits)?;
    let is_coded = |coding: &HeaderValue| !coding.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().any(is_coded) {
        return Err(ProxyError::UnsupportedEncoding);
    }
    let mut scan = Scan::new(headers, &config.images)?;
    // What is announced is not taken before it comes: else whoever announces much and sends nothing shuts out all others.
    if !shared.bodies.has_room(announced) {
        return Err(ProxyError::Overloaded);
    }
    let limit_bytes = config.limits.body_bytes;
    let mut held = HeldBytes::new(shared);
    let (mut chunks, mut length) = (Vec::new(), 0);
    let mut pace = Pace { until: Instant::now() + STRETCH, wanted: STRETCH_BYTES };
    while let Some(frame) = pace.frame(incoming, length).await? {
        let Ok(chunk) = frame.into_data() else { continue };
        length += chunk.len();
        if let Some(permit) = permit {
            permit.has_read(chunk.len() as u64);
        }
        if length as u64 > limit_bytes {
            return Err(ProxyError::RequestTooLarge { limit_bytes });
        }
        if !held.grow(chunk.len() as u64) {
            return Err(ProxyError::Overloaded);
        }
        scan.feed(&chunk)?;
        chunks.push(chunk);
    }
    let is_json = matches!(scan, Scan::Json(_));
    Ok(RequestBody { chunks, length, facts: scan.finish()?, is_json, _held: held })
}

/// Takes what is left of a body that nobody wants, if it is little and as good as there: its client may then go on with the
/// same connection. Whether it has been read to its end.
pub async fn discard(incoming: &mut Incoming) -> bool {
    if incoming.size_hint().lower() > DISCARDED_BYTES {
        return false;
    }
    let taken = async {
        let mut left = DISCARDED_BYTES;
        while let Some(frame) = incoming.frame().await {
            let read = frame.ok()?.data_ref().map_or(0, Bytes::len);
            left = left.checked_sub(read as u64)?;
        }
        Some(())
    };
    matches!(timeout(DISCARD_TIME, taken).await, Ok(Some(())))
}

/// How fast an upload has to go on.
struct Pace {
    until: Instant,
    /// So much must have come by then.
    wanted: usize,
}

impl Pace {
    /// The next frame of a body of which so much has come.
    async fn frame(&mut self, incoming: &mut Incoming, length: usize) -> Result<Option<Frame<Bytes>>, ProxyError> {
        loop {
            match timeout_at(self.until, incoming.frame()).await {
                Ok(frame) => return frame.transpose().map_err(|_| ProxyError::BodyBroken),
                Err(_) if length < self.wanted => return Err(ProxyError::UploadTooSlow),
                Err(_) => *self = Self { until: self.until + STRETCH, wanted: length + STRETCH_BYTES },
            }
        }
    }
}

impl From<BodyError> for ProxyError {
    fn from(error: BodyError) -> Self {
        let param = match error {
            BodyError::InvalidJson(_)
            | BodyError::InvalidMultipart(_)
            | BodyError::NotAnObject
            | BodyError::ImageUrlNotAllowed => None,
            BodyError::DuplicateStream => Some("stream"),
            BodyError::MissingModel
            | BodyError::ModelNotAString
            | BodyError::DuplicateModel
            | BodyError::BadModelName => Some("model"),
        };
        Self::Unroutable(Unroutable { code: error.code(), message: error.to_string(), param })
    }
}
