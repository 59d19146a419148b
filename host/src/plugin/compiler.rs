//! The thread that compiles, and what it has compiled.
//!
//! Invariants:
//! - One component is compiled at a time, on a thread that gives way to all others once the proxy serves.
//! - Nothing from outside the binary is compiled that the judge has not seen compiled.
//! - What was compiled not long ago is not compiled again, under whatever name it comes.
//! - An order that nobody waits for any more is not carried out.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};

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
    orders: mpsc::Sender<Order>,
    kept: Arc<Mutex<Kept>>,
    gives_way: Arc<AtomicBool>,
}

struct Order {
    key: String,
    bytes: Vec<u8>,
    job: Job,
}

impl Compiler {
    /// Starts the thread. `made` is called after each order that was carried out. Without a judge everything is compiled
    /// as it comes.
    pub fn start(runtime: Runtime, judge: Option<Judge>, made: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let (orders, ordered) = mpsc::channel::<Order>();
        let (kept, gives_way) = (Arc::<Mutex<Kept>>::default(), Arc::<AtomicBool>::default());
        let compiler =
            Self { runtime: runtime.clone(), orders, kept: Arc::clone(&kept), gives_way: Arc::clone(&gives_way) };
        let work = move || {
            for Order { key, bytes, job } in ordered {
                if Arc::strong_count(&job) == 1 {
                    continue;
                }
                if gives_way.swap(false, Ordering::Relaxed) {
                    give_way();
                }
                let known = locked(&kept).find(&key);
                let verdict = known.unwrap_or_else(|| verdict(&runtime, judge.as_ref(), &bytes));
                locked(&kept).keep(key, bytes.len(), &verdict);
                // Nobody else sets it.
                let _ = job.set(verdict);
                made();
            }
        };
        std::thread::Builder::new().name("plugin-compiler".to_owned()).stack_size(judge::STACK_BYTES).spawn(work)?;
        Ok(compiler)
    }

    /// From now on there is traffic that must not notice.
    pub fn give_way(&self) {
        self.gives_way.store(true, Ordering::Relaxed);
    }

    /// Orders this content; known ones are there at once.
    pub(super) fn order(&self, bytes: Vec<u8>) -> Job {
        let key = compile::key(&bytes);
        let job = Job::default();
        if let Some(verdict) = locked(&self.kept).find(&key) {
            let _ = job.set(verdict);
        } else if self.orders.send(Order { key, bytes, job: Arc::clone(&job) }).is_err() {
            let _ = job.set(Err(Refusal::new(Stage::Process, "the thread that compiles is gone")));
        }
        job
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

fn locked(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
