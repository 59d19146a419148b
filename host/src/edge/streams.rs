//! HTTP/2: the streams of one connection, on the worker's own thread, watched for clients that do not read.
//!
//! Flow control lets a client stop one stream while the connection lives on: hyper then asks for no more of the
//! answer, and the backend would be held for as long as the client likes. So each stream notes when a piece was
//! handed on; one that is asked for nothing more for too long is dropped, which resets it and cancels the backend.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

tokio::task_local! {
    /// When the stream that is polled at this moment handed on a piece for which it was not asked to go on yet.
    static HANDED_ON: Rc<Cell<Option<Instant>>>;
}

/// Notes what a body was asked for and gave. Of interest to the streams of HTTP/2 alone.
pub fn note_frame<T>(polled: &Poll<Option<T>>) {
    // An error means that this is another protocol.
    let _ = HANDED_ON.try_with(|handed_on| {
        handed_on.set(matches!(polled, Poll::Ready(Some(_))).then(Instant::now));
    });
}

/// The streams of one connection; hyper spawns them through it.
#[derive(Debug, Clone)]
pub struct Streams {
    /// How long a client may leave an answer standing.
    stall: Duration,
    open: Rc<Open>,
}

#[derive(Debug)]
struct Open {
    count: Cell<u32>,
    /// When the last one ended.
    since: Cell<Instant>,
    begun: Notify,
}

impl Streams {
    pub fn new(stall: Duration) -> Self {
        let (count, since, begun) = (Cell::new(0), Cell::new(Instant::now()), Notify::new());
        Self { stall, open: Rc::new(Open { count, since, begun }) }
    }

    /// Returns once there has been a stream.
    pub async fn first(&self) {
        self.open.begun.notified().await;
    }

    /// Returns once there has been no stream for so long.
    pub async fn idle(&self, allowed: Duration) {
        loop {
            let none = self.open.count.get() == 0;
            let deadline = if none { self.open.since.get() } else { Instant::now() } + allowed;
            if none && deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}

impl<F: Future + 'static> hyper::rt::Executor<F> for Streams
where
    F::Output: 'static,
{
    fn execute(&self, stream: F) {
        let (stall, counted) = (self.stall, Counted::new(&self.open));
        let handed_on = Rc::new(Cell::new(None));
        tokio::task::spawn_local(async move {
            let stream = HANDED_ON.scope(Rc::clone(&handed_on), stream);
            until_stalled(std::pin::pin!(stream), &handed_on, stall).await;
            drop(counted);
        });
    }
}

/// Runs a stream until it ends or its client has left it standing for too long.
async fn until_stalled(mut stream: Pin<&mut impl Future>, handed_on: &Cell<Option<Instant>>, stall: Duration) {
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    let poll = |cx: &mut Context<'_>| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(since) = handed_on.get() else { return Poll::Pending };
        let deadline = since + stall;
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    };
    std::future::poll_fn(poll).await;
}

/// Counts a stream for as long as it lives.
struct Counted(Rc<Open>);

impl Counted {
    fn new(open: &Rc<Open>) -> Self {
        open.count.set(open.count.get() + 1);
        open.begun.notify_one();
        Self(Rc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.since.set(Instant::now());
    }
}
