//! The threads that compile, and what they have compiled.
//!
//! Invariants:
//! - One component is compiled at a time, on a thread that gives way to all others once the proxy serves; and beside it one that
//!   somebody waits for, so that it waits for no other.
//! - Nothing from outside the binary is compiled that the judge has not seen compiled.
//! - What was compiled not long ago is not compiled again, under whatever name it comes.
//! - An order that nobody waits for any more is not carried out.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::compile::{self, Compiled};
use super::judge::{self, Judge};
use super::{Refusal, Runtime, Stage};

/// Contents kept for when they come again: as when two policies are tried against each other …
const KEPT: usize = 8;
/// … as long as their components have no more bytes than this together; the machine code has some three times as many.
const KEPT_BYTES: usize = 16 << 20;
/// By how much the thread is nicer than others. Where they use up every core it still gets a tenth of one: a plugin is there
/// within some seconds.
#[cfg(target_os = "linux")]
const NICER: i32 = 10;

type Verdict = Result<Arc<Compiled>, Refusal>;

/// What was ordered: empty until it is made.
pub type Job = Arc<OnceLock<Verdict>>;

/// Takes orders, and has the results of the last ones.
pub struct Compiler {
    pub runtime: Runtime,
    shop: Arc<Shop>,
}

/// What the threads share with those who order.
#[derive(Default)]
struct Shop {
    orders: Mutex<Orders>,
    ordered: Condvar,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Orders {
    /// In the order they came.
    waiting: VecDeque<Order>,
    gives_way: bool,
    /// The compiler is gone: nobody orders any more.
    is_over: bool,
}

struct Order {
    key: String,
    bytes: Vec<u8>,
    job: Job,
    /// Somebody waits for it.
    is_urgent: bool,
}

/// Which orders a thread takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// All of them, in turn.
    Every,
    Urgent,
}

impl Compiler {
    /// Starts the threads. `made` is called after each order that was carried out. Without a judge everything is compiled
    /// as it comes.
    pub fn start(
        runtime: Runtime,
        judge: Option<Judge>,
        made: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let shop = Arc::<Shop>::default();
        let compiler = Self { runtime: runtime.clone(), shop: Arc::clone(&shop) };
        let made = Arc::new(made);
        for (name, lane) in [("plugin-compiler", Lane::Every), ("urgent-compiler", Lane::Urgent)] {
            let (shop, runtime, judge, made) = (Arc::clone(&shop), runtime.clone(), judge.clone(), Arc::clone(&made));
            let work = move || {
                let mut is_nice = false;
                while let Some((order, gives_way)) = shop.next(lane) {
                    if gives_way && !std::mem::replace(&mut is_nice, true) {
                        give_way();
                    }
                    shop.carry_out(order, &runtime, judge.as_ref());
                    made();
                }
            };
            std::thread::Builder::new().name(name.to_owned()).stack_size(judge::STACK_BYTES).spawn(work)?;
        }
        Ok(compiler)
    }

    /// From now on there is traffic that must not notice.
    pub fn give_way(&self) {
        locked(&self.shop.orders).gives_way = true;
    }

    /// Orders this content; known ones are there at once.
    pub(super) fn order(&self, bytes: Vec<u8>) -> Job {
        let key = compile::key(&bytes);
        let job = Job::default();
        let known = locked(&self.shop.kept).find(&key);
        if let Some(verdict) = known {
            let _ = job.set(verdict);
        } else {
            let order = Order { key, bytes, job: Arc::clone(&job), is_urgent: false };
            locked(&self.shop.orders).waiting.push_back(order);
            self.shop.ordered.notify_all();
        }
        job
    }

    /// Somebody waits for this: it is next.
    pub(super) fn hurry(&self, job: &Job) {
        let mut orders = locked(&self.shop.orders);
        orders.waiting.iter_mut().filter(|order| Arc::ptr_eq(&order.job, job)).for_each(|order| order.is_urgent = true);
        self.shop.ordered.notify_all();
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        locked(&self.shop.orders).is_over = true;
        self.shop.ordered.notify_all();
    }
}

impl Shop {
    /// The next order for this lane, and whether there is traffic to give way to. Blocks until there is one; `None`: there will
    /// be none any more.
    fn next(&self, lane: Lane) -> Option<(Order, bool)> {
        let mut orders = locked(&self.orders);
        loop {
            if orders.is_over {
                return None;
            }
            // What nobody wants any more is forgotten.
            orders.waiting.retain(|order| Arc::strong_count(&order.job) > 1);
            let urgent = orders.waiting.iter().position(|order| order.is_urgent);
            let first = (lane == Lane::Every && !orders.waiting.is_empty()).then_some(0);
            if let Some(order) = urgent.or(first).and_then(|at| orders.waiting.remove(at)) {
                return Some((order, orders.gives_way));
            }
            orders = self.ordered.wait(orders).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn carry_out(&self, Order { key, bytes, job, .. }: Order, runtime: &Runtime, judge: Option<&Judge>) {
        let known = locked(&self.kept).find(&key);
        let verdict = known.unwrap_or_else(|| verdict(runtime, judge, &bytes));
        locked(&self.kept).keep(key, bytes.len(), &verdict);
        // Nobody else sets it.
        let _ = job.set(verdict);
    }
}

fn verdict(runtime: &Runtime, judge: Option<&Judge>, bytes: &[u8]) -> Verdict {
    let judged = judge.map_or(Ok(()), |judge| judge.try_compile(bytes));
    let compiling = || judged.and_then(|()| compile::compile(runtime, bytes));
    // Whoever waits must get an answer.
    let compiled = catch_unwind(AssertUnwindSafe(compiling));
    compiled.unwrap_or_else(|_| Err(Refusal::new(Stage::Compile, "the host failed on it"))).map(Arc::new)
}

/// Lowers the priority of this thread, and of the children it starts.
fn give_way() {
    // Elsewhere this is about the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICER) {
        tracing::warn!("plugins are compiled with the priority of requests: {error}");
    }
}

/// The last verdicts, the newest last.
#[derive(Default)]
struct Kept {
    verdicts: VecDeque<(String, usize, Verdict)>,
}

impl Kept {
    fn find(&self, key: &str) -> Option<Verdict> {
        self.verdicts.iter().find(|(known, ..)| known == key).map(|(_, _, verdict)| verdict.clone())
    }

    /// Keeps what the content decided, and what was kept of it last for the longest.
    fn keep(&mut self, key: String, bytes: usize, verdict: &Verdict) {
        if matches!(verdict, Err(Refusal { stage: Stage::Process, .. })) {
            return;
        }
        self.verdicts.retain(|(known, ..)| *known != key);
        self.verdicts.push_back((key, bytes, verdict.clone()));
        while self.verdicts.len() > KEPT || self.verdicts.iter().map(|(_, bytes, _)| bytes).sum::<usize>() > KEPT_BYTES
        {
            self.verdicts.pop_front();
        }
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
