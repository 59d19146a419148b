//! The server side of a backend: accepts, reads requests, plays their answers, counts what it holds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::Answer;
use super::super::answer::Step;
use super::engine::{Report, Speaks};
use super::request::Request;
use super::wire::{Head, Inbox};

type Rule = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// What the test and all connections of a backend share.
pub struct State {
    speaks: Speaks,
    native: String,
    pub rule: Mutex<Rule>,
    pub report: Mutex<Report>,
    pub breaks_next: AtomicBool,
    /// What is answered to the head of a request, its body unread.
    pub early: Mutex<Option<Answer>>,
    /// It takes no connection any more, and no poll on those it has.
    pub is_shut: AtomicBool,
    pub shuts: Notify,
    pub requests: Mutex<Vec<Request>>,
    pub polled: Mutex<Vec<String>>,
    pub in_flight: AtomicUsize,
    pub most_in_flight: AtomicUsize,
    pub sent_bytes: AtomicUsize,
    pub connections: AtomicUsize,
    accepted: AtomicUsize,
}

impl State {
    pub fn new(speaks: Speaks, native: &str, rule: Rule) -> Self {
        Self {
            speaks,
            native: native.to_owned(),
            rule: Mutex::new(rule),
            report: Mutex::default(),
            breaks_next: AtomicBool::new(false),
            early: Mutex::default(),
            is_shut: AtomicBool::new(false),
            shuts: Notify::new(),
            requests: Mutex::default(),
            polled: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            sent_bytes: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
        }
    }

    fn poll_answer(&self, target: &str) -> Answer {
        self.polled.lock().expect("no poison").push(target.to_owned());
        let mut report = *self.report.lock().expect("no poison");
        if report.others > 0 {
            report.running = report.others + u32::try_from(self.in_flight.load(SeqCst)).expect("few");
        }
        self.speaks.answer(target, &self.native, report)
    }

    /// Whether the peer is still there to be sent this.
    async fn sends(&self, write: &mut OwnedWriteHalf, bytes: &[u8]) -> bool {
        let sent = write.write_all(bytes).await.is_ok();
        self.sent_bytes.fetch_add(bytes.len(), SeqCst);
        sent
    }

    fn answer_to(&self, request: &Request) -> Answer {
        let rule = Arc::clone(&self.rule.lock().expect("no poison"));
        rule(request)
    }
}

/// Serves until it is aborted, which ends every connection with it.
pub async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted.expect("accept"),
            () = state.shuts.notified() => break,
        };
        stream.set_nodelay(true).expect("no delay");
        connections.spawn(connection(stream, Arc::clone(&state)));
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    std::future::pending().await
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let _open = Count::up(&state.connections);
    let id = state.accepted.fetch_add(1, SeqCst);
    let (read, mut write) = stream.into_split();
    let mut inbox = Inbox::new(read);
    while let Ok(head) = inbox.head().await {
        if head.expects_continue && write.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err() {
            return;
        }
        let mut flight = if head.method == "GET" { None } else { Some(Flight::begin(&state, &head, id)) };
        if flight.is_some() && state.breaks_next.swap(false, SeqCst) {
            return reset(&write);
        }
        let early = state.early.lock().expect("no poison").clone();
        if let (Some(answer), true) = (early, flight.is_some()) {
            let ending = play(answer, &mut write, &state, &mut flight).await;
            if let Ending::Reset = ending {
                reset(&write);
            }
            return;
        }
        let mut body = BytesMut::new();
        let arrived = inbox.body(&head, &mut body).await.is_ok();
        let answer = match &mut flight {
            None if state.is_shut.load(SeqCst) => return,
            None => state.poll_answer(&head.target),
            Some(flight) => flight.arrived(body, arrived),
        };
        if !arrived {
            return;
        }
        let ending = tokio::select! {
            biased;
            ending = play(answer, &mut write, &state, &mut flight) => ending,
            () = inbox.gone() => Ending::Gone,
        };
        match ending {
            Ending::Next => {}
            Ending::Close => return,
            Ending::Reset => return reset(&write),
            Ending::Gone => return flight.map_or((), |flight| flight.gone()),
        }
    }
}

/// Makes the coming end of a connection one without order.
fn reset(write: &OwnedWriteHalf) {
    SockRef::from(write.as_ref()).set_linger(Some(Duration::ZERO)).expect("linger");
}

enum Ending {
    Next,
    Close,
    Reset,
    /// The peer left before the answer was over.
    Gone,
}

async fn play(answer: Answer, write: &mut OwnedWriteHalf, state: &State, flight: &mut Option<Flight>) -> Ending {
    let mut steps = answer.into_steps().into_iter().peekable();
    while let Some(step) = steps.next() {
        // Over before its last step is taken: with the last byte the proxy may send us the next request.
        if let (None, Step::Send(_) | Step::Close | Step::Reset, Some(flight)) = (steps.peek(), &step, flight.as_mut())
        {
            flight.over();
        }
        match step {
            Step::Send(bytes) if !state.sends(write, &bytes).await => return Ending::Gone,
            Step::Send(_) => {}
            Step::Repeat(bytes, times) => {
                for _ in 0..times {
                    if !state.sends(write, &bytes).await {
                        return Ending::Gone;
                    }
                }
            }
            Step::Hold(gate) => gate.pass().await,
            Step::Stall => std::future::pending().await,
            Step::UntilGone => {
                // Without reading, which would take in what is to stand in the way.
                _ = write.as_ref().ready(Interest::PRIORITY).await;
                return Ending::Gone;
            }
            Step::Close => return Ending::Close,
            Step::Reset => return Ending::Reset,
        }
    }
    Ending::Next
}

/// One request from its head to the end of its answer.
struct Flight {
    state: Arc<State>,
    index: usize,
    is_over: bool,
}

impl Flight {
    fn begin(state: &Arc<State>, head: &Head, connection: usize) -> Self {
        let held = state.in_flight.fetch_add(1, SeqCst) + 1;
        state.most_in_flight.fetch_max(held, SeqCst);
        let mut requests = state.requests.lock().expect("no poison");
        requests.push(Request {
            method: head.method.clone(),
            target: head.target.clone(),
            head: head.bytes.clone(),
            body: bytes::Bytes::new(),
            complete: false,
            connection,
            gone_at: None,
        });
        Self { state: Arc::clone(state), index: requests.len() - 1, is_over: false }
    }

    /// The body came, or as much of it as there was: what to answer.
    fn arrived(&mut self, body: BytesMut, complete: bool) -> Answer {
        let request = self.record(|request| {
            request.body = body.freeze();
            request.complete = complete;
            request.clone()
        });
        if complete {
            return self.state.answer_to(&request);
        }
        self.gone();
        Answer::nothing()
    }

    fn gone(&self) {
        self.record(|request| request.gone_at = Some(Instant::now()));
    }

    fn over(&mut self) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.state.in_flight.fetch_sub(1, SeqCst);
        }
    }

    fn record<T>(&self, change: impl FnOnce(&mut Request) -> T) -> T {
        change(&mut self.state.requests.lock().expect("no poison")[self.index])
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.over();
    }
}

/// Counts something that is there as long as this is.
struct Count<'a>(&'a AtomicUsize);

impl<'a> Count<'a> {
    fn up(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, SeqCst);
        Self(counter)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}
