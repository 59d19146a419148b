//! What goes back to a client.

mod document;
mod events;
mod first_event;
mod relay;
mod rename;
mod usage;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

pub use first_event::first_event_is_error;
pub use relay::{Account, End, LastWord, Relay};
pub use rename::{Format, Nest, Rename};
pub use usage::{Counts, Usage};

use super::streams::note_frame;

/// The body of every answer.
#[derive(Debug)]
pub enum Body {
    /// Known as a whole.
    Whole(Bytes),
    /// From a backend, as it comes.
    Relay(Box<Relay>),
}

/// The answer could not be completed. hyper ends the connection so that the client can tell (RFC 9112 §8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the backend's answer was interrupted")]
pub struct Interrupted;

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let polled = match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Relay(relay) => relay.poll_chunk(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data))),
        };
        note_frame(&polled);
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Relay(relay) => relay.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Relay(_) => SizeHint::default(),
        }
    }
}
