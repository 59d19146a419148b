//! The body of an answer: whole, in steps, or without end, and cut where a fault says so.
//!
//! A body owns what makes it. Dropping it, which is what hyper does when the client is gone, drops the generation and
//! gives its slot back; there is no task behind it.

use std::fmt;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::answer::Stream;
use super::fault::Kind;
use super::wire::Switch;

/// The connection ends here, on purpose.
#[derive(Debug)]
pub(super) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("cut by a simulated fault")
    }
}

impl std::error::Error for Cut {}

/// An answer's body.
pub(super) struct Body {
    source: Source,
    cut: Option<CutAt>,
    chunks: u64,
    bytes: u64,
}

enum Source {
    Whole(Bytes),
    Steps(Step),
    /// The same chunk for ever.
    Endless(Bytes),
    Ended,
}

type Step = Pin<Box<dyn Future<Output = Option<(Bytes, Stream)>> + Send>>;

struct CutAt {
    point: Point,
    switch: Arc<Switch>,
    pause: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy)]
enum Point {
    CloseAfterBytes(u64),
    ResetAfterChunks(u64),
    StallAfterChunks(u64),
    /// Nothing is cut; behind the end goes what nobody asked for.
    StrayAtEnd,
}

/// What was sent before a cut must have left the kernel's queue, which a reset throws away.
const PAUSE_BEFORE_CUT: Duration = Duration::from_millis(5);

impl Body {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::of(Source::Whole(bytes.into()))
    }

    pub(super) fn stream(stream: Stream) -> Self {
        Self::of(Source::Steps(Box::pin(stream.step())))
    }

    pub(super) fn endless(chunk: Bytes) -> Self {
        Self::of(Source::Endless(chunk))
    }

    const fn of(source: Source) -> Self {
        Self { source, cut: None, chunks: 0, bytes: 0 }
    }

    /// The same body, cut where the fault says; unchanged by other faults.
    pub(super) fn cut_by(self, fault: &Kind, switch: Arc<Switch>) -> Self {
        let cut = Point::of(fault).map(|point| CutAt { point, switch, pause: None });
        Self { cut, ..self }
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let (chunk, next) = match &mut self.source {
            Source::Whole(bytes) => (Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty()), Source::Ended),
            Source::Steps(step) => match ready!(step.as_mut().poll(cx)) {
                Some((chunk, stream)) => (Some(chunk), Source::Steps(Box::pin(stream.step()))),
                None => (None, Source::Ended),
            },
            Source::Endless(chunk) => return Poll::Ready(Some(chunk.clone())),
            Source::Ended => (None, Source::Ended),
        };
        self.source = next;
        Poll::Ready(chunk)
    }

    /// Pending for ever where it stalls, ready when the connection is to be cut.
    fn poll_cut(cut: &mut CutAt, cx: &mut Context<'_>) -> Poll<()> {
        if let Point::StallAfterChunks(_) = cut.point {
            return Poll::Pending;
        }
        let pause = cut.pause.get_or_insert_with(|| Box::pin(sleep(PAUSE_BEFORE_CUT)));
        ready!(pause.as_mut().poll(cx));
        if let Point::ResetAfterChunks(_) = cut.point {
            cut.switch.reset();
        }
        Poll::Ready(())
    }
}

impl Point {
    const fn of(fault: &Kind) -> Option<Self> {
        match fault {
            Kind::CloseAfterBytes(bytes) => Some(Self::CloseAfterBytes(*bytes)),
            Kind::ResetAfterChunks(chunks) => Some(Self::ResetAfterChunks(*chunks)),
            Kind::StallAfterChunks(chunks) => Some(Self::StallAfterChunks(*chunks)),
            Kind::Twice => Some(Self::StrayAtEnd),
            _ => None,
        }
    }

    const fn reached(self, chunks: u64, bytes: u64) -> bool {
        match self {
            Self::CloseAfterBytes(limit) => bytes >= limit,
            Self::ResetAfterChunks(limit) | Self::StallAfterChunks(limit) => chunks >= limit,
            Self::StrayAtEnd => false,
        }
    }

    /// How much of a chunk may still pass.
    fn room_for(self, chunk: &Bytes, bytes: u64) -> usize {
        match self {
            Self::CloseAfterBytes(limit) => usize::try_from(limit - bytes).unwrap_or(usize::MAX).min(chunk.len()),
            _ => chunk.len(),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        if let Some(cut) = &mut this.cut
            && cut.point.reached(this.chunks, this.bytes)
        {
            ready!(Self::poll_cut(cut, cx));
            this.source = Source::Ended;
            return Poll::Ready(Some(Err(Cut)));
        }
        let chunk = ready!(this.poll_source(cx));
        if let Some(CutAt { point: Point::StrayAtEnd, switch, .. }) = &this.cut
            && matches!(this.source, Source::Ended)
        {
            switch.stray();
            this.cut = None;
        }
        let Some(mut chunk) = chunk else { return Poll::Ready(None) };
        if let Some(cut) = &this.cut {
            chunk.truncate(cut.point.room_for(&chunk, this.bytes));
        }
        this.chunks += 1;
        this.bytes += chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        // An empty whole answer must say so, or it goes out chunked.
        self.cut.is_none() && matches!(&self.source, Source::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            // Also where it will be cut: a cut answer has the length it should have had.
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

/// Never resolves.
pub(super) async fn silence() {
    poll_fn(|_| Poll::Pending).await
}
