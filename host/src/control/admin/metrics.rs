//! `GET /metrics`: what workers counted, added up, and the gauges of fleet, queue and plugins.
//!
//! Invariants: `FAMILIES` is the whole list, and a sample carries the labels its family names there, in that
//! order; the table in `docs/metrics.md` says the same (a test compares).

mod gauges;
mod samples;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use self::gauges::Gauges;
use self::samples::*;
use super::View;
use crate::metrics::{HistogramTotal, SeriesTotal};

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Totals = BTreeMap<(Arc<str>, Arc<str>), SeriesTotal>;
type Write = fn(&Exposed, &mut Writer<'_>) -> fmt::Result;

/// The exposition in OpenMetrics text.
pub fn exposition(view: &View) -> String {
    let snapshot = Exposed { totals: view.shared.metrics.totals(), gauges: Gauges::of(view) };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut out = String::with_capacity(16 * 1024);
    // Writing to a string does not fail.
    let _ = text::encode(&mut out, &registry);
    out
}

/// Everything of one scrape.
#[derive(Debug)]
struct Exposed {
    totals: Totals,
    gauges: Gauges,
}

impl Exposed {
    /// Added up over backends.
    fn by_model(&self, of: fn(&SeriesTotal) -> &HistogramTotal) -> BTreeMap<&str, HistogramTotal> {
        let mut by_model: BTreeMap<&str, HistogramTotal> = BTreeMap::new();
        for ((model, _), total) in &self.totals {
            by_model.entry(model).or_default().merge(of(total));
        }
        by_model.retain(|_, total| total.count > 0);
        by_model
    }
}

/// One family: its name as the encoder takes it, its labels, what it means, and how its samples are written.
struct Family {
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    kind: MetricType,
    write: Write,
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str, write: Write) -> Family {
    Family { name, labels, help, kind: MetricType::Counter, write }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str, write: Write) -> Family {
    Family { name, labels, help, kind: MetricType::Gauge, write }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str, write: Write) -> Family {
    Family { name, labels, help, kind: MetricType::Histogram, write }
}

/// Every family. Counters get `_total` from the encoder.
const FAMILIES: &[Family] = &[
    counter(
        "vision_proxy_requests",
        &["model", "backend", "status"],
        "Requests answered, by the status the client read (499: it left first)",
        requests,
    ),
    histogram(
        "vision_proxy_request_seconds",
        &["model", "backend"],
        "Whole requests, from the head's arrival to the last byte sent",
        |all, to| to.histograms(all, |total| &total.request_seconds),
    ),
    histogram(
        "gen_ai_server_request_duration_seconds",
        &["gen_ai_request_model"],
        "The same by model alone, under its name in the GenAI semantic conventions",
        |all, to| to.by_model(all, |total| &total.request_seconds),
    ),
    histogram(
        "gen_ai_server_time_to_first_token_seconds",
        &["gen_ai_request_model"],
        "From the head's arrival to the first byte of a stream that succeeded, under its name in the GenAI semantic conventions",
        |all, to| to.by_model(all, |total| &total.time_to_first_token),
    ),
    histogram(
        "gen_ai_server_time_per_output_token_seconds",
        &["gen_ai_request_model"],
        "Time for each token after the first, of streams that tell how many they had, under its name in the GenAI semantic conventions",
        |all, to| to.by_model(all, |total| &total.time_per_output_token),
    ),
    histogram(
        "vision_proxy_first_token_seconds",
        &["model", "backend"],
        "From the head's arrival to the first byte of the answer's body, streamed or not",
        |all, to| to.histograms(all, |total| &total.first_token_seconds),
    ),
    histogram(
        "vision_proxy_overhead_seconds",
        &["model", "backend"],
        "Time the proxy itself added, without waiting in line and for backends",
        |all, to| to.histograms(all, |total| &total.overhead_seconds),
    ),
    counter("vision_proxy_tokens", &["model", "kind"], "Tokens, as the answers' usage counts them", tokens),
    counter(
        "vision_proxy_attempts",
        &["model", "backend", "reason"],
        "Attempts on backends, by how they ended",
        attempts,
    ),
    gauge("vision_proxy_queue_waiting", &[], "Requests that wait in line now", |all, to| {
        to.number(&[], all.gauges.queue_waiting as f64)
    }),
    gauge("vision_proxy_queue_size", &[], "Requests that may wait in line", |all, to| {
        to.number(&[], all.gauges.queue_size as f64)
    }),
    histogram("vision_proxy_queue_seconds", &["model"], "Time requests waited in line", |all, to| {
        to.by_model(all, |total| &total.queue_seconds)
    }),
    gauge("vision_proxy_client_connections", &[], "Connections from clients open now", |all, to| {
        to.number(&[], all.gauges.client_connections as f64)
    }),
    gauge(
        "vision_proxy_bodies_in_flight_bytes",
        &[],
        "Bytes of request bodies held now, those still coming included",
        |all, to| to.number(&[], all.gauges.bodies_bytes as f64),
    ),
    counter(
        "vision_proxy_key_refusals",
        &["key", "reason"],
        "Requests refused for their API key, or for a limit of it",
        |all, to| {
            let mut refusals = all.gauges.key_refusals.iter();
            refusals.try_for_each(|(key, reason, count)| to.count(&[key, reason], *count))
        },
    ),
    gauge("vision_proxy_backend_state", &["backend", "state"], "1 for the state a backend is in", backend_state),
    gauge("vision_proxy_backend_in_flight", &["backend"], "Requests of this proxy at the backend now", |all, to| {
        to.backends(all, |backend| Some(f64::from(backend.in_flight)))
    }),
    gauge("vision_proxy_backend_slots", &["backend"], "Requests the backend may hold now", |all, to| {
        to.backends(all, |backend| Some(f64::from(backend.slots)))
    }),
    gauge(
        "vision_proxy_backend_reported_running",
        &["backend"],
        "Requests that run inside the engine, whosever they are, as it says",
        |all, to| to.backends(all, |backend| backend.running.map(f64::from)),
    ),
    gauge(
        "vision_proxy_backend_reported_waiting",
        &["backend"],
        "Requests that wait inside the engine, as it says",
        |all, to| to.backends(all, |backend| backend.waiting.map(f64::from)),
    ),
    gauge(
        "vision_proxy_backend_kv_cache_used",
        &["backend"],
        "KV-cache in use, 0 to 1, as the engine says",
        |all, to| to.backends(all, |backend| backend.kv_cache_used),
    ),
    gauge(
        "vision_proxy_backend_ejected",
        &["backend"],
        "1 while failures of real traffic keep the backend out of use, else 0",
        |all, to| to.backends(all, |backend| Some(one_if(backend.is_ejected))),
    ),
    gauge(
        "vision_proxy_backend_tls_insecure",
        &["backend"],
        "1 where the certificate of a backend at an https:// address is not verified (tls.insecure), else 0",
        |all, to| to.backends(all, |backend| backend.is_insecure.map(one_if)),
    ),
    counter(
        "vision_proxy_backend_failures",
        &["backend"],
        "Failures of real traffic that count against the backend, answers that broke off included",
        backend_failures,
    ),
    gauge(
        "vision_proxy_fleet_suspect",
        &[],
        "1 while failures of real traffic speak against every backend of some model that is up, so that they are used all the same; else 0",
        |all, to| to.number(&[], one_if(all.gauges.is_suspect)),
    ),
    counter("vision_proxy_plugin_calls", &["plugin"], "Calls of the plugins in use", plugin_calls),
    histogram("vision_proxy_plugin_call_seconds", &["plugin"], "Plugin calls; one in 64 is timed", plugin_times),
    counter(
        "vision_proxy_plugin_faults",
        &["plugin", "reason"],
        "Plugin calls that failed and were answered by the host",
        plugin_faults,
    ),
    counter("vision_proxy_plugin_reloads", &["plugin", "result"], "Plugin files swapped in or refused", plugin_reloads),
    counter(
        "vision_proxy_plugin_refusals",
        &["plugin", "stage"],
        "Plugin files refused, by how far they came",
        plugin_refusals,
    ),
    counter(
        "vision_proxy_config_reloads",
        &["result"],
        "Configurations loaded or refused, the first included",
        config_reloads,
    ),
    gauge(
        "vision_proxy_config_current",
        &[],
        "1 while the newest configuration is in force, 0 while it is refused or waits for a plugin that is being compiled",
        |all, to| to.number(&[], one_if(all.gauges.is_config_current)),
    ),
    counter(
        "vision_proxy_log_lines_dropped",
        &[],
        "Lines of the log that were dropped because nobody took them",
        |all, to| to.count(&[], all.gauges.log_lines_dropped),
    ),
    gauge(
        "vision_proxy_tls_cert_expiry_time_seconds",
        &[],
        "When the listener's certificate expires, since the epoch",
        |all, to| all.gauges.cert_not_after.map_or(Ok(()), |at| to.time(at)),
    ),
    gauge("vision_proxy_build_info", &["version"], "Always 1; its label says what runs", |_, to| {
        to.number(&[env!("CARGO_PKG_VERSION")], 1.0)
    }),
    gauge("process_start_time_seconds", &[], "When the process started, since the epoch", |all, to| {
        to.time(all.gauges.started_at)
    }),
];

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in FAMILIES {
            // The encoder appends the unit to the name.
            let (name, unit) = match family.name.strip_suffix("_seconds") {
                Some(name) => (name, Some(Unit::Seconds)),
                None => (family.name, None),
            };
            let metric = encoder.encode_descriptor(name, family.help, unit.as_ref(), family.kind)?;
            (family.write)(self, &mut Writer { metric, labels: family.labels })?;
        }
        Ok(())
    }
}
