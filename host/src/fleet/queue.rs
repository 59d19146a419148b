//! The line of requests for which no backend has room: first come, first served, and fair between tenants.
//!
//! A freed slot is claimed on behalf of the first request in line that can use its backend and handed
//! to it as a lease, so that nobody can take it in between and nobody wakes up in vain. Whoever frees
//! a slot first lowers the count, then looks for waiters; whoever waits first stands in line, then looks
//! for a slot: with both in sequentially consistent order one of the two sees the other.
//!
//! The lock is taken only while somebody waits, never across an await. Backends' locks may be taken under it, never it
//! under theirs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::backend::Backend;
use super::board::Board;
use super::cost::Cost;
use super::lease::Lease;

/// Who came so long ago may go to a backend that others keep full, as one of many in its line.
const STARVED_AFTER: Duration = Duration::from_secs(5);
/// For so long others behind a request that needs more than is free may use that. Then it is kept for that request.
const PASSED_FOR: Duration = Duration::from_secs(2);

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
    /// Who may be picked without standing in line.
    pub board: Board,
}

/// A request's turn. Of each model, each tenant's requests stand in rounds of their own, one after another, and a
/// tenant that comes anew begins in the round that is being served: so tenants alternate, however many requests
/// each has in line (start-time fair queueing, Goyal et al. 1996). Of one tenant alone it is the order of arrival.
///
/// A request keeps its turn until it is answered. One that came to a slot without standing in line, and whose backend
/// failed it, goes before all that came after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    round: u64,
    arrived: Instant,
    /// Tells apart who came at the same instant.
    number: u64,
}

#[derive(Debug, Default)]
struct Line {
    /// By turn.
    waiters: VecDeque<Waiter>,
    bytes: u64,
    /// Turns given so far.
    turns: u64,
    /// The round that is being served.
    round: u64,
}

#[derive(Debug)]
struct Waiter {
    turn: Turn,
    flow: Flow,
    /// The backends that it may go to.
    wants: Arc<[Arc<Backend>]>,
    /// Those of further tiers too.
    all: Arc<[Arc<Backend>]>,
    /// Ids of those that already failed it.
    not: Box<[u64]>,
    may_try: bool,
    cost: Cost,
    bytes: u64,
    /// When somebody behind it first got what was too little for it.
    passed_since: Option<Instant>,
    give: oneshot::Sender<Given>,
}

/// What requests are told apart by in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Any number that stands for the model.
    pub model: usize,
    /// Who asks, as far as that is told apart.
    pub tenant: u64,
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    pub flow: Flow,
    /// The backends that it may go to.
    pub wants: &'a Arc<[Arc<Backend>]>,
    /// Those of further tiers too: where failures speak against all that it may go to, these may still be sound.
    pub all: &'a Arc<[Arc<Backend>]>,
    /// Ids of those that already failed it.
    pub not: &'a [u64],
    /// Whether it may be the trial of a backend: another could repeat it.
    pub may_try: bool,
    /// What it takes.
    pub cost: Cost,
    /// Size of its body.
    pub bytes: u64,
    /// When it was there to be sent.
    pub arrived: Instant,
    /// Whether it had a slot before, at a backend that did not answer it: no full line refuses it.
    pub was_served: bool,
}

/// How the wait of a request ends.
#[derive(Debug)]
pub enum Given {
    Slot(Lease),
    /// The line is full, and somebody came who has fewer in it.
    Evicted,
    /// Every backend that it waits for has left the fleet.
    Stranded,
}

impl Waiter {
    fn can_use(&self, backend: u64) -> bool {
        self.wants.iter().any(|wanted| wanted.id == backend) && !self.not.contains(&backend)
    }

    /// A slot for it at a backend that it can use. Where failures speak against every one that is up, the evidence is
    /// soft and they stay in use.
    fn claim(&self, backend: &Arc<Backend>) -> Option<Lease> {
        if !backend.is_suspended() {
            return Backend::claim(backend, self.cost);
        }
        let nobody_is_sound = || !self.all.iter().any(|other| other.is_sound() && !self.not.contains(&other.id));
        let trial = if self.may_try { Backend::claim(backend, self.cost) } else { None };
        trial.or_else(|| nobody_is_sound().then(|| Backend::claim_suspect(backend, self.cost)).flatten())
    }
}

impl Line {
    /// The turn of one that has none yet: the round after its last one in line. Of one whose turn had come before
    /// it stood in line, the first round of all.
    fn next_turn(&mut self, wish: &Wish<'_>) -> Turn {
        let round = if wish.was_served {
            self.waiters.front().map_or(self.round, |first| first.turn.round.min(self.round))
        } else {
            let last = self.waiters.iter().rev().find(|waiter| waiter.flow == wish.flow);
            last.map_or(self.round, |last| last.turn.round + 1).max(self.round)
        };
        self.turns += 1;
        Turn { round, arrived: wish.arrived, number: self.turns }
    }

    fn insert(&mut self, waiter: Waiter) {
        self.bytes += waiter.bytes;
        let at = self.waiters.partition_point(|other| other.turn < waiter.turn);
        self.waiters.insert(at, waiter);
    }

    fn remove(&mut self, at: usize) -> Option<Waiter> {
        let waiter = self.waiters.remove(at)?;
        self.bytes = self.bytes.saturating_sub(waiter.bytes);
        Some(waiter)
    }

    /// Whether what is free at this backend is kept for the waiter at this place, who needs more than that. Whoever was
    /// passed for long enough has what is free kept at one backend, where it lacks the least and nobody before it has something
    /// kept: there it comes to its turn, and those behind it are served by all others.
    fn saves_at(&self, at: usize, backend: &Backend) -> bool {
        if !backend.is_available() {
            // There is nothing for anybody.
            return true;
        }
        let is_due = |waiter: &&Waiter| waiter.passed_since.is_some_and(|since| since.elapsed() >= PASSED_FOR);
        if !self.waiters.get(at).is_some_and(|waiter| is_due(&waiter)) {
            return false;
        }
        let mut kept: Vec<u64> = Vec::new();
        for waiter in self.waiters.iter().take(at + 1).filter(is_due) {
            let others = waiter.wants.iter().filter(|other| waiter.can_use(other.id) && !kept.contains(&other.id));
            let closest = others.filter_map(|other| Some((other.lacks(waiter.cost)?, other.id))).min();
            kept.extend(closest.map(|(_, id)| id));
            if kept.last() == Some(&backend.id) {
                return true;
            }
        }
        false
    }

    /// Makes room for somebody whose turn is before that of the last ones: so nobody fills the line for all others.
    fn evict_for(&mut self, turn: Turn, fits: impl Fn(&Self) -> bool) {
        while !fits(self) && self.waiters.back().is_some_and(|last| last.turn.round > turn.round) {
            if let Some(last) = self.remove(self.waiters.len() - 1) {
                // If its client has just left, it is gone either way.
                let _ = last.give.send(Given::Evicted);
            }
        }
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

    /// How many of a model's requests wait now.
    pub fn waiting_for(&self, model: usize) -> usize {
        if self.waiting() == 0 { 0 } else { self.line().waiters.iter().filter(|one| one.flow.model == model).count() }
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
        let mut left: Vec<u64> = backends.map(|backend| backend.id).collect();
        let (line, mut wanted) = (self.line(), Vec::new());
        for waiter in &line.waiters {
            if left.is_empty() {
                break;
            }
            wanted.extend(left.extract_if(.., |id| waiter.can_use(*id)));
        }
        wanted
    }

    /// Whether somebody has been in line for very long who could use this backend.
    pub fn is_starving(&self, backend: &Backend) -> bool {
        if self.waiting() == 0 {
            return false;
        }
        let starves = |waiter: &Waiter| waiter.turn.arrived.elapsed() >= STARVED_AFTER && waiter.can_use(backend.id);
        self.line().waiters.iter().any(starves)
    }

    /// Lets those go whose every backend has left the fleet: they have to look for others.
    pub fn release_stranded(&self) {
        let mut line = self.line();
        let is_stranded =
            |waiter: &Waiter| waiter.all.iter().all(|wanted| wanted.is_draining() || waiter.not.contains(&wanted.id));
        while let Some(at) = line.waiters.iter().position(is_stranded) {
            if let Some(waiter) = line.remove(at) {
                // If its client has just left, it is gone either way.
                let _ = waiter.give.send(Given::Stranded);
            }
        }
        self.waiting.store(line.waiters.len(), SeqCst);
    }

    /// Stands in line; with a `turn` that was kept, where that was. Whoever does not want to wait whatever happens then
    /// calls [`Queue::look`].
    ///
    /// # Errors
    /// [`Refused`] where the line is full, but not for who had a place in it, or a slot. Where none may wait at all, all
    /// are but those who have a turn.
    pub fn enter(self: &Arc<Self>, turn: Option<Turn>, wish: Wish<'_>) -> Result<Place, Refused> {
        let (size, bytes) = (self.size(), self.bytes.load(SeqCst));
        let fits = |line: &Line| line.waiters.len() < size && line.bytes + wish.bytes <= bytes;
        let mut line = self.line();
        let is_new = turn.is_none() && !(wish.was_served && size > 0);
        let turn = turn.unwrap_or_else(|| line.next_turn(&wish));
        if is_new {
            line.evict_for(turn, fits);
        }
        if is_new && !fits(&line) {
            self.waiting.store(line.waiters.len(), SeqCst);
            return Err(Refused);
        }
        let Wish { flow, wants, all, not, may_try, cost, bytes, .. } = wish;
        let (wants, all) = (Arc::clone(wants), Arc::clone(all));
        let (give, given) = oneshot::channel();
        line.insert(Waiter { turn, flow, wants, all, not: not.into(), may_try, cost, bytes, passed_since: None, give });
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
        let (mut from, mut passed) = (0, Vec::new());
        while let Some(at) = line.waiters.iter().skip(from).position(may_have).map(|at| at + from) {
            let Some(lease) = line.waiters.get(at).and_then(|waiter| waiter.claim(backend)) else {
                if !backend.is_suspended() && line.saves_at(at, backend) {
                    return;
                }
                // It may not be the trial, has sounder ones to wait for, or needs more than is free and waits for that
                // elsewhere; others do not.
                passed.push(at);
                from = at + 1;
                continue;
            };
            let Some(waiter) = line.remove(at) else { return };
            for before in &passed {
                if let Some(before) = line.waiters.get_mut(*before) {
                    before.passed_since.get_or_insert_with(Instant::now);
                }
            }
            line.round = line.round.max(waiter.turn.round);
            self.waiting.store(line.waiters.len(), SeqCst);
            if let Err(Given::Slot(lease)) = waiter.give.send(Given::Slot(lease)) {
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
    given: oneshot::Receiver<Given>,
}

impl Place {
    /// Waits for its turn. Pending for ever where no slot frees: the caller sets the deadline.
    pub async fn turn(&mut self) -> Given {
        // Nobody lets go of the other end without a word but where a line is dropped with its fleet.
        (&mut self.given).await.unwrap_or(Given::Stranded)
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
    use crate::fleet::backend::tests::{backend_with, limits};
    use crate::fleet::cost::tests::slots;
    use crate::fleet::engine::Report;
    use crate::fleet::health::tests::ejection;

    impl Place {
        async fn slot(&mut self) -> Lease {
            match self.turn().await {
                Given::Slot(lease) => lease,
                other => panic!("{other:?}"),
            }
        }

        fn try_slot(&mut self) -> Option<Lease> {
            match self.given.try_recv() {
                Ok(Given::Slot(lease)) => Some(lease),
                _ => None,
            }
        }
    }

    fn wants(backends: &[&Arc<Backend>]) -> Arc<[Arc<Backend>]> {
        backends.iter().map(|backend| Arc::clone(backend)).collect()
    }

    fn wish(wants: &Arc<[Arc<Backend>]>) -> Wish<'_> {
        let flow = Flow { model: 0, tenant: 0 };
        Wish {
            flow,
            wants,
            all: wants,
            not: &[],
            may_try: true,
            cost: slots(1),
            bytes: 10,
            arrived: Instant::now(),
            was_served: false,
        }
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
        let held = Backend::claim(&backend, slots(1)).unwrap();
        let mut first = enter(&queue, &backend);
        let mut second = enter(&queue, &backend);
        drop(held);
        let lease = first.slot().await;
        assert!(Backend::claim(&backend, slots(1)).is_none(), "handed over, never free in between");
        assert_eq!(queue.waiting(), 1);
        drop(lease);
        second.slot().await;
    }

    #[tokio::test]
    async fn a_waiter_that_left_is_passed_over_and_its_lease_goes_on() {
        let queue = Queue::new(8, 1024);
        let backend = backend_with(&queue, 1);
        let held = Backend::claim(&backend, slots(1)).unwrap();
        let leaves = enter(&queue, &backend);
        let handed_then_left = enter(&queue, &backend);
        let mut stays = enter(&queue, &backend);
        drop(leaves);
        drop(held);
        drop(handed_then_left);
        stays.slot().await;
        assert_eq!(queue.waiting(), 0);
        assert_eq!(backend.in_flight(), 0);
    }

    #[test]
    fn a_full_line_refuses() {
        let queue = Queue::new(1, 1024);
        let backend = backend_with(&queue, 1);
        let _held = Backend::claim(&backend, slots(1)).unwrap();
        let _place = enter(&queue, &backend);
        assert_eq!(enter_by(&queue, wish(&wants(&[&backend]))).unwrap_err(), Refused);
    }

    #[tokio::test]
    async fn one_passes_another_only_where_that_one_cannot_use_the_slot() {
        let queue = Queue::new(8, 1024);
        let (a, b) = (backend_with(&queue, 1), backend_with(&queue, 1));
        let (_held_a, held_b) = (Backend::claim(&a, slots(1)).unwrap(), Backend::claim(&b, slots(1)).unwrap());
        let _for_a = enter(&queue, &a);
        let mut for_b = enter(&queue, &b);
        assert_eq!(queue.wanted([&a, &b].into_iter()), [a.id, b.id]);
        drop(held_b);
        for_b.slot().await;
    }

    #[tokio::test]
    async fn a_slot_that_is_free_when_one_enters_is_taken_at_once() {
        let queue = Queue::new(8, 1024);
        let backend = backend_with(&queue, 1);
        enter(&queue, &backend).slot().await;
    }

    #[tokio::test]
    async fn whoever_waits_for_what_left_the_fleet_is_told() {
        let queue = Queue::new(8, 1024);
        let (gone, stays) = (backend_with(&queue, 1), backend_with(&queue, 1));
        let _held = (Backend::claim(&gone, slots(1)), Backend::claim(&stays, slots(1)));
        let mut stranded = enter(&queue, &gone);
        let _waits = enter(&queue, &stays);
        gone.drain();
        queue.release_stranded();
        assert!(matches!(stranded.turn().await, Given::Stranded));
        assert_eq!(queue.waiting(), 1);
    }

    #[tokio::test]
    async fn waiters_get_the_last_one_standing() {
        let queue = Queue::new(8, 1024);
        let backend = backend_with(&queue, 2);
        let held = (Backend::claim(&backend, slots(1)), Backend::claim(&backend, slots(1)));
        let mut first = enter(&queue, &backend);
        let mut second = enter(&queue, &backend);
        for _ in 0..5 {
            backend.failed("reset", ejection(5), crate::clock::now_ms());
        }
        assert!(backend.is_ejected());
        drop(held);
        let _both = (first.slot().await, second.slot().await);
    }

    #[test]
    fn a_line_with_too_many_bytes_refuses() {
        let queue = Queue::new(8, 25);
        let backend = backend_with(&queue, 1);
        let _held = Backend::claim(&backend, slots(1)).unwrap();
        let places = [enter(&queue, &backend), enter(&queue, &backend)];
        assert_eq!(enter_by(&queue, wish(&wants(&[&backend]))).unwrap_err(), Refused);
        drop(places);
        enter(&queue, &backend);
    }

    #[tokio::test]
    async fn tenants_take_turns_however_many_requests_each_has() {
        let queue = Queue::new(8, 1024);
        let backend = backend_with(&queue, 1);
        let mut held = Backend::claim(&backend, slots(1));
        let wanted = wants(&[&backend]);
        let mut places: Vec<_> = [7, 7, 7, 7, 8, 8, 9]
            .map(|tenant| {
                (tenant, enter_by(&queue, Wish { flow: Flow { model: 0, tenant }, ..wish(&wanted) }).unwrap())
            })
            .into_iter()
            .collect();
        let mut served = Vec::new();
        while !places.is_empty() {
            drop(held.take());
            let at =
                places.iter_mut().position(|(_, place)| place.try_slot().map(|lease| held = Some(lease)).is_some());
            served.push(places.remove(at.unwrap()).0);
        }
        assert_eq!(served, [7, 8, 9, 7, 8, 7, 7]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_needs_more_slots_is_passed_for_a_while_and_no_longer() {
        let queue = Queue::new(64, 1024);
        let backend = backend_with(&queue, 3);
        let mut held: VecDeque<_> = (0..3).filter_map(|_| Backend::claim(&backend, slots(1))).collect();
        let wanted = wants(&[&backend]);
        let mut large = enter_by(&queue, Wish { cost: slots(2), ..wish(&wanted) }).unwrap();
        let mut small: Vec<_> = (0..6).map(|_| enter(&queue, &backend)).collect();
        let mut last = small.pop().unwrap();
        tokio::time::advance(2 * PASSED_FOR).await;
        for place in &mut small {
            // From the first that passed it, and not from when it came.
            held.pop_front();
            held.push_back(place.slot().await);
            tokio::time::advance(PASSED_FOR / 5).await;
        }
        held.pop_front();
        assert!(last.try_slot().is_none(), "the large one is first");
        held.pop_front();
        let lease = large.slot().await;
        assert!(last.try_slot().is_none());
        drop(lease);
        last.slot().await;
    }

    /// Every one in line has been passed for long enough.
    fn all_are_due(queue: &Queue) {
        let since = Instant::now().checked_sub(PASSED_FOR);
        queue.line().waiters.iter_mut().for_each(|waiter| waiter.passed_since = since);
    }

    #[tokio::test]
    async fn whose_backend_failed_it_keeps_its_turn_and_is_not_refused() {
        let queue = Queue::new(2, 1024);
        let backend = backend_with(&queue, 1);
        let wanted = wants(&[&backend]);
        // Served at once, both of them, by backends that are to fail them.
        let arrived = Instant::now();
        let later = arrived + Duration::from_nanos(1);
        let mut held = Backend::claim(&backend, slots(1));
        let mut waiting = [(); 2].map(|()| enter(&queue, &backend));
        let again = |arrived| enter_by(&queue, Wish { arrived, was_served: true, ..wish(&wanted) }).unwrap();
        let mut second = again(later);
        let mut first = again(arrived);
        for place in [&mut first, &mut second, &mut waiting[0]] {
            drop(held.take());
            held = Some(place.slot().await);
        }
        // The one that just had a slot is failed, too, and comes back behind nobody.
        let mut newcomer = enter(&queue, &backend);
        let mut back = queue.enter(Some(waiting[0].turn), wish(&wanted)).unwrap();
        drop(held.take());
        held = Some(back.slot().await);
        for place in [&mut waiting[1], &mut newcomer] {
            drop(held.take());
            held = Some(place.slot().await);
        }
        queue.resize(0, 1024);
        let refused = enter_by(&queue, Wish { was_served: true, ..wish(&wanted) });
        assert_eq!(refused.unwrap_err(), Refused, "where nobody may wait");
    }

    #[tokio::test]
    async fn who_needs_more_slots_holds_up_one_backend_and_no_more() {
        let queue = Queue::new(8, 1024);
        // Where both lack as many, the elder.
        let (b, a) = (backend_with(&queue, 3), backend_with(&queue, 3));
        let claim =
            |backend: &Arc<Backend>, count| (0..count).filter_map(|_| Backend::claim(backend, slots(1))).collect();
        let (mut of_a, mut of_b): (Vec<_>, Vec<_>) = (claim(&a, 3), claim(&b, 2));
        let both = wants(&[&a, &b]);
        let mut large = enter_by(&queue, Wish { cost: slots(3), ..wish(&both) }).unwrap();
        all_are_due(&queue);
        let mut small = [(); 3].map(|()| enter_by(&queue, wish(&both)).unwrap());
        assert!(small.iter_mut().all(|small| small.try_slot().is_none()), "a is full, and b nearer to what it needs");
        of_a.pop();
        let lease = small[0].slot().await;
        assert_eq!(lease.backend.id, a.id);
        of_b.pop();
        assert!(small[1].try_slot().is_none() && large.try_slot().is_none(), "one of b is still to come");
        of_b.pop();
        let dear = large.slot().await;
        assert_eq!(dear.backend.id, b.id);
        of_a.clear();
        let _both = (small[1].slot().await, small[2].slot().await);
        // Two of them keep two backends.
        drop((lease, _both));
        let (_one_of_a, _all_of_b) = (Backend::claim(&a, slots(1)), dear);
        let _large = [(); 2].map(|()| enter_by(&queue, Wish { cost: slots(3), ..wish(&both) }).unwrap());
        all_are_due(&queue);
        assert!(enter_by(&queue, wish(&both)).unwrap().try_slot().is_none());
    }

    #[tokio::test]
    async fn who_needs_more_memory_waits_at_one_backend_and_lets_others_pass_elsewhere() {
        let queue = Queue::new(8, 1024);
        let (near, far) = (backend_with(&queue, 8), backend_with(&queue, 8));
        // Each has room for a thousand tokens.
        let guess = |tokens| Cost { slots: 1, tokens };
        let mut held: Vec<Lease> = Vec::new();
        for (backend, tokens) in [(&near, 600), (&far, 800)] {
            held.extend(Backend::claim(backend, guess(tokens)));
            for _ in 0..3 {
                backend.asking();
                let used = f64::from(tokens) / 1_000.0 * 0.95;
                let report = Report { kv_cache_used: Some(used), ..Report::default() };
                backend.reported_in(&report, &limits());
            }
        }
        let both = wants(&[&near, &far]);
        let of = |tokens| enter_by(&queue, Wish { cost: guess(tokens), ..wish(&both) }).unwrap();
        let mut large = of(500);
        // Whoever has enough in what is left passes.
        let passes = [of(150).try_slot().unwrap(), of(150).try_slot().unwrap(), of(100).try_slot().unwrap()];
        assert!(large.try_slot().is_none() && of(250).try_slot().is_none());
        drop(passes);
        all_are_due(&queue);
        let mut small = [of(150), of(150)];
        let lease = small[0].try_slot().unwrap();
        assert_eq!(lease.backend.id, far.id, "at the other the large one comes next");
        assert!(small[1].try_slot().is_none(), "950 of 1,000, and 600 of which what is free is left to the large one");
        held.remove(0);
        assert_eq!(large.slot().await.backend.id, near.id);
        assert_eq!(small[1].slot().await.backend.id, near.id);
    }

    #[tokio::test]
    async fn nobody_fills_the_line_for_all_others() {
        let queue = Queue::new(3, 1024);
        let backend = backend_with(&queue, 1);
        let held = Backend::claim(&backend, slots(1));
        let wanted = wants(&[&backend]);
        let enter = |tenant| enter_by(&queue, Wish { flow: Flow { model: 0, tenant }, ..wish(&wanted) });
        let mut greedy = [enter(1).unwrap(), enter(1).unwrap(), enter(1).unwrap()];
        assert_eq!(enter(1).unwrap_err(), Refused);
        let mut modest = enter(2).unwrap();
        assert!(matches!(greedy[2].turn().await, Given::Evicted));
        assert_eq!(queue.waiting(), 3);
        assert_eq!(enter(1).unwrap_err(), Refused);
        drop(held);
        drop(greedy[0].slot().await);
        modest.slot().await;
    }

    #[tokio::test]
    async fn who_may_not_be_the_trial_leaves_it_to_others() {
        let queue = Queue::new(8, 1024);
        let (suspect, sound) = (backend_with(&queue, 1), backend_with(&queue, 1));
        let _busy = Backend::claim(&sound, slots(1));
        for _ in 0..5 {
            suspect.failed("reset", crate::fleet::health::tests::ejection(5), crate::clock::now_ms());
        }
        let both = wants(&[&suspect, &sound]);
        let mut stores = enter_by(&queue, Wish { may_try: false, ..wish(&both) }).unwrap();
        let mut repeatable = enter_by(&queue, wish(&both)).unwrap();
        suspect.wake();
        assert!(stores.try_slot().is_none() && repeatable.try_slot().is_none(), "it is out of use");
        let mut no_other = enter_by(&queue, wish(&wants(&[&suspect]))).unwrap();
        no_other.slot().await;
        assert!(stores.try_slot().is_none() && repeatable.try_slot().is_none());
    }
}
