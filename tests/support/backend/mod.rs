//! A scripted inference server: true to an engine's wire format when it is polled, and to the test's script
//! when it is asked to infer. It keeps its port over `stop` and `restart`, and refuses in between.

mod engine;
mod request;
mod serve;
mod wire;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use engine::{LoadPage, Report};
pub use request::Request;

use self::engine::Speaks;
use self::serve::State;
use super::bodies::{MODEL, NATIVE, engine_answer};
use super::{Answer, eventually};

/// More than any test sends at once that does not count them.
const MANY_SLOTS: u32 = 64;
/// Connections the kernel may hold for us: more than any test opens at once.
const BACKLOG: i32 = 1024;
/// A connection over loopback that the kernel has room for takes microseconds.
const QUEUE_IS_FULL_AFTER: Duration = Duration::from_millis(100);

/// A free port.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What a backend shall be, and what the configuration shall say of it.
pub struct Setup {
    name: String,
    speaks: Speaks,
    native: String,
    slots: Option<u32>,
    /// Path of its base URL, as the configuration writes it.
    base: String,
    /// Further lines of its `[[backends]]` table.
    lines: String,
    maps: bool,
    address: SocketAddr,
}

impl Setup {
    /// Speaks plain OpenAI, serves [`NATIVE`], which the configuration calls [`MODEL`].
    pub fn named(name: &str) -> Self {
        let (name, native) = (name.to_owned(), NATIVE.to_owned());
        let (base, lines) = (String::new(), String::new());
        Self {
            name,
            speaks: Speaks::OpenAi,
            native,
            slots: Some(MANY_SLOTS),
            base,
            lines,
            maps: true,
            address: LOOPBACK,
        }
    }

    /// Listens there.
    pub fn at(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    pub fn slots(self, slots: u32) -> Self {
        Self { slots: Some(slots), ..self }
    }

    /// The name under which it lists its model itself.
    pub fn native(self, native: &str) -> Self {
        Self { native: native.to_owned(), ..self }
    }

    /// Says that its model takes no images.
    pub fn text_only(self) -> Self {
        Self { speaks: Speaks::TextOnly, ..self }
    }

    /// Answers polls as vLLM does.
    pub fn vllm(self) -> Self {
        Self { speaks: Speaks::Vllm, ..self }
    }

    /// Its base URL ends so.
    pub fn base(self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self }
    }

    /// A further line of its table in the configuration.
    pub fn line(mut self, line: &str) -> Self {
        self.lines += line;
        self.lines.push('\n');
        self
    }

    /// The configuration does not name its model: the proxy has to find out.
    pub fn unmapped(self) -> Self {
        Self { maps: false, ..self }
    }

    pub async fn start(self) -> Backend {
        let backend = self.start_refusing();
        backend.restart().await;
        backend
    }

    /// Has a port, and refuses every connection to it until `restart`.
    pub fn start_refusing(self) -> Backend {
        let guard = bound(self.address);
        let address = guard.local_addr().expect("a bound socket").as_socket().expect("an inet socket");
        let state = Arc::new(State::new(self.speaks, &self.native, Arc::new(engine_answer)));
        Backend { setup: self, address, _guard: guard, state, accepting: Mutex::default() }
    }
}

impl From<&str> for Setup {
    fn from(name: &str) -> Self {
        Self::named(name)
    }
}

pub struct Backend {
    setup: Setup,
    pub address: SocketAddr,
    /// Bound beside the listener and never listening: the port stays ours, and refuses, while we are stopped.
    _guard: Socket,
    state: Arc<State>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl Backend {
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// Its `[[backends]]` table.
    pub fn entry(&self) -> String {
        let Setup { name, speaks, native, slots, base, lines, maps, .. } = &self.setup;
        let slots = slots.map_or(String::new(), |slots| format!("slots = {slots}\n"));
        let models = if *maps { format!("models = {{ \"{MODEL}\" = \"{native}\" }}\n") } else { String::new() };
        let (address, engine) = (self.address, speaks.name());
        let names = format!("[[backends]]\nname = \"{name}\"\nurl = \"http://{address}{base}\"\n");
        format!("{names}engine = \"{engine}\"\n{slots}{models}{lines}")
    }

    /// Answers every request by this rule from now on.
    pub fn answer_by(&self, rule: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        *self.state.rule.lock().expect("no poison") = Arc::new(rule);
    }

    /// Answers every request so from now on.
    pub fn always(&self, answer: Answer) {
        self.answer_by(move |_| answer.clone());
    }

    /// Answers what it is asked again, as it did at first.
    pub fn heal(&self) {
        self.answer_by(engine_answer);
    }

    /// Answers every request so as soon as its head came, and never reads its body.
    pub fn answer_unread(&self, answer: Answer) {
        *self.state.early.lock().expect("no poison") = Some(answer);
    }

    /// Breaks the next request off (RST) as soon as its head came, while its body is still on its way.
    pub fn break_next_upload(&self) {
        self.state.breaks_next.store(true, SeqCst);
    }

    /// What it says of its load from now on, where its engine says anything.
    pub fn report(&self, report: Report) {
        *self.state.report.lock().expect("no poison") = report;
    }

    /// Every request to infer so far, in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().expect("no poison").clone()
    }

    pub fn request_count(&self) -> usize {
        self.state.requests.lock().expect("no poison").len()
    }

    /// The only request so far.
    pub fn request(&self) -> Request {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{} got {} requests: {requests:?}", self.name(), requests.len());
        requests.remove(0)
    }

    /// The targets of all its GETs: what the proxy asked on its own account.
    pub fn polled(&self) -> Vec<String> {
        self.state.polled.lock().expect("no poison").clone()
    }

    /// Requests it holds now, and the most it ever held at one instant.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.load(SeqCst)
    }

    pub fn most_in_flight(&self) -> usize {
        self.state.most_in_flight.load(SeqCst)
    }

    /// Bytes of answers handed to the kernel so far.
    pub fn sent_bytes(&self) -> usize {
        self.state.sent_bytes.load(SeqCst)
    }

    /// Connections open now, those of the poller included.
    pub fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// Ends all at once, as a killed process does; its port refuses from here on.
    pub async fn stop(&self) {
        let accepting = self.accepting.lock().expect("no poison").take();
        let accepting = accepting.expect("a running backend");
        accepting.abort();
        assert!(accepting.await.is_err_and(|end| end.is_cancelled()), "a backend's task ended by itself");
        eventually("a stopped backend has no connection left", async || self.connections() == 0).await;
    }

    /// Ends as `stop` does, but its port neither refuses nor answers: who connects waits, as with a machine that
    /// hangs. So it stays as long as what is returned.
    pub async fn hang(&self) -> Hung {
        self.stop().await;
        let listener = bound(self.address);
        listener.listen(0).expect("listen");
        let mut hung = Hung { _listener: listener, line: Vec::new() };
        // What fits into the kernel's queue is taken; the first that does not shows that it is full.
        while let Ok(stream) = timeout(QUEUE_IS_FULL_AFTER, TcpStream::connect(self.address)).await {
            hung.line.push(stream.expect("a place in the queue"));
        }
        hung
    }

    /// Takes no more connections and keeps those it has, as an engine that shuts down; its port refuses. It answers no
    /// poll any more.
    pub fn shut(&self) {
        self.state.is_shut.store(true, SeqCst);
        self.refuse_newcomers();
    }

    /// Takes no more connections and goes on answering on those it has, polls too; its port refuses.
    pub fn refuse_newcomers(&self) {
        self.state.shuts.notify_one();
    }

    /// Serves again on the same port.
    pub async fn restart(&self) {
        let socket = bound(self.address);
        socket.listen(BACKLOG).expect("listen");
        let listener = TcpListener::from_std(socket.into()).expect("a listener");
        let task = tokio::spawn(serve::accept(listener, Arc::clone(&self.state)));
        let before = self.accepting.lock().expect("no poison").replace(task);
        assert!(before.is_none(), "restart comes after stop");
    }
}

/// A port whose queue of connections is full.
pub struct Hung {
    _listener: Socket,
    line: Vec<TcpStream>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(task) = self.accepting.get_mut().expect("no poison").take() {
            task.abort();
        }
    }
}

/// Whichever of them is asked first gives `answer`, once; all else they answer as engines do.
pub fn once_among(backends: &[Backend], answer: &Answer) {
    once_then(backends, answer, engine_answer);
}

/// Whichever of them is asked first gives `answer`, once; all else they answer by this rule.
pub fn once_then(backends: &[Backend], answer: &Answer, rule: fn(&Request) -> Answer) {
    let left = Arc::new(Mutex::new(Some(answer.clone())));
    for backend in backends {
        let left = Arc::clone(&left);
        backend.answer_by(move |request| left.lock().expect("no poison").take().unwrap_or_else(|| rule(request)));
    }
}

fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.set_reuse_address(true).expect("reuse address");
    socket.set_reuse_port(true).expect("reuse port");
    socket.set_nonblocking(true).expect("non-blocking");
    socket.bind(&address.into()).expect("bind");
    socket
}
