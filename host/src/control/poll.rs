//! One poller a backend: what does it run, is it up, how full is it, what does it serve?
//!
//! A failed poll is not a broken backend: only a connection that cannot be made, or its own word that it
//! is not ready, takes it out of use at once; silence must repeat itself. A slow or broken load page never
//! stops traffic, nor keeps out who returns: its numbers just grow old, and the proxy's own count decides. What a backend runs is found out once,
//! and again where its answers cease to look like it.

mod doubt;
mod round;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{sleep, timeout};

use self::doubt::{Doubts, News};
use self::round::{Asker, NoAnswer, Round};
use crate::config::Engine;
use crate::edge::upstream::Pool;
use crate::edge::{Member, Shared};
use crate::fleet::Backend;
use crate::fleet::engine::{Health, OF_EACH_MODEL, Question, Report, ServedModel, questions};

/// Silent polls in a row that take a backend for down.
const SILENT_POLLS: u32 = 3;
/// How often a backend without a report is looked at for one that may grow stale.
const LOOK_FOR_REPORT: Duration = Duration::from_secs(1);
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
    let backend = Arc::clone(&member.backend);
    let poll = async move {
        let asker = Asker::new(member, shared, pool);
        let mut poller = Poller { asker, silent: 0, doubts: Doubts::default() };
        let mut first = Some(first);
        loop {
            if poller.poll().await {
                // Control ends with this task.
                let _ = changed.send(FleetChanged);
            }
            first.take();
            poller.rest().await;
        }
    };
    let task = spawn_local(async move {
        tokio::select! {
            () = poll => {}
            () = forget_what_is_stale(&backend) => {}
            () = wake_as_it_opens(&backend) => {}
        }
    });
    Polling(task.abort_handle())
}

/// Whoever waits for a backend because of its report is woken when that is too old, though the next may be on its way
/// for long.
async fn forget_what_is_stale(backend: &Arc<Backend>) {
    loop {
        let left = backend.time_to_stale();
        if left.is_zero() {
            backend.forget_report();
        }
        sleep(if left.is_zero() { LOOK_FOR_REPORT } else { left }).await;
    }
}

/// Whoever waits for a backend is woken at the instant at which it takes more, which may be long before the next poll.
async fn wake_as_it_opens(backend: &Arc<Backend>) {
    loop {
        let Some(left) = backend.opens_in() else {
            backend.opening.notified().await;
            continue;
        };
        if timeout(left, backend.opening.notified()).await.is_err() {
            backend.wake();
        }
    }
}

/// What a round of questions brought.
struct Found {
    engine: Engine,
    report: Report,
    /// Nothing that was asked went unanswered.
    is_whole: bool,
}

struct Poller {
    asker: Asker,
    /// Polls in a row that brought nothing.
    silent: u32,
    doubts: Doubts,
}

impl Poller {
    fn member(&self) -> &Member {
        &self.asker.member
    }

    /// Until the next poll: the interval, or sooner where a request failed on it.
    async fn rest(&self) {
        let backend = &self.member().backend;
        let (capacity, _) = self.asker.settings();
        let soon = async {
            sleep(SOONEST_AGAIN).await;
            backend.poll_now.notified().await;
        };
        // Either way it is time.
        let _ = timeout(capacity.poll_interval, soon).await;
    }

    /// One poll. True where it changed what the fleet is.
    async fn poll(&mut self) -> bool {
        match self.ask_all().await {
            Ok(found) => {
                self.silent = 0;
                self.take(found)
            }
            Err(NoAnswer::Gone(why)) => {
                self.member().backend.went_down(&why);
                self.forget_engine();
                false
            }
            Err(NoAnswer::Unasked(why)) => {
                tracing::warn!(backend = %self.member().backend.name, "could not be polled: {why}");
                false
            }
            Err(NoAnswer::Silent(why)) => {
                self.silent += 1;
                if self.silent >= SILENT_POLLS || self.member().backend.is_unknown() {
                    self.member().backend.went_down(&why);
                    self.forget_engine();
                }
                false
            }
        }
    }

    /// Whatever comes back behind this address may be something else.
    fn forget_engine(&self) {
        let mut known = self.member().backend.known();
        known.runs(self.member().config.engine);
        known.reported_slots = None;
    }

    /// Asks all that its engine is asked. An answer is an error only where the very first is missing.
    async fn ask_all(&mut self) -> Result<Found, NoAnswer> {
        self.member().backend.asking();
        let known = self.member().backend.known().engine;
        let is_doubtful = self.member().config.engine.is_none() && self.doubts.are_due();
        let mut round = Round::new(&self.asker);
        let engine = match known {
            Some(engine) if !is_doubtful => engine,
            _ => {
                let found = round.recognise().await;
                round.is_given_time_anew();
                self.doubts.dispelled();
                match (known, found) {
                    // A doubt is no fault: what is only silent for a moment stays what it was.
                    (Some(engine), Err(_)) => engine,
                    (Some(engine), Ok(Engine::OpenAi)) if !round.is_whole() => engine,
                    (_, found) => found?,
                }
            }
        };
        let mut report = Report::default();
        let (health, others) = (&questions(engine)[0], &questions(engine)[1..]);
        (health.read)(&round.ask(health.path).await?, &mut report);
        self.ask(&mut round, others, "", &mut report).await;
        if let Some(routed) = &report.routed {
            let mut of_models = vec![Report::default(); routed.len()];
            for (query, of_model) in routed.iter().zip(&mut of_models) {
                self.ask(&mut round, OF_EACH_MODEL, query, of_model).await;
            }
            report.sum_up(&of_models);
        }
        Ok(Found { engine, report, is_whole: round.is_whole() })
    }

    /// Asks what is worth asking, with a query behind each path. What is not answered is not read.
    async fn ask(&self, round: &mut Round<'_>, questions: &[Question], query: &str, report: &mut Report) {
        for question in questions {
            if !(question.wanted)(report) {
                continue;
            }
            match round.ask(&format!("{}{query}", question.path)).await {
                Ok(answer) => (question.read)(&answer, report),
                Err(NoAnswer::Gone(why) | NoAnswer::Silent(why) | NoAnswer::Unasked(why)) => {
                    let backend = &self.member().backend.name;
                    tracing::debug!(%backend, path = question.path, "no answer to a poll: {why}");
                }
            }
        }
    }

    /// Takes a report over. True where models or engine are not what they were.
    fn take(&mut self, found: Found) -> bool {
        let Found { engine, mut report, is_whole } = found;
        self.weigh(engine, &report);
        let backend = &self.member().backend;
        if let Health::NotReady(why) = &report.health {
            backend.went_down(why);
            return false;
        }
        let changed = self.learn(engine, &report, is_whole);
        if report.load_may_be_old && backend.in_flight() == 0 {
            // Nothing would ever change what it says, were it to say that it is full.
            (report.waiting, report.kv_cache_used) = (None, None);
        }
        let (capacity, _) = self.asker.settings();
        backend.reported_in(&report, &capacity);
        changed
    }

    /// Doubts what is odd about a report, and says what is worth saying.
    fn weigh(&mut self, engine: Engine, report: &Report) {
        let news = self.doubts.weigh(engine, report);
        let (backend, engine) = (&self.member().backend.name, engine.name());
        match news {
            Some(News::LoadMissing(why)) => {
                tracing::warn!(%backend, engine, "reports no load, so that only our own count decides; likely {why}");
            }
            Some(News::LoadBack) => tracing::info!(%backend, engine, "reports its load again"),
            None => {}
        }
    }

    /// Keeps what a report says the backend is. True where that is not what it was.
    fn learn(&self, engine: Engine, report: &Report, is_whole: bool) -> bool {
        // While it is out of use its answers are not waited for long; once it is up, they have been.
        let is_heard = is_whole || self.member().backend.is_up();
        let mut known = self.member().backend.known();
        // What was taken for anything else is asked again when it has something to say: it may only be starting.
        let settled = self.member().config.engine.is_some()
            || engine != Engine::OpenAi
            || (is_heard && report.models.as_ref().is_some_and(|models| !models.is_empty()));
        let found = settled.then_some(engine);
        let mut changed = known.engine != found;
        if changed && known.engine.is_some() {
            // The limit of the engine before says nothing of this one.
            known.reported_slots = None;
            tracing::info!(backend = %self.member().backend.name, engine = engine.name(), "runs another engine now");
        }
        known.runs(found);
        if let Some(models) = &report.models {
            // Details change with every poll of some engines (`created` is now); only names matter to plugins.
            changed |= !same_models(&known.models, models);
            known.models = Arc::new(models.clone());
        }
        changed
    }
}

/// Whether nothing differs that a request is routed by.
fn same_models(before: &[ServedModel], now: &[ServedModel]) -> bool {
    let of = |model: &ServedModel| (model.native.clone(), model.alias, model.loaded, model.vision);
    before.iter().map(of).eq(now.iter().map(of))
}
