//! The engine's room: so many requests run, the next wait in order, and the counts are true at every instant.
//!
//! One lock, held for a few instructions and never across an await. A request's hold is a [`Place`]; whatever drops it,
//! in whatever phase, gives it back and lets the next one in.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use tokio::time::Instant;

use super::gpu::{self, Cache};
use super::hold;
use super::journal::{Change, Journal};
use super::speech::Finish;

/// The places of one engine.
pub(super) struct Slots {
    room: Mutex<Room>,
    /// Does not change with the slots, as a GPU's memory does not.
    cache: Cache,
}

struct Room {
    limit: usize,
    queue_limit: Option<usize>,
    /// Slot number → the request in it; as in llama.cpp, the lowest free number is given.
    running: BTreeMap<usize, Arc<Work>>,
    waiting: VecDeque<Waiter>,
    cache: Cache,
    next_id: u64,
    counts: Counts,
    /// Until when prompts are read that have their slot.
    reads_until: Option<Instant>,
    journal: Journal,
}

struct Waiter {
    id: u64,
    work: Arc<Work>,
    granted: oneshot::Sender<usize>,
}

/// What one request does to the engine, readable while it runs.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Counts up over the life of the engine: llama.cpp shows it as `id_task`.
    pub id: u64,
    /// The id its caller gave the request; empty where there is none.
    pub caller: String,
    pub prompt_tokens: u64,
    pub token_limit: u64,
    pub decoded: AtomicU64,
}

impl Work {
    fn kv_tokens(&self) -> u64 {
        self.prompt_tokens + self.decoded.load(Relaxed)
    }

    /// Tokens it takes at its end.
    fn needs(&self) -> u64 {
        self.prompt_tokens + self.token_limit
    }
}

/// Sums since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Most requests that were inside at one time, running or waiting.
    pub max_inside: usize,
    /// Most requests that waited at one time: above 0, somebody sent more than there were slots.
    pub max_waiting: usize,
    /// Answered to the end, or to the request's own limit.
    pub finished: u64,
    /// Those of them that a limit cut.
    pub cut: u64,
    /// Given up by the client.
    pub cancelled: u64,
    /// Turned away because the queue was full.
    pub refused: u64,
    pub prompt_tokens: u64,
    pub decoded_tokens: u64,
}

/// The engine at one instant.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub slots: usize,
    pub running: usize,
    pub waiting: usize,
    /// Slot number → what runs there.
    pub works: Vec<(usize, Arc<Work>)>,
    pub kv_used: u64,
    pub kv_tokens: u64,
    pub counts: Counts,
}

impl Load {
    /// Used part of the KV cache, 0 to 1.
    pub(super) fn kv_usage(&self) -> f64 {
        (self.kv_used as f64 / self.kv_tokens.max(1) as f64).min(1.0)
    }
}

/// The engine takes no more requests.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Slots {
    pub(super) fn new(limit: usize, queue_limit: Option<usize>, cache: Cache, journal: Journal) -> Arc<Self> {
        let room = Room {
            limit,
            queue_limit,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            cache,
            next_id: 1,
            counts: Counts::default(),
            reads_until: None,
            journal,
        };
        Arc::new(Self { room: Mutex::new(room), cache })
    }

    /// Slots before which nobody can wait for memory, and whose changes nobody writes down.
    #[cfg(test)]
    pub(super) fn plain(limit: usize, queue_limit: Option<usize>, kv_tokens: u64) -> Arc<Self> {
        Self::new(limit, queue_limit, Cache { tokens: kv_tokens, is_bound: false }, Journal::default())
    }

    /// Takes a slot, or a place in the queue behind everybody who came before.
    pub(super) fn enter(self: &Arc<Self>, caller: &str, prompt_tokens: u64, token_limit: u64) -> Result<Place, Full> {
        let mut room = hold(&self.room);
        let must_wait = !room.has_room_for(prompt_tokens + token_limit) || !room.waiting.is_empty();
        if must_wait && room.queue_limit.is_some_and(|limit| room.waiting.len() >= limit) {
            room.counts.refused += 1;
            return Err(Full);
        }
        let id = room.next_id;
        room.next_id += 1;
        let caller = caller.to_owned();
        let work = Arc::new(Work { id, caller, prompt_tokens, token_limit, decoded: AtomicU64::new(0) });
        let (granted, grant) = oneshot::channel();
        room.waiting.push_back(Waiter { id, work: work.clone(), granted });
        room.write_down(Change::Entered, &work);
        room.admit();
        room.note_high_water();
        Ok(Place { slots: self.clone(), work, hold: Hold::Waiting(grant), on_drop: Outcome::Cancelled })
    }

    /// Changes the number of slots: more let waiting requests in now, fewer take effect as running ones end.
    pub(super) fn resize(&self, limit: usize) {
        let mut room = hold(&self.room);
        room.limit = limit;
        room.admit();
    }

    pub(super) fn load(&self) -> Load {
        let room = hold(&self.room);
        let works: Vec<_> = room.running.iter().map(|(slot, work)| (*slot, work.clone())).collect();
        Load {
            slots: room.limit,
            running: room.running.len(),
            waiting: room.waiting.len(),
            kv_used: works.iter().map(|(_, work)| work.kv_tokens()).sum(),
            works,
            kv_tokens: self.cache.tokens,
            counts: room.counts,
        }
    }
}

impl Room {
    /// Lets waiting requests in while there are slots. A waiter whose place was dropped is already out of the queue,
    /// so every grant is received, or taken back by the drop that follows.
    fn admit(&mut self) {
        while self.waiting.front().is_some_and(|first| self.has_room_for(first.work.needs())) {
            let Some(waiter) = self.waiting.pop_front() else { return };
            let slot = (0..).find(|slot| !self.running.contains_key(slot)).unwrap_or(0);
            if waiter.granted.send(slot).is_ok() {
                self.running.insert(slot, waiter.work.clone());
                self.write_down(Change::Began, &waiter.work);
            }
        }
    }

    fn has_room_for(&self, kv_tokens: u64) -> bool {
        let promised = self.running.values().map(|work| work.needs()).sum();
        self.running.len() < self.limit && self.cache.takes(promised, kv_tokens)
    }

    fn write_down(&self, change: Change, work: &Work) {
        self.journal.write(change, &work.caller, self.running.len(), self.waiting.len());
    }

    fn note_high_water(&mut self) {
        let inside = self.running.len() + self.waiting.len();
        self.counts.max_inside = self.counts.max_inside.max(inside);
        self.counts.max_waiting = self.counts.max_waiting.max(self.waiting.len());
    }
}

/// One request's hold on the engine, from arrival to its last token.
pub(super) struct Place {
    slots: Arc<Slots>,
    work: Arc<Work>,
    hold: Hold,
    on_drop: Outcome,
}

enum Hold {
    Waiting(oneshot::Receiver<usize>),
    Running(usize),
    GivenBack,
}

#[derive(Clone, Copy)]
enum Outcome {
    Finished(Finish),
    Cancelled,
    /// Broken on purpose: neither finished nor given up by the client.
    Broken,
}

impl Place {
    /// Waits for the slot; immediate when it was granted before.
    pub(super) async fn granted(&mut self) {
        if let Hold::Waiting(grant) = &mut self.hold {
            // The sender lives in the queue until it has sent, and only our own drop takes it out.
            if let Ok(slot) = grant.await {
                self.hold = Hold::Running(slot);
            }
        }
    }

    pub(super) fn count_token(&self) {
        self.work.decoded.fetch_add(1, Relaxed);
    }

    /// Requests that run now.
    pub(super) fn running(&self) -> usize {
        hold(&self.slots.room).running.len()
    }

    pub(super) fn prompt_tokens(&self) -> u64 {
        self.work.prompt_tokens
    }

    /// Has the prompt read, which takes so long, behind those of the requests before; gives the instant it is read.
    /// Given up meanwhile it is read all the same, as an engine looks up only between two steps.
    pub(super) fn read_prompt(&self, takes: Duration) -> Instant {
        let mut room = hold(&self.slots.room);
        let read_by = gpu::read_by(room.reads_until, Instant::now(), takes);
        room.reads_until = Some(read_by);
        read_by
    }

    /// A fault will end this request: do not count it as the client's doing.
    pub(super) fn break_on_purpose(&mut self) {
        self.on_drop = Outcome::Broken;
    }

    /// The last token is out: the slot is free for the next one, though the answer is still on its way.
    pub(super) fn finish(&mut self, finish: Finish) {
        self.on_drop = Outcome::Finished(finish);
        self.give_back();
    }

    fn give_back(&mut self) {
        let held = std::mem::replace(&mut self.hold, Hold::GivenBack);
        let mut room = hold(&self.slots.room);
        let slot = match held {
            Hold::GivenBack => return,
            Hold::Running(slot) => Some(slot),
            // The grant may have been sent but never looked at.
            Hold::Waiting(mut grant) => grant.try_recv().ok(),
        };
        match slot {
            Some(slot) => drop(room.running.remove(&slot)),
            None => room.waiting.retain(|waiter| waiter.id != self.work.id),
        }
        room.write_down(Change::Left, &self.work);
        room.counts.prompt_tokens += if slot.is_some() { self.work.prompt_tokens } else { 0 };
        room.counts.decoded_tokens += self.work.decoded.load(Relaxed);
        match self.on_drop {
            Outcome::Finished(finish) => {
                room.counts.finished += 1;
                room.counts.cut += u64::from(finish == Finish::Length);
            }
            Outcome::Cancelled => room.counts.cancelled += 1,
            Outcome::Broken => {}
        }
        room.admit();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(slots: &Slots) -> (usize, usize) {
        let load = slots.load();
        (load.running, load.waiting)
    }

    #[tokio::test]
    async fn waiting_requests_get_slots_in_order() {
        let slots = Slots::plain(1, None, 100);
        let first = slots.enter("", 3, 8).unwrap();
        let mut second = slots.enter("", 3, 8).unwrap();
        let mut third = slots.enter("", 3, 8).unwrap();
        assert_eq!(counts(&slots), (1, 2));
        drop(first);
        second.granted().await;
        assert!(tokio::time::timeout(std::time::Duration::from_millis(5), third.granted()).await.is_err());
        second.finish(Finish::Stop);
        third.granted().await;
        assert_eq!(counts(&slots), (1, 0));
        let counts = slots.load().counts;
        assert_eq!((counts.max_inside, counts.max_waiting), (3, 2));
        assert_eq!((counts.finished, counts.cancelled), (1, 1));
    }

    #[tokio::test]
    async fn a_granted_but_unseen_slot_is_given_back() {
        let slots = Slots::plain(1, None, 100);
        let first = slots.enter("", 0, 0).unwrap();
        let second = slots.enter("", 0, 0).unwrap();
        let mut third = slots.enter("", 0, 0).unwrap();
        drop(first); // grants to the second, which never looks
        drop(second);
        third.granted().await;
        drop(third);
        assert_eq!(counts(&slots), (0, 0));
    }

    #[test]
    fn who_leaves_the_queue_is_forgotten_and_a_full_queue_refuses() {
        let slots = Slots::plain(1, Some(1), 100);
        let _running = slots.enter("", 0, 0).unwrap();
        let waiting = slots.enter("", 0, 0).unwrap();
        assert_eq!(slots.enter("", 0, 0).err(), Some(Full));
        drop(waiting);
        assert!(slots.enter("", 0, 0).is_ok());
        assert_eq!(slots.load().counts.refused, 1);
    }

    #[test]
    fn resizing_lets_in_now_and_shrinks_as_requests_end() {
        let slots = Slots::plain(1, None, 100);
        let places: Vec<_> = (0..3).map(|_| slots.enter("", 0, 0).unwrap()).collect();
        slots.resize(3);
        assert_eq!(counts(&slots), (3, 0));
        slots.resize(1);
        assert_eq!(counts(&slots), (3, 0));
        let _next = slots.enter("", 0, 0).unwrap();
        drop(places);
        assert_eq!(counts(&slots), (1, 0));
        slots.resize(0);
        let _stuck = slots.enter("", 0, 0).unwrap();
        assert_eq!(counts(&slots), (1, 1));
    }

    #[test]
    fn the_cache_fills_with_the_prompt_and_every_token() {
        let slots = Slots::plain(2, None, 100);
        let place = slots.enter("", 30, 8).unwrap();
        for _ in 0..20 {
            place.count_token();
        }
        assert!((slots.load().kv_usage() - 0.5).abs() < 1e-9);
        drop(place);
        assert!(slots.load().kv_usage() < 1e-9);
    }

    #[test]
    fn who_needs_more_memory_than_is_left_waits_and_nobody_overtakes() {
        let slots = Slots::new(4, None, Cache { tokens: 100, is_bound: true }, Journal::default());
        let first = slots.enter("", 50, 10).unwrap();
        let _large = slots.enter("", 40, 10).unwrap();
        let _small = slots.enter("", 5, 5).unwrap();
        assert_eq!(counts(&slots), (1, 2));
        drop(first);
        assert_eq!(counts(&slots), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn prompts_wait_for_each_other_and_not_for_the_past() {
        let slots = Slots::plain(2, None, 100);
        let (first, second) = (slots.enter("", 1, 1).unwrap(), slots.enter("", 1, 1).unwrap());
        let (start, takes) = (Instant::now(), Duration::from_millis(30));
        assert_eq!(first.read_prompt(takes), start + takes);
        assert_eq!(second.read_prompt(takes), start + 2 * takes);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(second.read_prompt(takes), Instant::now() + takes);
    }
}
