//! One connection of the load generator: asks, reads the answer, and asks again.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};

use super::answer::{self, Framing};
use super::events::Events;
use super::plan::{Kind, Plan};
use super::tally::{Failure, Tally};
use crate::wire::Inbox;

/// After a failure, so that a proxy that refuses does not make the load generator spin.
const BREATH: Duration = Duration::from_millis(2);

/// What all connections do.
pub struct Job {
    plan: Plan,
    request: Vec<u8>,
    /// How an answer names the model.
    named: Vec<u8>,
    tally: Rc<Tally>,
    begun: Instant,
}

struct Link {
    stream: TcpStream,
    inbox: Inbox,
}

impl Job {
    pub fn new(plan: Plan, tally: Rc<Tally>) -> Self {
        let named = format!("\"model\":\"{}\"", plan.model).into_bytes();
        Self { request: plan.request(), named, tally, begun: Instant::now(), plan }
    }

    /// When a connection is to ask for the next time, and from when its answer is timed: a request that is late because
    /// the one before took too long is timed from when it was due.
    async fn turn(&self, asked: usize, number: usize) -> Instant {
        let Kind::Rate { per_second } = self.plan.kind else { return Instant::now() };
        let place = (asked * self.plan.connections + number) as f64;
        let due = self.begun + Duration::from_secs_f64(place / per_second);
        if due < Instant::now() {
            return due;
        }
        sleep_until(due).await;
        Instant::now()
    }
}

pub async fn run(number: usize, job: &Job) {
    let mut link = None;
    for asked in 0.. {
        let since = job.turn(asked, number).await;
        match exchange(&mut link, job, since).await {
            Ok(()) => job.tally.answered(since.elapsed(), job.request.len()),
            Err(failure) => {
                job.tally.failed(failure);
                link = None;
                sleep(BREATH).await;
            }
        }
        if job.plan.is_new_each_time() {
            link = None;
        }
    }
}

async fn exchange(link: &mut Option<Link>, job: &Job, since: Instant) -> Result<(), Failure> {
    if link.is_none() {
        let stream = TcpStream::connect(&job.plan.target).await.map_err(|_| Failure::Refused)?;
        stream.set_nodelay(true).map_err(|_| Failure::Refused)?;
        *link = Some(Link { stream, inbox: Inbox::default() });
    }
    let Some(Link { stream, inbox }) = link else { return Err(Failure::Refused) };
    stream.write_all(&job.request).await.map_err(|_| Failure::BrokenOff)?;
    let head = answer::head(stream, inbox).await?;
    let closes = head.closes;
    if head.status != 200 {
        return Err(Failure::Status(head.status));
    }
    match job.plan.kind {
        Kind::Streams { events, .. } => {
            let mut seen = Events::new(job, events, since);
            answer::body(stream, inbox, head.framing, |bytes| seen.take(bytes)).await?;
            seen.end()?;
        }
        _ => match head.framing {
            Framing::Length(length) => whole(stream, inbox, job, length).await?,
            framing => {
                let mut body = Vec::new();
                answer::body(stream, inbox, framing, |bytes| {
                    body.extend_from_slice(bytes);
                    Ok(())
                })
                .await?;
                job.is_named_in(&body)?;
            }
        },
    }
    if closes {
        *link = None;
    }
    Ok(())
}

/// The short way: an answer of a known length, read in place.
async fn whole(stream: &mut TcpStream, inbox: &mut Inbox, job: &Job, length: usize) -> Result<(), Failure> {
    while inbox.unused().len() < length {
        inbox.receive(stream).await.map_err(|_| Failure::BrokenOff)?;
    }
    job.is_named_in(&inbox.unused()[..length])?;
    inbox.used(length);
    Ok(())
}

impl Job {
    /// The answer is under the name that was asked for.
    pub fn is_named_in(&self, text: &[u8]) -> Result<(), Failure> {
        memchr::memmem::find(text, &self.named).map(|_| ()).ok_or(Failure::WrongModel)
    }

    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}
