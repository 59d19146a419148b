//! The line of requests for which no backend has room: first come, first served.
//!
//! A freed slot is claimed on behalf of the first request in line that can use its backend and handed
//! to it as a lease, so that nobody can take it in between and nobody wakes up in vain. Whoever frees
//! a slot first lowers the count, then looks for waiters; whoever waits first stands in line, then looks
//! for a slot: with both in sequentially consistent order one of the two sees the other.
//!
//! The lock is taken only while somebody waits, never across an await.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::backend::Backend;
use super::lease::Lease;

/// One line for the whole fleet. Models share it: a request passes those before it only where they
/// cannot use the backend that became free.
#[derive(Debug, Default)]
pub struct Queue {
    /// How many may wait; set by configuration.
    size: AtomicUsize,
    /// How many do. Written under the lock, read without it.
    waiting: AtomicUsize,
    next_ticket: AtomicU64,
    line: Mutex<VecDeque<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    /// The backends that serve its model.
    wants: Arc<[Arc<Backend>]>,
    /// Ids of those that already failed it.
    not: Box<[u64]>,
    give: oneshot::Sender<Lease>,
}

impl Waiter {
    fn can_use(&self, backend: u64) -> bool {
        self.wants.iter().any(|wanted| wanted.id == backend) && !self.not.contains(&backend)
    }

    /// A slot for it at a backend that it can use. Where failures speak against every one that is up, the evidence is
    /// soft and they stay in use.
    fn claim(&self, backend: &Arc<Backend>) -> Option<Lease> {
        let mut others = self.wants.iter().filter(|other| other.is_up() && !self.not.contains(&other.id));
        Backend::claim(backend)
            .or_else(|| others.all(|other| other.is_ejected()).then(|| Backend::claim_suspect(backend)).flatten())
    }
}

/// The line is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

impl Queue {
    pub fn new(size: usize) -> Arc<Self> {
        Arc::new(Self { size: AtomicUsize::new(size), ..Self::default() })
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// How many may wait.
    pub fn size(&self) -> usize {
        self.size.load(SeqCst)
    }

    /// Changes how many may wait; those in line stay.
    pub fn resize(&self, size: usize) {
        self.size.store(size, SeqCst);
    }

    /// Which of these backends somebody in line could use: a newcomer leaves them to those before it.
    pub fn wanted<'a>(&self, backends: impl Iterator<Item = &'a Arc<Backend>>) -> Vec<u64> {
        if self.waiting() == 0 {
            return Vec::new();
        }
        let line = self.line();
        backends.map(|backend| backend.id).filter(|id| line.iter().any(|waiter| waiter.can_use(*id))).collect()
    }

    /// Lets those go whose every backend has left the fleet: they have to look for others.
    pub fn release_stranded(&self) {
        let mut line = self.line();
        line.retain(|waiter| !waiter.wants.iter().all(|wanted| wanted.is_draining()));
        self.waiting.store(line.len(), SeqCst);
    }

    /// Stands in line for a slot at one of `wants` but `not`; `backends` are the same, to be looked at once more.
    ///
    /// # Errors
    /// [`Refused`] where the line is full.
    pub fn enter<'a>(
        self: &Arc<Self>,
        wants: &Arc<[Arc<Backend>]>,
        not: &[u64],
        backends: impl Iterator<Item = &'a Arc<Backend>>,
    ) -> Result<Place, Refused> {
        let place = self.stand(wants, not, None)?;
        // A slot freed just before we stood here woke nobody.
        for backend in backends {
            self.freed(backend, 0);
        }
        Ok(place)
    }

    /// Takes a place again that a policy gave up with `hold`: asked at the next event, not at once.
    pub fn enter_again(
        self: &Arc<Self>,
        ticket: u64,
        wants: &Arc<[Arc<Backend>]>,
        not: &[u64],
    ) -> Result<Place, Refused> {
        self.stand(wants, not, Some(ticket))
    }

    fn stand(
        self: &Arc<Self>,
        wants: &Arc<[Arc<Backend>]>,
        not: &[u64],
        ticket: Option<u64>,
    ) -> Result<Place, Refused> {
        let (give, given) = oneshot::channel();
        let mut line = self.line();
        if line.len() >= self.size() && ticket.is_none() {
            return Err(Refused);
        }
        let ticket = ticket.unwrap_or_else(|| self.next_ticket.fetch_add(1, SeqCst));
        let at = line.partition_point(|waiter| waiter.ticket < ticket);
        line.insert(at, Waiter { ticket, wants: Arc::clone(wants), not: not.into(), give });
        self.waiting.store(line.len(), SeqCst);
        Ok(Place { queue: Arc::clone(self), ticket, given })
    }

    /// A slot of this backend may be free: hands it to whoever is first in line for it, from ticket `from` on.
    pub fn freed(&self, backend: &Arc<Backend>, from: u64) {
        if self.waiting() == 0 {
            return;
        }
        let mut line = self.line();
        while let Some(at) = line.iter().position(|waiter| waiter.ticket >= from && waiter.can_use(backend.id)) {
            let Some(lease) = line.get(at).and_then(|waiter| waiter.claim(backend)) else { return };
            let waiter = line.remove(at);
            self.waiting.store(line.len(), SeqCst);
            if let Some(Err(lease)) = waiter.map(|waiter| waiter.give.send(lease)) {
                // Its client left in this moment. Released without a wake-up: this loop goes on.
                lease.release_quietly();
            }
        }
    }

    fn leave(&self, ticket: u64) {
        let mut line = self.line();
        if let Ok(at) = line.binary_search_by_key(&ticket, |waiter| waiter.ticket) {
            line.remove(at);
            self.waiting.store(line.len(), SeqCst);
        }
    }

    fn line(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in line. Dropping it leaves the line; a lease that was just handed over goes to the next.
#[derive(Debug)]
pub struct Place {
    queue: Arc<Queue>,
    /// Says how early it came; kept by `Queue::enter_again`.
    pub ticket: u64,
    given: oneshot::Receiver<Lease>,
}

impl Place {
    /// Waits for its turn; `None` where all that it waits for has left the fleet. Pending for ever where no slot frees:
    /// the caller sets the deadline.
    pub async fn turn(&mut self) -> Option<Lease> {
        (&mut self.given).await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.leave(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::backend::tests::backend_with;

    fn wants(backends: &[&Arc<Backend>]) -> Arc<[Arc<Backend>]> {
        backends.iter().map(|backend| Arc::clone(backend)).collect()
    }

    fn enter(queue: &Arc<Queue>, backend: &Arc<Backend>) -> Place {
        queue.enter(&wants(&[backend]), &[], std::iter::once(backend)).unwrap()
    }

    #[tokio::test]
    async fn slots_go_to_waiters_in_order_of_arrival() {
        let queue = Queue::new(8);
        let backend = backend_with(&queue, 1);
        let held = Backend::claim(&backend).unwrap();
        let mut first = enter(&queue, &backend);
        let mut second = enter(&queue, &backend);
        drop(held);
        let lease = first.turn().await.unwrap();
        assert!(Backend::claim(&backend).is_none(), "handed over, never free in between");
        assert_eq!(queue.waiting(), 1);
        drop(lease);
        second.turn().await.unwrap();
    }

    #[tokio::test]
    async fn a_waiter_that_left_is_passed_over_and_its_lease_goes_on() {
        let queue = Queue::new(8);
        let backend = backend_with(&queue, 1);
        let held = Backend::claim(&backend).unwrap();
        let leaves = enter(&queue, &backend);
        let handed_then_left = enter(&queue, &backend);
        let mut stays = enter(&queue, &backend);
        drop(leaves);
        drop(held);
        drop(handed_then_left);
        stays.turn().await.unwrap();
        assert_eq!(queue.waiting(), 0);
        assert_eq!(backend.in_flight(), 0);
    }

    #[test]
    fn a_full_line_refuses() {
        let queue = Queue::new(1);
        let backend = backend_with(&queue, 1);
        let _held = Backend::claim(&backend).unwrap();
        let _place = enter(&queue, &backend);
        let wanted = wants(&[&backend]);
        assert_eq!(queue.enter(&wanted, &[], std::iter::empty()).unwrap_err(), Refused);
    }

    #[tokio::test]
    async fn one_passes_another_only_where_that_one_cannot_use_the_slot() {
        let queue = Queue::new(8);
        let (a, b) = (backend_with(&queue, 1), backend_with(&queue, 1));
        let (_held_a, held_b) = (Backend::claim(&a).unwrap(), Backend::claim(&b).unwrap());
        let _for_a = enter(&queue, &a);
        let mut for_b = enter(&queue, &b);
        assert_eq!(queue.wanted([&a, &b].into_iter()), [a.id, b.id]);
        drop(held_b);
        for_b.turn().await.unwrap();
    }

    #[tokio::test]
    async fn a_slot_that_is_free_when_one_enters_is_taken_at_once() {
        let queue = Queue::new(8);
        let backend = backend_with(&queue, 1);
        enter(&queue, &backend).turn().await.unwrap();
    }

    #[tokio::test]
    async fn whoever_waits_for_what_left_the_fleet_is_told() {
        let queue = Queue::new(8);
        let (gone, stays) = (backend_with(&queue, 1), backend_with(&queue, 1));
        let _held = (Backend::claim(&gone), Backend::claim(&stays));
        let mut stranded = enter(&queue, &gone);
        let _waits = enter(&queue, &stays);
        gone.drain();
        queue.release_stranded();
        assert!(stranded.turn().await.is_none());
        assert_eq!(queue.waiting(), 1);
    }

    #[tokio::test]
    async fn waiters_get_the_last_one_standing() {
        let queue = Queue::new(8);
        let backend = backend_with(&queue, 2);
        let held = (Backend::claim(&backend), Backend::claim(&backend));
        let mut first = enter(&queue, &backend);
        let mut second = enter(&queue, &backend);
        for _ in 0..5 {
            backend.failed("reset", 5);
        }
        assert!(backend.is_ejected());
        drop(held);
        let _both = (first.turn().await.unwrap(), second.turn().await.unwrap());
    }
}
