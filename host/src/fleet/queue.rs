//! The line of requests for which no backend has room: first come, first served, and fair between tenants.
//!
//! A freed slot is claimed on behalf of the first request in line that can use its backend and handed
//! to it as a lease, so that nobody can take it in between and nobody wakes up in vain. Whoever frees
//! a slot first lowers the count, then looks for waiters; whoever waits first stands in line, then looks
//! for a slot: with both in sequentially consistent order one of the two sees the other.
//!
//! The lock is taken only while somebody waits, never across an await.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::backend::Backend;
use super::lease::Lease;

/// Tenants remembered though none of their requests waits.
const TENANTS_LIMIT: usize = 1024;

/// One line for the whole fleet. Models share it: a request passes those before it only where they
/// cannot use the backend that became free.
#[derive(Debug, Default)]
pub struct Queue {
    /// How many may wait; set by configuration.
    size: AtomicUsize,
    /// How many bytes of bodies may; set by configuration.
    bytes: AtomicU64,
    /// How many do. Written under the lock, read without it.
    waiting: AtomicUsize,
    line: Mutex<Line>,
}

/// A request's turn. Each tenant's requests take rounds of their own, one after another, and a tenant that comes
/// anew begins in the round that is being served: so tenants alternate, however many requests each has in line
/// (start-time fair queueing, Goyal et al. 1996). Of one tenant alone it is the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    round: u64,
    arrival: u64,
}

#[derive(Debug, Default)]
struct Line {
    /// By turn.
    waiters: VecDeque<Waiter>,
    bytes: u64,
    arrivals: u64,
    /// The round that is being served.
    round: u64,
    /// The next round of each tenant.
    next_rounds: HashMap<u64, u64>,
}

#[derive(Debug)]
struct Waiter {
    turn: Turn,
    /// The backends that serve its model.
    wants: Arc<[Arc<Backend>]>,
    /// Ids of those that already failed it.
    not: Box<[u64]>,
    cost: u32,
    bytes: u64,
    give: oneshot::Sender<Lease>,
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The backends that serve its model.
    pub wants: &'a Arc<[Arc<Backend>]>,
    /// Ids of those that already failed it.
    pub not: &'a [u64],
    /// Who asks, as far as that is told apart.
    pub tenant: u64,
    /// Slots that it takes.
    pub cost: u32,
    /// Size of its body.
    pub bytes: u64,
}

impl Waiter {
    fn can_use(&self, backend: u64) -> bool {
        self.wants.iter().any(|wanted| wanted.id == backend) && !self.not.contains(&backend)
    }

    /// A slot for it at a backend that it can use. Where failures speak against every one that is up, the evidence is
    /// soft and they stay in use.
    fn claim(&self, backend: &Arc<Backend>) -> Option<Lease> {
        let mut others = self.wants.iter().filter(|other| other.is_up() && !self.not.contains(&other.id));
        Backend::claim(backend, self.cost).or_else(|| {
            others.all(|other| other.is_suspended()).then(|| Backend::claim_suspect(backend, self.cost)).flatten()
        })
    }
}

impl Line {
    /// The turn of a tenant's next request.
    fn next_turn(&mut self, tenant: u64) -> Turn {
        if self.next_rounds.len() > TENANTS_LIMIT + self.waiters.len() {
            let round = self.round;
            self.next_rounds.retain(|_, next| *next > round);
        }
        let next = self.next_rounds.entry(tenant).or_default();
        let round = self.round.max(*next);
        *next = round + 1;
        self.arrivals += 1;
        Turn { round, arrival: self.arrivals }
    }

    fn insert(&mut self, waiter: Waiter) {
        self.bytes += waiter.bytes;
        let at = self.waiters.partition_point(|other| other.turn < waiter.turn);
        self.waiters.insert(at, waiter);
    }

    fn remove(&mut self, at: usize) -> Option<Waiter> {
        let waiter = self.waiters.remove(at)?;
        self.bytes = self.bytes.saturating_sub(waiter.bytes);
        if self.waiters.is_empty() {
            // Nobody is owed anything any more.
            self.next_rounds.clear();
        }
        Some(waiter)
    }
}

/// The line is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

impl Queue {
    pub fn new(size: usize, bytes: u64) -> Arc<Self> {
        let queue = Self::default();
        queue.resize(size, bytes);
        Arc::new(queue)
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
    pub fn resize(&self, size: usize, bytes: u64) {
        self.size.store(size, SeqCst);
        self.bytes.store(bytes, SeqCst);
    }

    /// Which of these backends somebody in line could use: a newcomer leaves them to those before it.
    pub fn wanted<'a>(&self, backends: impl Iterator<Item = &'a Arc<Backend>>) -> Vec<u64> {
        if self.waiting() == 0 {
            return Vec::new();
        }
        let line = self.line();
        backends.map(|backend| backend.id).filter(|id| line.waiters.iter().any(|waiter| waiter.can_use(*id))).collect()
    }

    /// Lets those go whose every backend has left the fleet: they have to look for others.
    pub fn release_stranded(&self) {
        let mut line = self.line();
        while let Some(at) =
            line.waiters.iter().position(|waiter| waiter.wants.iter().all(|wanted| wanted.is_draining()))
        {
            line.remove(at);
        }
        self.waiting.store(line.waiters.len(), SeqCst);
    }

    /// Stands in line; with a `turn` that was kept, where that was. Whoever does not want to wait whatever happens then
    /// calls [`Queue::look`].
    ///
    /// # Errors
    /// [`Refused`] where the line is full, but not for who had a place in it.
    pub fn enter(self: &Arc<Self>, turn: Option<Turn>, wish: Wish<'_>) -> Result<Place, Refused> {
        let Wish { wants, not, cost, bytes, tenant } = wish;
        let mut line = self.line();
        let is_full = line.waiters.len() >= self.size() || line.bytes + bytes > self.bytes.load(SeqCst);
        if is_full && turn.is_none() {
            return Err(Refused);
        }
        let turn = turn.unwrap_or_else(|| line.next_turn(tenant));
        let (give, given) = oneshot::channel();
        line.insert(Waiter { turn, wants: Arc::clone(wants), not: not.into(), cost, bytes, give });
        self.waiting.store(line.waiters.len(), SeqCst);
        Ok(Place { queue: Arc::clone(self), turn, given })
    }

    /// Looks once more for free slots: one freed just before somebody stood in line woke nobody.
    pub fn look(&self, wish: Wish<'_>) {
        for backend in wish.wants.iter() {
            self.freed(backend, None);
        }
    }

    /// A slot of this backend may be free: hands it to whoever is first in line for it, of those behind a turn where
    /// one is given.
    pub fn freed(&self, backend: &Arc<Backend>, behind: Option<Turn>) {
        if self.waiting() == 0 {
            return;
        }
        let mut line = self.line();
        let may_have = |waiter: &Waiter| behind.is_none_or(|turn| waiter.turn > turn) && waiter.can_use(backend.id);
        while let Some(at) = line.waiters.iter().position(may_have) {
            let Some(lease) = line.waiters.get(at).and_then(|waiter| waiter.claim(backend)) else { return };
            let Some(waiter) = line.remove(at) else { return };
            line.round = line.round.max(waiter.turn.round);
            self.waiting.store(line.waiters.len(), SeqCst);
            if let Err(lease) = waiter.give.send(lease) {
                // Its client left in this moment. Released without a wake-up: this loop goes on.
                lease.release_quietly();
            }
        }
    }

    fn leave(&self, turn: Turn) {
        let mut line = self.line();
        if let Ok(at) = line.waiters.binary_search_by_key(&turn, |waiter| waiter.turn) {
            line.remove(at);
            self.waiting.store(line.waiters.len(), SeqCst);
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in line. Dropping it leaves the line; a lease that was just handed over goes to the next.
#[derive(Debug)]
pub struct Place {
    queue: Arc<Queue>,
    /// To come back to it by `Queue::enter`.
    pub turn: Turn,
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
        self.queue.leave(self.turn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::backend::tests::backend_with;

    fn wants(backends: &[&Arc<Backend>]) -> Arc<[Arc<Backend>]> {
        backends.iter().map(|backend| Arc::clone(backend)).collect()
    }

    fn wish(wants: &Arc<[Arc<Backend>]>) -> Wish<'_> {
        Wish { wants, not: &[], tenant: 0, cost: 1, bytes: 10 }
    }

    fn enter(queue: &Arc<Queue>, backend: &Arc<Backend>) -> Place {
        enter_by(queue, wish(&wants(&[backend]))).unwrap()
    }

    fn enter_by(queue: &Arc<Queue>, wish: Wish<'_>) -> Result<Place, Refused> {
        let place = queue.enter(None, wish)?;
        queue.look(wish);
        Ok(place)
    }

    #[tokio::test]
    async fn slots_go_to_waiters_in_order_of_arrival() {
        let queue = Queue::new(8, 1024);
        let backend = backend_with(&queue, 1);
        let held = Backend::claim(&backend, 1).unwrap();
        let mut first = enter(&queue, &backend);
        let mut second = enter(&queue, &backend);
        drop(held);
        let lease = first.turn().await.unwrap();
        assert!(Backend::claim(&backend, 1).is_none(), "handed over, never free in between");
        assert_eq!(queue.waiting(), 1);
        drop(lease);
        second.turn().await.unwrap();
    }

    #[tokio::test]
    async fn a_waiter_that_left_is_passed_over_and_its_lease_goes_on() {
        let queue = Queue::new(8, 1024);
        let backend = backend_with(&queue, 1);
        let held = Backend::claim(&backend, 1).unwrap();
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
        let queue = Queue::new(1, 1024);
        let backend = backend_with(&queue, 1);
        let _held = Backend::claim(&backend, 1).unwrap();
        let _place = enter(&queue, &backend);
        assert_eq!(enter_by(&queue, wish(&wants(&[&backend]))).unwrap_err(), Refused);
    }

    #[tokio::test]
    async fn one_passes_another_only_where_that_one_cannot_use_the_slot() {
        let queue = Queue::new(8, 1024);
        let (a, b) = (backend_with(&queue, 1), backend_with(&queue, 1));
        let (_held_a, held_b) = (Backend::claim(&a, 1).unwrap(), Backend::claim(&b, 1).unwrap());
        let _for_a = enter(&queue, &a);
        let mut for_b = enter(&queue, &b);
        assert_eq!(queue.wanted([&a, &b].into_iter()), [a.id, b.id]);
        drop(held_b);
        for_b.turn().await.unwrap();
    }

    #[tokio::test]
    async fn a_slot_that_is_free_when_one_enters_is_taken_at_once() {
        let queue = Queue::new(8, 1024);
        let backend = backend_with(&queue, 1);
        enter(&queue, &backend).turn().await.unwrap();
    }

    #[tokio::test]
    async fn whoever_waits_for_what_left_the_fleet_is_told() {
        let queue = Queue::new(8, 1024);
        let (gone, stays) = (backend_with(&queue, 1), backend_with(&queue, 1));
        let _held = (Backend::claim(&gone, 1), Backend::claim(&stays, 1));
        let mut stranded = enter(&queue, &gone);
        let _waits = enter(&queue, &stays);
        gone.drain();
        queue.release_stranded();
        assert!(stranded.turn().await.is_none());
        assert_eq!(queue.waiting(), 1);
    }

    #[tokio::test]
    async fn waiters_get_the_last_one_standing() {
        let queue = Queue::new(8, 1024);
        let backend = backend_with(&queue, 2);
        let held = (Backend::claim(&backend, 1), Backend::claim(&backend, 1));
        let mut first = enter(&queue, &backend);
        let mut second = enter(&queue, &backend);
        for _ in 0..5 {
            backend.failed("reset", 5);
        }
        assert!(backend.is_ejected());
        drop(held);
        let _both = (first.turn().await.unwrap(), second.turn().await.unwrap());
    }

    #[test]
    fn a_line_with_too_many_bytes_refuses() {
        let queue = Queue::new(8, 25);
        let backend = backend_with(&queue, 1);
        let _held = Backend::claim(&backend, 1).unwrap();
        let places = [enter(&queue, &backend), enter(&queue, &backend)];
        assert_eq!(enter_by(&queue, wish(&wants(&[&backend]))).unwrap_err(), Refused);
        drop(places);
        enter(&queue, &backend);
    }

    #[tokio::test]
    async fn tenants_take_turns_however_many_requests_each_has() {
        let queue = Queue::new(8, 1024);
        let backend = backend_with(&queue, 1);
        let mut held = Backend::claim(&backend, 1);
        let wanted = wants(&[&backend]);
        let mut places: Vec<_> = [7, 7, 7, 7, 8, 8, 9]
            .map(|tenant| (tenant, enter_by(&queue, Wish { tenant, ..wish(&wanted) }).unwrap()))
            .into_iter()
            .collect();
        let mut served = Vec::new();
        while !places.is_empty() {
            drop(held.take());
            let at =
                places.iter_mut().position(|(_, place)| place.given.try_recv().map(|lease| held = Some(lease)).is_ok());
            served.push(places.remove(at.unwrap()).0);
        }
        assert_eq!(served, [7, 8, 9, 7, 8, 7, 7]);
    }

    #[tokio::test]
    async fn who_needs_more_slots_is_not_passed_by_those_who_need_fewer() {
        let queue = Queue::new(8, 1024);
        let backend = backend_with(&queue, 3);
        let mut held = [(); 3].map(|()| Backend::claim(&backend, 1)).into_iter();
        let wanted = wants(&[&backend]);
        let mut large = enter_by(&queue, Wish { cost: 2, ..wish(&wanted) }).unwrap();
        let mut small = enter(&queue, &backend);
        drop(held.next());
        assert!(small.given.try_recv().is_err(), "the large one is first");
        drop(held.next());
        let lease = large.turn().await.unwrap();
        assert!(small.given.try_recv().is_err());
        drop(lease);
        small.turn().await.unwrap();
    }
}
