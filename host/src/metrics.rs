//! What the workers count: series of atomics, one set a worker, added up when somebody scrapes.
//!
//! A worker looks its series up once for a model and backend and keeps it; a request then touches nothing
//! but atomics that no other worker writes. The lock of a shard is taken to add a series and to scrape.
//! The exposition itself, with the gauges of the fleet, is `control::admin`'s.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Distinct pairs of model and backend that are told apart; what comes after is counted as `other`.
const SERIES_LIMIT: usize = 4096;

/// The statuses told apart one by one; any other is counted as its class (`2xx`).
const STATUSES: [u16; 17] = [200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 499, 500, 502, 503, 504, 508];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The status of a request whose client left before its answer began, after nginx.
pub const CLIENT_GONE: u16 = 499;

/// Upper bounds for whole requests, in seconds: those the GenAI semantic conventions advise for
/// `gen_ai.server.request.duration`, doubled on until they cover the longest wait for a first byte.
pub const REQUEST_SECONDS: [f64; 16] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68];
/// Upper bounds for first tokens and waits in line, in seconds.
pub const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Upper bounds for what the proxy itself adds, in seconds.
pub const OVERHEAD_SECONDS: [f64; 10] = [25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 10e-3, 50e-3, 0.25];

/// The buckets that the GenAI semantic conventions advise for `gen_ai.server.time_to_first_token`, in seconds.
pub const FIRST_TOKEN_SECONDS: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// And for `gen_ai.server.time_per_output_token`.
pub const OUTPUT_TOKEN_SECONDS: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

/// Lines of the log that its sink did not take. The log is the process's, and so is this.
pub static LOG_LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// Why an attempt did not end a request; the `reason` label of `vision_proxy_attempts_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttemptEnd {
    Answered,
    Connect,
    Unanswered,
    Busy,
    Unauthorized,
    ServerError,
    Invalid,
    Timeout,
}

impl AttemptEnd {
    pub const ALL: [Self; 8] = [
        Self::Answered,
        Self::Connect,
        Self::Unanswered,
        Self::Busy,
        Self::Unauthorized,
        Self::ServerError,
        Self::Invalid,
        Self::Timeout,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Connect => "connect",
            Self::Unanswered => "unanswered",
            Self::Busy => "busy",
            Self::Unauthorized => "unauthorized",
            Self::ServerError => "server_error",
            Self::Invalid => "invalid_answer",
            Self::Timeout => "timeout",
        }
    }
}

/// A histogram with fixed buckets.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [f64; N],
    /// Not cumulated; what exceeds the last bound is only in `count`.
    buckets: [AtomicU64; N],
    count: AtomicU64,
    sum_micros: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: &'static [f64; N]) -> Self {
        Self {
            bounds,
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            count: AtomicU64::new(0),
            sum_micros: AtomicU64::new(0),
        }
    }

    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let at = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }
}

/// A histogram added up over the workers, ready to be written out.
#[derive(Debug, Clone, Default)]
pub struct HistogramTotal {
    pub sum_seconds: f64,
    pub count: u64,
    /// Upper bound and count of each bucket, not cumulated; the last is infinite.
    pub buckets: Vec<(f64, u64)>,
}

impl HistogramTotal {
    fn add<const N: usize>(&mut self, histogram: &Histogram<N>) {
        if self.buckets.is_empty() {
            self.buckets = histogram.bounds.iter().copied().chain([f64::INFINITY]).map(|bound| (bound, 0)).collect();
        }
        let count = histogram.count.load(Relaxed);
        let mut within = 0;
        for (total, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            let seen = bucket.load(Relaxed);
            total.1 += seen;
            within += seen;
        }
        if let Some(beyond) = self.buckets.last_mut() {
            beyond.1 += count.saturating_sub(within);
        }
        self.count += count;
        self.sum_seconds += histogram.sum_micros.load(Relaxed) as f64 / 1e6;
    }

    /// Adds another one of the same bounds.
    pub fn merge(&mut self, other: &Self) {
        if self.buckets.is_empty() {
            self.buckets = other.buckets.iter().map(|(bound, _)| (*bound, 0)).collect();
        }
        for (total, bucket) in self.buckets.iter_mut().zip(&other.buckets) {
            total.1 += bucket.1;
        }
        self.count += other.count;
        self.sum_seconds += other.sum_seconds;
    }
}

/// What one worker counted for a model at a backend; both empty where a request came to neither.
#[derive(Debug)]
pub struct Series {
    statuses: [AtomicU64; STATUSES.len() + CLASSES.len()],
    attempts: [AtomicU64; AttemptEnd::ALL.len()],
    pub request_seconds: Histogram<16>,
    pub first_token_seconds: Histogram<14>,
    /// The same of streams that succeeded.
    pub time_to_first_token: Histogram<16>,
    /// Of streams that tell how many tokens they had.
    pub time_per_output_token: Histogram<13>,
    pub overhead_seconds: Histogram<10>,
    pub queue_seconds: Histogram<14>,
    pub prompt_tokens: AtomicU64,
    pub completion_tokens: AtomicU64,
}

impl Series {
    fn new() -> Self {
        let zeros = || AtomicU64::new(0);
        Self {
            statuses: std::array::from_fn(|_| zeros()),
            attempts: std::array::from_fn(|_| zeros()),
            request_seconds: Histogram::new(&REQUEST_SECONDS),
            first_token_seconds: Histogram::new(&SECONDS),
            time_to_first_token: Histogram::new(&FIRST_TOKEN_SECONDS),
            time_per_output_token: Histogram::new(&OUTPUT_TOKEN_SECONDS),
            overhead_seconds: Histogram::new(&OVERHEAD_SECONDS),
            queue_seconds: Histogram::new(&SECONDS),
            prompt_tokens: zeros(),
            completion_tokens: zeros(),
        }
    }

    /// One request ended with this status.
    pub fn request(&self, status: u16) {
        let class = STATUSES.len() + usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        let at = STATUSES.iter().position(|known| *known == status).unwrap_or(class);
        if let Some(counter) = self.statuses.get(at) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// One attempt ended so.
    pub fn attempt(&self, end: AttemptEnd) {
        if let Some(counter) = self.attempts.get(end as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }
}

/// Model and backend.
type Key = (Arc<str>, Arc<str>);

/// The series of one worker.
#[derive(Debug, Default)]
struct Shard {
    series: Mutex<HashMap<Key, Arc<Series>>>,
}

/// All that is counted.
#[derive(Debug)]
pub struct Metrics {
    shards: Vec<Shard>,
}

/// A model and backend, added up over the workers.
#[derive(Debug, Clone, Default)]
pub struct SeriesTotal {
    pub statuses: BTreeMap<String, u64>,
    pub attempts: BTreeMap<AttemptEnd, u64>,
    pub request_seconds: HistogramTotal,
    pub first_token_seconds: HistogramTotal,
    pub time_to_first_token: HistogramTotal,
    pub time_per_output_token: HistogramTotal,
    pub overhead_seconds: HistogramTotal,
    pub queue_seconds: HistogramTotal,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

impl SeriesTotal {
    fn add(&mut self, series: &Series) {
        let names = STATUSES.iter().map(ToString::to_string).chain(CLASSES.iter().map(ToString::to_string));
        for (name, counter) in names.zip(&series.statuses) {
            add_nonzero(&mut self.statuses, name, counter);
        }
        for (end, counter) in AttemptEnd::ALL.into_iter().zip(&series.attempts) {
            add_nonzero(&mut self.attempts, end, counter);
        }
        self.request_seconds.add(&series.request_seconds);
        self.first_token_seconds.add(&series.first_token_seconds);
        self.time_to_first_token.add(&series.time_to_first_token);
        self.time_per_output_token.add(&series.time_per_output_token);
        self.overhead_seconds.add(&series.overhead_seconds);
        self.queue_seconds.add(&series.queue_seconds);
        self.prompt_tokens += series.prompt_tokens.load(Relaxed);
        self.completion_tokens += series.completion_tokens.load(Relaxed);
    }
}

fn add_nonzero<K: Ord>(to: &mut BTreeMap<K, u64>, key: K, counter: &AtomicU64) {
    let count = counter.load(Relaxed);
    if count > 0 {
        *to.entry(key).or_default() += count;
    }
}

impl Metrics {
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self { shards: (0..workers.max(1)).map(|_| Shard::default()).collect() })
    }

    /// The series of a worker for a model and backend; to be kept by the caller.
    pub fn series(&self, worker: usize, model: &str, backend: &str) -> Arc<Series> {
        let Some(shard) = self.shards.get(worker % self.shards.len()) else { return Arc::new(Series::new()) };
        let mut series = shard.series.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key: Key = (model.into(), backend.into());
        if series.len() >= SERIES_LIMIT && !series.contains_key(&key) {
            key = ("other".into(), "other".into());
        }
        Arc::clone(series.entry(key).or_insert_with(|| Arc::new(Series::new())))
    }

    /// Everything, added up over the workers.
    pub fn totals(&self) -> BTreeMap<Key, SeriesTotal> {
        let mut totals: BTreeMap<Key, SeriesTotal> = BTreeMap::new();
        for shard in &self.shards {
            for (key, series) in shard.series.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                totals.entry(key.clone()).or_default().add(series);
            }
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_added_up() {
        let metrics = Metrics::new(2);
        for worker in 0..2 {
            let series = metrics.series(worker, "m", "gpu-a");
            series.request(200);
            series.request(418);
            series.attempt(AttemptEnd::Busy);
            series.request_seconds.observe(Duration::from_millis(20));
            series.request_seconds.observe(Duration::from_secs(900));
        }
        let totals = metrics.totals();
        let total = &totals[&("m".into(), "gpu-a".into())];
        assert_eq!(total.statuses, BTreeMap::from([("200".to_owned(), 2), ("4xx".to_owned(), 2)]));
        assert_eq!(total.attempts, BTreeMap::from([(AttemptEnd::Busy, 2)]));
        assert_eq!(total.request_seconds.count, 4);
        assert_eq!(total.request_seconds.buckets[1], (0.02, 2));
        assert_eq!(total.request_seconds.buckets.last(), Some(&(f64::INFINITY, 2)));
        assert!((total.request_seconds.sum_seconds - 1800.04).abs() < 1e-6);
    }

    #[test]
    fn histograms_are_added_up() {
        let metrics = Metrics::new(1);
        for (backend, millis) in [("a", 15), ("b", 900)] {
            metrics.series(0, "m", backend).request_seconds.observe(Duration::from_millis(millis));
        }
        let mut sum = HistogramTotal::default();
        metrics.totals().values().for_each(|total| sum.merge(&total.request_seconds));
        let seen: Vec<_> = sum.buckets.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!((sum.count, seen), (2, vec![&(0.02, 1), &(1.28, 1)]));
        assert!((sum.sum_seconds - 0.915).abs() < 1e-9);
    }

    #[test]
    fn label_sets_are_bounded() {
        let metrics = Metrics::new(1);
        for number in 0..SERIES_LIMIT + 10 {
            metrics.series(0, &number.to_string(), "b").request(200);
        }
        assert_eq!(metrics.totals().len(), SERIES_LIMIT + 1);
    }
}
