//! One round of questions to one backend: each path is asked at most once, whoever wants the answer.
//!
//! An answer is whole or it is none: half a load report would be half the load.

use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, Method, header};
use tokio::time::{Instant, timeout_at};

use crate::config::{BackendConfig, Capacity, Engine, Timeouts};
use crate::edge::upstream::{self, Failure, Outgoing, Pool};
use crate::edge::{Member, Shared};
use crate::fleet::engine::{ANSWER_LIMIT_BYTES, Answer, PROBES, is_metrics};

/// The first question is given up after this long, and after its answer all the others together.
const PATIENCE: Duration = Duration::from_secs(4);
/// Each of the others, so that one page that hangs leaves time for the next: a vLLM under load was seen to take 1.4 s.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);
/// All the others together, where the backend is out of use: once it answers, what it does not say of its load keeps
/// nobody waiting. The next round is a patient one.
const PATIENCE_WITH_THE_RETURNED: Duration = Duration::from_millis(500);

/// Why a backend did not answer a question.
#[derive(Debug, Clone)]
pub(super) enum NoAnswer {
    /// No connection: it is not there.
    Gone(String),
    Silent(String),
    /// It could not be asked, for want of something on this machine: that says nothing of it.
    Unasked(String),
}

/// Status and body of an answer, or why there is none.
type Heard = Result<(u16, BytesMut), NoAnswer>;

/// Who is asked, and by what way.
pub(super) struct Asker {
    pub member: Member,
    pub shared: Arc<Shared>,
    pool: Rc<Pool>,
    metrics: Option<Metrics>,
}

/// Where metrics are that are not behind the backend's own address.
struct Metrics {
    member: Member,
    /// Of its own: a connection to one address must not be taken for one to the other.
    pool: Rc<Pool>,
}

impl Metrics {
    fn of(member: &Member, shared: &Shared) -> Option<Self> {
        let at = member.config.metrics.as_ref()?;
        // Another server has no business with the key.
        let authorization = member.authorization.clone().filter(|_| at.url.is_same_origin(&member.config.url));
        let config = BackendConfig { url: at.url.clone(), tls: at.tls.clone(), ..(*member.config).clone() };
        let member = Member { backend: Arc::clone(&member.backend), config: Arc::new(config), authorization };
        Some(Self { member, pool: Rc::new(Pool::new(Arc::clone(&shared.names))) })
    }
}

impl Asker {
    pub(super) fn new(member: Member, shared: Arc<Shared>, pool: Rc<Pool>) -> Self {
        let metrics = Metrics::of(&member, &shared);
        Self { member, shared, pool, metrics }
    }

    /// What the configuration of this moment says.
    pub(super) fn settings(&self) -> (Capacity, Timeouts) {
        let snapshot = self.shared.snapshot.load();
        (snapshot.config.capacity.clone(), snapshot.config.timeouts.clone())
    }

    /// One `GET`, whole, of where that path is to be found.
    async fn ask(&self, path: &str, deadline: Instant) -> Heard {
        let Some(metrics) = self.metrics.as_ref().filter(|_| is_metrics(path)) else {
            return self.ask_at(&self.member, &self.pool, path, deadline).await;
        };
        let is_page = !metrics.member.config.url.prefix.is_empty();
        let heard = self.ask_at(&metrics.member, &metrics.pool, if is_page { "" } else { path }, deadline).await;
        // That nobody is there says nothing of the backend.
        heard.map_err(|missing| match missing {
            NoAnswer::Gone(why) => NoAnswer::Silent(why),
            other => other,
        })
    }

    async fn ask_at(&self, to: &Member, pool: &Rc<Pool>, target: &str, deadline: Instant) -> Heard {
        let (_, timeouts) = self.settings();
        let mut headers = HeaderMap::new();
        if let Some(key) = &to.authorization {
            headers.insert(header::AUTHORIZATION, key.clone());
        }
        let request = Outgoing { method: &Method::GET, target, headers: &headers, body: &[] };
        let ask = |fresh| timeout_at(deadline, upstream::send(pool, to, &request, &timeouts, fresh));
        let answer = match ask(false).await {
            Ok(Err(Failure::Unanswered { idle: Some(_) })) => ask(true).await,
            other => other,
        };
        let answer = answer.map_err(|_| NoAnswer::Silent("no answer in time".into()))?;
        if to.config.url == self.member.config.url {
            let is_refused = matches!(answer, Err(Failure::Connect(ErrorKind::ConnectionRefused)));
            self.member.backend.takes_connections(!is_refused);
        }
        let mut answer = answer.map_err(|failure| match failure {
            Failure::Connect(_) | Failure::Tls(_) | Failure::ConnectTimeout => NoAnswer::Gone(failure.to_string()),
            Failure::Local(_) => NoAnswer::Unasked(failure.to_string()),
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
        let body = timeout_at(deadline, whole).await;
        let body = body.map_err(|_| NoAnswer::Silent("the answer did not end in time".into()))??;
        Ok((answer.status.as_u16(), body))
    }
}

/// The answers of one round.
pub(super) struct Round<'a> {
    asker: &'a Asker,
    heard: Vec<(String, Heard)>,
    /// How long questions may take after the first was answered.
    patience: Duration,
    /// When that is over; `None` before.
    until: Option<Instant>,
}

impl<'a> Round<'a> {
    pub(super) fn new(asker: &'a Asker) -> Self {
        let is_up = asker.member.backend.is_up();
        let patience = if is_up { PATIENCE } else { PATIENCE_WITH_THE_RETURNED };
        Self { asker, heard: Vec::new(), patience, until: None }
    }

    /// The answer to a `GET` of this path in this round.
    pub(super) async fn ask(&mut self, path: &str) -> Result<Answer<'_>, NoAnswer> {
        let at = match self.heard.iter().position(|(asked, _)| *asked == path) {
            Some(at) => at,
            None => {
                let heard = self.ask_anew(path).await;
                self.heard.push((path.to_owned(), heard));
                self.heard.len() - 1
            }
        };
        match &self.heard[at].1 {
            Ok((status, body)) => Ok(Answer { status: *status, body }),
            Err(missing) => Err(missing.clone()),
        }
    }

    async fn ask_anew(&mut self, path: &str) -> Heard {
        let begun = Instant::now();
        let deadline = self.until.map_or(begun + PATIENCE, |until| until.min(begun + QUESTION_TIMEOUT));
        if deadline <= begun {
            return Err(NoAnswer::Silent("others took all the time of this round".into()));
        }
        let heard = self.asker.ask(path, deadline).await;
        self.until = self.until.or_else(|| Some(Instant::now() + self.patience));
        heard
    }

    /// Finds out what it runs. Silence counts only where it is the very first answer that is missing.
    pub(super) async fn recognise(&mut self) -> Result<Engine, NoAnswer> {
        for (at, probe) in PROBES.iter().enumerate() {
            match self.ask(probe.path).await {
                Ok(answer) if (probe.is)(&answer) => return Ok(probe.engine),
                Ok(_) => {}
                Err(gone @ (NoAnswer::Gone(_) | NoAnswer::Unasked(_))) => return Err(gone),
                Err(silent) if at == 0 => return Err(silent),
                Err(NoAnswer::Silent(_)) => {}
            }
        }
        Ok(Engine::OpenAi)
    }

    /// What comes next is waited for as if nothing had been asked yet.
    pub(super) fn is_given_time_anew(&mut self) {
        self.until = None;
    }

    /// Whether everything that was asked so far was answered.
    pub(super) fn is_whole(&self) -> bool {
        self.heard.iter().all(|(_, heard)| heard.is_ok())
    }
}
