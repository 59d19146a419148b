//! One request from its head to its answer. Read this first.
//!
//! head · which route · which fault · body · what is asked · [ poll | slot, generation ] · answer, perhaps cut; `instead` is
//! what a fault does before there is one

use std::sync::Arc;

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::answer::{self, Dialect, Other, Reply, Stream};
use super::asked::{self, Asked};
use super::body::{Body, Cut, silence};
use super::engine::Engine;
use super::fault::Kind;
use super::generation::Generation;
use super::poll::{self, Question};
use super::refusal::Refusal;
use super::routes::{self, Route, Work};
use super::speech::Speech;
use super::whole::Whole;
use super::wire::Switch;
use super::{Simulation, control, hold, instead};

/// Answers one request, or cuts its connection.
pub(super) async fn exchange(
    simulation: Arc<Simulation>,
    switch: Arc<Switch>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Cut> {
    let (head, body) = request.into_parts();
    if control::is_control(head.uri.path()) {
        return Ok(control::answer(&simulation, &head, body).await);
    }
    simulation.stats.count_request(head.uri.path());
    let route = routes::find(simulation.engine, &head.method, head.uri.path());
    let fault = hold(&simulation.faults).take(route.target());
    if let Some(fault) = &fault {
        simulation.stats.count_fault();
        instead::break_at_head(fault, &switch)?;
    }
    let exchange = Exchange { simulation: &simulation, head: &head, route, fault: fault.as_ref() };
    if let Some(Kind::Early(status)) = fault {
        return Ok(exchange.fail(&Refusal::Failure(status)));
    }
    let answered = match read(body).await? {
        Some(body) => exchange.answer(body).await?,
        None => exchange.refuse(&Refusal::TooLarge),
    };
    match fault {
        Some(Kind::Garbage) => {
            switch.garbage();
            return Ok(answered);
        }
        Some(Kind::StrayBody(_)) => switch.stray(),
        _ => {}
    }
    let mut response = match fault {
        Some(fault) => answered.map(|body| body.cut_by(&fault, switch)),
        None => answered,
    };
    let failed = !response.status().is_success();
    simulation.engine.sign(failed, response.headers_mut());
    Ok(response)
}

/// A request's body, with the right to hold one so large.
struct Received {
    bytes: Vec<u8>,
    _room: Option<SemaphorePermit<'static>>,
}

/// No request is larger; beyond the proxy's own default.
const BODY_LIMIT_BYTES: usize = 128 * 1024 * 1024;
/// Bodies beyond this size are read a few at a time, so that a burst of images fits in memory.
const LARGE_BODY_BYTES: usize = 1024 * 1024;
static LARGE_BODIES: Semaphore = Semaphore::const_new(8);

/// Reads the whole body; `None` when it is too large, an error when the client left.
async fn read(mut body: Incoming) -> Result<Option<Received>, Cut> {
    let announced = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(LARGE_BODY_BYTES));
    let mut room = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Cut)?.into_data() else { continue };
        bytes.extend_from_slice(&data);
        if bytes.len() > BODY_LIMIT_BYTES {
            return Ok(None);
        }
        if bytes.len() > LARGE_BODY_BYTES && room.is_none() {
            room = LARGE_BODIES.acquire().await.ok();
        }
    }
    Ok(Some(Received { bytes, _room: room }))
}

/// A request whose body has arrived.
pub(super) struct Exchange<'a> {
    pub simulation: &'a Simulation,
    pub head: &'a Parts,
    pub route: Route,
    pub fault: Option<&'a Kind>,
}

impl Exchange<'_> {
    async fn answer(&self, body: Received) -> Result<Response<Body>, Cut> {
        self.breaks_at_body(&body.bytes)?;
        if let Route::Poll(poll) = self.route {
            self.simulation.stats.remember_poll(self.head, &body.bytes);
            return self.poll(poll, &body.bytes).await;
        }
        let asked = match self.route {
            Route::Work(work) => self.read(work, &body.bytes),
            Route::WrongMethod => Err(Refusal::WrongMethod),
            _ => Err(Refusal::NoRoute { method: self.head.method.to_string(), path: self.path().to_owned() }),
        };
        let images = asked.as_ref().map(|asked| asked.images.clone()).unwrap_or_default();
        self.simulation.stats.remember(self.head, &body.bytes, images);
        let body_bytes = body.bytes.len();
        drop(body);
        let gets_a_slot = asked.is_ok() && matches!(self.route, Route::Work(work) if work.needs_a_slot());
        if let Some(answer) = self.instead(gets_a_slot).await? {
            return Ok(answer);
        }
        match (self.route, asked) {
            (Route::Work(work), Ok(asked)) => match self.work(work, &asked, body_bytes).await {
                Ok(response) => Ok(response),
                Err(refusal) => Ok(self.refuse(&refusal)),
            },
            (_, Err(refusal)) => Ok(self.refuse(&refusal)),
            (_, Ok(_)) => Ok(self.refuse(&Refusal::WrongMethod)),
        }
    }

    async fn poll(&self, poll: routes::Poll, body: &[u8]) -> Result<Response<Body>, Cut> {
        let query = self.head.uri.query().unwrap_or_default();
        let question = Question { poll, path: self.path(), query, body };
        if let Some(Kind::BadMetrics(how)) = self.fault {
            return Ok(poll::broken(self.simulation, &question, *how));
        }
        match self.instead(false).await? {
            Some(answer) => Ok(answer),
            None => Ok(self.told(poll::answer(self.simulation, &question))),
        }
    }

    fn read(&self, work: Work, body: &[u8]) -> Result<Asked, Refusal> {
        let kind = self.head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let json = kind.is_empty() || kind.contains("json") || kind.starts_with("multipart/");
        if self.simulation.engine == Engine::Vllm && !json {
            return Err(Refusal::WrongType);
        }
        asked::read(work, kind, body)
    }

    /// Makes the engine work, in a slot of its own.
    async fn work(&self, work: Work, asked: &Asked, body_bytes: usize) -> Result<Response<Body>, Refusal> {
        let model = self.answers_as(asked.model.as_deref())?;
        let dialect = Dialect::of(work);
        self.check(asked, dialect)?;
        let other = Other { engine: self.simulation.engine, model: &model, asked };
        if !work.needs_a_slot() {
            return Ok(self.json(&answer::tokenized(work, &other)));
        }
        let Some(dialect) = dialect else {
            let mut generation = self.enter(work, asked, body_bytes).await?;
            if self.dies_after().is_some() {
                return Err(Refusal::EngineDead);
            }
            generation.say_everything().await;
            return Ok(self.other(work, &other, body_bytes));
        };
        let reply = Reply::new(self.simulation.engine, dialect, model.clone(), self.client_id(), asked);
        if dialect.is_ollama() && asked.parts == 0 {
            return Ok(self.json(&reply.loaded()));
        }
        let generation = self.enter(work, asked, body_bytes).await?;
        if dialect.streams(asked) { self.stream(generation, reply).await } else { self.whole(generation, &reply).await }
    }

    /// What an engine refuses before it finds a slot.
    fn check(&self, asked: &Asked, dialect: Option<Dialect>) -> Result<(), Refusal> {
        let strict = matches!(self.simulation.engine, Engine::Vllm | Engine::Sglang | Engine::OpenAi);
        if let Some(limit) = asked.odd_limit.filter(|_| strict) {
            return Err(Refusal::BadLimit(limit));
        }
        // A file to transcribe or to edit is no image to look at.
        if dialect.is_some() && !self.simulation.vision && !asked.images.is_empty() {
            return Err(Refusal::TextOnly);
        }
        Ok(())
    }

    /// Enters the engine; a hang stays there. Work that is no text is over after one token.
    async fn enter(&self, work: Work, asked: &Asked, body_bytes: usize) -> Result<Generation, Refusal> {
        let simulation = self.simulation;
        let speech = match Dialect::of(work) {
            Some(_) => {
                Speech::new(&self.message(work, asked, body_bytes), simulation.tokens, asked.limit, asked.endless)
            }
            None => Speech::new("", 1, None, false),
        };
        let place = simulation.slots.enter(self.client_id().unwrap_or_default(), asked.prompt_tokens, speech.tokens());
        let mut generation = Generation::new(place.map_err(|_| Refusal::Busy)?, speech, simulation.pace);
        if matches!(self.fault, Some(Kind::CloseAfterBytes(_) | Kind::ResetAfterChunks(_))) {
            generation.break_on_purpose();
        }
        if matches!(self.fault, Some(Kind::Hang)) {
            generation.slot_taken().await;
            silence().await;
        }
        Ok(generation)
    }

    async fn stream(&self, generation: Generation, reply: Reply) -> Result<Response<Body>, Refusal> {
        let engine = self.simulation.engine;
        let dies_after = self.dies_after();
        if dies_after == Some(0) && matches!(engine, Engine::LlamaCpp | Engine::Ollama) {
            // These two know of an error before the first token in time to say so in the status.
            return self.whole(generation, &reply).await;
        }
        let kind = if reply.dialect.is_ollama() { "application/x-ndjson" } else { engine.sse_type() };
        let mut stream = Stream::new(generation, reply, dies_after);
        if !engine.streams_head_at_once() {
            stream.begin().await;
        }
        let mut response = Response::new(Body::stream(stream));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        Ok(response)
    }

    async fn whole(&self, mut generation: Generation, reply: &Reply) -> Result<Response<Body>, Refusal> {
        if let Some(tokens) = self.dies_after() {
            generation.slot_taken().await;
            while generation.said() < tokens && generation.token().await.is_some() {}
            generation.break_on_purpose();
            return Err(Refusal::EngineDead);
        }
        generation.say_everything().await;
        Ok(self.json(&reply.whole(&generation)))
    }

    /// After how many tokens a fault lets the engine die.
    const fn dies_after(&self) -> Option<u64> {
        match self.fault {
            Some(Kind::ErrorEvent) => Some(0),
            Some(Kind::ErrorMidStream(tokens)) => Some(*tokens),
            _ => None,
        }
    }

    /// The answer to work that is no text.
    fn other(&self, work: Work, other: &Other<'_>, body_bytes: usize) -> Response<Body> {
        match work {
            Work::Speech => {
                let text = other.asked.texts.first().map_or("", String::as_str);
                Whole::text("audio/wav", answer::silent_wav(text)).into_response()
            }
            Work::Transcription => {
                let text = self.message(work, other.asked, body_bytes);
                match other.asked.response_format.as_deref() {
                    Some("text") => Whole::text("text/plain; charset=utf-8", text).into_response(),
                    _ => self.json(&answer::transcript(&text)),
                }
            }
            Work::ImageGeneration | Work::ImageEdit => self.json(&answer::pictures(other)),
            _ => self.json(&answer::vectors_and_ranks(work, other)),
        }
    }

    /// What the model says: what was received.
    fn message(&self, work: Work, asked: &Asked, body_bytes: usize) -> String {
        let label = &self.simulation.label;
        let (parts, part_name, seen) = (asked.parts, work.part_name(), asked.images.len());
        if work == Work::Transcription {
            let file_bytes: u64 = asked.images.iter().map(|file| file.bytes).sum();
            return format!("{label} received {parts} {part_name}, {file_bytes} file bytes, {body_bytes} body bytes");
        }
        format!("{label} received {parts} {part_name}, {seen} image(s), {body_bytes} body bytes")
    }

    fn path(&self) -> &str {
        self.head.uri.path()
    }

    /// The id that the request brought.
    fn client_id(&self) -> Option<&str> {
        self.head.headers.get("x-request-id").and_then(|id| id.to_str().ok())
    }

    fn json(&self, value: &serde_json::Value) -> Response<Body> {
        Whole::json(self.simulation, self.path(), value).into_response()
    }

    /// A failure of the engine itself, which vLLM and SGLang report without a word where only the status counts.
    pub(super) fn fail(&self, refusal: &Refusal) -> Response<Body> {
        let bare = matches!(self.simulation.engine, Engine::Vllm | Engine::Sglang);
        let mut response = self.refuse(refusal);
        if bare && self.route == Route::Poll(routes::Poll::Health) {
            response.headers_mut().remove(CONTENT_TYPE);
            *response.body_mut() = Body::whole("");
        }
        response
    }

    fn refuse(&self, refusal: &Refusal) -> Response<Body> {
        Whole::refused(self.simulation, self.path(), self.models(), refusal).into_response()
    }
}
