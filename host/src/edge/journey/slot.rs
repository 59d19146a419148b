//! How a request comes to a slot: picked at once, or waited for in line, tier after tier.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Journey, Stop, Underway};
use crate::edge::attempt::Sending;
use crate::edge::pick::{Asking, Picked};
use crate::edge::promise::Outlook;
use crate::edge::request;
use crate::edge::route::{Endpoint, Work};
use crate::edge::worker::Tier;
use crate::error::ProxyError;
use crate::fleet::{Backend, Flow, Given, Lease, Refused, Wish};
use crate::plugin::{self, Traits};

impl Journey<'_> {
    /// A slot at one of the candidates, waited for where all are busy.
    pub(super) async fn slot(&mut self, sending: &Sending<'_>) -> Result<(usize, Lease), Stop> {
        let at = self.first_tier();
        let Some(tier) = self.served.tiers.get(at) else { return Err(self.nobody().into()) };
        let asking = self.asking(sending, tier);
        let holding = match asking.pick() {
            Picked::Slot { candidate, lease } => return Ok((candidate, lease)),
            Picked::Nobody if self.underway.history.has_failed() => {
                return Err(self.with_promise(self.underway.history.error()).into());
            }
            Picked::Nobody => return Err(self.nobody().into()),
            Picked::Reject(status) => return Err(ProxyError::Rejected(status).into()),
            Picked::Hold => true,
            Picked::AllBusy => false,
        };
        let waiting_since = Instant::now();
        let tenant = self.arrival.tenant(&sending.headers);
        let got = self.wait(asking, at, holding, tenant).await;
        let waited = waiting_since.elapsed();
        self.underway.away += waited;
        self.underway.waited += waited;
        let in_line = self.underway.in_line.get_or_insert_default();
        *in_line += waited;
        self.record.get_mut().in_line(*in_line);
        got
    }

    /// The first tier in which anybody is sound that has neither failed this request nor turned it away; where nobody is,
    /// the last.
    fn first_tier(&self) -> usize {
        let Underway { tried, turned_away_by, .. } = &*self.underway;
        let is_new = |backend: &Backend| !tried.contains(&backend.id) && !turned_away_by.contains(&backend.id);
        let is_sound = |backend: &Arc<Backend>| backend.is_sound() && is_new(backend);
        let tiers = &self.served.tiers;
        tiers.iter().position(|tier| tier.backends.iter().any(is_sound)).unwrap_or(tiers.len().saturating_sub(1))
    }

    /// Waits in line until a slot comes that the policy accepts. Who waits for long may go to the next tier.
    async fn wait<'b>(
        &'b self,
        mut asking: Asking<'b>,
        mut tier: usize,
        mut holding: bool,
        tenant: u64,
    ) -> Result<(usize, Lease), Stop> {
        let (queue, limits) = (&self.arrival.worker.shared.queue, &self.current.snapshot.config.queue);
        let (since, before) = (Instant::now(), self.underway.waited);
        let left = |of: Duration| since + of.saturating_sub(before);
        let (deadline, mut spill) = (left(limits.timeout), left(limits.spill_after));
        let waited = || before + since.elapsed();
        loop {
            let wish = self.wish(&asking, tenant);
            let place = queue.enter(self.underway.turn.get(), wish).map_err(|Refused| self.saturated(Duration::ZERO));
            let mut place = place?;
            self.underway.turn.set(Some(place.turn));
            // A policy that would rather wait is asked at the next event, not about the slot that it just refused.
            if !holding {
                queue.look(wish);
            }
            let next_tier = self.served.tiers.get(tier + 1).filter(|_| spill < deadline);
            let picked = match timeout_at(next_tier.map_or(deadline, |_| spill), place.turn()).await {
                Ok(Given::Slot(lease)) => asking.accept(lease, place.turn),
                Ok(Given::Evicted) => return Err(self.saturated(waited()).into()),
                Ok(Given::Stranded) => return Err(Stop::Stranded),
                Err(_) if let Some(next_tier) = next_tier => {
                    (tier, spill) = (tier + 1, spill + limits.spill_after);
                    drop(place);
                    asking.tier = next_tier;
                    asking.reserved = queue.wanted(next_tier.backends.iter());
                    asking.pick()
                }
                Err(_) => return Err(self.waited_in_vain(&asking, waited()).into()),
            };
            holding = match picked {
                Picked::Slot { candidate, lease } => return Ok((candidate, lease)),
                Picked::Reject(status) => return Err(ProxyError::Rejected(status).into()),
                Picked::Hold => true,
                Picked::AllBusy | Picked::Nobody => false,
            };
        }
    }

    fn wish<'b>(&'b self, asking: &Asking<'b>, tenant: u64) -> Wish<'b> {
        Wish {
            flow: Flow { model: self.model(), tenant },
            wants: &asking.tier.backends,
            all: self.everybody(),
            not: &self.underway.tried,
            may_try: asking.may_try,
            cost: self.cost,
            bytes: self.body_bytes,
            arrived: self.underway.read_at,
            was_served: self.underway.history.attempts > 0,
        }
    }

    /// A number that stands for the model, in every worker the same.
    fn model(&self) -> usize {
        Arc::as_ptr(&self.served.demand) as usize
    }

    /// All that serve the model, of whatever tier.
    pub(super) fn everybody(&self) -> &Arc<[Arc<Backend>]> {
        &self.served.all
    }

    fn nobody(&self) -> ProxyError {
        ProxyError::NoBackendAvailable { model: self.served.public.to_string() }
    }

    fn waited_in_vain(&self, asking: &Asking<'_>, waited: Duration) -> ProxyError {
        if asking.is_anyone_up() { self.saturated(waited) } else { self.nobody() }
    }

    /// Where every backend that was tried is busy, the client is told when to come again as if the line were full.
    pub(super) fn with_promise(&self, error: ProxyError) -> ProxyError {
        match error {
            ProxyError::Saturated { .. } => self.saturated(Duration::ZERO),
            other => other,
        }
    }

    /// Full: the client is told when a slot may be expected, by what is known of the backends. Who `waited` in vain
    /// has seen that it takes longer than thought.
    fn saturated(&self, waited: Duration) -> ProxyError {
        let waiting = self.arrival.worker.shared.queue.waiting_for(self.model());
        let outlook = Outlook::of(self.everybody());
        let promised = self.served.demand.promises.promise(&outlook, waiting, self.cost.slots, fastrand::f64());
        ProxyError::Saturated { retry_after: promised.max(waited / 4) }
    }

    fn asking<'b>(&'b self, sending: &Sending<'_>, tier: &'b Tier) -> Asking<'b> {
        let facts = &sending.body.facts;
        let (arrival, attempt) = (self.arrival, self.underway.history.attempts);
        let request = plugin::Request {
            affinity: facts.affinity,
            prefix: facts.prefix,
            model: self.served.model,
            body_kib: u32::try_from(sending.body.length.div_ceil(1024)).unwrap_or(u32::MAX),
            images: facts.images,
            attempt,
            traits: traits(arrival.endpoint, facts, attempt > 0),
            sequence: self.sequence,
            // Of the moment of each pick.
            random: 0,
            now_ms: 0,
        };
        Asking {
            worker: arrival.worker,
            current: self.current,
            served: self.served,
            tier,
            tried: &self.underway.tried,
            // Whoever came before and waits for one of these backends goes first.
            reserved: arrival.worker.shared.queue.wanted(tier.backends.iter()),
            may_try: sending.may_repeat
                && self.underway.history.counted() + 1 < self.current.snapshot.config.failover.attempts,
            cost: self.cost,
            request,
            record: &self.record,
        }
    }
}

/// What kind of request it is, for the policy.
fn traits(endpoint: &Endpoint, facts: &request::Facts, is_retry: bool) -> Traits {
    let mut traits = Traits::empty();
    traits.set(Traits::STREAMING, facts.stream.unwrap_or(endpoint.streams_by_default));
    traits.set(Traits::VISION, facts.images > 0 || endpoint.work == Work::Vision);
    traits.set(Traits::EMBEDDING, endpoint.work == Work::Embedding);
    traits.set(Traits::AUDIO, endpoint.work == Work::Audio);
    traits.set(Traits::RETRY, is_retry);
    traits
}
