//! One poller a backend: what does it run, is it up, how full is it, what does it serve?
//!
//! A failed poll is not a broken backend: only a connection that cannot be made, or its own word that it
//! is not ready, takes it out of use at once; silence must repeat itself. A slow or broken load page never
//! stops traffic: its numbers just grow old, and the proxy's own count decides.

use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, Method, header};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::config::{Capacity, Engine, Timeouts};
use crate::edge::upstream::{self, Failure, Outgoing, Pool};
use crate::edge::{Member, Shared};
use crate::fleet::engine::{ANSWER_LIMIT_BYTES, Answer, Health, PROBES, Report, ServedModel, questions};

/// One question is given up after this long: a vLLM under load was seen to take 1.4 s.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(4);
/// Silent polls in a row that take a backend for down.
const SILENT_POLLS: u32 = 3;
/// A backend that was told of is not asked again sooner than this, however many requests fail on it.
const SOONEST_AGAIN: Duration = Duration::from_millis(50);

/// The tasks that poll; dropped with the backend's place in the fleet.
#[derive(Debug)]
pub struct Polling(AbortHandle);

impl Drop for Polling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Something that a poll found, which changes the snapshot: a new model, another engine.
#[derive(Debug, Clone, Copy)]
pub struct FleetChanged;

/// Begins to poll a backend. `first` is told when the first poll is over; `changed` when a poll found something new.
pub fn start(
    member: Member,
    shared: Arc<Shared>,
    pool: Rc<Pool>,
    first: mpsc::UnboundedSender<()>,
    changed: mpsc::UnboundedSender<FleetChanged>,
) -> Polling {
    let task = spawn_local(async move {
        let mut poller = Poller { member, shared, pool, silent: 0 };
        let mut first = Some(first);
        loop {
            if poller.poll().await {
                // Control ends with this task.
                let _ = changed.send(FleetChanged);
            }
            first.take();
            poller.rest().await;
        }
    });
    Polling(task.abort_handle())
}

struct Poller {
    member: Member,
    shared: Arc<Shared>,
    pool: Rc<Pool>,
    /// Polls in a row that brought nothing.
    silent: u32,
}

/// Why a backend did not answer a question.
enum NoAnswer {
    /// No connection: it is not there.
    Gone(String),
    Silent(String),
}

impl Poller {
    fn settings(&self) -> (Capacity, Timeouts) {
        let snapshot = self.shared.snapshot.load();
        (snapshot.config.capacity.clone(), snapshot.config.timeouts.clone())
    }

    /// Until the next poll: the interval, or sooner where a request failed on it.
    async fn rest(&self) {
        let backend = &self.member.backend;
        let (capacity, _) = self.settings();
        let soon = async {
            sleep(SOONEST_AGAIN).await;
            backend.poll_now.notified().await;
        };
        // Either way it is time.
        let _ = timeout(capacity.poll_interval, soon).await;
        if backend.report_age_ms().is_some_and(|age| age > crate::clock::millis(capacity.stale_after)) {
            backend.forget_report();
        }
    }

    /// One poll. True where it changed what the fleet is.
    async fn poll(&mut self) -> bool {
        match self.ask_all().await {
            Ok((engine, report)) => {
                self.silent = 0;
                self.take(engine, report)
            }
            Err(NoAnswer::Gone(why)) => {
                self.member.backend.went_down(&why);
                self.forget_engine();
                false
            }
            Err(NoAnswer::Silent(why)) => {
                self.silent += 1;
                if self.silent >= SILENT_POLLS || self.member.backend.is_unknown() {
                    self.member.backend.went_down(&why);
                    self.forget_engine();
                }
                false
            }
        }
    }

    /// Whatever comes back behind this address may be something else.
    fn forget_engine(&self) {
        let mut known = self.member.backend.known();
        known.engine = self.member.config.engine;
        known.reported_slots = None;
    }

    /// Asks all that its engine is asked. An answer is an error only where the very first is missing.
    async fn ask_all(&self) -> Result<(Engine, Report), NoAnswer> {
        let known = self.member.backend.known().engine;
        let engine = match known {
            Some(engine) => engine,
            None => self.recognise().await?,
        };
        let mut report = Report::default();
        for (at, question) in questions(engine).iter().enumerate() {
            if !(question.wanted)(&report) {
                continue;
            }
            match self.ask(question.path).await {
                Ok((status, body)) => (question.read)(&Answer { status, body: &body }, &mut report),
                Err(missing) if at == 0 => return Err(missing),
                Err(NoAnswer::Gone(why) | NoAnswer::Silent(why)) => {
                    tracing::debug!(backend = %self.member.backend.name, path = question.path, "no answer to a poll: {why}");
                }
            }
        }
        Ok((engine, report))
    }

    /// Finds out what it runs. The answers to a path are asked for once.
    async fn recognise(&self) -> Result<Engine, NoAnswer> {
        let mut last: Option<(&str, Option<(u16, BytesMut)>)> = None;
        for probe in PROBES {
            if last.as_ref().is_none_or(|(path, _)| *path != probe.path) {
                let answer = match self.ask(probe.path).await {
                    Ok(answer) => Some(answer),
                    Err(gone @ NoAnswer::Gone(_)) => return Err(gone),
                    Err(silent) if last.is_none() => return Err(silent),
                    Err(NoAnswer::Silent(_)) => None,
                };
                last = Some((probe.path, answer));
            }
            if let Some((_, Some((status, body)))) = &last
                && (probe.is)(&Answer { status: *status, body })
            {
                return Ok(probe.engine);
            }
        }
        Ok(Engine::OpenAi)
    }

    /// One `GET`, whole.
    async fn ask(&self, path: &str) -> Result<(u16, BytesMut), NoAnswer> {
        let (_, timeouts) = self.settings();
        let mut headers = HeaderMap::new();
        if let Some(key) = &self.member.authorization {
            headers.insert(header::AUTHORIZATION, key.clone());
        }
        let backend = &self.member.backend;
        let request = Outgoing { method: &Method::GET, target: path, headers: &headers, body: &[] };
        let deadline = Instant::now() + QUESTION_TIMEOUT;
        let ask = |fresh| {
            timeout_at(deadline, upstream::send(&self.pool, (backend.id, &backend.url), &request, &timeouts, fresh))
        };
        let answer = match ask(false).await {
            Ok(Err(Failure::Unanswered { reused: true })) => ask(true).await,
            other => other,
        };
        let answer = answer.map_err(|_| NoAnswer::Silent("no answer in time".into()))?;
        backend.takes_connections(!matches!(answer, Err(Failure::Connect(ErrorKind::ConnectionRefused))));
        let mut answer = answer.map_err(|failure| match failure {
            Failure::Connect(_) | Failure::ConnectTimeout => NoAnswer::Gone(failure.to_string()),
            _ => NoAnswer::Silent(failure.to_string()),
        })?;
        let whole = async {
            let mut body = BytesMut::new();
            while let Some(piece) = answer.body.piece().await {
                body.extend_from_slice(&piece.map_err(|broken| NoAnswer::Silent(broken.to_string()))?);
                if body.len() > ANSWER_LIMIT_BYTES {
                    return Err(NoAnswer::Silent("the answer is endless".into()));
                }
            }
            Ok(body)
        };
        let body = tokio::time::timeout_at(deadline, whole).await;
        let body = body.map_err(|_| NoAnswer::Silent("the answer did not end in time".into()))??;
        Ok((answer.status.as_u16(), body))
    }

    /// Takes a report over. True where models or engine are not what they were.
    fn take(&self, engine: Engine, report: Report) -> bool {
        let backend = &self.member.backend;
        if let Health::NotReady(why) = &report.health {
            backend.went_down(why);
            return false;
        }
        let mut changed = false;
        {
            let mut known = backend.known();
            // An engine that could not be told yet is asked again when it has something to say.
            let settled =
                report.models.as_ref().is_some_and(|models| !models.is_empty()) || self.member.config.engine.is_some();
            let engine = settled.then_some(engine);
            changed |= known.engine != engine;
            known.engine = engine;
            if let Some(models) = &report.models {
                // Details change with every poll of some engines (`created` is now); only names matter to plugins.
                changed |= !same_names(&known.models, models);
                known.models = Arc::new(models.clone());
            }
        }
        let (capacity, _) = self.settings();
        backend.reported_in(&report, &capacity);
        changed
    }
}

fn same_names(before: &[ServedModel], now: &[ServedModel]) -> bool {
    let names =
        |models: &[ServedModel]| models.iter().map(|model| (model.native.clone(), model.alias)).collect::<Vec<_>>();
    names(before) == names(now)
}
