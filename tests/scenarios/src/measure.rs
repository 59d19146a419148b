//! From what clients saw and servers wrote down to the numbers of the table. Pure.
//!
//! Client and servers read one clock, so that their accounts can be laid over each other: at every instant it is
//! known which requests wait and which servers have a free slot, and no sampling misses what lies between two samples.

use std::collections::HashMap;

use crate::fleet::{Change, Step};
use crate::load::{Asked, Outcome};
use crate::scenario::Goal;

/// Time between two instants, in microseconds since 1970.
pub type Span = (u64, u64);

/// A first token later than this is of no use to anybody.
pub const BOUND_US: u64 = 1_000_000;
/// A request waits, and a slot is free, once it has done so for this long: until then a request is on its way through
/// sockets and schedulers, which on a busy machine takes milliseconds, and nobody could have been faster.
pub const ON_ITS_WAY_US: u64 = 20_000;
/// What the ids of requests begin with that did not go through the contender.
pub const DIRECT: &str = "direct-";

/// One server's account of a run.
pub struct Account {
    pub slots: usize,
    /// What its KV-cache is to hold at the most.
    pub kv_tokens: u64,
    pub steps: Vec<Step>,
    /// When it could serve nobody.
    pub out: Vec<Span>,
}

#[derive(Debug, Default, PartialEq)]
pub struct Measured {
    /// Requests a second that came in, and that were answered in full with the first token in time.
    pub offered: f64,
    pub goodput: f64,
    pub ttft_p50_us: u64,
    pub ttft_p99_us: u64,
    /// Requests that reached a server whose slots were all taken.
    pub overfilled: usize,
    /// Requests that had to wait inside a server, for want of a slot or of memory.
    pub waited_inside: usize,
    /// Backend-seconds with a free slot while a request waited, as a share of all backend-seconds.
    pub idle: f64,
    /// Requests without an answer, and with one that broke off.
    pub failed: usize,
    pub cut: usize,
}

/// Idle time that is none: what a busy machine adds.
const IDLE_BOUND: f64 = 0.01;

impl Measured {
    /// What of this goal is missed, in words; `None` where nothing is.
    pub fn misses(&self, goal: Goal) -> Option<String> {
        let is_overfilled = goal != Goal::Learnt && self.overfilled > 0;
        let is_idle = goal == Goal::NoneIdle && self.idle >= IDLE_BOUND;
        let said = || format!("{} requests over-filled a server, {:.2} % idle", self.overfilled, self.idle * 100.0);
        (is_overfilled || is_idle).then(said)
    }
}

pub fn measure(asked: &[Asked], accounts: &[Account], window: Span) -> Measured {
    let seconds = (window.1 - window.0) as f64 / 1e6;
    let idle = idle(asked, accounts, window);
    // What came before is over by the time, or waits like the others.
    let asked: Vec<&Asked> = asked.iter().filter(|asked| asked.sent >= window.0).collect();
    let mut ttft: Vec<u64> = asked.iter().filter_map(|asked| Some(asked.first? - asked.sent)).collect();
    ttft.sort_unstable();
    let is_good = |asked: &&&Asked| {
        asked.outcome == Outcome::Complete && asked.first.is_some_and(|first| first - asked.sent <= BOUND_US)
    };
    let with = |outcome| asked.iter().filter(|asked| asked.outcome == outcome).count();
    Measured {
        offered: asked.len() as f64 / seconds,
        goodput: asked.iter().filter(is_good).count() as f64 / seconds,
        ttft_p50_us: quantile(&ttft, 0.5),
        ttft_p99_us: quantile(&ttft, 0.99),
        overfilled: accounts.iter().map(|account| overfilled(account, window)).sum(),
        waited_inside: accounts.iter().map(|account| waited_inside(account, window)).sum(),
        idle,
        failed: with(Outcome::Failed),
        cut: with(Outcome::Cut),
    }
}

fn quantile(sorted: &[u64], share: f64) -> u64 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Whether a request of the contender's came to a server.
fn came(step: &Step, window: Span) -> bool {
    step.change == Change::Entered && !step.id.starts_with(DIRECT) && step.at >= window.0
}

fn overfilled(account: &Account, window: Span) -> usize {
    let sent_here = account.steps.iter().filter(|step| came(step, window));
    sent_here.filter(|step| step.running + step.waiting > account.slots).count()
}

/// Who has room begins in the same instant in which it enters: the next line is its own.
fn waited_inside(account: &Account, window: Span) -> usize {
    let pairs = account.steps.windows(2);
    let at_once = |pair: &&[Step]| pair[1].change == Change::Began && pair[1].id == pair[0].id;
    let entered = pairs.filter(|pair| came(&pair[0], window));
    entered.filter(|pair| !at_once(pair)).count()
}

fn idle(asked: &[Asked], accounts: &[Account], window: Span) -> f64 {
    let needs: HashMap<&str, u64> = asked.iter().map(|asked| (asked.id.as_str(), asked.kv_tokens)).collect();
    let waits: Vec<(Span, u64)> = waits(asked, accounts)
        .into_iter()
        .map(|(id, (from, to))| ((from + ON_ITS_WAY_US, to), needs.get(id).copied().unwrap_or_default()))
        .collect();
    let idle: u64 = accounts.iter().map(|account| idle_of(account, &needs, &waits, window)).sum();
    let out = accounts.iter().flat_map(|account| &account.out);
    let lost: u64 = out.map(|out| length(clip(*out, window))).sum();
    let all = (window.1 - window.0) * accounts.len() as u64 - lost;
    idle as f64 / all.max(1) as f64
}

/// How long one server could have served a request that waited.
fn idle_of(account: &Account, needs: &HashMap<&str, u64>, waits: &[(Span, u64)], window: Span) -> u64 {
    let idle = free(account, needs, window).into_iter().map(|(span, memory)| {
        let served = waits.iter().filter(|(_, need)| (*need).min(account.kv_tokens) <= memory);
        union(served.map(|(wait, _)| clip(clip(*wait, span), window)))
    });
    idle.sum()
}

/// When each request had been sent and had no slot. One that is given up at one server and begun at another waits in
/// between; one that had its answer does not wait for having it read.
fn waits<'a>(asked: &'a [Asked], accounts: &[Account]) -> Vec<(&'a str, Span)> {
    let mut at_servers: HashMap<&str, Vec<(u64, Change)>> = HashMap::new();
    for (account, step) in accounts.iter().flat_map(|account| account.steps.iter().map(move |step| (account, step))) {
        if step.change == Change::Gone {
            let inside = account.steps.iter().filter(|other| other.at <= step.at && other.change == Change::Began);
            inside.for_each(|began| at_servers.entry(&began.id).or_default().push((step.at, Change::Left)));
        } else {
            at_servers.entry(&step.id).or_default().push((step.at, step.change));
        }
    }
    let mut spans = Vec::new();
    for asked in asked {
        let mut steps = at_servers.remove(asked.id.as_str()).unwrap_or_default();
        steps.sort_by_key(|(at, _)| *at);
        let mut since = Some(asked.sent);
        for (at, change) in steps {
            match (change, since) {
                (Change::Began, Some(from)) => {
                    spans.push((asked.id.as_str(), (from, at)));
                    since = None;
                }
                (Change::Left, None) => since = Some(at),
                _ => {}
            }
        }
        // Left without having begun again: it was answered, or nobody tried again.
        let never_began = since == Some(asked.sent);
        spans.extend(since.filter(|_| never_began).map(|from| (asked.id.as_str(), (from, asked.ended))));
    }
    spans
}

/// When a server had had a slot free for long enough, with nobody inside who waited, and for how many tokens it had had
/// memory all that time; never while it was out.
fn free(account: &Account, needs: &HashMap<&str, u64>, window: Span) -> Vec<(Span, u64)> {
    let mut running: HashMap<&str, u64> = HashMap::new();
    // From when on it had which memory to give; `None` without a slot.
    let mut offers = vec![(window.0, Some(account.kv_tokens))];
    for step in &account.steps {
        match step.change {
            Change::Entered => {}
            Change::Began => drop(running.insert(&step.id, needs.get(step.id.as_str()).copied().unwrap_or_default())),
            Change::Left => drop(running.remove(step.id.as_str())),
            Change::Gone => running.clear(),
        }
        let memory = account.kv_tokens.saturating_sub(running.values().sum());
        offers.push((step.at, (step.running < account.slots && step.waiting == 0).then_some(memory)));
    }
    for (from, to) in &account.out {
        let after = offers.iter().rev().find(|(at, _)| at <= to).and_then(|(_, offer)| *offer);
        offers.retain(|(at, _)| !(from..=to).contains(&at));
        offers.extend([(*from, None), (*to, after)]);
    }
    offers.sort_by_key(|(at, _)| *at);
    lasting(&offers, window.1)
}

/// What each had been offered for as long as a request may be on its way: a rise counts from then on, a fall at once.
fn lasting(offers: &[(u64, Option<u64>)], end: u64) -> Vec<(Span, u64)> {
    let mut cuts: Vec<u64> = offers.iter().flat_map(|(at, _)| [*at, at.saturating_add(ON_ITS_WAY_US)]).collect();
    cuts.extend([end]);
    cuts.retain(|cut| *cut <= end);
    cuts.sort_unstable();
    let least = |(from, to): Span| {
        let first = offers.partition_point(|(at, _)| *at <= from.saturating_sub(ON_ITS_WAY_US)).checked_sub(1)?;
        let seen = offers.iter().skip(first).take_while(|(at, _)| *at < to);
        seen.map(|(_, offer)| *offer).min().flatten()
    };
    let spans = cuts.windows(2).map(|cut| (cut[0], cut[1])).filter(|(from, to)| from < to);
    spans.filter_map(|span| Some((span, least(span)?))).collect()
}

fn clip(span: Span, window: Span) -> Span {
    (span.0.max(window.0), span.1.min(window.1))
}

fn length((from, to): Span) -> u64 {
    to.saturating_sub(from)
}

/// Time under any of the spans.
fn union(spans: impl Iterator<Item = Span>) -> u64 {
    let mut spans: Vec<Span> = spans.filter(|(from, to)| from < to).collect();
    spans.sort_unstable();
    let mut covered = 0;
    spans.into_iter().fold(0, |total, (from, to)| {
        let new = to.saturating_sub(from.max(covered));
        covered = covered.max(to);
        total + new
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(id: &str, sent: u64, first: Option<u64>, ended: u64, outcome: Outcome) -> Asked {
        Asked { id: id.to_owned(), kv_tokens: 60, sent, first, ended, outcome }
    }

    fn account(slots: usize, steps: &str) -> Account {
        Account {
            slots,
            kv_tokens: u64::MAX,
            steps: steps.split(';').filter_map(Step::parse).collect(),
            out: Vec::new(),
        }
    }

    #[test]
    fn what_spans_cover_together_counts_once() {
        assert_eq!(union([(0, 10), (5, 12), (20, 21), (30, 29)].into_iter()), 13);
    }

    #[test]
    fn a_slot_that_is_free_while_somebody_waits_is_idle() {
        let second = 1_000_000;
        let asks = [asked("a", 0, Some(second), 2 * second, Outcome::Complete)];
        let busy = account(1, "0 began x 1 0;2000000 left x 0 0");
        let waits = account(1, "500000 entered a 0 1;500000 began a 1 0;2000000 left a 0 0");
        let measured = measure(&asks, &[busy, waits], (0, 2 * second));
        assert!((measured.idle - 0.48 / 4.0).abs() < 1e-9, "half a second but what it takes: {}", measured.idle);
        assert_eq!((measured.offered, measured.goodput, measured.overfilled), (0.5, 0.5, 0));
    }

    const MS: u64 = 1_000;

    /// From and until when, in milliseconds.
    fn freed(account: &Account, needs: &HashMap<&str, u64>) -> Vec<(u64, u64, u64)> {
        free(account, needs, (0, 500 * MS)).into_iter().map(|((from, to), room)| (from / MS, to / MS, room)).collect()
    }

    #[test]
    fn a_server_that_is_out_has_no_free_slot() {
        let mut account = Account { kv_tokens: 100, ..account(1, "50000 began a 1 0;100000 left a 0 0") };
        account.out = vec![(150 * MS, 250 * MS), (450 * MS, u64::MAX)];
        let free = freed(&account, &HashMap::new());
        assert_eq!((free[0], free.iter().map(|(from, to, _)| to - from).sum::<u64>()), ((0, 20, 100), 50 + 30 + 180));
    }

    #[test]
    fn a_slot_is_free_for_what_there_is_memory_for() {
        let account = Account { kv_tokens: 100, ..account(2, "200000 began a 1 0;300000 left a 0 0") };
        let free = freed(&account, &HashMap::from([("a", 60)]));
        let with = |room| free.iter().filter(|(_, _, is)| *is == room).map(|(from, to, _)| to - from).sum::<u64>();
        assert_eq!((with(100), with(40)), (200 + 180, 120), "what comes free is on its way for 20 ms: {free:?}");
        let needs = |tokens| HashMap::from([("a", 60), ("b", tokens)]);
        let idle = |tokens| idle_of(&account, &needs(tokens), &[((250 * MS, 400 * MS), tokens)], (0, 500 * MS)) / MS;
        assert_eq!((idle(40), idle(41)), (150, 80));
    }

    #[test]
    fn a_request_that_was_begun_twice_waited_twice() {
        let asks = [asked("a", 0, Some(60), 70, Outcome::Complete)];
        let accounts = [account(1, "5 entered a 0 1;5 began a 1 0"), account(1, "40 began a 1 0;65 left a 0 0")];
        let [mut gone, other] = accounts;
        gone.steps.push(Step { at: 20, change: Change::Gone, id: String::new(), running: 0, waiting: 0 });
        assert_eq!(waits(&asks, &[gone, other]), [("a", (0, 5)), ("a", (20, 40))]);
        assert_eq!(waits(&[asked("b", 3, None, 9, Outcome::Failed)], &[]), [("b", (3, 9))]);
    }

    #[test]
    fn over_filled_is_who_comes_when_all_slots_are_taken() {
        const ALL: Span = (0, u64::MAX);
        let steps = "1 entered a 0 1;1 began a 1 0;2 entered b 1 1;3 entered direct-1 1 2;4 left a 0 2";
        assert_eq!((overfilled(&account(1, steps), ALL), waited_inside(&account(1, steps), ALL)), (1, 1));
        assert_eq!((overfilled(&account(2, steps), ALL), waited_inside(&account(2, steps), ALL)), (0, 1), "for memory");
    }

    #[test]
    fn goals_are_missed_by_a_request_too_many_and_by_a_hundredth_of_idle_time() {
        let measured = |overfilled, idle| Measured { overfilled, idle, ..Measured::default() };
        for (overfilled, idle, missed) in
            [(0, 0.0099, [false; 3]), (1, 0.0, [true, true, false]), (0, 0.01, [true, false, false])]
        {
            let misses =
                [Goal::NoneIdle, Goal::NotOverfilled, Goal::Learnt].map(|goal| measured(overfilled, idle).misses(goal));
            assert_eq!(misses.map(|misses| misses.is_some()), missed);
        }
    }
}
